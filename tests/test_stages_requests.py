"""Tests of what a person has asked of a run."""

from __future__ import annotations

from pathlib import Path

import pytest

from dreambooth_core.job.commands import Command, CommandReader, send
from dreambooth_core.stages.requests import Requests, StopRequested


@pytest.fixture
def requests(tmp_path: Path) -> Requests:
    """Requests read from a run folder."""
    return Requests(CommandReader(tmp_path / "commands.jsonl"))


def test_a_request_stays_open_until_it_is_taken(requests: Requests, tmp_path: Path) -> None:
    requests.look()
    assert not requests.wants("save")
    send(tmp_path, Command("save"))
    send(tmp_path, Command("save"))
    requests.look()
    requests.look()
    assert requests.wants("save")
    assert requests.take("save")
    assert not requests.take("save")
    assert not requests.wants("save")


@pytest.mark.parametrize("name", ["stop", "stop_after_epoch"])
def test_a_stop_ends_preparation(requests: Requests, tmp_path: Path, name: str) -> None:
    requests.stop_if_asked()
    send(tmp_path, Command(name))
    with pytest.raises(StopRequested):
        requests.stop_if_asked()


def test_other_requests_let_preparation_go_on(requests: Requests, tmp_path: Path) -> None:
    send(tmp_path, Command("sample"))
    requests.stop_if_asked()
    assert requests.wants("sample")
