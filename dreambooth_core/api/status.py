"""How things stand, in one answer; `current_state` has the older extension's names."""

from __future__ import annotations

from typing import Any

from starlette.responses import Response

from dreambooth_core.api.answers import ok
from dreambooth_core.api.edge import Call, Endpoint
from dreambooth_core.api.jobs import address_of
from dreambooth_core.api.progress import final_event, summary_of
from dreambooth_core.api.views import view_of
from dreambooth_core.job.events import JobFailed, to_json
from dreambooth_core.job.launcher import Job
from dreambooth_core.job.runs import job_path

NO_STATE: dict[str, Any] = {
    "do_save_model": False,
    "do_save_samples": False,
    "interrupted": False,
    "job": "",
    "job_count": 0,
    "job_no": 0,
    "sampling_step": 0,
    "sampling_steps": 0,
    "last_status": "",
    "sample_prompts": [],
    "active": False,
    "current_epoch": 0,
    "current_step": 0,
    "job_id": "",
    "error": None,
}


def show_status(call: Call) -> Response:
    """Show the running job, else the newest, and whether something is in its way."""
    conductor = call.services.conductor
    job, problem = conductor.job(), conductor.problem
    there = job is not None and job_path(job.folder).is_file()
    summary = None
    if job is not None and there:
        summary = {**summary_of(job), "url": address_of(call, job)}
    content = {
        "current_state": _state(call, job) if job is not None and there else NO_STATE,
        "job": summary,
        "preparing": conductor.preparing(),
        "problem": None
        if problem is None
        else {"message": problem.message, "remedy": problem.remedy, "field": problem.field},
    }
    return ok(content)


def _state(call: Call, job: Job) -> dict[str, Any]:
    view, final = view_of(job), final_event(job)
    alive = job.is_running()
    phase = {"sampling_step": view["done"], "sampling_steps": view["total"]}
    return {
        **NO_STATE,
        **(phase if view["phase"] else {}),
        "interrupted": view["state"] in ("stopping", "stopped"),
        "job": view["kind"],
        "job_count": view["total_steps"] or view["total"],
        "job_no": view["step"] or view["done"],
        "last_status": call.services.conductor.preparing() or _words(view, alive),
        "sample_prompts": [sample["prompt"] for sample in view["samples"]],
        "active": alive,
        "current_epoch": view["epoch"],
        "current_step": view["step"],
        "job_id": job.run_id,
        "error": to_json(final) if isinstance(final, JobFailed) else None,
    }


def _words(view: dict[str, Any], alive: bool) -> str:
    if not alive:
        return f"{view['kind']}: {view['state']}"
    count = f" {view['done']} of {view['total']}" if view["total"] else ""
    return f"{view['phase'] or view['state']}{count}"


ENDPOINTS = (Endpoint("GET", "/status", show_status),)
