"""The package of the 8-bit optimizers: which version, where, when, and not without a GPU."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from dreambooth_core.config.schema import (
    OPTIMIZER_CHOICES,
    Concept,
    SampleConfig,
    TrainConfig,
)
from dreambooth_core.config.sections.optimizer import EIGHT_BIT_OPTIMIZERS
from dreambooth_core.errors import ConfigError, JobFailedError
from dreambooth_core.host import conductor as conducting
from dreambooth_core.host.conductor import Conductor
from dreambooth_core.host.standalone import StandaloneHost
from dreambooth_core.job import eight_bit
from dreambooth_core.job.eight_bit import (
    eight_bit_overlay,
    require_gpu,
    wants_eight_bit,
    with_eight_bit,
)
from dreambooth_core.job.events import JobFailed
from dreambooth_core.job.interpreter import PACKAGE_ROOT, WorkerPython
from dreambooth_core.job.overlay import Overlay, host_overlay
from dreambooth_core.job.overlay_state import Facts
from dreambooth_core.job.workspace import ModelInfo, Workspace
from tests.host_fixtures import PATIENCE
from tests.noise_pictures import write_pictures
from tests.wheels import make_wheel


def train_config(name: str, **more: object) -> TrainConfig:
    """A training with an optimizer."""
    config = TrainConfig(model="ada", **more)  # type: ignore[arg-type]
    config.optimizer.name = name
    return config


@pytest.mark.parametrize("kind", ["train", "dry-run"])
def test_only_trainings_with_an_8_bit_optimizer_want_it(kind: str) -> None:
    wanting = [name for name in OPTIMIZER_CHOICES if wants_eight_bit(kind, train_config(name))]
    assert wanting == list(EIGHT_BIT_OPTIMIZERS)


def test_jobs_that_make_no_step_do_without_it() -> None:
    assert not wants_eight_bit("class-images", train_config("adamw_8bit"))
    assert not wants_eight_bit("sample", SampleConfig(model="ada"))


@pytest.mark.parametrize(
    ("torch", "file", "version"),
    [
        ("2.13.0+cu130", "eight-bit.txt", "0.50.2"),
        ("2.4.0", "eight-bit.txt", "0.50.2"),
        ("2.3.1+cu121", "eight-bit-old-torch.txt", "0.45.5"),
        ("2.1.2", "eight-bit-old-torch.txt", "0.45.5"),
    ],
)
def test_the_version_fits_the_torch(
    monkeypatch: pytest.MonkeyPatch, torch: str, file: str, version: str
) -> None:
    monkeypatch.setattr(
        eight_bit, "read_facts", lambda python: Facts(torch, (3, 10), "linux", "x86_64")
    )
    overlay = eight_bit_overlay("python")
    assert overlay.requirements == PACKAGE_ROOT / "requirements" / file
    text = overlay.requirements.read_text(encoding="utf-8")
    assert f"bitsandbytes=={version} " in text
    assert len(re.findall(r"--hash=sha256:[0-9a-f]{64}", text)) >= 2


def test_it_lies_apart_and_neither_removes_the_other() -> None:
    ours, main = eight_bit_overlay(), host_overlay()
    assert ours.root.parent == main.root
    assert not re.fullmatch("[0-9a-f]{12}", ours.root.name)
    assert ours.test_word == "--self-test-eight-bit" != main.test_word


def says(folder: Path, word: str) -> str:
    """An interpreter that says a word, whatever it is asked."""
    path = folder / "python.py"
    path.write_text(f"#!{sys.executable}\nprint({word!r})\n")
    path.chmod(0o755)
    return str(path)


@pytest.mark.skipif(sys.platform == "win32", reason="a script stands for the interpreter")
def test_a_gpu_is_asked_for_in_the_python_of_the_workers(tmp_path: Path) -> None:
    require_gpu(WorkerPython(says(tmp_path, "True")))
    with pytest.raises(ConfigError, match="torch sees none here") as caught:
        require_gpu(WorkerPython(says(tmp_path, "False")))
    assert caught.value.field == "optimizer.name"
    assert "Choose adamw or lion" in str(caught.value)


class Asked:
    """Notes whether the GPU was looked for, and answers."""

    def __init__(self, refused: bool = False) -> None:
        self.times, self.refused = 0, refused

    def __call__(self, worker: WorkerPython) -> None:
        self.times += 1
        if self.refused:
            raise JobFailedError("no GPU")


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Overlay:
    """A package that is unzipped in no time, in place of the large one."""
    wheels = tmp_path / "wheels"
    for name, value in {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(wheels)}.items():
        monkeypatch.setenv(name, value)
    requirements = tmp_path / "eight-bit.txt"
    requirements.write_text(make_wheel(wheels, "tiny", "1.0", {"tiny/__init__.py": ""}))
    overlay = Overlay(tmp_path / "packages", requirements, sys.executable)
    monkeypatch.setattr(eight_bit, "eight_bit_overlay", lambda python: overlay)
    monkeypatch.setattr(Overlay, "_self_test", lambda self, folder: None)
    return overlay


def test_it_is_installed_once_and_put_behind_the_trainer_s_packages(
    small: Overlay, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    asked = Asked()
    monkeypatch.setattr(eight_bit, "require_gpu", asked)
    worker = WorkerPython(paths=(tmp_path / "main",), device_id="1")
    told: list[str] = []
    made = with_eight_bit(worker, lambda text, done, total: told.append(text))
    assert made.paths == (tmp_path / "main", small.folder)
    assert made.device_id == "1"
    assert (small.folder / "tiny" / "__init__.py").is_file()
    assert told
    told.clear()
    assert with_eight_bit(worker, lambda text, done, total: told.append(text)) == made
    assert (told, asked.times) == ([], 1)


def test_nothing_is_fetched_where_there_is_no_gpu(
    small: Overlay, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(eight_bit, "require_gpu", Asked(refused=True))
    with pytest.raises(JobFailedError, match="no GPU"):
        with_eight_bit(WorkerPython(), lambda text, done, total: pytest.fail(text))
    assert not small.root.exists()


@pytest.mark.parametrize(("name", "expected"), [("adamw_8bit", ("packages",)), ("adamw", ())])
def test_the_conductor_brings_it_to_the_trainings_that_want_it(
    workspace: Workspace,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    expected: tuple[str, ...],
) -> None:
    seen: list[tuple[Path, ...]] = []

    def begin(workspace: Workspace, job: object, worker: WorkerPython) -> None:
        seen.append(worker.paths)
        raise JobFailedError("That is enough.")

    def with_package(worker: WorkerPython, report: Callable[..., None]) -> WorkerPython:
        return WorkerPython(worker.python, (*worker.paths, Path("packages")))

    monkeypatch.setattr(conducting, "begin", begin)
    monkeypatch.setattr(conducting, "with_eight_bit", with_package)
    workspace.model("ada").write_info(ModelInfo("ada", "sd1", ""))
    pictures = write_pictures(tmp_path / "pictures", 1)
    concept = Concept(instance_folder=str(pictures))
    ours = Conductor(StandaloneHost(workspace))
    final = ours.start("train", train_config(name, concepts=[concept])).wait()
    assert isinstance(final, JobFailed)
    assert final.message == "That is enough."
    assert ours.wait(PATIENCE)
    assert seen == [tuple(map(Path, expected))]
