from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path

import anyio
import pytest
from fastapi import FastAPI
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Mount, Route
from starlette.testclient import TestClient

from dreambooth_core.api import mount
from dreambooth_core.errors import OverlayError
from dreambooth_core.job.events import (
    JobFailed,
    JobFinished,
    JobStopped,
    PhaseProgress,
    PhaseStarted,
    SampleSaved,
    StepDone,
)
from tests.api_standin import Bench, FakeConductor, bench, emit

__all__ = ["bench"]

ROOT = Path(__file__).resolve().parents[1]
SAMPLE = {"kind": "sample", "config": {"model": "ada", "prompts": ["a dog"]}}


def _ours(app: FastAPI) -> list[object]:
    return [route for route in app.router.routes if getattr(route, "path", "") == "/dreambooth"]


def test_mounting_again_replaces_the_routes(bench: Bench) -> None:
    before = len(bench.app.router.routes)
    other = FakeConductor(bench.workspace)
    mount(bench.app, bench.host, other)
    assert len(bench.app.router.routes) == before and len(_ours(bench.app)) == 1
    bench.post("/jobs", SAMPLE, 201)
    assert len(other.started) == 1 and not bench.conductor.started


def test_our_routes_come_before_those_that_take_everything(bench: Bench) -> None:
    app = FastAPI()

    @app.get("/{path:path}")
    def everything(path: str) -> str:
        return f"the host's {path}"

    mount(app, bench.host, bench.conductor)
    client = TestClient(app)
    assert client.get("/dreambooth/models").json() == ["", "ada"]
    assert client.get("/other").json() == "the host's other"
    assert client.get("/dreambooths").json() == "the host's dreambooths"


def test_the_hosts_own_routes_errors_and_document_stay(bench: Bench) -> None:
    app = FastAPI()

    @app.get("/number/{value}")
    def number(value: int) -> int:
        return value

    mount(app, bench.host, bench.conductor)
    client = TestClient(app)
    refused = client.get("/number/x")
    assert refused.status_code == 422 and "detail" in refused.json()
    assert client.get("/nothing").json() == {"detail": "Not Found"}
    assert list(client.get("/openapi.json").json()["paths"]) == ["/number/{value}"]


def test_below_another_path_and_behind_middleware(bench: Bench) -> None:
    inner = FastAPI()

    @inner.middleware("http")
    async def through(request: object, call_next: object) -> object:
        return await call_next(request)

    mount(inner, bench.host, bench.conductor)
    client = TestClient(Starlette(routes=[Mount("/sub", app=inner)]))
    started = client.post("/sub/dreambooth/jobs", json=SAMPLE)
    assert started.json()["url"].startswith("/sub/dreambooth/jobs/")
    assert client.get(started.json()["url"]).json()["state"] == "finished"
    assert client.get("/sub/dreambooth/nothing").status_code == 404


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("DELETE", "/jobs", "GET, HEAD, POST"),
        ("POST", "/models", "GET, HEAD"),
        ("PUT", "/jobs/x/commands", "POST"),
        ("GET", "/createModel", "POST"),
        ("HEAD", "/cancel", "GET"),
        ("OPTIONS", "/jobs", "GET, HEAD, POST"),
    ],
)
def test_a_wrong_method(bench: Bench, method: str, path: str, allowed: str) -> None:
    answer = bench.ask(method, path, 405)
    assert answer.headers["allow"] == allowed


@pytest.mark.parametrize("path", ["/nothing", "/jobs/a/b/c", "/", "/models/ada/x"])
def test_nothing_there(bench: Bench, path: str) -> None:
    assert "openapi.json" in bench.refusal("GET", path, 404)["remedy"]


def test_a_handler_that_breaks_is_a_500(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(bench.host, "checkpoint_names", lambda: 1 / 0)
    problem = bench.refusal("GET", "/checkpoints", 500)
    assert "ZeroDivisionError" in problem["message"] and "log" in problem["remedy"]
    assert "ZeroDivisionError" in caplog.text


def test_handlers_do_not_hold_up_the_loop(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    begun, ticked = threading.Event(), threading.Event()
    waited: list[tuple[threading.Thread, bool]] = []

    def slow() -> list[str]:
        begun.set()
        waited.append((threading.current_thread(), ticked.wait(60)))
        return []

    monkeypatch.setattr(bench.host, "checkpoint_names", slow)

    async def quick(request: object) -> PlainTextResponse:
        ticked.set()
        return PlainTextResponse("tick")

    bench.app.router.routes.append(Route("/tick", quick))

    async def together() -> None:
        import httpx

        transport = httpx.ASGITransport(app=bench.app)
        async with (
            httpx.AsyncClient(transport=transport, base_url="http://t") as client,
            anyio.create_task_group() as group,
        ):
            group.start_soon(client.get, "/dreambooth/checkpoints")
            while not begun.is_set():
                await anyio.sleep(0.005)
            await client.get("/tick")

    anyio.run(together)
    ((thread, answered_meanwhile),) = waited
    assert answered_meanwhile and thread is not threading.main_thread()


def test_status_without_and_with_a_job(bench: Bench) -> None:
    idle = bench.get("/status")
    assert idle["job"] is None and idle["problem"] is None and idle["preparing"] == ""
    assert idle["current_state"]["active"] is False and idle["current_state"]["job_id"] == ""

    bench.conductor.script = None
    run_id = bench.post("/jobs", SAMPLE, 201)["id"]
    job = bench.conductor.job()
    emit(job, PhaseStarted("sampling", 4, "pictures"), PhaseProgress("sampling", 1, 4))
    emit(job, SampleSaved("a.png", "a dog", 5))
    status = bench.get("/status")
    state = status["current_state"]
    assert status["job"]["id"] == run_id and status["job"]["url"].endswith(run_id)
    assert (state["active"], state["job"], state["job_id"]) == (True, "sample", run_id)
    assert (state["job_no"], state["job_count"]) == (1, 4)
    assert (state["sampling_step"], state["sampling_steps"]) == (1, 4)
    assert state["last_status"] == "sampling 1 of 4" and state["sample_prompts"] == ["a dog"]
    assert state["error"] is None and state["interrupted"] is False

    emit(job, StepDone(30, 90, 2, 0.1, 0.1))
    state = bench.get("/status")["current_state"]
    assert (state["current_step"], state["current_epoch"]) == (30, 2)
    assert (state["job_no"], state["job_count"]) == (30, 90)
    bench.ask("GET", "/cancel")
    assert bench.get("/status")["current_state"]["interrupted"] is True
    bench.conductor.end(JobStopped(30, {}))
    state = bench.get("/status")["current_state"]
    assert (state["active"], state["last_status"]) == (False, "sample: stopped")


def test_status_tells_what_is_in_the_way(bench: Bench) -> None:
    bench.conductor.script = None
    bench.post("/jobs", SAMPLE, 201)
    bench.conductor.doing = "Installing the trainer: 3 of 17"
    status = bench.get("/status")
    assert status["preparing"] == status["current_state"]["last_status"] == bench.conductor.doing
    bench.conductor.doing = ""
    bench.conductor.problem = OverlayError("No network.", remedy="Connect.")
    bench.conductor.end(JobFailed("No network.", "Connect."))
    status = bench.get("/status")
    assert status["problem"] == {"message": "No network.", "remedy": "Connect.", "field": ""}
    assert status["job"]["state"] == "failed"
    assert status["current_state"]["error"]["message"] == "No network."


def test_old_states_names_survive(bench: Bench) -> None:
    names = (
        "do_save_model do_save_samples interrupted job job_count job_no sampling_step "
        "sampling_steps last_status sample_prompts active current_epoch current_step"
    )
    assert set(names.split()) <= set(bench.get("/status")["current_state"])
    bench.conductor.script = lambda job: [JobFinished({})]
    bench.post("/jobs", SAMPLE, 201)
    assert set(names.split()) <= set(bench.get("/status")["current_state"])


def test_the_api_takes_in_nothing_heavy() -> None:
    code = (
        "import sys, dreambooth_core.api\n"
        "heavy = ('torch', 'diffusers', 'transformers', 'safetensors', 'numpy', 'PIL', 'gradio',"
        " 'fastapi', 'pydantic', 'modules')\n"
        "print([name for name in heavy if name in sys.modules])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"
