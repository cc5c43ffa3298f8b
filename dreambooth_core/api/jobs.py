"""Jobs: start one, list them, follow one, ask something of a running one."""

from __future__ import annotations

from typing import Any

from starlette.responses import Response

from dreambooth_core.api.answers import Refused, ok, unprocessable
from dreambooth_core.api.bodies import JSON_BODY
from dreambooth_core.api.edge import Call, Endpoint
from dreambooth_core.api.progress import (
    events_since,
    final_event,
    find_job,
    state_of,
    summary_of,
)
from dreambooth_core.api.settings import read_settings
from dreambooth_core.api.views import view_of
from dreambooth_core.config.schema import JOB_CONFIGS, JobConfig, TrainConfig
from dreambooth_core.config.serialize import from_dict
from dreambooth_core.job.commands import COMMANDS, Command
from dreambooth_core.job.events import JobFailed, to_json
from dreambooth_core.job.launcher import Job
from dreambooth_core.job.log import log_tail
from dreambooth_core.job.runs import run_ids, told

MOST_LISTED = 1000
LOG_LINES = 100
START_FIELDS = ("kind", "config", "model")


def start_job(call: Call) -> Response:
    """Start a job from {"kind", "config"}, or from {"kind", "model"} with the model's settings."""
    body = call.body.object()
    unknown = sorted(set(body) - set(START_FIELDS))
    if unknown:
        raise unprocessable(
            f"{unknown[0]} is not known here.", f"Known: {', '.join(START_FIELDS)}.", unknown[0]
        )
    kind = body.get("kind")
    if not isinstance(kind, str) or kind not in JOB_CONFIGS:
        raise unprocessable(
            f"kind is {kind!r}." if kind else "kind is missing.",
            f"Choose one of: {', '.join(JOB_CONFIGS)}.",
            "kind",
        )
    return started(call, kind, _config(call, kind, body))


def started(call: Call, kind: str, config: JobConfig) -> Response:
    """Start a job and return its summary with 201."""
    job = call.services.conductor.start(kind, config)
    address = address_of(call, job)
    content = {"id": job.run_id, "kind": kind, "state": "starting", "url": address}
    return ok(content, 201, {"Location": address})


def list_jobs(call: Call) -> Response:
    """List the newest jobs first; `model`, `kind`, `state` and `limit` narrow the list."""
    limit = call.whole("limit", 50)
    if not 1 <= limit <= MOST_LISTED:
        raise unprocessable(f"limit is {limit}.", f"Use 1 to {MOST_LISTED}.", "limit")
    wanted = {name: call.text(name, "") for name in ("model", "kind", "state")}
    found: list[dict[str, Any]] = []
    for run_id in reversed(run_ids(call.workspace)):
        job = Job(run_id, call.workspace.run_folder(run_id))
        summary = summary_of(job)
        if all(not value or summary[name] == value for name, value in wanted.items()):
            found.append({**summary, "url": address_of(call, job)})
        if len(found) == limit:
            break
    return ok({"jobs": found})


def show_job(call: Call) -> Response:
    """Show a job: its settings, its progress, its losses, its pictures, its files."""
    job = find_job(call.workspace, call.path["run"])
    view, summary = view_of(job), summary_of(job)
    if summary["state"] == "running" and view["state"] == "stopping":
        summary["state"] = "stopping"
    final = final_event(job)
    content = {
        **summary,
        "url": address_of(call, job),
        "preparing": call.services.conductor.preparing() if summary["state"] == "starting" else "",
        "failure": to_json(final) if isinstance(final, JobFailed) else None,
        "config": told(job.folder).get("config", {}),
        "view": view,
    }
    return ok(content)


def job_events(call: Call) -> Response:
    """List a job's events after the byte `offset`, and the offset to ask for next."""
    job = find_job(call.workspace, call.path["run"])
    # The state is read first: once it is final, no more events come.
    state = state_of(job)
    events, offset, more = events_since(job.folder, call.whole("offset", 0))
    return ok({"events": events, "offset": offset, "more": more, "state": state})


def job_log(call: Call) -> Response:
    """Show the last `lines` of what a job's worker printed."""
    job = find_job(call.workspace, call.path["run"])
    return ok({"lines": log_tail(job.folder, call.whole("lines", LOG_LINES))})


def command_job(call: Call) -> Response:
    """Ask something of a running job with {"command"}: stop, stop_after_epoch, save or sample."""
    body = call.body.object()
    name, arguments = body.get("command"), body.get("arguments", {})
    if not isinstance(name, str) or name not in COMMANDS:
        raise unprocessable(
            f"command is {name!r}.", f"Choose one of: {', '.join(COMMANDS)}.", "command"
        )
    if not isinstance(arguments, dict):
        raise unprocessable("arguments is not an object.", 'Send {"command": ...}.', "arguments")
    job = find_job(call.workspace, call.path["run"])
    send_command(job, Command(name, arguments))
    return ok({"id": job.run_id, "command": name, "url": address_of(call, job)}, 202)


def send_command(job: Job, command: Command) -> None:
    """Send a command to a job; raises Refused with 409 if the job has ended."""
    if not job.is_running():
        raise Refused(
            409, f"The job {job.run_id} has ended already.", remedy="Only a running job obeys."
        )
    job.send(command)


def address_of(call: Call, job: Job) -> str:
    """Return where a job is shown."""
    return f"{call.prefix}/jobs/{job.run_id}"


def _config(call: Call, kind: str, body: dict[str, Any]) -> JobConfig:
    config_class = JOB_CONFIGS[kind]
    if "config" in body:
        if "model" in body:
            raise unprocessable(
                "model and config are both given.", "Name the model inside config.", "model"
            )
        return from_dict(config_class, body["config"])
    model = body.get("model")
    if not isinstance(model, str) or not model:
        raise unprocessable("config is missing.", "See /dreambooth/schema.", "config")
    settings = read_settings(call.workspace, model)
    if not isinstance(settings, config_class) or config_class is not TrainConfig:
        raise unprocessable(
            f"A {kind} job does not use the model's training settings.",
            "Give its own settings as config.",
            "config",
        )
    return settings


ENDPOINTS = (
    Endpoint("POST", "/jobs", start_job, JSON_BODY, changes=True),
    Endpoint("GET", "/jobs", list_jobs),
    Endpoint("GET", "/jobs/{run}", show_job),
    Endpoint("GET", "/jobs/{run}/events", job_events),
    Endpoint("GET", "/jobs/{run}/log", job_log),
    Endpoint("POST", "/jobs/{run}/commands", command_job, JSON_BODY, changes=True),
)
