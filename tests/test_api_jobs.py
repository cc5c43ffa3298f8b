from __future__ import annotations

import errno
from pathlib import Path

import pytest

from dreambooth_core.api import progress
from dreambooth_core.api.answers import os_error, status_of
from dreambooth_core.config.schema import JOB_CONFIGS, CreateConfig, SampleConfig, TrainConfig
from dreambooth_core.errors import FullDiskError, OverlayError
from dreambooth_core.job.events import (
    JobFailed,
    JobFinished,
    JobStopped,
    Notice,
    SampleSaved,
    StepDone,
)
from dreambooth_core.job.history import past_runs
from dreambooth_core.job.runs import events_path, job_path, log_path
from tests.api_standin import Bench, bench, emit, make_model, put

__all__ = ["bench"]

SAMPLE = {"kind": "sample", "config": {"model": "ada", "prompts": ["a dog"]}}


def test_a_job_is_started_listed_and_shown(bench: Bench) -> None:
    answer = bench.ask("POST", "/jobs", 201, json=SAMPLE)
    started = answer.json()
    assert started["url"] == answer.headers["location"] == f"/dreambooth/jobs/{started['id']}"
    assert (started["kind"], started["state"]) == ("sample", "starting")
    assert bench.conductor.started == [("sample", SampleConfig(model="ada", prompts=["a dog"]))]

    (listed,) = bench.get("/jobs")["jobs"]
    assert listed["id"] == started["id"] and listed["url"] == started["url"]
    assert (listed["kind"], listed["model"], listed["state"]) == ("sample", "ada", "finished")
    assert listed["created"] > 0

    shown = bench.client.get(started["url"]).json()
    assert shown["state"] == "finished" and shown["failure"] is None
    assert shown["config"]["prompts"] == ["a dog"]
    assert (shown["view"]["run_id"], shown["view"]["state"]) == (started["id"], "finished")


def test_every_kind_of_job_can_be_asked_for(bench: Bench) -> None:
    for kind in JOB_CONFIGS:
        problems = bench.refusal("POST", "/jobs", 422, json={"kind": kind, "config": {}})
        assert problems["problems"][0]["message"] == "must be given."
        assert problems["field"] in ("model", "name")
    assert not bench.conductor.started


def test_a_create_job_takes_a_checkpoint_from_anywhere(bench: Bench, tmp_path: Path) -> None:
    content = {"name": "new", "source": str(tmp_path / "none.safetensors")}
    problem = bench.refusal("POST", "/jobs", 422, json={"kind": "create", "config": content})
    assert problem["field"] == "source"
    assert "none.safetensors" in problem["message"]
    assert CreateConfig(**content).source.startswith(str(tmp_path))


@pytest.mark.parametrize(
    ("body", "field", "words"),
    [
        ({}, "kind", "missing"),
        ({"kind": "dance"}, "kind", "'dance'"),
        ({"kind": 7}, "kind", "7"),
        ({"kind": "sample"}, "config", "missing"),
        ({"kind": "sample", "config": []}, "", "group of settings"),
        ({"kind": "sample", "config": {"model": "ada", "prompt": "x"}}, "prompt", "not a setting"),
        ({"kind": "sample", "config": {"model": "ada", "prompts": "x"}}, "prompts", "list"),
        ({"kind": "sample", "config": {"model": "ada", "steps": "x"}}, "steps", "whole number"),
        ({"kind": "sample", "config": {"model": "ada", "steps": 0}}, "steps", "is 0"),
        ({"kind": "sample", "config": {"model": "../up", "prompts": ["x"]}}, "model", "slash"),
        ({"kind": "sample", "config": {"model": "con", "prompts": ["x"]}}, "model", "Windows"),
        ({"kind": "sample", "config": {"model": "eve", "prompts": ["x"]}}, "model", "no model"),
        ({"kind": "sample", "config": {}, "model": "ada"}, "model", "both"),
        ({"kind": "sample", "cfg": {}}, "cfg", "not known"),
        ({"kind": "sample", "model": "ada"}, "config", "does not use"),
    ],
)
def test_bad_settings_are_named(bench: Bench, body: object, field: str, words: str) -> None:
    problem = bench.refusal("POST", "/jobs", 422, json=body)
    assert problem["field"] == field
    assert words in problem["message"]
    assert not bench.conductor.started


def test_every_problem_is_told_at_once(bench: Bench) -> None:
    config = {"model": "ada", "prompts": ["x"], "steps": 0, "cfg_scale": 99, "sampler": "dart"}
    problem = bench.refusal("POST", "/jobs", 422, json={"kind": "sample", "config": config})
    assert {p["field"] for p in problem["problems"]} == {"steps", "cfg_scale", "sampler"}
    remedies = {p["field"]: p["remedy"] for p in problem["problems"]}
    assert "dpm++_2m" in remedies["sampler"]


def test_a_second_job_is_refused(bench: Bench) -> None:
    bench.conductor.script = None
    first = bench.post("/jobs", SAMPLE, 201)
    problem = bench.refusal("POST", "/jobs", 409, json=SAMPLE)
    assert first["id"] in problem["message"] and problem["remedy"]
    bench.conductor.end(JobStopped(3, {"stopped": True}))
    bench.conductor.script = lambda job: [JobFinished({})]
    bench.post("/jobs", SAMPLE, 201)
    assert [job["state"] for job in bench.get("/jobs")["jobs"]] == ["finished", "stopped"]


def test_a_trainer_that_cannot_be_set_up_is_told(bench: Bench) -> None:
    bench.conductor.refusal = OverlayError("Torch 1.0 is too old.", remedy="Use 2.1.")
    problem = bench.refusal("POST", "/jobs", 503, json=SAMPLE)
    assert (problem["message"], problem["remedy"]) == ("Torch 1.0 is too old.", "Use 2.1.")


def test_training_starts_with_the_settings_kept_for_the_model(bench: Bench, tmp_path: Path) -> None:
    put(tmp_path / "dog" / "one.png")
    settings = {
        "intervals": {"epochs": 7},
        "concepts": [{"instance_folder": str(tmp_path / "dog"), "instance_prompt": "a zwx dog"}],
    }
    bench.ask("PUT", "/models/ada/settings", json=settings)
    bench.post("/jobs", {"kind": "train", "model": "ada"}, 201)
    ((kind, config),) = bench.conductor.started
    assert kind == "train" and isinstance(config, TrainConfig)
    assert config.intervals.epochs == 7
    assert config.concepts[0].instance_prompt == "a zwx dog"


def test_the_list_is_narrowed_and_newest_first(bench: Bench) -> None:
    make_model(bench.workspace, "eve")
    ids = []
    for model in ("ada", "eve", "ada"):
        config = {"model": model, "prompts": ["x"]}
        ids.append(bench.post("/jobs", {"kind": "sample", "config": config}, 201)["id"])

    def listed(query: str) -> list[str]:
        return [job["id"] for job in bench.get(f"/jobs?{query}")["jobs"]]

    assert listed("") == ids[::-1]
    assert listed("model=eve") == [ids[1]]
    assert listed("limit=1") == [ids[2]]
    assert listed("kind=sample&state=finished&limit=2") == [ids[2], ids[1]]
    assert listed("state=failed") == [] and listed("kind=train") == []
    for limit in ("0", "1001", "x", "1.5", "nan"):
        assert bench.refusal("GET", f"/jobs?limit={limit}", 422)["field"] == "limit"


def test_a_running_job_says_how_far_it_is(bench: Bench) -> None:
    bench.conductor.script = None
    job_id = bench.post("/jobs", SAMPLE, 201)["id"]
    job = bench.conductor.job()
    emit(job, StepDone(3, 10, 0, 0.5, 0.5, learning_rates={"unet": 1e-6}, steps_per_second=2.0))
    emit(job, SampleSaved("a.png", "a dog", 5, 3))
    bench.conductor.doing = "Installing the trainer: 3 of 17"
    shown = bench.get(f"/jobs/{job_id}")
    assert shown["state"] == "starting" and shown["preparing"].endswith("3 of 17")
    view = shown["view"]
    assert (view["step"], view["total_steps"], view["loss"]) == (3, 10, 0.5)
    assert view["curves"]["loss_instance"] == [[3, 0.5]]
    assert view["samples"][0]["prompt"] == "a dog"
    emit(job, StepDone(4, 10, 0, 0.25, 0.25))
    assert bench.get(f"/jobs/{job_id}")["view"]["loss"] == 0.25


def test_a_failure_is_told_in_its_words(bench: Bench) -> None:
    bench.conductor.script = lambda job: [JobFailed("Memory ran out.", "Use less.", "batch", "X")]
    job_id = bench.post("/jobs", SAMPLE, 201)["id"]
    shown = bench.get(f"/jobs/{job_id}")
    assert shown["state"] == "failed"
    failure = shown["failure"]
    assert (failure["message"], failure["remedy"]) == ("Memory ran out.", "Use less.")
    assert (failure["field"], failure["error"]) == ("batch", "X")


@pytest.mark.parametrize("text", ["{", "[]", '{"config": []}', '{"config": 3, "kind": ["x"]}'])
def test_a_job_whose_file_is_damaged_does_not_hide_the_others(bench: Bench, text: str) -> None:
    damaged = bench.post("/jobs", SAMPLE, 201)["id"]
    whole = bench.post("/jobs", SAMPLE, 201)["id"]
    job_path(bench.workspace.run_folder(damaged)).write_text(text)
    jobs = bench.get("/jobs")["jobs"]
    assert {job["id"]: job["model"] for job in jobs} == {damaged: "", whole: "ada"}
    assert bench.get(f"/jobs/{damaged}")["state"] == "finished"


def test_a_worker_that_is_gone_has_failed(bench: Bench) -> None:
    bench.conductor.script = None
    job_id = bench.post("/jobs", SAMPLE, 201)["id"]
    job = bench.conductor.job()
    log_path(job.folder).write_text("first\nKilled\n", encoding="utf-8")
    # No process has this id, as Linux and Windows number them.
    (job.folder / "process.json").write_text('{"pid": 2147483646, "mark": "x"}', encoding="utf-8")
    shown = bench.get(f"/jobs/{job_id}")
    assert shown["state"] == "failed" and shown["failure"]["error"] == "WorkerDied"
    assert "Killed" in shown["failure"]["message"]
    assert bench.get(f"/jobs/{job_id}/events")["state"] == "failed"


def test_events_are_read_on_from_an_offset(bench: Bench) -> None:
    bench.conductor.script = None
    job_id = bench.post("/jobs", SAMPLE, 201)["id"]
    job = bench.conductor.job()
    emit(job, Notice("info", "Grüße"))
    first = bench.get(f"/jobs/{job_id}/events")
    assert [event["event"] for event in first["events"]] == ["job_started", "notice"]
    assert first["events"][1]["message"] == "Grüße" and first["events"][1]["time"] > 0
    assert first["more"] is False
    assert first["offset"] == events_path(job.folder).stat().st_size
    again = bench.get(f"/jobs/{job_id}/events?offset={first['offset']}")
    assert again["events"] == [] and again["offset"] == first["offset"]
    with events_path(job.folder).open("ab") as file:
        file.write(b'{"event": "torn')
    torn = bench.get(f"/jobs/{job_id}/events?offset={first['offset']}")
    assert torn["events"] == [] and torn["offset"] == first["offset"] and not torn["more"]
    bench.conductor.end(JobFinished({"a": 1}))
    last = bench.get(f"/jobs/{job_id}/events?offset={first['offset']}")
    assert [event["event"] for event in last["events"]] == ["job_finished"]
    assert last["state"] == "finished"


def test_a_job_has_ended_when_its_process_is_gone(bench: Bench) -> None:
    """Before that, the next job would be refused."""
    bench.conductor.script = None
    job_id = bench.post("/jobs", SAMPLE, 201)["id"]
    emit(bench.conductor.job(), JobFinished({}))
    assert bench.get(f"/jobs/{job_id}")["state"] == "starting"
    bench.refusal("POST", "/jobs", 409, json=SAMPLE)
    bench.conductor.end(JobFinished({}))
    assert bench.get(f"/jobs/{job_id}")["state"] == "finished"
    bench.post("/jobs", SAMPLE, 201)


def test_many_events_come_in_parts(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "EVENTS_BYTES", 200)
    bench.conductor.script = lambda job: [
        *(Notice("info", f"number {n}") for n in range(20)),
        JobFinished({}),
    ]
    job_id = bench.post("/jobs", SAMPLE, 201)["id"]
    offset, found, parts = 0, [], 0
    while True:
        part = bench.get(f"/jobs/{job_id}/events?offset={offset}")
        found += part["events"]
        parts, offset = parts + 1, part["offset"]
        if not part["more"]:
            break
    assert parts > 5
    assert [e["message"] for e in found[1:-1]] == [f"number {n}" for n in range(20)]
    assert found[-1]["event"] == "job_finished"


def test_an_event_of_any_length_is_told(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """An exception may name every tensor of a network; the state is read from the file's end."""
    monkeypatch.setattr(progress, "EVENTS_BYTES", 200)
    words = "Missing keys: " + "down_blocks.0.attentions.1.to_q.weight, " * 5000
    bench.conductor.script = lambda job: [Notice("info", "short"), JobFailed(words)]
    job_id = bench.post("/jobs", SAMPLE, 201)["id"]
    shown = bench.get(f"/jobs/{job_id}")
    assert shown["state"] == "failed" and shown["failure"]["message"] == words
    offset, found = 0, []
    while True:
        part = bench.get(f"/jobs/{job_id}/events?offset={offset}")
        found, offset = found + part["events"], part["offset"]
        if not part["more"]:
            break
    assert [event.get("message") for event in found] == [None, "short", words]
    assert past_runs(bench.workspace, "ada")[0].outcome == f"failed: {words}"


@pytest.mark.parametrize("offset", ["-1", "99999999", "x", "1.5", "inf", "9" * 400])
def test_a_wrong_offset_is_refused(bench: Bench, offset: str) -> None:
    job_id = bench.post("/jobs", SAMPLE, 201)["id"]
    problem = bench.refusal("GET", f"/jobs/{job_id}/events?offset={offset}", 422)
    assert problem["field"] == "offset"


def test_the_log_is_shown(bench: Bench) -> None:
    job_id = bench.post("/jobs", SAMPLE, 201)["id"]
    assert bench.get(f"/jobs/{job_id}/log") == {"lines": []}
    text = "\n".join(f"line {n}" for n in range(150)).encode() + b"\n\xff\n"
    log_path(bench.conductor.job().folder).write_bytes(text)
    assert len(bench.get(f"/jobs/{job_id}/log")["lines"]) == 100
    assert bench.get(f"/jobs/{job_id}/log?lines=2")["lines"] == ["line 149", "\ufffd"]


@pytest.mark.parametrize("name", ["stop", "stop_after_epoch", "save", "sample"])
def test_commands_reach_a_running_job(bench: Bench, name: str) -> None:
    bench.conductor.script = None
    job_id = bench.post("/jobs", SAMPLE, 201)["id"]
    body = {"command": name, "arguments": {"why": "test"}}
    answer = bench.post(f"/jobs/{job_id}/commands", body, 202)
    assert (answer["id"], answer["command"]) == (job_id, name)
    (sent,) = bench.commands()
    assert (sent.name, sent.arguments) == (name, {"why": "test"})
    if name.startswith("stop"):
        assert bench.get(f"/jobs/{job_id}")["view"]["state"] == "stopping"


def test_commands_that_cannot_be_obeyed_are_refused(bench: Bench) -> None:
    job_id = bench.post("/jobs", SAMPLE, 201)["id"]
    address = f"/jobs/{job_id}/commands"
    assert "ended" in bench.refusal("POST", address, 409, json={"command": "stop"})["message"]
    for body in ({}, {"command": "dance"}, {"command": ["stop"]}):
        assert bench.refusal("POST", address, 422, json=body)["field"] == "command"
    body = {"command": "stop", "arguments": [1]}
    assert bench.refusal("POST", address, 422, json=body)["field"] == "arguments"
    assert bench.commands() == []


@pytest.mark.parametrize(
    "run", ["nobody", "..", "%2e%2e", ".jobs", "..%2f..%2fx", "a%5cb", "con", "x" * 300]
)
@pytest.mark.parametrize("rest", ["", "/events", "/log", "/commands"])
def test_a_run_that_is_not_there(bench: Bench, run: str, rest: str) -> None:
    method, options = (
        ("POST", {"json": {"command": "stop"}}) if rest == "/commands" else ("GET", {})
    )
    bench.refusal(method, f"/jobs/{run}{rest}", 404, **options)


def test_a_damaged_run_does_not_hide_the_others(bench: Bench) -> None:
    job_id = bench.post("/jobs", SAMPLE, 201)["id"]
    damaged = bench.workspace.jobs_dir / "20200101-000000-train"
    damaged.mkdir()
    (damaged / "job.json").write_text("{", encoding="utf-8")
    listed = {job["id"]: job for job in bench.get("/jobs")["jobs"]}
    assert listed[job_id]["state"] == "finished"
    assert listed[damaged.name]["kind"] == ""


def test_a_full_disk_has_a_status_of_its_own() -> None:
    assert status_of(FullDiskError("The job cannot be written.")) == 507
    full_on_windows = OSError(errno.EINVAL, "The disk is full", "a.txt")
    full_on_windows.winerror = 39  # has no number of other systems
    for error in (full_on_windows, OSError(errno.EDQUOT, "Disk quota exceeded")):
        assert (os_error(error).status, os_error(error).remedy) == (507, "Free some space.")
    assert os_error(OSError(errno.EINVAL, "Invalid argument")).status == 422
