"""The routes of the older extension that start jobs, stop them or wait for what they make."""

from __future__ import annotations

import random
from pathlib import Path

from starlette.responses import Response

from dreambooth_core.api.answers import Answer, Waiting, job_failure, not_found, ok, unprocessable
from dreambooth_core.api.bodies import FORM_BODY
from dreambooth_core.api.edge import Call, Endpoint
from dreambooth_core.api.files import is_inside, picture_response, zip_response
from dreambooth_core.api.jobs import send_command
from dreambooth_core.api.legacy import named_model
from dreambooth_core.api.models import checkpoint_response, saved_files
from dreambooth_core.api.settings import read_settings
from dreambooth_core.config.schema import MAX_SEED, CreateConfig, SampleConfig, SaveConfig
from dreambooth_core.job import disk
from dreambooth_core.job.commands import Command
from dreambooth_core.job.events import (
    CheckpointSaved,
    Event,
    JobFailed,
    SampleSaved,
    read_events,
)
from dreambooth_core.job.launcher import Job
from dreambooth_core.job.runs import events_path, model_of, read_run
from dreambooth_core.job.workspace import Workspace

SAMPLERS = {
    "DDIM": "ddim",
    "EulerDiscrete": "euler",
    "EulerAncestralDiscrete": "euler_a",
    "DPMSolverMultistep": "dpm++_2m",
    "DEISMultistep": "dpm++_2m",
    "UniPCMultistep": "unipc",
}
"""The older names of samplers; DEIS, the older default, is replaced by its nearest relative."""

MODEL_TYPES = ("v1x", "v2x-512", "v2x", "sdxl")
PROMPT_FILE_BYTES = 64 * 1024


def start_training(call: Call) -> Response:
    """Train the model `model_name` with its settings."""
    config = read_settings(call.workspace, named_model(call).name)
    job = call.services.conductor.start("train", config)
    return ok({"Status": "Training started.", "job_id": job.run_id})


def make_classifiers(call: Call) -> Response:
    """Make the class images that the model `model_name` needs."""
    config = read_settings(call.workspace, named_model(call).name)
    job = call.services.conductor.start("class-images", config)
    return ok({"message": "Generating classifiers...", "job_id": job.run_id})


def cancel(call: Call) -> Response:
    """Stop the running job."""
    job = call.services.conductor.job()
    if job is None or not job.is_running():
        return ok({"message": "Nothing to cancel."})
    send_command(job, Command("stop"))
    return ok({"message": "Processes canceled.", "job_id": job.run_id})


def create_model(call: Call) -> Answer:
    """Make the model `new_model_name` from the checkpoint `new_model_src`, and wait for it."""
    for name in ("create_from_hub", "new_model_shared_src", "new_model_url"):
        if call.text(name, "").lower() not in ("", "false", "none", "0"):
            raise unprocessable(
                f"{name} is not supported: nothing is fetched from a hub.",
                "Name a checkpoint file as new_model_src.",
                name,
            )
    if call.text("model_type", "v1x").lower() not in MODEL_TYPES:
        raise unprocessable(
            f"model_type is {call.text('model_type')!r}.",
            "Leave it out: it is read from the checkpoint.",
            "model_type",
        )
    config = CreateConfig(
        name=call.text("new_model_name"),
        source=call.text("new_model_src"),
        extract_ema=call.flag("new_model_extract_ema", False),
    )
    job = call.services.conductor.start("create", config)
    return Waiting(job, lambda final: _created(config.name, final))


def get_checkpoint(call: Call) -> Answer:
    """Give out the newest checkpoint of `model_name`; saves one if `skip_build` is false."""
    model = named_model(call)
    files = saved_files(call.workspace, model.read_info())
    if files and call.flag("skip_build", True):
        return checkpoint_response(max(files, key=lambda path: path.stat().st_mtime))
    job = call.services.conductor.start("save", SaveConfig(model=model.name))
    return Waiting(job, lambda final: _built(call.workspace, job, final))


def make_samples(call: Call) -> Answer:
    """Make pictures with the model `model_name` and give them out, several as an archive."""
    model = named_model(call)
    seed = call.whole("seed", -1)
    config = SampleConfig(
        model=model.name,
        prompts=_prompts(call),
        negative_prompt=call.text("negative_prompt", ""),
        width=call.whole("width", 0),
        height=call.whole("height", 0),
        count=call.whole("num_images", 1),
        batch_size=call.whole("batch_size", 1),
        steps=call.whole("steps", 60),
        cfg_scale=call.number("scale", 7.5),
        sampler=_sampler(call.text("scheduler", "DEISMultistep")),
        seed=seed if seed >= 0 else random.randint(0, MAX_SEED),
    )
    job = call.services.conductor.start("sample", config)
    return Waiting(job, lambda final: _drawn(call.workspace, job, final))


def status_images(call: Call) -> Response:
    """Give out the pictures that the newest job has made so far, several as an archive."""
    job = call.services.conductor.job()
    pictures = made_pictures(call.workspace, job) if job is not None else []
    return _pictures(pictures, "status") if pictures else ok({"message": "No images."})


def made_pictures(workspace: Workspace, job: Job) -> list[Path]:
    """Return the pictures that a job has made and that lie in its model's folder of samples."""
    model = workspace.model(model_of(read_run(job.folder).config))
    events, _ = read_events(events_path(job.folder))
    paths = [Path(event.path) for event in events if isinstance(event, SampleSaved)]
    return [path for path in paths if path.is_file() and is_inside(path, model.samples_dir)]


def _created(name: str, final: Event) -> Response:
    _raise_failure(final)
    return ok(f"Created model {name}.")


def _built(workspace: Workspace, job: Job, final: Event) -> Response:
    _raise_failure(final)
    events, _ = read_events(events_path(job.folder))
    saved = [Path(event.path) for event in events if isinstance(event, CheckpointSaved)]
    files = [path for path in saved if is_inside(path, workspace.checkpoints_dir)]
    if not files or not files[-1].is_file():
        raise not_found("The job wrote no checkpoint.", "See its events.")
    return checkpoint_response(files[-1])


def _drawn(workspace: Workspace, job: Job, final: Event) -> Response:
    _raise_failure(final)
    pictures = made_pictures(workspace, job)
    if not pictures:
        raise not_found("The job was stopped before it made a picture.")
    return _pictures(pictures, model_of(read_run(job.folder).config))


def _pictures(pictures: list[Path], name: str) -> Response:
    if len(pictures) == 1:
        return picture_response(pictures[0])
    numbered = [(path, f"{n:03d}{path.suffix}") for n, path in enumerate(pictures, 1)]
    return zip_response(numbered, f"{name}_sample_images.zip")


def _raise_failure(final: Event) -> None:
    if isinstance(final, JobFailed):
        raise job_failure(final)


def _sampler(name: str) -> str:
    if name in SAMPLERS:
        return SAMPLERS[name]
    raise unprocessable(
        f"scheduler is {name!r}.", f"Choose one of: {', '.join(SAMPLERS)}.", "scheduler"
    )


def _prompts(call: Call) -> list[str]:
    prompt, file = call.text("sample_prompt", ""), call.text("sample_prompt_file", "")
    if prompt or not file:
        return [prompt]
    path = Path(file).expanduser()
    if path.suffix.lower() != ".txt" or not path.is_file():
        raise unprocessable(f"There is no text file {file!r}.", field="sample_prompt_file")
    with disk.open_read(path) as opened:
        text = opened.read(PROMPT_FILE_BYTES).decode("utf-8", "replace")
    return [line.strip() for line in text.splitlines() if line.strip()]


ENDPOINTS = (
    Endpoint("GET", "/cancel", cancel, changes=True),
    Endpoint("GET", "/checkpoint", get_checkpoint, changes=True),
    Endpoint("POST", "/classifiers", make_classifiers, FORM_BODY, changes=True),
    Endpoint("POST", "/createModel", create_model, FORM_BODY, changes=True),
    Endpoint("GET", "/status_images", status_images),
    Endpoint("POST", "/start_training", start_training, FORM_BODY, changes=True),
)
