from __future__ import annotations

import base64
import json
import zipfile
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest

from dreambooth_core.api import endpoints, legacy
from dreambooth_core.api.legacy import shows_class
from dreambooth_core.api.legacy_names import (
    CONCEPT,
    CONCEPT_WITHOUT_MEANING,
    OF_THE_MODEL,
    SETTINGS,
    WITHOUT_MEANING,
)
from dreambooth_core.config.control import field_specs
from dreambooth_core.config.schema import OPTIMIZER_CHOICES, Concept, TrainConfig
from tests.api_standin import Bench, bench, make_model, png, put

__all__ = ["bench"]

OLD_ROUTES = """
GET /cancel
GET /checkpoint
GET /checkpoints
POST /classifiers
GET /classifiers
POST /concept
GET /concepts
POST /concepts
POST /createModel
DELETE /model
GET /model_config
POST /model_config
POST /model_params
GET /models
GET /models_lora
GET /samples
GET /status
GET /status_images
POST /start_training
POST /upload
POST /upload_url
"""


@pytest.fixture
def dogs(tmp_path: Path) -> str:
    """A folder with one picture."""
    return str(put(tmp_path / "dogs" / "a.png").parent)


def test_all_21_older_routes_are_there() -> None:
    old = [tuple(line.split()) for line in OLD_ROUTES.split("\n") if line]
    assert len(old) == 21
    assert set(old) <= {(endpoint.method, endpoint.path) for endpoint in endpoints()}


def test_every_older_name_leads_to_a_setting() -> None:
    paths = {spec.path for spec in field_specs(TrainConfig)}
    assert {name.path for name in SETTINGS.values()} <= paths
    assert {name.path for name in CONCEPT.values()} <= {s.path for s in field_specs(Concept)}
    groups = [set(SETTINGS), set(WITHOUT_MEANING), set(OF_THE_MODEL), {"concepts_list"}]
    assert sum(map(len, groups)) == len(set().union(*groups))
    assert not set(CONCEPT) & set(CONCEPT_WITHOUT_MEANING)


def test_the_whole_config_goes_round(bench: Bench, dogs: str) -> None:
    concept = {"instance_data_dir": dogs, "instance_token": "zwx", "save_sample_prompt": "a zwx"}
    given = {
        "model_name": "ada",
        "learning_rate": 2e-6,
        "num_train_epochs": 30,
        "optimizer": "8bit AdamW",
        "stop_text_encoder": 0.5,
        "sanity_prompt": "a cat",
        "use_ema": False,
        "concepts_list": [concept],
    }
    answer = bench.post("/model_config?model_name=ada", given)
    assert answer == bench.get("/model_config?model_name=ada")
    assert answer["learning_rate"] == 2e-6 and answer["num_train_epochs"] == 30
    assert answer["optimizer"] == "8bit AdamW" and answer["use_ema"] is False
    assert answer["sanity_prompt"] == "a cat"
    assert answer["concepts_list"][0]["instance_token"] == "zwx"
    assert answer["concepts_list"][0]["save_sample_prompt"] == "a zwx"
    assert answer["concepts_list"][0]["is_valid"] is True
    ours = bench.get("/models/ada/settings")
    assert ours["learning_rate"]["unet"] == 2e-6 and ours["optimizer"]["name"] == "adamw_8bit"
    assert ours["concepts"][0]["sample_prompts"] == ["a zwx"]
    assert ours["previews"]["prompts"] == ["a cat"]
    assert bench.post("/model_config", answer) == answer
    fresh = bench.post("/model_config", {"model_name": "ada", "learning_rate": 1e-6})
    assert fresh["num_train_epochs"] == 100 and fresh["concepts_list"] == []


def test_the_config_tells_what_is_known_of_the_model(bench: Bench) -> None:
    make_model(bench.workspace, steps=120, epochs=4)
    config = bench.get("/model_config?model_name=ada")
    assert (config["model_name"], config["revision"], config["epoch"]) == ("ada", 120, 4)
    assert config["model_dir"] == str(bench.workspace.model("ada").path)
    assert config["src"] == "base.safetensors"


def test_some_settings_are_changed(bench: Bench) -> None:
    before = bench.get("/model_config?model_name=ada")
    params = {"lr_scheduler": "cosine", "resolution": 768, "attention": "xformers", "tomesd": 0}
    query = {"model_name": "ada", "params": json.dumps(params)}
    answer = bench.post("/model_params", params=query)
    assert answer.pop("not_used") == ["attention", "tomesd"]
    assert answer == {**before, "lr_scheduler": "cosine", "resolution": 768}


@pytest.mark.parametrize(
    ("params", "field"),
    [
        ({"learning_rat": 1}, "learning_rat"),
        ({"learning_rate": "x"}, "learning_rate.unet"),
        ({"optimizer": "Sophia"}, "optimizer.name"),
        ({"lr_scheduler": "wave"}, "learning_rate.schedule"),
        ({"num_train_epochs": -1}, "intervals.epochs"),
        ({"concepts_list": "x"}, "concepts_list"),
        ({"concepts_list": [{"instance_dir": "x"}]}, "concepts_list.0.instance_dir"),
        ({"concepts_list": [{"instance_data_dir": "none"}]}, "concepts.0.instance_folder"),
    ],
)
def test_what_cannot_be_set_is_named(bench: Bench, params: Any, field: str) -> None:
    query = {"model_name": "ada", "params": json.dumps(params)}
    assert bench.refusal("POST", "/model_params", 422, params=query)["field"] == field


@pytest.mark.parametrize(
    ("params", "status"), [("[]", 422), ("{", 400), ("", 422), ('{"seed": NaN}', 400)]
)
def test_params_that_are_no_object(bench: Bench, params: str, status: int) -> None:
    bench.refusal("POST", "/model_params", status, params={"model_name": "ada", "params": params})


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/checkpoint"),
        ("GET", "/classifiers"),
        ("POST", "/classifiers"),
        ("POST", "/concept"),
        ("GET", "/concepts"),
        ("POST", "/start_training"),
        ("DELETE", "/model"),
        ("GET", "/model_config"),
        ("GET", "/samples"),
    ],
)
def test_a_model_that_is_not_there(bench: Bench, method: str, path: str) -> None:
    for name, status in (("eve", 404), ("..", 404), (".jobs", 404), ("", 422)):
        bench.refusal(method, f"{path}?model_name={name}", status)
    assert not bench.conductor.started


def test_a_concept_is_added_and_replaced(bench: Bench, dogs: str) -> None:
    form = {"model_name": "ada", "instance_dir": dogs, "instance_token": "zwx"}
    (concept,) = bench.ask("POST", "/concept", data=form).json()
    assert (concept["instance_data_dir"], concept["instance_token"]) == (dogs, "zwx")
    assert concept["instance_prompt"] == concept["class_prompt"] == "[filewords]"
    whole = {"instance_data_dir": dogs, "class_token": "dog", "n_save_sample": 3}
    (concept,) = bench.post("/concept?model_name=ada", whole)
    assert (concept["class_token"], concept["instance_token"]) == ("dog", "")
    (concept,) = bench.post("/concept", {"model_name": "ada", "concept": whole})
    form = {"model_name": "ada", "concept": json.dumps({**whole, "class_token": "cat"})}
    (concept,) = bench.ask("POST", "/concept", data=form).json()
    assert concept["class_token"] == "cat"
    other = str(put(Path(dogs).parent / "cats" / "a.png").parent)
    two = bench.post("/concept?model_name=ada", {"instance_data_dir": other})
    assert [c["instance_data_dir"] for c in two] == [dogs, other]
    assert bench.get("/concepts?model_name=ada") == two
    assert bench.refusal("POST", "/concept?model_name=ada", 422)["field"] == "instance_dir"


def test_concepts_are_replaced(bench: Bench, dogs: str) -> None:
    concepts = [{"instance_data_dir": dogs, "num_class_images_per": 2}]
    answer = bench.post("/concepts?model_name=ada", concepts)
    assert answer == bench.get("/concepts?model_name=ada")
    assert answer[0]["num_class_images_per"] == 2
    assert bench.get("/concepts?model=ada")["concepts"][0]["class_images_per_instance_image"] == 2
    assert bench.post("/concepts", {"model_name": "ada", "concepts": concepts}) == answer
    form = {"model_name": "ada", "concepts": json.dumps(concepts)}
    assert bench.ask("POST", "/concepts", data=form).json() == answer
    for wrong in ("x", {"a": 1}, None, [1]):
        bench.refusal("POST", "/concepts?model_name=ada", 422, json=wrong)
    assert bench.get("/concepts?model_name=ada") == answer


def test_a_model_is_deleted_with_its_checkpoints(bench: Bench) -> None:
    path = put(bench.workspace.checkpoints_dir / "ada_10.safetensors")
    make_model(bench.workspace, checkpoints=[str(path)])
    answer = bench.ask("DELETE", "/model", data={"model_name": "ada"}).json()
    assert answer == "Model ada has been deleted."
    assert not path.exists() and not bench.workspace.model("ada").exists()


def test_lora_files_are_listed(bench: Bench) -> None:
    folder = bench.host.lora_dir()
    assert bench.get("/models_lora?model_name=ada") == []
    for name in ("b.safetensors", "sub/a.pt", "notes.txt"):
        put(folder / name)
    assert bench.get("/models_lora") == ["b.safetensors", "sub/a.pt"]
    bench.refusal("GET", "/models_lora?model_name=eve", 404)


def test_class_images_of_one_concept(bench: Bench, dogs: str) -> None:
    concepts = [
        {"instance_data_dir": dogs, "class_prompt": "photo of a dog"},
        {"instance_data_dir": dogs, "class_prompt": "[filewords]", "class_token": "cat"},
    ]
    bench.post("/concepts?model_name=ada", concepts)
    assert bench.get("/classifiers?model_name=ada") == {"Result": "No images found."}
    folder = bench.workspace.model("ada").class_images_dir
    for key, prompt in (("0a", b"photo of a dog"), ("0b", b"a cat in snow")):
        put(folder / key / "00000.png", png(shade=len(prompt)))
        put(folder / key / "00000.txt", prompt)

    def names(index: int) -> list[str]:
        answer = bench.ask("GET", f"/classifiers?model_name=ada&concept_idx={index}")
        with zipfile.ZipFile(BytesIO(answer.content)) as archive:
            return [name for name in archive.namelist() if name.endswith(".png")]

    assert names(0) == ["0a/00000.png"]
    assert names(1) == ["0b/00000.png"]
    assert names(-1) == ["0a/00000.png", "0b/00000.png"]
    problem = bench.refusal("GET", "/classifiers?model_name=ada&concept_idx=2", 404)
    assert problem["field"] == "concept_idx"


@pytest.mark.parametrize(
    ("template", "token", "prompt", "is_its"),
    [
        ("photo of a dog", "dog", "photo of a dog", True),
        ("photo of a dog", "", "dog, photo of  a dog", True),
        ("photo of [filewords], sharp", "dog", "photo of a dog in snow, sharp", True),
        ("photo of [filewords], sharp", "dog", "photo of a cat in snow, sharp", False),
        ("photo of [filewords], sharp", "", "a dog, sharp", False),
        ("(dog:1.2)", "", "a (dog:1.2)", True),
        ("", "dog", "a dog", True),
        ("", "", "a dog", False),
        ("[filewords]", "", "anything", True),
    ],
)
def test_whose_class_image_it_is(template: str, token: str, prompt: str, is_its: bool) -> None:
    concept = Concept(instance_folder="x", class_prompt=template, class_token=token)
    assert shows_class(prompt, concept) is is_its


def _images(*names: str, data: str | None = None) -> dict[str, Any]:
    encoded = base64.b64encode(png()).decode() if data is None else data
    return {"imageList": [{"name": n, "data": encoded, "txt": f"of {n}"} for n in names]}


def test_pictures_are_uploaded_and_become_a_concept(bench: Bench) -> None:
    query = "/upload?model_name=ada&instance_name=my dog"
    answer = bench.post(query, _images("a.png", "C:\\me\\b.png"))
    folder = bench.workspace.uploads_dir / "ada" / "my dog"
    assert answer["Status"] == "Saved 2 images." and answer["Image dir"] == str(folder)
    assert answer["Concepts"] == bench.get("/concepts?model_name=ada")
    assert answer["Concepts"][0]["instance_data_dir"] == str(folder)
    assert {p.name for p in folder.iterdir()} == {"a.png", "a.txt", "b.png", "b.txt"}
    assert (folder / "b.txt").read_text(encoding="utf-8") == "of C:\\me\\b.png"
    again = base64.b64encode(png(shade=3)).decode()
    answer = bench.post(query, _images("a.png", data=again))
    assert len(answer["Concepts"]) == 1
    assert (folder / "a.png").read_bytes() == png(shade=3)


def test_an_upload_without_a_concept_needs_no_model(bench: Bench) -> None:
    query = "/upload?model_name=new&instance_name=dog&create_concept=false"
    assert "Concepts" not in bench.post(query, _images("a.png"))
    bench.refusal("POST", query.replace("=false", "=true"), 404, json=_images("a.png"))


@pytest.mark.parametrize("name", ["..", "../..", "a/../../b", "nul", "..\\x", "a:b", ""])
def test_uploads_cannot_leave_their_folder(bench: Bench, name: str) -> None:
    query = {"model_name": "ada", "instance_name": name}
    bench.refusal("POST", "/upload", 422, params=query, json=_images("a.png"))
    query = {"model_name": name, "instance_name": "dog", "create_concept": "false"}
    bench.refusal("POST", "/upload", 422, params=query, json=_images("a.png"))
    assert not list(bench.workspace.root.rglob("*.png"))


@pytest.mark.parametrize("name", ["..", "", "con.png", "../.png", "a.png:x.png"])
def test_a_pictures_name_must_be_one(bench: Bench, name: str) -> None:
    query = "/upload?model_name=ada&instance_name=dog"
    bench.refusal("POST", query, 422, json=_images(name))
    assert bench.get("/concepts?model_name=ada") == []


def test_pictures_are_fetched(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def fetch(url: str) -> bytes:
        asked.append(url)
        return png(shade=8)

    monkeypatch.setattr(legacy, "fetch", fetch)
    query = "/upload_url?model_name=ada&instance_name=dog"
    answer = bench.post(query, _images("a.png", data=" http://pictures.example/a "))
    assert answer["Status"] == "Saved 1 images." and asked == ["http://pictures.example/a"]
    assert (Path(answer["Image dir"]) / "a.png").read_bytes() == png(shade=8)
    bench.refusal("POST", query, 422, json={"imageList": [{"name": "a.png", "data": 7}]})
    bench.refusal(
        "POST", query, 422, json=_images(*(f"{n}.png" for n in range(101)), data="http://a")
    )


@pytest.mark.parametrize("url", ["http://127.0.0.1/x.png", "http://[::1]/", "http://10.0.0.1/"])
def test_nothing_is_fetched_from_the_own_network(bench: Bench, url: str) -> None:
    query = "/upload_url?model_name=ada&instance_name=dog"
    problem = bench.refusal("POST", query, 403, json=_images("a.png", data=url))
    assert "public" in problem["message"]


@pytest.mark.parametrize("name", OPTIMIZER_CHOICES)
def test_every_optimizer_has_an_older_name_and_comes_back_as_itself(name: str) -> None:
    older = SETTINGS["optimizer"].write(name)
    assert SETTINGS["optimizer"].read(older) == name
