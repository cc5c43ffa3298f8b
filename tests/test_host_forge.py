from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from dreambooth_core.host import forge
from dreambooth_core.host.base import current_host
from dreambooth_core.host.conductor import conductor
from dreambooth_core.host.forge import ForgeHost
from dreambooth_core.job.events import JobFinished, JobStarted
from tests.host_fixtures import checkpoint, order, running, started_during_a_picture
from tests.host_standin import Webui


@pytest.fixture(params=["forge", "reforge"])
def webui(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Webui]:
    with running(request.param, tmp_path, monkeypatch) as standin:
        yield standin


@pytest.fixture
def host(webui: Webui) -> ForgeHost:
    return current_host()


def test_it_is_forge(host: ForgeHost) -> None:
    assert type(host) is ForgeHost
    assert host.name == "forge"


def test_the_model_goes_and_comes_back_with_the_next_picture(webui: Webui, host: ForgeHost) -> None:
    txt2img = webui.module("processing").txt2img
    model = txt2img()
    host.release_memory()
    assert model.device == "cpu"
    assert webui.calls[-2:] == ["unload_all_models", "soft_empty_cache"]
    assert webui.module("sd_models").model_data.sd_model is model
    host.reclaim_memory()
    assert model.device == "cpu"
    assert txt2img() is model
    assert model.device == "cuda"
    assert webui.calls.count("load_model base.safetensors") == 1


def test_nothing_was_loaded_yet(webui: Webui, host: ForgeHost) -> None:
    host.release_memory()
    host.reclaim_memory()
    assert webui.module("processing").txt2img().device == "cuda"


def test_unloading_waits_for_a_picture(webui: Webui, host: ForgeHost) -> None:
    with started_during_a_picture(webui, host.release_memory):
        assert "unload_all_models" not in webui.calls
    assert webui.calls[-3:] == ["txt2img", "unload_all_models", "soft_empty_cache"]


def test_the_model_stays_if_the_settings_say_so(webui: Webui, host: ForgeHost) -> None:
    model = webui.module("processing").txt2img()
    webui.module("shared").opts.data["dreambooth_unload_model"] = False
    host.release_memory()
    assert model.device == "cuda"


def test_a_saved_file_is_listed_with_its_hash(
    webui: Webui, host: ForgeHost, tmp_path: Path
) -> None:
    host.checkpoint_saved(checkpoint(tmp_path, "new.safetensors"), "0123456789abcdef")
    aliases = webui.module("sd_models").checkpoint_aliases
    assert aliases["new"].title == "new.safetensors [0123456789]"


def test_a_job_has_the_memory_and_its_files_are_listed(webui: Webui) -> None:
    model = webui.module("processing").txt2img()
    job = conductor().start("sample", order("save one.safetensors finish"))
    devices = [model.device for event in job.events() if isinstance(event, JobStarted)]
    assert devices == ["cpu"]
    assert isinstance(job.wait(), JobFinished)
    assert conductor().wait(60)
    assert "calculate_shorthash one.safetensors" in webui.calls
    assert webui.module("processing").txt2img() is model


def test_a_forge_without_a_known_memory_manager(
    webui: Webui, host: ForgeHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in forge.MANAGERS:
        monkeypatch.setitem(sys.modules, name, None)
        monkeypatch.setitem(sys.modules, name.partition(".")[0], None)
    with pytest.raises(ModuleNotFoundError, match="memory_management"):
        host.release_memory()
    assert webui.module("call_queue").queue_lock.acquire(blocking=False)


def test_a_broken_memory_manager_is_not_passed_over(
    host: ForgeHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(name: str) -> None:
        raise ModuleNotFoundError("No module named 'torch'", name="torch")

    monkeypatch.setattr(forge.importlib, "import_module", broken)
    with pytest.raises(ModuleNotFoundError, match="torch"):
        forge._memory_manager()
