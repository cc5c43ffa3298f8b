from __future__ import annotations

import errno
from typing import Any

import pytest

from dreambooth_core.errors import InputError
from dreambooth_core.job.memory_errors import (
    GPU,
    RAM,
    Place,
    Shortage,
    during,
    place_of,
    shortage_of,
)

GB, MB = 2**30, 2**20


class OutOfMemoryError(RuntimeError):
    """Named as torch names it."""


class SafetensorError(Exception):
    """Named as safetensors names it."""


@pytest.mark.parametrize(
    ("error", "shortage"),
    [
        (
            OutOfMemoryError(
                "CUDA out of memory. Tried to allocate 20.00 MiB. GPU 0 has a total capacity of"
                " 79.10 GiB of which 1.00 GiB is free. Process 7 has 3.00 GiB memory in use."
                " Including non-PyTorch memory, this process has 2.00 GiB memory in use. 2.50 GiB"
                " allowed; Of the allocated memory 1.50 GiB is allocated by PyTorch"
            ),
            Shortage(GPU, 20 * MB, 2 * GB, 5 * GB // 2),
        ),
        (
            OutOfMemoryError(
                "CUDA out of memory. Tried to allocate 1.00 GiB (GPU 0; 23.69 GiB total capacity;"
                " 20.00 GiB already allocated; 0 bytes free)"
            ),
            Shortage(GPU, GB),
        ),
        (RuntimeError("CUDA error: out of memory\nCompile with `TORCH_USE_CUDA_DSA`"), GPU),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate`"), GPU),
        (
            RuntimeError(
                "MPS backend out of memory (MPS allocated: 17.00 GB, other allocations: 1.00 GB,"
                " max allowed: 18.00 GB). Tried to allocate 512.00 MB on private pool."
            ),
            Shortage(GPU, 512 * MB, 0, 18 * GB),
        ),
        (RuntimeError("XPU out of memory, please use `empty_cache`"), GPU),
        (
            RuntimeError(
                "Could not allocate tensor with 167772160 bytes. There is not enough GPU video"
                " memory available!"
            ),
            Shortage(GPU, 167772160),
        ),
        (
            RuntimeError(
                "[enforce fail at alloc_cpu.cpp:127] . DefaultCPUAllocator: not enough memory: you"
                " tried to allocate 4194304 bytes."
            ),
            Shortage(RAM, 4 * MB),
        ),
        (SafetensorError("Error: Cannot allocate memory (os error 12)"), RAM),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), RAM),
        (MemoryError(), RAM),
        (OSError(errno.ENOSPC, "No space left on device"), None),
        (RuntimeError("CUDA error: device-side assert triggered"), None),
        (RuntimeError("a bug"), None),
        (InputError("CUDA out of memory"), None),
    ],
)
def test_every_librarys_words(error: BaseException, shortage: Any) -> None:
    wanted = Shortage(shortage) if isinstance(shortage, str) else shortage
    assert shortage_of(error) == wanted


def test_what_this_machines_libraries_really_raise() -> None:
    torch, numpy = pytest.importorskip("torch"), pytest.importorskip("numpy")
    asked = 2**60
    for take in (
        lambda: torch.empty(asked, dtype=torch.uint8),
        lambda: numpy.ones(asked, dtype="uint8"),
        lambda: bytearray(asked),
    ):
        with pytest.raises((RuntimeError, MemoryError)) as caught:
            take()
        found = shortage_of(caught.value)
        assert found is not None and found.device == RAM
        assert found.asked in (0, asked, pytest.approx(asked, rel=0.01)), str(caught.value)


def test_what_a_gpu_really_raises() -> None:
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        pytest.skip("needs a GPU")
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**45, dtype=torch.uint8, device="cuda")
    found = shortage_of(caught.value)
    assert found is not None and found.device == GPU
    assert found.asked == 2**45 and 0 < found.there < 2**45


def test_in_words() -> None:
    assert str(Shortage(GPU, 2 * GB, 7 * GB)) == "2.0 GB asked for, 7.0 GB in use"
    assert str(Shortage(RAM, 1000)) == "0.1 MB asked for"
    assert str(Shortage(RAM)) == ""


def test_where_it_came_from() -> None:
    update = during("", changes_weights=True)
    with pytest.raises(MemoryError) as caught, during("outer"), during("inner"), update:
        raise MemoryError
    assert place_of(caught.value) == Place("inner", changes_weights=True)
    with pytest.raises(KeyError) as other, during("outer"):
        raise KeyError("x")
    assert place_of(other.value) == Place()
    with pytest.raises(RuntimeError) as bug, during("outer"):
        raise RuntimeError("a bug")
    assert place_of(bug.value) == Place()
