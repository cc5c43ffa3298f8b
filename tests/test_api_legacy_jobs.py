from __future__ import annotations

import io
import threading
import time
import zipfile
from pathlib import Path

import pytest

from dreambooth_core.api import legacy_jobs
from dreambooth_core.config.schema import CreateConfig, SampleConfig, SaveConfig
from dreambooth_core.job.events import (
    CheckpointSaved,
    Event,
    JobFailed,
    JobFinished,
    JobStopped,
    SampleSaved,
)
from dreambooth_core.job.launcher import Job
from tests.api_standin import Bench, bench, emit, make_model, png, put
from tests.tiny_header import write_header

__all__ = ["bench"]


@pytest.fixture
def trainable(bench: Bench, tmp_path: Path) -> Bench:
    """A served API whose model has settings to train with."""
    put(tmp_path / "dogs" / "a.png")
    concept = {
        "instance_data_dir": str(tmp_path / "dogs"),
        "class_prompt": "a dog",
        "num_class_images_per": 1,
    }
    bench.post("/concepts?model_name=ada", [concept])
    return bench


def _drawing(bench: Bench, count: int) -> None:
    """Let jobs make this many pictures, and one that lies elsewhere."""
    folder = bench.workspace.model("ada").samples_dir

    def script(job: Job) -> list[Event]:
        paths = [put(folder / job.run_id / f"{n}.png", png(shade=n)) for n in range(count)]
        outside = put(bench.workspace.root / "private.png")
        saved = [SampleSaved(str(path), "x", n) for n, path in enumerate([*paths, outside])]
        return [*saved, JobFinished({})]

    bench.conductor.script = script


def test_training_is_started(trainable: Bench) -> None:
    answer = trainable.ask("POST", "/start_training?model_name=ada&use_tx2img=false").json()
    assert answer["Status"] == "Training started."
    assert answer["job_id"] == trainable.conductor.job().run_id
    ((kind, config),) = trainable.conductor.started
    assert (kind, config.model) == ("train", "ada")


def test_training_without_concepts_is_refused(bench: Bench) -> None:
    assert bench.refusal("POST", "/start_training?model_name=ada", 422)["field"] == "concepts"


def test_class_images_are_started(trainable: Bench) -> None:
    form = {"model_name": "ada", "class_gen_method": "Native Diffusers"}
    answer = trainable.ask("POST", "/classifiers", data=form).json()
    assert answer["message"] == "Generating classifiers..."
    assert [kind for kind, _ in trainable.conductor.started] == ["class-images"]


def test_a_busy_trainer_says_so(trainable: Bench) -> None:
    trainable.conductor.script = None
    trainable.ask("POST", "/start_training?model_name=ada")
    for method, path in (
        ("POST", "/start_training?model_name=ada"),
        ("POST", "/classifiers?model_name=ada"),
        ("GET", "/samples?model_name=ada&sample_prompt=x"),
        ("GET", "/checkpoint?model_name=ada"),
    ):
        assert "going on" in trainable.refusal(method, path, 409)["message"]


def test_cancel(trainable: Bench) -> None:
    assert trainable.get("/cancel") == {"message": "Nothing to cancel."}
    trainable.conductor.script = None
    run_id = trainable.ask("POST", "/start_training?model_name=ada").json()["job_id"]
    assert trainable.get("/cancel") == {"message": "Processes canceled.", "job_id": run_id}
    assert [command.name for command in trainable.commands()] == ["stop"]
    trainable.conductor.end(JobStopped(1, {}))
    assert trainable.get("/cancel") == {"message": "Nothing to cancel."}


def test_a_model_is_created(bench: Bench) -> None:
    source = write_header(bench.workspace.checkpoints_dir / "base.safetensors")
    query = {
        "new_model_name": "Eve 2",
        "new_model_src": "base.safetensors",
        "new_model_shared_src": "",
        "create_from_hub": "false",
        "model_type": "v1x",
        "train_unfrozen": "true",
        "new_model_extract_ema": "true",
    }
    assert bench.post("/createModel", params=query) == "Created model Eve 2."
    ((kind, config),) = bench.conductor.started
    assert kind == "create"
    assert config == CreateConfig(name="Eve 2", source="base.safetensors", extract_ema=True)
    assert source.exists()


@pytest.mark.parametrize(
    ("query", "field"),
    [
        ({"new_model_name": ""}, "new_model_name"),
        ({"new_model_src": ""}, "new_model_src"),
        ({"new_model_src": "none.safetensors"}, "source"),
        ({"new_model_name": "../up"}, "name"),
        ({"new_model_name": "ada"}, "name"),
        ({"create_from_hub": "true"}, "create_from_hub"),
        ({"new_model_url": "someone/model"}, "new_model_url"),
        ({"new_model_shared_src": "x"}, "new_model_shared_src"),
        ({"model_type": "ControlNet"}, "model_type"),
        ({"new_model_extract_ema": "perhaps"}, "new_model_extract_ema"),
    ],
)
def test_a_model_that_cannot_be_created(bench: Bench, query: dict[str, str], field: str) -> None:
    write_header(bench.workspace.checkpoints_dir / "base.safetensors")
    good = {"new_model_name": "eve", "new_model_src": "base.safetensors"}
    problem = bench.refusal("POST", "/createModel", 422, params={**good, **query})
    assert problem["field"] == field
    assert not bench.conductor.started


@pytest.mark.parametrize(("code", "status"), [(2, 422), (1, 500)])
def test_a_job_that_fails_while_it_is_waited_for(bench: Bench, code: int, status: int) -> None:
    write_header(bench.workspace.checkpoints_dir / "base.safetensors")
    failed = JobFailed("No space.", "Free some.", "name", "InputError", code)
    bench.conductor.script = lambda job: [failed]
    query = {"new_model_name": "eve", "new_model_src": "base.safetensors"}
    problem = bench.refusal("POST", "/createModel", status, params=query)
    assert (problem["message"], problem["remedy"]) == ("No space.", "Free some.")
    assert problem["field"] == "name"


def test_one_picture_is_a_picture(bench: Bench) -> None:
    _drawing(bench, 1)
    query = {
        "model_name": "ada",
        "sample_prompt": "a dog",
        "negative_prompt": "cat",
        "width": 64,
        "height": 96,
        "steps": 5,
        "scale": 3.5,
        "seed": 9,
        "scheduler": "EulerDiscrete",
    }
    answer = bench.ask("GET", "/samples", params=query)
    assert answer.headers["content-type"] == "image/png"
    assert answer.content == png(shade=0)
    ((kind, config),) = bench.conductor.started
    assert kind == "sample"
    assert config == SampleConfig(
        model="ada",
        prompts=["a dog"],
        negative_prompt="cat",
        width=64,
        height=96,
        steps=5,
        cfg_scale=3.5,
        sampler="euler",
        seed=9,
        batch_size=1,
    )


def test_several_pictures_are_an_archive(bench: Bench) -> None:
    _drawing(bench, 3)
    answer = bench.ask("GET", "/samples?model_name=ada&sample_prompt=x&num_images=3")
    assert "ada_sample_images.zip" in answer.headers["content-disposition"]
    with zipfile.ZipFile(io.BytesIO(answer.content)) as archive:
        assert archive.namelist() == ["001.png", "002.png", "003.png"]
        assert archive.read("003.png") == png(shade=2)
    ((_, config),) = bench.conductor.started
    assert (config.count, config.steps, config.cfg_scale) == (3, 60, 7.5)
    assert (config.width, config.sampler) == (0, "dpm++_2m")
    assert config.seed >= 0


def test_prompts_from_a_file(bench: Bench, tmp_path: Path) -> None:
    _drawing(bench, 2)
    path = put(tmp_path / "prompts.txt", b"a dog\n\n a cat \n")
    query = {"model_name": "ada", "sample_prompt_file": str(path)}
    bench.ask("GET", "/samples", params=query)
    assert bench.conductor.started[0][1].prompts == ["a dog", "a cat"]
    private = put(tmp_path / "id_rsa", b"private")
    for file in (private, tmp_path / "none.txt"):
        bench.refusal("GET", "/samples", 422, params={**query, "sample_prompt_file": str(file)})


@pytest.mark.parametrize(
    ("query", "field"),
    [
        ("", "prompts"),
        ("sample_prompt=x&scheduler=LMS", "scheduler"),
        ("sample_prompt=x&num_images=many", "num_images"),
        ("sample_prompt=x&steps=0", "steps"),
        ("sample_prompt=x&width=1.5", "width"),
        ("sample_prompt=x&scale=nan", "scale"),
        ("sample_prompt=x&seed=99999999999", "seed"),
    ],
)
def test_pictures_that_cannot_be_made(bench: Bench, query: str, field: str) -> None:
    problem = bench.refusal("GET", f"/samples?model_name=ada&{query}", 422)
    assert problem["field"] == field


def test_a_stopped_job_without_pictures(bench: Bench) -> None:
    bench.conductor.script = lambda job: [JobStopped(0, {})]
    bench.refusal("GET", "/samples?model_name=ada&sample_prompt=x", 404)


def test_waiting_holds_up_nobody(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    bench.conductor.script = None
    answers: list[int] = []

    def ask() -> None:
        answer = bench.client.get("/dreambooth/samples?model_name=ada&sample_prompt=x")
        answers.append(answer.status_code)

    waiting = threading.Thread(target=ask)
    waiting.start()
    until = time.monotonic() + 20
    while not bench.conductor.started and time.monotonic() < until:
        time.sleep(0.01)
    assert bench.get("/status")["current_state"]["active"] is True
    assert bench.get("/cancel")["message"] == "Processes canceled."
    assert not answers
    job = bench.conductor.job()
    path = put(bench.workspace.model("ada").samples_dir / "x" / "1.png")
    emit(job, SampleSaved(str(path), "x", 1))
    bench.conductor.end(JobStopped(0, {}))
    waiting.join(20)
    assert answers == [200]


def test_pictures_of_the_newest_job(bench: Bench) -> None:
    assert bench.get("/status_images") == {"message": "No images."}
    _drawing(bench, 0)
    bench.refusal("GET", "/samples?model_name=ada&sample_prompt=x", 404)
    assert bench.get("/status_images") == {"message": "No images."}
    _drawing(bench, 1)
    bench.ask("GET", "/samples?model_name=ada&sample_prompt=x")
    answer = bench.ask("GET", "/status_images")
    assert (answer.headers["content-type"], answer.content) == ("image/png", png(shade=0))
    _drawing(bench, 2)
    bench.ask("GET", "/samples?model_name=ada&sample_prompt=x")
    answer = bench.ask("GET", "/status_images")
    with zipfile.ZipFile(io.BytesIO(answer.content)) as archive:
        assert archive.namelist() == ["001.png", "002.png"]


def test_the_newest_checkpoint_is_given_out(bench: Bench) -> None:
    import os

    paths = [
        put(bench.workspace.checkpoints_dir / name, name.encode())
        for name in ("b.safetensors", "a.safetensors")
    ]
    os.utime(paths[0], (1, 1))
    make_model(bench.workspace, checkpoints=[str(path) for path in paths])
    answer = bench.ask("GET", "/checkpoint?model_name=ada")
    assert answer.content == b"a.safetensors"
    assert not bench.conductor.started


def test_a_checkpoint_is_built(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    path = bench.workspace.checkpoints_dir / "ada_5.safetensors"
    state = bench.workspace.model("ada").states_dir / "run" / "step_00000005"
    put(state / "progress.json", b"{}")

    def script(job: Job) -> list[Event]:
        put(path, b"new")
        return [CheckpointSaved(str(path), 5, 1, "", 3), JobFinished({})]

    bench.conductor.script = script
    put(bench.workspace.checkpoints_dir / "old.safetensors", b"old")
    make_model(
        bench.workspace, checkpoints=[str(bench.workspace.checkpoints_dir / "old.safetensors")]
    )
    answer = bench.ask("GET", "/checkpoint?model_name=ada&skip_build=false")
    assert answer.content == b"new"
    assert bench.conductor.started == [("save", SaveConfig(model="ada"))]
    bench.conductor.script = lambda job: [JobFinished({})]
    bench.refusal("GET", "/checkpoint?model_name=ada&skip_build=false", 404)


def test_a_model_without_any_checkpoint_or_state(bench: Bench) -> None:
    problem = bench.refusal("GET", "/checkpoint?model_name=ada", 422)
    assert "no training state" in problem["message"]
    assert set(legacy_jobs.SAMPLERS.values()) == {"ddim", "euler", "euler_a", "dpm++_2m", "unipc"}
