from __future__ import annotations

import base64
from pathlib import Path

import pytest

from dreambooth_core.api.access import Access, access_for, refuse_other_sites
from dreambooth_core.api.answers import Refused
from dreambooth_core.job.workspace import Workspace
from tests.api_standin import FRIEND, Bench, bench, make_model

__all__ = ["bench"]

USERS = {"ann": "sesam", "böb": "pass:wört"}


def _basic(name: str, password: str) -> dict[str, str]:
    text = base64.b64encode(f"{name}:{password}".encode()).decode()
    return {"Authorization": f"Basic {text}"}


@pytest.fixture
def locked(tmp_path: Path) -> Bench:
    """A served API for which the host has passwords."""
    workspace = Workspace(tmp_path / "workspace")
    workspace.checkpoints_dir.mkdir(parents=True)
    make_model(workspace)
    return Bench(workspace, USERS)


@pytest.mark.parametrize(("name", "password"), USERS.items())
def test_the_hosts_users_may_call(locked: Bench, name: str, password: str) -> None:
    assert locked.get("/models", headers=_basic(name, password)) == ["", "ada"]


@pytest.mark.parametrize(
    "headers",
    [
        {},
        _basic("ann", "wrong"),
        _basic("nobody", "sesam"),
        _basic("ann", "pass:wört"),
        _basic("", ""),
        {"Authorization": "Basic"},
        {"Authorization": "Basic !!!"},
        {"Authorization": "Basic /w=="},
        {"Authorization": "Basic " + base64.b64encode(b"ann").decode()},
        {"Authorization": "Bearer sesam"},
    ],
)
def test_others_may_not(locked: Bench, headers: dict[str, str]) -> None:
    answer = locked.ask("GET", "/models", 401, headers=headers)
    assert answer.headers["www-authenticate"] == "Basic"
    assert "--api-auth" in answer.json()["remedy"]


def test_nothing_is_open_where_there_are_passwords(locked: Bench) -> None:
    for route in locked.app.router.routes[0].routes[:-1]:
        path = (
            route.path.replace("{run}", "r").replace("{model}", "ada").replace("{file:path}", "f")
        )
        for method in route.methods:
            locked.ask(method, path, 401, json={} if method in ("POST", "PUT") else None)
    assert not locked.conductor.started


def test_an_unknown_caller_sends_nothing_for_nothing(locked: Bench) -> None:

    answer = locked.client.post(
        "/dreambooth/jobs",
        content=(piece for piece in [b"x"]),
        headers={"Content-Type": "application/json"},
    )
    assert answer.status_code == 401


@pytest.mark.parametrize("key", USERS.values())
def test_a_password_is_a_key_as_well(locked: Bench, key: str) -> None:
    assert locked.get("/models", params={"api_key": key}) == ["", "ada"]
    ascii_key = key.isascii()
    for name in ("X-Api-Key", "api_key", "Api-Key") if ascii_key else ():
        assert locked.get("/models", headers={name: key}) == ["", "ada"]


def test_a_wrong_key_is_refused(locked: Bench) -> None:
    problem = locked.refusal("GET", "/models?api_key=wrong", 403)
    assert problem["field"] == "api_key"
    locked.refusal("GET", "/models?api_key=", 401)


def test_a_key_may_be_a_field_of_a_form(locked: Bench) -> None:
    form = {"model_name": "ada", "api_key": "sesam"}
    assert locked.ask("DELETE", "/model", 401, data={"model_name": "ada"})
    assert locked.ask("DELETE", "/model", 403, data={**form, "api_key": "x"})
    assert locked.workspace.model("ada").exists()
    locked.ask("DELETE", "/model", 200, data=form)
    assert not locked.workspace.model("ada").exists()


def test_keys_of_the_environment_and_of_the_file(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path)
    assert access_for({}, workspace, {}).is_open
    workspace.models_dir.mkdir(parents=True)
    (workspace.models_dir / "secret.txt").write_text("from file\n", encoding="utf-8")
    assert access_for({}, workspace, {}).keys == ("from file",)
    assert access_for({}, workspace, {"API_KEY": "from env"}).keys == ("from env",)
    assert access_for({"ann": "pw"}, workspace, {"API_KEY": "from env"}).keys == ("pw",)


def test_a_key_alone_asks_for_no_name() -> None:
    access = Access({}, ("secret",))
    assert access.admits({}, ["secret"]) and access.admits({"x-api-key": "secret"}, [])
    assert not access.admits({}, []) and not access.admits({}, ["", "Secret"])
    assert not access.admits({"authorization": "Basic OnNlY3JldA=="}, [])
    assert access.refusal(key_given=False).headers == {}
    assert access.refusal(key_given=True).status == 403


@pytest.mark.parametrize(
    ("headers", "refused"),
    [
        ({}, False),
        ({"host": "localhost:7860", "origin": "http://localhost:7860"}, False),
        ({"host": "localhost:7860", "origin": "https://evil.example"}, True),
        ({"host": "localhost:7860", "origin": "null"}, True),
        ({"host": "localhost:7860", "origin": FRIEND}, False),
        ({"sec-fetch-site": "cross-site", "origin": FRIEND}, False),
        ({"sec-fetch-site": "cross-site"}, True),
        ({"sec-fetch-site": "same-origin", "origin": "https://seen.through.proxy"}, False),
        ({"sec-fetch-site": "none"}, False),
    ],
)
def test_pages_of_other_sites(headers: dict[str, str], refused: bool) -> None:
    if not refused:
        refuse_other_sites(headers, FRIEND.__eq__)
        return
    with pytest.raises(Refused) as error:
        refuse_other_sites(headers, FRIEND.__eq__)
    assert error.value.status == 403


def test_another_sites_page_cannot_do_anything(bench: Bench) -> None:
    foreign = {"Origin": "https://evil.example"}
    changing = {"GET": ("/cancel", "/samples", "/checkpoint"), "DELETE": ("/models/ada", "/model")}
    posts = ("/jobs", "/upload", "/createModel", "/start_training", "/concepts", "/model_params")
    for method, paths in {**changing, "POST": posts}.items():
        for path in paths:
            bench.refusal(method, path, 403, headers=foreign)
    assert bench.get("/models", headers=foreign) == ["", "ada"]
    bench.ask("DELETE", "/models/ada", headers={"Origin": FRIEND})
    assert bench.get("/models") == [""]
