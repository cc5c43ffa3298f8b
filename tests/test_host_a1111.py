from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from dreambooth_core.host.a1111 import HOLD_MESSAGE, A1111Host
from dreambooth_core.host.base import current_host
from dreambooth_core.host.conductor import HELD, conductor
from dreambooth_core.job.events import JobFailed, JobFinished, JobStarted, Notice
from dreambooth_core.job.interpreter import WorkerPython
from tests.host_fixtures import checkpoint, order, running, started_during_a_picture, until
from tests.host_standin import Webui


@pytest.fixture
def webui(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Webui]:
    with running("a1111", tmp_path, monkeypatch) as standin:
        yield standin


@pytest.fixture
def host(webui: Webui) -> A1111Host:
    return current_host()


def test_it_is_a1111(host: A1111Host) -> None:
    assert type(host) is A1111Host
    assert host.name == "a1111"


def test_folders_are_the_webuis(webui: Webui, host: A1111Host, tmp_path: Path) -> None:
    workspace = host.workspace()
    assert workspace.root == tmp_path
    assert workspace.models_dir == tmp_path / "models" / "dreambooth"
    assert workspace.checkpoints_dir == tmp_path / "models" / "Stable-diffusion"
    assert host.lora_dir() == tmp_path / "models" / "Lora"


def test_folders_follow_the_options(webui: Webui, host: A1111Host, tmp_path: Path) -> None:
    options, settings = webui.module("shared").cmd_opts, webui.module("shared").opts
    options.ckpt_dir, options.lora_dir = str(tmp_path / "ckpt"), str(tmp_path / "loras")
    webui.module("paths").models_path = str(tmp_path / "elsewhere")
    workspace = host.workspace()
    assert workspace.root == tmp_path
    assert workspace.models_dir == tmp_path / "elsewhere" / "dreambooth"
    assert workspace.checkpoints_dir == tmp_path / "ckpt"
    assert host.lora_dir() == tmp_path / "loras"
    options.lora_models_path = str(tmp_path / "ours")
    assert host.lora_dir() == host.workspace().lora_dir == tmp_path / "ours"
    settings.data["dreambooth_models_folder"] = str(tmp_path / "set")
    assert host.workspace().models_dir == tmp_path / "set"
    options.dreambooth_models_path = str(tmp_path / "flag")
    assert host.workspace().models_dir == tmp_path / "flag"


def test_checkpoint_names_lead_back_to_their_files(
    webui: Webui, host: A1111Host, tmp_path: Path
) -> None:
    checkpoint(tmp_path, "sub/two.safetensors")
    checkpoint(tmp_path, "sub/two.vae.safetensors")
    outside = tmp_path / "ckpt" / "three.ckpt"
    outside.parent.mkdir()
    outside.write_bytes(b"x")
    webui.module("shared").cmd_opts.ckpt_dir = str(outside.parent)
    webui.module("sd_models").list_models()
    (tmp_path / "models" / "Stable-diffusion" / "base.safetensors").unlink()
    names = host.checkpoint_names()
    sub = tmp_path / "models" / "Stable-diffusion" / "sub"
    assert names == [str(sub / "two.safetensors"), "three.ckpt"]
    workspace = host.workspace()
    assert [workspace.find_checkpoint(name).name for name in names] == [
        "two.safetensors",
        "three.ckpt",
    ]


def test_a_file_put_there_by_hand_is_offered_at_once(host: A1111Host, tmp_path: Path) -> None:
    checkpoint(tmp_path, "sub/new.safetensors")
    assert host.checkpoint_names() == ["base.safetensors", "sub/new.safetensors"]


def test_the_model_goes_and_comes_back_with_the_next_picture(webui: Webui, host: A1111Host) -> None:
    sd_models, shared = webui.module("sd_models"), webui.module("shared")
    model = webui.module("processing").txt2img()
    other = sd_models.Model("other")
    sd_models.model_data.loaded_sd_models.append(other)
    host.release_memory()
    assert (model.device, other.device) == ("meta", "meta")
    assert sd_models.model_data.sd_model is None
    assert sd_models.model_data.loaded_sd_models == []
    assert webui.calls[-1] == "torch_gc"
    assert shared.sd_model is None  # a look at it does not load it while a job runs
    host.reclaim_memory()
    assert sd_models.model_data.sd_model is None  # not before somebody needs it
    assert shared.sd_model.device == "cuda"
    host.release_memory()
    assert webui.module("processing").txt2img().device == "cuda"
    host.reclaim_memory()
    assert shared.sd_model.device == "cuda"
    assert webui.calls.count("load_model base.safetensors") == 3


def test_a_model_that_was_never_loaded_stays_unloaded(webui: Webui, host: A1111Host) -> None:
    host.release_memory()
    assert webui.module("shared").sd_model is None
    host.reclaim_memory()
    assert webui.module("shared").sd_model is not None


def test_unloading_waits_for_a_load_and_for_a_picture(webui: Webui, host: A1111Host) -> None:
    sd_models = webui.module("sd_models")
    sd_models.LOAD_GATE.clear()
    loading = threading.Thread(target=lambda: webui.module("shared").sd_model)
    loading.start()
    until(sd_models.model_data.lock.locked)
    releasing = threading.Thread(target=host.release_memory)
    releasing.start()
    releasing.join(0.2)
    assert releasing.is_alive()
    sd_models.LOAD_GATE.set()
    releasing.join(20)
    assert sd_models.model_data.sd_model is None

    with started_during_a_picture(webui, host.release_memory):
        assert sd_models.model_data.sd_model.device == "cuda"
    assert sd_models.model_data.sd_model is None


def test_the_model_stays_if_the_settings_say_so(webui: Webui, host: A1111Host) -> None:
    model = webui.module("processing").txt2img()
    webui.module("shared").opts.data["dreambooth_unload_model"] = False
    host.release_memory()
    host.reclaim_memory()
    assert model.device == "cuda"
    assert webui.module("sd_models").model_data.was_loaded_at_least_once


def test_holding_makes_pictures_wait(webui: Webui, host: A1111Host) -> None:
    state, model = webui.module("shared").state, webui.module("processing").txt2img()
    with host.hold_generation():
        drawing = threading.Thread(target=webui.module("processing").txt2img)
        drawing.start()
        host.release_memory()  # the queue is ours already
        assert model.device == "meta"
        assert (state.job, state.textinfo) == ("dreambooth", HOLD_MESSAGE)
        with host.hold_generation():
            pass
        drawing.join(0.2)
        assert drawing.is_alive()
    drawing.join(20)
    assert not drawing.is_alive()
    assert state.textinfo is None
    assert webui.calls[-1] == "txt2img"


def test_the_queue_is_given_back_after_an_error(webui: Webui, host: A1111Host) -> None:
    with pytest.raises(KeyError), host.hold_generation():
        raise KeyError
    assert webui.module("call_queue").queue_lock.acquire(blocking=False)


def test_generation_is_a_setting(webui: Webui, host: A1111Host) -> None:
    assert not host.generation_allowed()
    webui.module("shared").opts.data["dreambooth_generation_while_training"] = True
    assert host.generation_allowed()


def test_settings_have_defaults_before_they_are_added(webui: Webui, host: A1111Host) -> None:
    webui.module("shared").opts.data.clear()
    assert not host.generation_allowed()
    assert host.workspace().models_dir.name == "dreambooth"


def test_a_saved_file_is_listed_with_its_hash(
    webui: Webui, host: A1111Host, tmp_path: Path
) -> None:
    sd_models = webui.module("sd_models")
    checkpoint(tmp_path, "a/same.safetensors")
    saved = checkpoint(tmp_path, "b/same.safetensors")
    host.checkpoint_saved(saved, "0123456789abcdef")
    info = sd_models.get_closet_checkpoint_match("b/same.safetensors")
    # The file was not read again: its hash is the one that we were told.
    assert info.title == "b/same.safetensors [0123456789]"
    assert info.title in sd_models.checkpoints_list
    assert sd_models.get_closet_checkpoint_match("a/same.safetensors").shorthash is None
    host.checkpoint_saved(tmp_path / "models" / "Lora" / "x.safetensors", "")
    assert sum("shorthash" in call for call in webui.calls) == 1


def test_who_may_call_the_api(webui: Webui, host: A1111Host, tmp_path: Path) -> None:
    options = webui.module("shared").cmd_opts
    assert host.api_credentials() == {}
    options.gradio_auth = "eve:page"
    assert host.api_credentials() == {"eve": "page"}
    options.gradio_auth_path = tmp_path / "people.txt"
    options.gradio_auth_path.write_text("kim:k1, lee:l1\nmax:m1\n")
    people = {"eve": "page", "kim": "k1", "lee": "l1", "max": "m1"}
    assert host.api_credentials() == people
    options.api_auth = "ada:se:cret, bob:x"
    assert host.api_credentials() == {"ada": "se:cret", "bob": "x"}


def test_other_sites_are_those_of_the_webuis_own_api(webui: Webui, host: A1111Host) -> None:
    options, site = webui.module("shared").cmd_opts, "https://a.example"
    assert not host.allows_origin(site) and not host.allows_origin("")
    options.cors_allow_origins = f"http://b.example,{site}"
    assert host.allows_origin(site) and not host.allows_origin("https://a.example.org")
    options.cors_allow_origins = "*"
    assert host.allows_origin(site)
    options.cors_allow_origins = None
    options.cors_allow_origins_regex = r"https://[ab]\.example"
    assert host.allows_origin(site)
    assert not host.allows_origin("https://c.example") and not host.allows_origin(f"{site}.org")


def test_workers_use_the_webuis_python_and_our_packages(webui: Webui) -> None:
    host, options = A1111Host(), webui.module("shared").cmd_opts
    overlay = host.overlay()
    assert overlay.root.name == ".trainer-packages"
    assert host.worker() == WorkerPython(sys.executable, (overlay.folder,))
    options.device_id = "1"
    assert host.worker().device_id == "1"
    options.dreambooth_device_id = "2"
    assert host.worker().device_id == "2"
    options.force_cpu = True
    assert host.worker().device_id == "-1"


def test_a_job_has_the_memory_and_its_files_are_listed(webui: Webui, tmp_path: Path) -> None:
    """The whole way: unloaded before the worker starts, listed after each file, back at the end."""
    model = webui.module("processing").txt2img()
    before = len(webui.calls)
    job = conductor().start("sample", order("save one.safetensors sub/two.safetensors finish"))
    devices = [model.device for event in job.events() if isinstance(event, JobStarted)]
    assert devices == ["meta"]
    assert isinstance(job.wait(), JobFinished)
    assert conductor().wait(60)
    after = webui.calls[before:]
    assert after[0] == "send_model_to_trash"
    assert after.count("list_models") == 2
    assert {c for c in after if "shorthash" in c} == {
        "calculate_shorthash one.safetensors",
        "calculate_shorthash sub/two.safetensors",
    }
    titles = webui.module("sd_models").checkpoints_list
    assert any(title.startswith("sub/two.safetensors [") for title in titles)
    assert webui.module("shared").sd_model.device == "cuda"


def test_pictures_wait_for_the_job_unless_they_are_allowed(webui: Webui) -> None:
    txt2img, opts = webui.module("processing").txt2img, webui.module("shared").opts
    job = conductor().start("sample", order("wait"))
    until(lambda: any(isinstance(e, JobStarted) for e in _so_far(job)))
    drawing = threading.Thread(target=txt2img)
    drawing.start()
    drawing.join(0.3)
    assert drawing.is_alive()
    assert Notice("info", HELD) in _so_far(job)
    job.kill()
    drawing.join(60)
    assert not drawing.is_alive()
    assert conductor().wait(60)

    opts.data["dreambooth_generation_while_training"] = True
    job = conductor().start("sample", order("wait"))
    until(lambda: any(isinstance(e, JobStarted) for e in _so_far(job)))
    assert txt2img().device == "cuda"
    assert Notice("info", HELD) not in _so_far(job)


def test_a_killed_worker_is_a_failed_job_and_gives_the_memory_back(webui: Webui) -> None:
    webui.module("processing").txt2img()
    job = conductor().start("sample", order("die"))
    final = job.wait()
    assert isinstance(final, JobFailed)
    assert conductor().wait(60)
    written = [event for event in _so_far(job) if isinstance(event, JobFailed)]
    assert [event.error for event in written] == ["WorkerDied"]
    assert "SIGKILL" in written[0].message
    assert webui.module("call_queue").queue_lock.acquire(blocking=False)
    webui.module("call_queue").queue_lock.release()
    assert webui.module("shared").sd_model.device == "cuda"
    assert conductor().job().run_id == job.run_id


def _so_far(job: object) -> list[object]:
    from dreambooth_core.job.events import read_events
    from dreambooth_core.job.runs import events_path

    return read_events(events_path(job.folder))[0]
