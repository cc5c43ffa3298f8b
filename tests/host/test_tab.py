"""The real tab and API in a stand-in of the host, with whichever gradio and FastAPI are here."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

gradio = pytest.importorskip("gradio", reason="gradio is not installed")

from fastapi import FastAPI  # noqa: E402

from dreambooth_core.config.control import field_specs  # noqa: E402
from dreambooth_core.config.schema import (  # noqa: E402
    BakeLoraConfig,
    Concept,
    CreateConfig,
    ExtractLoraConfig,
    LearningRateSection,
    MergeConfig,
    TrainConfig,
)
from dreambooth_core.host import base  # noqa: E402
from dreambooth_core.host.conductor import conductor  # noqa: E402
from dreambooth_core.job import launcher  # noqa: E402
from dreambooth_core.ui.training_form import TrainingForm  # noqa: E402
from tests.host_fixtures import (  # noqa: E402
    end_jobs,
    order,
    prepare_folder,
    until,
    use_ready_overlay,
)
from tests.host_standin import EXTENSION, Webui  # noqa: E402

KIND = "forge" if hasattr(gradio, "Timer") else "a1111"
FORMS = {
    "create": CreateConfig,
    "train": TrainConfig,
    "concept": Concept,
    "merge": MergeConfig,
    "extract_lora": ExtractLoraConfig,
    "bake_lora": BakeLoraConfig,
}
HEAVY = ("torch", "diffusers", "transformers", "accelerate", "peft")


@pytest.fixture
def webui(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Webui]:
    """A started host with our real tab; nothing of it is left afterwards."""
    prepare_folder(tmp_path)
    monkeypatch.setenv("STANDIN_DATA_DIR", str(tmp_path))
    monkeypatch.setattr(launcher, "WORKER_MODULE", "tests.host_standin.worker")
    monkeypatch.setattr(base, "_CHOSEN", [])
    conductor.cache_clear()
    standin = Webui(KIND, os.environ)
    try:
        standin.start(FastAPI())
        use_ready_overlay(monkeypatch)
        yield standin
        end_jobs(conductor())
    finally:
        conductor.cache_clear()
        standin.close()


def _components(blocks: Any) -> list[dict[str, Any]]:
    found = blocks.get_config_file()["components"]
    return [component["props"] | {"type": component["type"]} for component in found]


def _elem_ids(blocks: Any) -> Counter[str]:
    ids = (component.get("elem_id") for component in _components(blocks))
    return Counter(elem_id for elem_id in ids if elem_id)


def test_the_tab_builds_beside_others(webui: Webui) -> None:
    """As the host does: each tab's blocks are rendered inside the page's own."""
    assert webui.errors() == []
    [(blocks, title, elem_id)] = webui.tabs
    assert (title, elem_id) == ("Dreambooth", "dreambooth")
    with gradio.Blocks(analytics_enabled=False) as page, gradio.Tabs(), gradio.Tab("Dreambooth"):
        blocks.render()
    shown = _elem_ids(page)
    assert shown["dreambooth_run_train"] == 1
    assert not [elem_id for elem_id, times in shown.items() if times > 1]


@pytest.mark.parametrize("prefix", FORMS)
def test_each_setting_is_there_once_with_its_words_and_range(webui: Webui, prefix: str) -> None:
    assert webui.errors() == []
    [(blocks, _, _)] = webui.tabs
    props = _components(blocks)
    for spec in field_specs(FORMS[prefix]):
        elem_id = f"dreambooth_{prefix}_{spec.path.replace('.', '_')}"
        found = [p for p in props if p.get("elem_id") == elem_id]
        assert len(found) == 1, f"{elem_id} is there {len(found)} times"
        assert found[0]["label"] == spec.control.label
        assert spec.control.help in found[0]["info"]
        if found[0]["type"] == "slider":
            limits = (spec.control.minimum, spec.control.maximum)
            assert (found[0]["minimum"], found[0]["maximum"]) == limits


def test_the_host_keeps_no_value_of_ours(webui: Webui) -> None:
    [(blocks, _, _)] = webui.tabs
    ours = [b for b in blocks.blocks.values() if getattr(b, "elem_id", None)]
    assert ours
    assert all(getattr(block, "do_not_save_to_config", False) for block in ours if _is_field(block))


def _is_field(block: Any) -> bool:
    return isinstance(block, gradio.Textbox | gradio.Number | gradio.Slider | gradio.Checkbox)


def test_settings_go_round_unchanged() -> None:
    rates = LearningRateSection(unet=3e-6, schedule="linear", warmup_steps=7)
    concepts = [
        Concept(instance_folder="/a/b", instance_prompt="x, <y>", sample_prompts=["1", 'tw"o']),
        Concept(instance_folder="C:\\ü"),
    ]
    config = TrainConfig(model="m", concepts=concepts, learning_rate=rates)
    with gradio.Blocks(analytics_enabled=False):
        form = TrainingForm()
        form.place_picker()
        form.train.place(*(p for p in form.train.specs if p != "concepts"))
        form.concept.place(*form.concept.specs)
    values: dict[Any, Any] = {}
    for component, update in form.show(config, index=1).items():
        is_update = isinstance(update, dict) and "__type__" in update
        values[component] = update["value"] if is_update else update
    assert form.read(values) == config


def test_reload_ui_twice_leaves_one_tab_and_the_running_job(webui: Webui) -> None:
    job = conductor().start("sample", order("wait"))
    until(lambda: conductor().job() is not None)
    for _ in range(2):
        webui.reload_ui(FastAPI())
        assert webui.errors() == []
        assert [(title, elem_id) for _, title, elem_id in webui.tabs] == [
            ("Dreambooth", "dreambooth")
        ]
        running = conductor().job()
        assert running is not None and running.run_id == job.run_id
        assert running.is_running()


def test_the_routes_are_served(webui: Webui) -> None:
    testclient = pytest.importorskip("starlette.testclient", reason="httpx is not installed")
    client = testclient.TestClient(webui.app)
    assert client.get("/dreambooth/models").status_code == 200
    assert client.get("/dreambooth/jobs").json() == {"jobs": []}
    assert client.post("/dreambooth/jobs", json={"kind": "nothing"}).status_code == 422


def test_the_page_takes_in_nothing_heavy() -> None:
    code = f"import sys, dreambooth_core.ui.app; print([m for m in {HEAVY!r} if m in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=EXTENSION, capture_output=True, text=True, check=False
    )
    assert done.stdout.strip().endswith("[]"), done.stdout + done.stderr
