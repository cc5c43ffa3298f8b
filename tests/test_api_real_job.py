"""The API with the real conductor and worker processes, on a tiny model."""

from __future__ import annotations

import io
import time
from collections.abc import Iterator

import pytest
from fastapi import FastAPI
from PIL import Image
from starlette.testclient import TestClient

from dreambooth_core.api import mount
from dreambooth_core.host.conductor import Conductor
from dreambooth_core.host.standalone import StandaloneHost
from dreambooth_core.job.workspace import ModelFolder, Workspace

ENDED = ("finished", "stopped", "failed")


@pytest.fixture
def client(
    tiny_model_folder: ModelFolder, workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> Iterator[TestClient]:
    """A client of an API whose jobs are real; "tiny" is a model there."""
    monkeypatch.delenv("API_KEY", raising=False)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    host = StandaloneHost(workspace, {"ann": "sesam"})
    conductor, app = Conductor(host), FastAPI()
    mount(app, host, conductor)
    with TestClient(app) as client:
        client.auth = ("ann", "sesam")
        yield client
    assert conductor.wait(60)


def test_a_picture_and_a_job_by_both_apis(client: TestClient) -> None:
    assert client.get("/dreambooth/status", auth=("ann", "wrong")).status_code == 401
    query = {"model_name": "tiny", "sample_prompt": "a dog", "steps": 1, "api_key": "sesam"}
    answer = client.get("/dreambooth/samples", params=query, auth=None)
    assert answer.status_code == 200, answer.text
    with Image.open(io.BytesIO(answer.content)) as picture:
        assert (picture.format, picture.size) == ("PNG", (64, 64))

    config = {"model": "tiny", "prompts": ["a cat"], "steps": 1, "count": 2, "width": 32}
    started = client.post("/dreambooth/jobs", json={"kind": "sample", "config": config})
    assert started.status_code == 201, started.text
    busy = client.post("/dreambooth/jobs", json={"kind": "sample", "config": config})
    assert busy.status_code == 409 and started.json()["id"] in busy.json()["message"]
    url = started.json()["url"]
    offset, names, state = 0, [], ""
    until = time.monotonic() + 120
    while state not in ENDED and time.monotonic() < until:
        part = client.get(f"{url}/events", params={"offset": offset}).json()
        names += [event["event"] for event in part["events"]]
        offset, state = part["offset"], part["state"]
        time.sleep(0.1)
    assert state == "finished", client.get(f"{url}/log").text
    assert names[-1] == "job_finished" and names.count("sample_saved") == 2
    view = client.get(url).json()["view"]
    assert [sample["prompt"] for sample in view["samples"]] == ["a cat", "a cat"]
    listed = client.get("/dreambooth/samples", params={"model": "tiny"}).json()["samples"]
    assert len(listed) == 3
    with Image.open(io.BytesIO(client.get(listed[0]["url"]).content)) as picture:
        assert picture.size == (32, 64)
