"""The tensors that are read from files, counted, and how many of them are held at once."""

from __future__ import annotations

import weakref

import pytest
import torch

from dreambooth_core.checkpoint.file import CheckpointReader


class ReadTensors:
    """What every CheckpointReader reads from now on."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.most_held = 0
        self._read: list[weakref.ref[torch.Tensor]] = []
        real = CheckpointReader.read

        def counted(reader: CheckpointReader, key: str) -> torch.Tensor:
            tensor = real(reader, key)
            self._read.append(weakref.ref(tensor))
            self.most_held = max(self.most_held, sum(each() is not None for each in self._read))
            return tensor

        monkeypatch.setattr(CheckpointReader, "read", counted)

    @property
    def count(self) -> int:
        """How many were read."""
        return len(self._read)
