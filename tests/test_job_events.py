from __future__ import annotations

import json
import math
import threading
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dreambooth_core.errors import InputError, NonFiniteError
from dreambooth_core.job.commands import COMMANDS, Command, CommandReader, send
from dreambooth_core.job.events import (
    EVENT_TYPES,
    CheckpointSaved,
    ClassImagesPlanned,
    Event,
    EventWriter,
    FilesPlanned,
    Finding,
    ImagesPlanned,
    JobFailed,
    JobFinished,
    JobStarted,
    JobStopped,
    LoraSaved,
    Notice,
    PhaseMemory,
    PhaseProgress,
    PhaseStarted,
    PlanMade,
    PlannedFile,
    PlannedImage,
    Preflight,
    Resumed,
    SampleSaved,
    StateSaved,
    StepDone,
    UnknownEvent,
    event_name,
    from_json,
    read_events,
    to_json,
)

STEP = StepDone(3, 10, 0, 0.5, 0.4, None, {"unet": 1e-6}, 1.5, 2.0, 3.5, 100.0)
ALL = [
    JobStarted("train", "ada", "run", 42, "1.0"),
    Resumed("the run before", 4),
    PhaseStarted("cache", 10, "images"),
    PhaseProgress("cache", 3, 10),
    PlanMade(["one", "two Ä\nwith a break"]),
    ImagesPlanned([PlannedImage("a.png", "class", 1, "a <dog>", "512x640", 3, exists=False)]),
    ClassImagesPlanned(1, 2, 12, 88, "class_images/key"),
    FilesPlanned([PlannedFile("a.safetensors", 10, "at the end", kept=False)], 20, 30),
    Preflight(
        [Finding("warning", "a.png is blurry", "Take another.", "images.resolution")],
        [PhaseMemory("training", 3, 4)],
        *("NVIDIA", 5, 6),
    ),
    STEP,
    SampleSaved("a.png", "a dog", 7, 3),
    CheckpointSaved("a.safetensors", 3, 0, "ab", 100),
    LoraSaved("a.safetensors", 3, 0, "ab", 100),
    StateSaved("state", 3),
    Notice("warning", "careful"),
    JobFinished({"step": 3, "paths": ["a"]}),
    JobStopped(3, {"stopped": True}),
    JobFailed("no", "do", "a.b", "ValueError", 2),
]


def test_every_event_is_tried() -> None:
    assert {type(event) for event in ALL} == set(EVENT_TYPES)


def test_names() -> None:
    assert event_name(StepDone) == "step_done"
    assert event_name(JobFailed) == "job_failed"


def test_there_and_back(tmp_path: Path) -> None:
    writer = EventWriter(tmp_path / "events.jsonl")
    for event in ALL:
        writer.emit(event)
    events, offset = read_events(writer.path)
    assert events == ALL
    assert [event.time > 1e9 for event in events] == [True] * len(ALL)
    assert offset == writer.path.stat().st_size
    assert read_events(writer.path, offset) == ([], offset)
    lines = writer.path.read_text(encoding="utf-8").splitlines()
    assert len(lines) == len(ALL)
    assert list(json.loads(lines[4]))[:2] == ["time", "event"]


def test_a_given_time_is_kept(tmp_path: Path) -> None:
    writer = EventWriter(tmp_path / "events.jsonl")
    writer.emit(Notice("info", "x", time=5.0))
    assert read_events(writer.path)[0][0].time == 5.0


def test_a_torn_last_line_waits_for_its_end(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    line = json.dumps(to_json(STEP))
    path.write_text(line + "\n" + line[:20])
    events, offset = read_events(path)
    assert events == [STEP]
    assert offset == len(line) + 1
    with path.open("a") as file:
        file.write(line[20:] + "\n")
    assert read_events(path, offset)[0] == [STEP]


def test_a_line_torn_by_a_crash_is_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    path.write_bytes(b'{"event": "step\n\xff\xfe\n[1]\n\n')
    EventWriter(path).emit(STEP)
    assert read_events(path)[0] == [STEP]


def test_no_file_is_no_events(tmp_path: Path) -> None:
    assert read_events(tmp_path / "none") == ([], 0)


@pytest.mark.parametrize(
    "line",
    [
        {"event": "from_the_future", "time": 3.0, "x": 1},
        {"event": "step_done", "time": 3.0, "new_field": 1},
    ],
)
def test_what_this_version_does_not_know_is_kept(line: dict[str, object]) -> None:
    event = from_json(line)
    assert isinstance(event, UnknownEvent)
    assert event.event == line["event"]
    assert to_json(event) == line


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_no_nan_is_written(tmp_path: Path, value: float) -> None:
    writer = EventWriter(tmp_path / "events.jsonl")
    with pytest.raises(NonFiniteError, match="loss is"):
        writer.emit(StepDone(1, 2, 0, value, 0.0))
    with pytest.raises(NonFiniteError, match=r"learning_rates\.unet"):
        writer.emit(StepDone(1, 2, 0, 0.0, 0.0, None, {"unet": value}))
    assert not writer.path.exists()


@settings(max_examples=50, deadline=None)
@given(st.text(), st.text())
def test_any_text_survives(tmp_path_factory: pytest.TempPathFactory, a: str, b: str) -> None:
    path = tmp_path_factory.mktemp("events") / "events.jsonl"
    EventWriter(path).emit(Notice(a, b))
    assert read_events(path)[0] == [Notice(a, b)]


def test_writers_at_the_same_time_do_not_mix_lines(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"

    def write(number: int) -> None:
        for step in range(50):
            EventWriter(path).emit(Notice("info", f"{number}-{step}-" + "x" * 500))

    threads = [threading.Thread(target=write, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    events, _ = read_events(path)
    assert len(events) == 200
    assert all(isinstance(event, Notice) for event in events)


def test_events_cannot_be_changed() -> None:
    event: Event = STEP
    with pytest.raises(AttributeError):
        event.time = 3.0  # type: ignore[misc]


def test_commands_arrive_once_and_in_order(tmp_path: Path) -> None:
    reader = CommandReader(tmp_path / "commands.jsonl")
    assert reader.poll() == []
    send(tmp_path, Command("save"))
    send(tmp_path, Command("sample", {"prompts": ["a"]}))
    assert reader.poll() == [Command("save"), Command("sample", {"prompts": ["a"]})]
    assert reader.poll() == []
    send(tmp_path, Command("stop"))
    assert [command.name for command in reader.poll()] == ["stop"]


def test_commands_are_those_that_are_known(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no command 'explode'"):
        send(tmp_path, Command("explode"))
    (tmp_path / "commands.jsonl").write_text('{"command": "later"}\n{"x": 1}\n{"command": "stop"')
    assert CommandReader(tmp_path / "commands.jsonl").poll() == []
    assert set(COMMANDS) == {"stop", "stop_after_epoch", "save", "sample"}


def test_half_a_character_is_told_as_a_question_mark(tmp_path: Path) -> None:
    """A file's name may hold one; a line with it could be shown nowhere."""
    EventWriter(tmp_path / "e").emit(Notice("info", "x\udcfcy \U0001f600 ü"))
    ((event,), _) = read_events(tmp_path / "e")
    assert isinstance(event, Notice) and event.message == "x?y \U0001f600 ü"
    (tmp_path / "e").write_bytes(b'{"event": "notice", "level": "info", "message": "\\ud800"}\n')
    assert read_events(tmp_path / "e")[0] == []


@pytest.mark.parametrize(
    "line",
    [
        {"event": "step_done", "time": 1, "step": "3", "total_steps": 4, "epoch": 0},
        {"event": "phase_started", "time": 1, "phase": ["a"]},
        {"event": "notice", "time": "now", "level": "info", "message": 3},
        {"event": "plan_made", "lines": [1]},
        {"event": "images_planned", "rows": [{"file": 1}]},
        {"event": ["notice"], "level": "info", "message": "x"},
    ],
)
def test_values_of_other_types_make_no_event(tmp_path: Path, line: dict[str, Any]) -> None:
    """The page would fail at them much later."""
    (tmp_path / "e").write_text(json.dumps(line) + "\n")
    ((event,), _) = read_events(tmp_path / "e")
    assert isinstance(event, UnknownEvent)
