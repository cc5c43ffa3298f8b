"""scripts/dreambooth.py and what it registers, as the WebUI loads and reloads it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import types
from collections.abc import Iterator
from pathlib import Path

import pytest

from dreambooth_core.config.control import field_specs
from dreambooth_core.host import base, callbacks
from dreambooth_core.host.conductor import conductor
from dreambooth_core.host.settings import HostSettings
from dreambooth_core.job.commands import Command
from dreambooth_core.job.events import JobStopped
from tests.host_fixtures import PATIENCE, checkpoint, order, running, until
from tests.host_standin import EXTENSION, App, Webui

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(params=["a1111", "forge"])
def webui(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Webui]:
    with running(request.param, tmp_path, monkeypatch) as standin:
        yield standin


def test_the_script_is_short_and_the_only_one() -> None:
    scripts = sorted((ROOT / "scripts").glob("*.py"))
    assert [path.name for path in scripts] == ["dreambooth.py"]
    assert len(scripts[0].read_text(encoding="utf-8").splitlines()) <= 40


def test_tab_settings_and_routes_are_there(webui: Webui) -> None:
    host = webui.kind
    assert webui.tabs == [(f"blocks of {host}", "Dreambooth", "dreambooth")]
    assert webui.app.mounted == [host]
    options = webui.module("shared").opts
    for spec in field_specs(HostSettings):
        info = options.data_labels[f"dreambooth_{spec.path}"]
        assert (info.label, info.default) == (spec.control.label, spec.default)
        assert spec.control.help in info.comment_after
        assert (info.section, info.category_id) == (("dreambooth", "Dreambooth"), "training")
        assert getattr(options, f"dreambooth_{spec.path}") == spec.default


def test_reload_ui_twice_leaves_one_of_everything_and_the_job(webui: Webui) -> None:
    job = conductor().start("sample", order("wait"))
    before, host = conductor(), base.current_host()
    until(lambda: webui.module("shared").state.job == "dreambooth")
    webui.module("shared").opts.data["dreambooth_generation_while_training"] = True
    for _ in range(2):
        webui.reload_ui()
        assert webui.errors() == []
        assert len(webui.tabs) == 1
        assert webui.app.mounted == [webui.kind]
    assert conductor() is before
    assert base.current_host() is host
    assert [found.run_id for found in conductor().adopt()] == [job.run_id]
    assert conductor().job().is_running()
    # What was chosen in the settings is not overwritten by adding them again.
    assert host.generation_allowed()
    job.send(Command("stop"))
    assert isinstance(job.wait(), JobStopped)
    assert conductor().wait(PATIENCE)
    assert webui.module("call_queue").queue_lock.acquire(blocking=False)


def test_a_script_that_is_run_twice_registers_once(webui: Webui) -> None:
    registered = webui.module("script_callbacks").callback_map
    for _ in range(2):
        webui.module("scripts").load_scripts(str(EXTENSION), clear=False)
    counts = {name: len(entries) for name, entries in registered.items()}
    assert (counts["ui_tabs"], counts["ui_settings"], counts["app_started"]) == (1, 1, 1)


def test_without_a_page_there_are_routes_and_settings(webui: Webui) -> None:
    webui.start(App(), with_ui=False)
    assert webui.errors() == []
    assert webui.app.mounted == [webui.kind]


def _fake_gradio(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    shown: list[str] = []

    class Blocks:
        def __init__(self, analytics_enabled: bool) -> None:
            assert not analytics_enabled

        def __enter__(self) -> None:
            pass

        def __exit__(self, *error: object) -> None:
            pass

    gradio = types.ModuleType("gradio")
    gradio.Blocks, gradio.HTML = Blocks, shown.append
    monkeypatch.setitem(sys.modules, "gradio", gradio)
    return shown


def test_a_tab_that_cannot_be_built_says_why(webui: Webui, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(host: object) -> None:
        raise ValueError("a <b>bug</b>")

    shown = _fake_gradio(monkeypatch)
    monkeypatch.setattr(sys.modules["dreambooth_core.ui.app"], "build_blocks", broken)
    webui.reload_ui()
    assert webui.errors() == []
    assert [tab[1:] for tab in webui.tabs] == [("Dreambooth", "dreambooth")]
    assert "ValueError: a &lt;b&gt;bug&lt;/b&gt;" in shown[0]


def test_a_package_that_cannot_be_imported_says_why(
    webui: Webui, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown = _fake_gradio(monkeypatch)
    monkeypatch.delattr(sys.modules["dreambooth_core.host"], "callbacks")
    monkeypatch.setitem(sys.modules, "dreambooth_core.host.callbacks", None)
    webui.reload_ui()
    assert webui.errors() == []
    assert "cannot be shown" in shown[0]
    assert "dreambooth_core.host" in shown[0]
    # The next start finds it again.
    monkeypatch.setitem(sys.modules, "dreambooth_core.host.callbacks", callbacks)
    monkeypatch.setattr(sys.modules["dreambooth_core.host"], "callbacks", callbacks, raising=False)
    webui.reload_ui()
    assert webui.tabs[0][0] == f"blocks of {webui.kind}"


FAR_AWAY = """
import json, os, sys
from host_standin import Webui
from host_standin.quiet import replacements
sys.modules.update(replacements())
webui = Webui("a1111", os.environ)
before = set(sys.modules)
webui.start()
on_path = [path for path in sys.path if os.path.realpath(path) == str(webui.extension)]
late = webui.tabs[0][0]
loaded = sorted({name.partition(".")[0] for name in set(sys.modules) - before})
from dreambooth_core.host.base import current_host
names = current_host().checkpoint_names()
print(json.dumps([webui.errors(), on_path, late, loaded, names]))
"""


def test_it_works_though_its_folder_is_off_the_path_and_starts_light(tmp_path: Path) -> None:
    """A1111 has our folder on sys.path only while it loads the script."""
    checkpoint(tmp_path, "base.safetensors")
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT / "tests"),
        "STANDIN_DATA_DIR": str(tmp_path),
    }
    done = subprocess.run(
        [sys.executable, "-c", FAR_AWAY],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    errors, on_path, tab, loaded, names = json.loads(done.stdout)
    assert (errors, on_path) == ([], [])
    assert tab == "blocks of a1111"
    assert names == ["base.safetensors"]
    heavy = {"torch", "diffusers", "transformers", "numpy", "PIL", "gradio", "requests", "urllib3"}
    assert not heavy & set(loaded)
