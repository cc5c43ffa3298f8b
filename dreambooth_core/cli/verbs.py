"""What each verb does: settings in, a job followed to its end, an exit code out."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Callable
from pathlib import Path

from dreambooth_core import demo
from dreambooth_core.cli import importing
from dreambooth_core.cli.flags import config_from
from dreambooth_core.cli.follow import follow, watch
from dreambooth_core.cli.reference import reference
from dreambooth_core.cli.views import JsonView, PlainView, View
from dreambooth_core.config.schema import JOB_CONFIGS, JobConfig, TrainConfig
from dreambooth_core.errors import InputError
from dreambooth_core.job.commands import Command
from dreambooth_core.job.launcher import Job, attach, launch, running_jobs
from dreambooth_core.job.runs import last_run, run_ids
from dreambooth_core.job.workspace import ModelInfo, Workspace


def workspace_of(options: argparse.Namespace) -> Workspace:
    """Return the workspace: --root, or the WebUI that we are an extension of, or this folder."""
    if options.root:
        root = Path(options.root).expanduser()
        if not root.is_dir():
            raise InputError(f"The folder {root} does not exist.", remedy="Check --root.")
        return Workspace(root)
    here = Path.cwd()
    if here.parent.name == "extensions" and (here.parents[1] / "models").is_dir():
        return Workspace(here.parents[1])
    return Workspace(here)


def make_view(as_json: bool) -> View:
    """Return the view for this process's output."""
    if as_json:
        return JsonView(sys.stdout, sys.stderr)
    if sys.stdout.isatty():
        # rich takes a moment to load, and help and errors do without it.
        from dreambooth_core.cli.terminal import TerminalView

        return TerminalView()
    return PlainView(sys.stdout)


def run_job(options: argparse.Namespace) -> int:
    """Run the job that the verb is named after."""
    config = config_from(options, JOB_CONFIGS[options.verb])
    kind = "dry-run" if getattr(options, "dry_run", False) else options.verb
    return _launch_and_follow(workspace_of(options), kind, config, options.json)


def list_models(options: argparse.Namespace) -> int:
    """Print the models."""
    workspace = workspace_of(options)
    models, problems = workspace.models_and_problems()
    for info in models:
        print(json.dumps(dataclasses.asdict(info)) if options.json else _describe(info))
    for name, error in problems.items():
        told = {"name": name, "message": error.message, "remedy": error.remedy}
        print(json.dumps(told) if options.json else f"{name}: {error}")
    if not models and not problems and not options.json:
        print(f"There are no models in {workspace.models_dir}.")
        print("Make one with: create --name NAME --source CHECKPOINT")
    return 0


def watch_run(options: argparse.Namespace) -> int:
    """Follow a run that was started before."""
    workspace = workspace_of(options)
    run_id = options.run or next(reversed(run_ids(workspace)), "")
    if not run_id:
        raise InputError(f"There are no runs in {workspace.jobs_dir}.", remedy="Start one.")
    return watch(attach(workspace, run_id), make_view(options.json))


def stop_run(options: argparse.Namespace) -> int:
    """Ask a run to stop."""
    options.command = "stop_after_epoch" if options.after_epoch else "stop"
    return send_command(options)


def send_command(options: argparse.Namespace) -> int:
    """Send a command to a run that is going on."""
    job = _running(workspace_of(options), options.run)
    job.send(Command(options.command))
    print(f"Sent {options.command} to run {job.run_id}.")
    return 0


def resume_model(options: argparse.Namespace) -> int:
    """Go on with the model's last training, with the settings that it had."""
    workspace = workspace_of(options)
    workspace.model(options.model).require()
    run = last_run(workspace, options.model, "train")
    if run is None or not isinstance(run.config, TrainConfig):
        raise InputError(
            f"The model {options.model!r} was not trained here yet.", remedy="Use train."
        )
    config = dataclasses.replace(run.config, resume=True)
    return _launch_and_follow(workspace, "train", config, options.json)


def run_demo(options: argparse.Namespace) -> int:
    """Run the demo's jobs one after the other, until one does not finish."""
    workspace = workspace_of(options)
    for kind, config in demo.steps(workspace):
        code = _launch_and_follow(workspace, kind, config, options.json)
        if code:
            return code
    return 0


def import_settings(options: argparse.Namespace) -> int:
    """Take over another trainer's settings, and its model if that is asked for."""
    workspace = workspace_of(options)
    found = importing.read(options)
    print(importing.json_line(found) if options.json else "\n".join(importing.report(found)))
    create = importing.creation_of(found, options, workspace)
    if create:
        code = _launch_and_follow(workspace, "create", create, options.json)
        if code:
            return code
    for line in importing.keep(found, options, workspace):
        print(line, file=sys.stderr if options.json else sys.stdout)
    return 0


def show_settings(options: argparse.Namespace) -> int:
    """Print the reference of all settings."""
    print(reference())
    return 0


VERBS: dict[str, Callable[[argparse.Namespace], int]] = {
    **dict.fromkeys(JOB_CONFIGS, run_job),
    "models": list_models,
    "watch": watch_run,
    "stop": stop_run,
    "send": send_command,
    "resume": resume_model,
    "demo": run_demo,
    "import": import_settings,
    "settings": show_settings,
}


def _launch_and_follow(workspace: Workspace, kind: str, config: JobConfig, as_json: bool) -> int:
    return follow(lambda: launch(workspace, kind, config), make_view(as_json))


def _running(workspace: Workspace, run_id: str) -> Job:
    if run_id:
        job = attach(workspace, run_id)
        if not job.is_running():
            raise InputError(f"The run {run_id} has ended already.")
        return job
    jobs = running_jobs(workspace)
    if not jobs:
        raise InputError("No run is going on.")
    if len(jobs) > 1:
        listed = ", ".join(job.run_id for job in jobs)
        raise InputError(
            f"It is not clear which run is meant; going on now: {listed}.",
            remedy="Give the run's id.",
        )
    return jobs[0]


def _describe(info: ModelInfo) -> str:
    trained = f"{info.steps} steps" if info.steps else "not trained"
    lines = [f"{info.name}: {info.family}, {info.resolution} pixels, {trained}, from {info.source}"]
    return "\n".join(lines + [f"  {path}" for path in info.checkpoints])
