"""Names that are no folder's name, at every place where one comes in: refused, nothing written.

And nothing that somebody else named or wrote becomes a part of the page's HTML.
"""

from __future__ import annotations

import ast
import json
import unicodedata
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from dreambooth_core import cli
from dreambooth_core.config.control import field_specs
from dreambooth_core.config.presets import (
    Preset,
    delete_preset,
    export_preset,
    find_preset,
    import_preset,
    save_preset,
)
from dreambooth_core.config.schema import (
    JOB_CONFIGS,
    CreateConfig,
    MergeConfig,
    TrainConfig,
)
from dreambooth_core.config.serialize import from_dict, put_value
from dreambooth_core.config.settings_store import difference
from dreambooth_core.config.validate import check, validate
from dreambooth_core.errors import ConfigError, DreamboothError, InputError, Problem
from dreambooth_core.job import launcher
from dreambooth_core.job.checkpoint_files import checkpoint_path
from dreambooth_core.job.launcher import attach, launch
from dreambooth_core.job.workspace import MAX_NAME_BYTES, ModelInfo, Workspace, check_name
from tests.api_standin import Bench, bench, png

__all__ = ["bench"]

UI = Path(launcher.__file__).parents[1] / "ui"
NAME_KINDS = ("model", "new_model", "run", "file_name")

HOSTILE = {
    "empty": "",
    "blank": "  ",
    "parent": "..",
    "above": "../x",
    "inside": "a/../../x",
    "slash": "a/b",
    "absolute": "/etc/x",
    "backslash": "a\\b",
    "windows above": "..\\x",
    "drive": "C:x",
    "share": "\\\\host\\share",
    "stream": "a:b",
    "hidden": ".hidden",
    "dot at end": "x.",
    "space at end": "x ",
    "space at start": " x",
    "device": "CON",
    "device with ending": "nul.txt",
    "device with space": "aux .txt",
    "numbered device": "com1",
    "superscript device": "COM\u00b9",
    "console": "CONIN$",
    "star": "a*",
    "question": "a?",
    "pipe": "a|b",
    "quote": 'a"b',
    "tag": "<b>x</b>",
    "nul": "a\0b",
    "newline": "a\nb",
    "escape": "\x1b[31mx",
    "delete": "a\x7fb",
    "control of latin": "a\x85b",
    "turned": "gpj.\u202eexe",
    "isolated": "a\u2066b",
    "unseen": "a\u200bb",
    "mark": "\ufeffa",
    "line": "a\u2028b",
    "half": "a\ud800",
    "long": "x" * 300,
    "long in bytes": "\U0001f600" * 60,
    "brace": "{x}",
}
SOME = ("above", "backslash", "device", "turned", "half", "long in bytes")
"""For what takes longer to ask; that all are judged alike is seen elsewhere."""
FINE = (
    "ada",
    "ada 2",
    "a.b-c_d",
    "x" * 100,
    "Hündchen",
    "日本語モデル",
    unicodedata.normalize("NFC", "café"),
    unicodedata.normalize("NFD", "café"),
    "\U0001f436 dog",
    "\U0001f469\u200d\U0001f680",
    "-rf",
    "~",
    "$HOME",
    "%PATH%",
    "console",
    "com10",
    "'; drop",
)


@pytest.fixture
def ready(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> Workspace:
    """A workspace with a model and the current folder; no worker may start."""
    workspace.model("ada").write_info(ModelInfo("ada", "sd1", ""))
    monkeypatch.setattr(launcher, "_start_worker", lambda *_: pytest.fail("a worker started"))
    monkeypatch.chdir(workspace.root)
    return workspace


def _preset_file(workspace: Workspace, name: str) -> Path:
    path = workspace.root.parent / "theirs.json"
    values = {"format": "dreambooth preset", "version": 1, "name": name, "settings": {}}
    path.write_text(json.dumps(values))
    return path


def _launched(workspace: Workspace, name: str) -> object:
    config = CreateConfig(name=name, source="base.safetensors")
    return launch(workspace, "create", config)


def _merged(workspace: Workspace, name: str) -> object:
    return check(MergeConfig(name=name, primary="a", secondary="b"), workspace, "merge")


PLACES: dict[str, Callable[[Workspace, str], object]] = {
    "check_name": lambda workspace, name: check_name(name),
    "model": lambda workspace, name: workspace.model(name),
    "run": lambda workspace, name: workspace.run_folder(name),
    "attach": attach,
    "create": _launched,
    "merge": _merged,
    "checkpoint": lambda workspace, name: checkpoint_path(workspace.checkpoints_dir, name, 3),
    "preset saved": lambda workspace, name: save_preset(workspace, Preset(name, "", {})),
    "preset imported": lambda w, name: import_preset(w, _preset_file(w, name)),
    "preset exported": lambda w, name: export_preset(Preset(name, "", {}), w.root),
    "preset deleted": delete_preset,
    "preset found": find_preset,
}


@pytest.mark.parametrize("place", PLACES)
def test_a_hostile_name_is_refused_and_nothing_is_written(ready: Workspace, place: str) -> None:
    """In words that say what is wrong; the name itself cannot bend the message."""
    _preset_file(ready, "x")
    before = sorted(ready.root.parent.rglob("*"))
    for what, name in HOSTILE.items():
        if place == "preset found" and what not in SOME:
            continue
        with pytest.raises(DreamboothError) as caught:
            PLACES[place](ready, name)
        told = caught.value
        assert told.remedy or (isinstance(told, ConfigError) and told.problems), (what, told)
        assert not {"\x1b", "\u202e", "\0"} & set(str(caught.value)), what
        str(caught.value).encode("utf-8")
        assert len(str(caught.value)) < 2_000
    assert sorted(ready.root.parent.rglob("*")) == before


def test_a_subfolder_may_have_several_names_and_none_leads_out(ready: Workspace) -> None:
    folder = ready.checkpoints_dir
    assert checkpoint_path(folder, "x", 0, "a/b").parent == folder / "a" / "b"
    for what, name in HOSTILE.items():
        if what in ("empty", "slash"):
            continue
        for subfolder in (name, f"a/{name}"):
            if subfolder == "a//etc/x":  # which is a/etc/x
                continue
            with pytest.raises(InputError):
                checkpoint_path(folder, "x", 0, subfolder)


NAMED = [
    (kind, spec.path)
    for kind in sorted(JOB_CONFIGS)
    for spec in field_specs(JOB_CONFIGS[kind])
    if spec.control.kind in NAME_KINDS
]


@pytest.mark.parametrize(("kind", "path"), NAMED)
def test_every_setting_that_is_a_name_is_checked(ready: Workspace, kind: str, path: str) -> None:
    """Of every kind of job, by the schema itself: a new one cannot be forgotten."""
    cls = JOB_CONFIGS[kind]
    for what in SOME:
        name = HOSTILE[what]
        data: dict[str, Any] = {spec.path: "ada" for spec in field_specs(cls) if spec.required}
        for required in (spec for spec in field_specs(cls) if spec.required):
            if required.type == list[str]:
                data[required.path] = ["ada"]
        put_value(data, cls, path, name)
        try:
            fields = {problem.field for problem in validate(from_dict(cls, data), ready, kind)}
        except DreamboothError as error:  # no text at all
            fields = {error.field}
        assert path in fields, (what, path)


def test_names_of_any_script_are_taken_as_they_are(workspace: Workspace) -> None:
    """Each is one folder of its own, and the longest names of files that follow fit too."""
    for name in FINE:
        folder = workspace.model(name).path
        assert folder.parent == workspace.models_dir and folder.name == name
        folder.mkdir(parents=True)
        (workspace.models_dir / f".file {name}.lock.guard").touch()
        (folder / f"{name}_00012000-12_lora.safetensors.tmp").touch()
    made = {path.name for path in workspace.models_dir.iterdir() if path.is_dir()}
    assert made == set(FINE)
    assert max(len(name.encode()) for name in FINE) <= MAX_NAME_BYTES


def test_the_command_line(ready: Workspace, capsys: pytest.CaptureFixture[str]) -> None:
    """Where a name begins with a dash, it is given with an equals sign."""
    before = sorted(ready.root.rglob("*"))
    for what in ("empty", "nul", *SOME):
        name = HOSTILE[what]
        for words in (
            ["create", f"--name={name}", "--source=x"],
            ["train", f"--model={name}"],
            ["merge", f"--name={name}", "--primary=a", "--secondary=b"],
            ["watch", "--", name],
            ["resume", "--", name],
        ):
            if not name.strip() and words[0] == "watch":
                continue  # without a name the newest run is meant
            assert cli.main(words) == 2, (what, words)
            told = capsys.readouterr().err
            assert told.startswith("error: ") and "\x1b" not in told and "\u202e" not in told
    assert sorted(ready.root.rglob("*")) == before


def test_the_rest_api(bench: Bench) -> None:
    """In paths, in addresses, in bodies, as the names of uploads."""
    before = sorted(bench.workspace.root.parent.rglob("*"))
    for what in ("empty", "blank", "parent", "slash", "hidden", "nul", "newline", "tag", *SOME):
        name = HOSTILE[what]
        escaped = quote(name, safe="", errors="surrogatepass")
        new = {"source": "base.safetensors"}
        asked = [
            ("GET", f"/models/{escaped}", {}),
            ("DELETE", f"/models/{escaped}", {}),
            ("GET", f"/jobs/{escaped}/events", {}),
            ("GET", f"/samples/{escaped}/a.png", {}),
            ("GET", f"/samples/ada/{escaped}.png", {}),
            ("POST", "/jobs", {"json": {"kind": "create", "config": {**new, "name": name}}}),
            ("POST", "/jobs", {"json": {"kind": "sample", "config": {"model": name}}}),
            ("POST", f"/upload?folder={escaped}", {"files": {"f": ("a.png", png(), "image/png")}}),
        ]
        for method, path, options in asked:
            if not name.strip() and path.rstrip("/%20") in ("/models", "/samples/ada/.png"):
                continue  # the list of them
            if "json" in options:
                text = json.dumps(options.pop("json"))
                options = {"content": text, "headers": {"Content-Type": "application/json"}}
            answer = bench.client.request(method, f"/dreambooth{path}", **options)
            expected = (400, 404, 405, 422)
            if "?folder" in path and what in ("slash", "half"):
                continue  # a folder in a folder; half a character comes as a whole other one
            assert answer.status_code in expected, (what, method, path, answer.text[:300])
    after = set(bench.workspace.root.parent.rglob("*")) - set(before)
    uploads = bench.workspace.uploads_dir
    assert all(path == uploads or path.is_relative_to(uploads) for path in after)
    assert bench.get("/status")


def _tags_with_values() -> Iterator[tuple[str, ast.expr]]:
    """Yield every value that an f-string of the page's modules puts beside a tag."""
    for path in sorted(UI.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.JoinedStr):
                continue
            words = "".join(str(p.value) for p in node.values if isinstance(p, ast.Constant))
            if "<" in words and ">" in words:
                for part in node.values:
                    if isinstance(part, ast.FormattedValue):
                        yield f"{path.name}:{node.lineno}", part


MADE_HERE = {
    "gradio_compat.py": {"script"},
    "messages.py": {"body", "end", "head", "inside", "kind", "line", "lines", "look", "start"}
    | {"tag", "''.join(lines)", "hint(below)"},
    "run_html.py": {"''.join(parts)", "''.join(words)", "STATES[view.state]", "STYLE", "cause"}
    | {"helped", "hint", "kept", "look", "name", "percent", "plots", "said", "text", "title"}
    | {"where", "written"},
    "run_plot.py": {"''.join(map(_key, drawn))", "''.join(parts)", "' '.join(places)", "HEIGHT"}
    | {"HEIGHT - 8", "LEFT", "LEFT - 6", "WIDTH", "bottom", "label", "last", "line.color"}
    | {"line.opacity", "line.width", "right", "value", "x", "y"},
    "schedule_curve.py": {"STYLE", "drawn", "said"},
    "transfer.py": {"path.stem"},
}
"""What stands beside a tag without being escaped there: numbers, our own words, and HTML that was
made of escaped texts just before. "transfer.py" writes "<lora:NAME:1>", a text that is escaped."""


def test_what_stands_beside_a_tag_is_escaped() -> None:
    """A new value that is not has to be looked at, and then to be listed above."""
    found = [(place, ast.unparse(part.value)) for place, part in _tags_with_values()]
    assert len(found) > 60
    for place, value in found:
        module = place.partition(":")[0]
        assert value.startswith("escape(") or value in MADE_HERE.get(module, ()), (place, value)


EVIL = "<img src=x onerror=alert(1)>'\"&"


def test_what_somebody_named_is_shown_as_text(ready: Workspace) -> None:
    """Errors, a file's facts, the history, what is imported: all from files that others made."""
    pytest.importorskip("gradio")
    from dreambooth_core.config.imports import read_import
    from dreambooth_core.ui import messages
    from dreambooth_core.ui.tabs import create, importing, presets, select

    info = ModelInfo("ada", EVIL, EVIL, prediction_type=EVIL, created=EVIL, last_run=EVIL)
    theirs = read_import(json.dumps({"concepts_list": [], EVIL: 1, "epoch": EVIL}), "labels")
    bad = ready.checkpoints_dir / "a.safetensors"
    table = json.dumps({EVIL: {"dtype": EVIL, "shape": [], "data_offsets": [0, 0]}}).encode()
    bad.write_bytes(len(table).to_bytes(8, "little") + table)
    config = TrainConfig(model=EVIL)
    other = TrainConfig(model=EVIL)
    other.previews.prompts = [EVIL]
    pages = [
        messages.explain(ConfigError([Problem(EVIL, EVIL, EVIL)])),
        messages.explain(InputError(EVIL, remedy=EVIL, field=EVIL)),
        messages.table([EVIL], [[EVIL]]),
        select.show_history(ready, info),
        select.show_status(info),
        create.describe_source(ready, str(bad)),
        create.describe_source(ready, EVIL),
        presets.show_changes(difference(config, other)),
        importing.show_report(theirs),
    ]
    for page in pages:
        assert "<img" not in page and "&lt;img" in page, page[:500]
