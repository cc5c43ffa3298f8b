from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import re
import shutil
import sys
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace

import pytest

import launch
from launch import BaseTorch, SetupError, State, choose_torch, fingerprint, version_numbers

PINS = fingerprint(["torch.txt", "torch-constraints.txt"])
MADE_FOR = f"{sys.version_info[0]}.{sys.version_info[1]}"


class FakeSystem:
    """Takes the place of the processes that set-up starts, and keeps what was asked of them."""

    def __init__(self, venv: Path) -> None:
        self.venv = venv
        self.calls: list[list[str]] = []
        self.fail_on = ""
        self.interrupt_on = ""

    def call(self, command: list[str], **options: object) -> int:
        words = command[1:]
        self.calls.append(words)
        text = " ".join(words)
        if self.interrupt_on and self.interrupt_on in text:
            raise KeyboardInterrupt
        if self.fail_on and self.fail_on in text:
            return 1
        if words[:2] == ["-m", "venv"]:
            python = launch.venv_python(self.venv)
            python.parent.mkdir(parents=True)
            python.write_text("")
            (self.venv / "site").mkdir()
        return 0

    def check_output(self, command: list[str], **options: object) -> str:
        return f"{self.venv / 'site'}\n"

    def pips(self) -> list[str]:
        """The interesting words of each pip call."""
        found = []
        for words in self.calls:
            if words[:2] == ["-m", "pip"]:
                kept = words[3 : words.index("--disable-pip-version-check")]
                found.append(" ".join(Path(word).name if "/" in word else word for word in kept))
        return found


@pytest.fixture
def venv(tmp_path: Path) -> Path:
    return tmp_path / ".venv"


@pytest.fixture
def system(venv: Path, monkeypatch: pytest.MonkeyPatch) -> FakeSystem:
    fake = FakeSystem(venv)
    monkeypatch.setattr(launch.subprocess, "call", fake.call)
    monkeypatch.setattr(launch.subprocess, "check_output", fake.check_output)
    monkeypatch.setattr(launch, "find_base_torch", lambda: None)
    monkeypatch.delenv(launch.INDEX_VARIABLE, raising=False)
    return fake


TRAINER = "--no-deps -r install-trainer.txt"
TORCH = "-r torch.txt -c torch-constraints.txt"


def test_the_first_start_sets_up_and_the_second_does_nothing(
    venv: Path, system: FakeSystem
) -> None:
    python = launch.set_up(["trainer"], venv)
    assert python == launch.venv_python(venv)
    assert system.calls[0] == ["-m", "venv", str(venv)]
    assert system.pips() == [TRAINER, TORCH]
    assert not State.read(venv / "dreambooth.json").begun
    system.calls.clear()
    assert launch.set_up(["trainer"], venv) == python
    assert system.calls == []
    launch.set_up(["trainer", "test"], venv)
    assert system.pips() == ["--no-deps -r install-test.txt"]
    system.calls.clear()
    launch.set_up(["trainer", "test"], venv)
    assert system.calls == []


def test_changed_pins_are_installed(
    venv: Path, system: FakeSystem, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copied = tmp_path / "requirements"
    shutil.copytree(launch.REQUIREMENTS, copied)
    monkeypatch.setattr(launch, "REQUIREMENTS", copied)
    launch.set_up(["trainer"], venv)
    system.calls.clear()
    (copied / "trainer.txt").write_text("# nothing\nrich==1.0\n")
    launch.set_up(["trainer"], venv)
    assert system.pips() == [TRAINER]
    assert (venv / "install-trainer.txt").read_text() == "rich==1.0\n"
    system.calls.clear()
    (copied / "torch.txt").write_text("torch==9.0\n")
    launch.set_up(["trainer"], venv)
    assert system.pips() == [TORCH]


def test_an_interrupted_making_of_the_venv_is_begun_anew(venv: Path, system: FakeSystem) -> None:
    system.interrupt_on = "venv"
    with pytest.raises(KeyboardInterrupt):
        launch.set_up(["trainer"], venv)
    (venv / "leftover").write_text("")
    system.interrupt_on = ""
    launch.set_up(["trainer"], venv)
    assert not (venv / "leftover").exists()
    assert system.pips() == [TRAINER, TORCH]


@pytest.mark.parametrize(
    ("interrupted", "again"),
    [
        (
            "install-trainer.txt",
            ["--no-deps --force-reinstall -r install-trainer.txt", TORCH],
        ),
        ("torch.txt", [f"--force-reinstall --no-deps {TORCH}", TORCH]),
    ],
)
def test_an_interrupted_installation_is_repaired(
    venv: Path, system: FakeSystem, interrupted: str, again: list[str]
) -> None:
    system.interrupt_on = interrupted
    with pytest.raises(KeyboardInterrupt):
        launch.set_up(["trainer"], venv)
    system.interrupt_on = ""
    system.calls.clear()
    launch.set_up(["trainer"], venv)
    assert system.pips() == again
    system.calls.clear()
    launch.set_up(["trainer"], venv)
    assert system.calls == []


def test_a_failed_installation_says_so_and_goes_on_later(venv: Path, system: FakeSystem) -> None:
    system.fail_on = "install-trainer.txt"
    with pytest.raises(SetupError, match="could not be installed"):
        launch.set_up(["trainer"], venv)
    system.fail_on = ""
    launch.set_up(["trainer"], venv)
    assert State.read(venv / "dreambooth.json").done["trainer"]


def test_no_venv_module(venv: Path, system: FakeSystem) -> None:
    system.fail_on = "venv"
    with pytest.raises(SetupError, match="python3-venv"):
        launch.set_up(["trainer"], venv)


def test_a_venv_of_another_python_is_made_anew(venv: Path, system: FakeSystem) -> None:
    launch.set_up(["trainer"], venv)
    state = State.read(venv / "dreambooth.json")
    assert state.done["venv"] == MADE_FOR
    state.finish("venv", "2.7")
    system.calls.clear()
    launch.set_up(["trainer"], venv)
    assert ["-m", "venv", str(venv)] in system.calls


def test_a_venv_without_interpreter_is_made_anew(venv: Path, system: FakeSystem) -> None:
    launch.set_up(["trainer"], venv)
    launch.venv_python(venv).unlink()
    system.calls.clear()
    launch.set_up(["trainer"], venv)
    assert len(system.pips()) == 2


def test_a_venv_made_by_hand_is_used_and_its_torch_kept(
    venv: Path, system: FakeSystem, monkeypatch: pytest.MonkeyPatch
) -> None:
    system.call([sys.executable, "-m", "venv", str(venv)])
    record = venv / "site" / "torch-2.9.0.dist-info" / "RECORD"
    record.parent.mkdir()
    record.write_text("")
    (venv / "mine").write_text("")
    launch.set_up(["trainer"], venv)
    assert system.pips() == [TRAINER]
    assert (venv / "mine").exists()
    assert State.read(venv / "dreambooth.json").done["torch"] == "own"
    system.calls.clear()
    launch.set_up(["trainer"], venv)
    assert system.calls == []
    monkeypatch.setenv(launch.INDEX_VARIABLE, "https://example.org/cpu")
    launch.set_up(["trainer"], venv)
    assert "--index-url" in " ".join(system.pips())


def test_another_index_for_torch_only(
    venv: Path, system: FakeSystem, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(launch.INDEX_VARIABLE, "https://example.org/cpu")
    launch.set_up(["trainer"], venv)
    assert system.pips() == [TRAINER, "-r torch.txt --index-url cpu"]
    assert "https://example.org/cpu" in system.calls[-1]
    system.calls.clear()
    monkeypatch.delenv(launch.INDEX_VARIABLE)
    launch.set_up(["trainer"], venv)
    assert system.calls == []


def test_the_torch_of_the_python_that_runs_it(
    venv: Path, system: FakeSystem, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = tmp_path / "base site"
    (base / "torch").mkdir(parents=True)
    (base / "numpy").mkdir()
    found = BaseTorch("2.3.1+cu121", base)
    monkeypatch.setattr(launch, "find_base_torch", lambda: found)
    launch.set_up(["trainer"], venv)
    assert system.pips() == [TRAINER]
    assert (venv / "site" / launch.BASE_PATH_FILE).read_text() == f"{base}\n"
    assert "numpy==" not in (venv / "install-trainer.txt").read_text()
    system.calls.clear()
    launch.set_up(["trainer"], venv)
    assert system.calls == []
    # Once it is gone, the pinned one is installed, and numpy with it.
    shutil.rmtree(base)
    monkeypatch.setattr(launch, "find_base_torch", lambda: None)
    launch.set_up(["trainer"], venv)
    assert system.pips() == [TRAINER, TORCH]
    assert "numpy==" in (venv / "install-trainer.txt").read_text()
    assert not (venv / "site" / launch.BASE_PATH_FILE).exists()


def test_numpy_is_installed_where_the_base_has_none(
    venv: Path, system: FakeSystem, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "torch").mkdir()
    found = BaseTorch("2.3.1", tmp_path)
    monkeypatch.setattr(launch, "find_base_torch", lambda: found)
    launch.set_up(["trainer"], venv)
    assert "numpy==" in (venv / "install-trainer.txt").read_text()


def _nothing() -> BaseTorch | None:
    return None


def _asked() -> BaseTorch | None:
    pytest.fail("looked for another torch")


@pytest.mark.parametrize(
    ("remembered", "url", "base", "expected"),
    [
        ("", "", _nothing, "pin P"),
        ("", "http://x", _asked, "index http://x P"),
        ("pin P", "", _asked, "pin P"),
        ("pin OLD", "", _nothing, "pin P"),
        ("index http://x P", "", _asked, "index http://x P"),
        ("index http://x OLD", "", _nothing, "pin P"),
        ("own", "", _asked, "own"),
        ("own", "http://x", _asked, "index http://x P"),
        ("base 2.3 /no such folder P", "", _nothing, "pin P"),
    ],
)
def test_which_torch(
    remembered: str, url: str, base: Callable[[], BaseTorch | None], expected: str
) -> None:
    assert choose_torch(remembered, "P", url, base) == expected


def test_the_base_torch_is_found_without_importing_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    spec = SimpleNamespace(origin=str(tmp_path / "torch" / "__init__.py"))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: spec)
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "2.3.1+cu121")
    assert launch.find_base_torch() == BaseTorch("2.3.1+cu121", tmp_path)
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "1.13.1")
    assert launch.find_base_torch() is None
    assert "torch 1.13.1" in capsys.readouterr().err
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert launch.find_base_torch() is None


def test_version_numbers() -> None:
    assert version_numbers("2.13.0+cpu") == (2, 13)
    assert version_numbers("3") == (3, 0)


def test_where_the_interpreter_is() -> None:
    assert launch.venv_python(Path("v"), "linux") == Path("v/bin/python")
    assert launch.venv_python(Path("v"), "win32") == Path("v/Scripts/python.exe")


def test_fingerprints_tell_files_and_facts_apart() -> None:
    prints = {
        fingerprint(["trainer.txt"]),
        fingerprint(["test.txt"]),
        fingerprint(["trainer.txt"], "x"),
        fingerprint(["trainer.txt", "test.txt"]),
    }
    assert len(prints) == 4
    assert fingerprint(["test.txt"]) == fingerprint(["test.txt"])


@pytest.mark.parametrize("text", ["", "{", "[]", '{"done": 3, "begun": ""}', '{"done": {}}'])
def test_a_damaged_state_is_an_empty_one(tmp_path: Path, text: str) -> None:
    path = tmp_path / "state.json"
    path.write_text(text)
    assert State.read(path) == State(path)


def test_the_state_is_written_at_once(tmp_path: Path) -> None:
    path = tmp_path / "state.json"
    state = State.read(path)
    state.finish("a", "1")
    state.begin("b")
    assert json.loads(path.read_text()) == {"begun": "b", "done": {"a": "1"}}
    state.begin("a")
    assert State.read(path) == State(path, {}, "a")


def test_what_verbs_run() -> None:
    assert launch.commands_for("demo", []) == [["-m", "dreambooth_core", "demo"]]
    assert launch.commands_for("ui", ["--listen"]) == [["-m", "dreambooth_core.ui", "--listen"]]
    assert launch.commands_for("train", ["--help"])[0][2:] == ["train", "--help"]
    by_file = ["-n2", "--dist=loadfile", "--no-loadscope-reorder"]
    assert launch.commands_for("test", ["-k", "x"]) == [["-m", "pytest", *by_file, "-k", "x"]]
    assert [command[1] for command in launch.commands_for("lint", [])] == ["ruff", "ruff", "mypy"]
    assert launch.commands_for("bench", ["step", "--quick"]) == [
        ["-m", "benchmarks.step", "--quick"]
    ]
    with pytest.raises(SetupError, match="step"):
        launch.commands_for("bench", ["nothing"])
    with pytest.raises(SetupError, match="Name a benchmark"):
        launch.commands_for("bench", [])


def test_running_stops_at_the_first_failure(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    codes = iter([0, 5])
    calls: list[list[str]] = []

    def call(command: list[str], **options: object) -> int:
        calls.append(command)
        return next(codes)

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(launch.subprocess, "call", call)
    monkeypatch.setattr(launch, "_replace_process", lambda *given: pytest.fail("went on"))
    assert launch.run(Path("python"), "lint", []) == 5
    assert len(calls) == 2
    assert Path.cwd() == launch.ROOT


def test_the_environment_of_a_verb(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    seen: list[tuple[list[str], dict[str, str]]] = []

    def replace(command: list[str], environment: dict[str, str]) -> int:
        seen.append((command, environment))
        return 0

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", "/host")
    monkeypatch.setenv("PYTHONHOME", "/host")
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(launch, "_replace_process", replace)
    assert launch.run(Path("python"), "models", []) == 0
    assert Path.cwd() == tmp_path  # paths of the verb count from where it was called
    launch.run(Path("python"), "test", [])
    (command, first), (_, second) = seen
    assert command == ["python", "-m", "dreambooth_core", "models"]
    assert first["PYTHONPATH"] == str(launch.ROOT)
    assert first["PYTHONNOUSERSITE"] == "1"
    assert "PYTHONHOME" not in first
    assert "OMP_NUM_THREADS" not in first
    assert second["OMP_NUM_THREADS"] == "1"


def test_the_process_is_replaced_or_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "win32")
    monkeypatch.setattr(launch.signal, "signal", lambda number, handler: None)
    monkeypatch.setattr(launch.subprocess, "call", lambda command, env: 7)
    assert launch._replace_process(["x"], {}) == 7

    def execute(path: str, command: list[str], environment: dict[str, str]) -> None:
        raise SystemExit(f"{path} {command} {environment}")

    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(launch.os, "execve", execute)
    with pytest.raises(SystemExit, match="x"):
        launch._replace_process(["x"], {"A": "b"})


def test_main(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    seen: list[object] = []
    monkeypatch.setattr(launch, "set_up", lambda groups: seen.append(groups) or Path("python"))
    monkeypatch.setattr(launch, "run", lambda python, verb, rest: seen.append((verb, rest)) or 4)
    assert launch.main(["train", "--model", "x"]) == 4
    assert launch.main(["test"]) == 4
    assert launch.main(["ui", "--port", "7000"]) == 4
    assert seen == [
        ["trainer"],
        ("train", ["--model", "x"]),
        ["trainer", "ui", "test"],
        ("test", []),
        ["trainer", "ui"],
        ("ui", ["--port", "7000"]),
    ]
    assert launch.main([]) == 2
    assert launch.main(["--help"]) == 0
    assert launch.main(["bench", "nothing"]) == 1
    assert "Name a benchmark" in capsys.readouterr().err
    assert len(seen) == 6


def test_python_versions(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(launch, "set_up", lambda groups: Path("python"))
    monkeypatch.setattr(launch, "run", lambda python, verb, rest: 0)
    monkeypatch.setattr(sys, "version_info", (3, 9, 1))
    assert launch.main(["demo"]) == 2
    assert "Python 3.10 or newer" in capsys.readouterr().err
    monkeypatch.setattr(sys, "version_info", (3, 99, 0))
    assert launch.main(["demo"]) == 0
    assert "newer than those tried" in capsys.readouterr().err


def test_an_interrupted_start_ends_in_words(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupt(groups: list[str]) -> Path:
        raise KeyboardInterrupt

    monkeypatch.setattr(launch, "set_up", interrupt)
    assert launch.main(["demo"]) == 130
    assert "goes on from here" in capsys.readouterr().err


def test_the_help_names_every_verb() -> None:
    from dreambooth_core.cli.verbs import VERBS

    for verb in [*VERBS, "test", "lint", "bench", "ui", launch.INDEX_VARIABLE]:
        assert re.search(rf"\b{verb}\b", launch.HELP), verb


PIN = re.compile(r"([A-Za-z0-9._-]+)==([0-9][A-Za-z0-9.]*)(; .+)?")


def _pins(name: str) -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    for line in (launch.REQUIREMENTS / name).read_text().splitlines():
        if line and not line.startswith("#"):
            match = PIN.fullmatch(line)
            assert match, f"{name}: {line}"
            package = re.sub(r"[-_.]+", "-", match[1]).lower()
            found.setdefault(package, set()).add(match[2])
    return found


def test_every_requirement_is_an_exact_pin_and_no_two_disagree() -> None:
    files = {path.name for path in launch.REQUIREMENTS.glob("*.txt")}
    ours = {"test.txt", "torch-constraints.txt", "torch.txt", "trainer.txt", "ui.txt"}
    hosts = {"host-a1111.txt", "host-forge.txt"}
    with_hashes = {"overlay.txt", "eight-bit.txt", "eight-bit-old-torch.txt"}  # see their tests
    assert files == ours | hosts | with_hashes
    for name in sorted(hosts):
        assert all(len(versions) == 1 for versions in _pins(name).values())
    together: dict[str, set[str]] = {}
    for name in sorted(ours):
        for package, versions in _pins(name).items():
            assert together.setdefault(package, versions) == versions, package


def test_the_packages_beside_a_webui_are_those_that_we_use_alone() -> None:
    lines = (launch.REQUIREMENTS / "overlay.txt").read_text().splitlines()
    pins = [line.split()[0] for line in lines if "==" in line and not line.startswith("#")]
    trainer = _pins("trainer.txt")
    named = (pin.partition("==") for pin in pins)
    overlay = {re.sub(r"[-_.]+", "-", name).lower(): version for name, _, version in named}
    assert len(overlay) > 10
    assert {"torch", "numpy"}.isdisjoint(overlay)
    for name, version in overlay.items():
        assert trainer[name] == {version}, name


def test_the_pins_that_were_proved_together() -> None:
    assert _pins("torch.txt") == {"torch": {"2.13.0"}}
    proved = {
        "diffusers": "0.35.2",
        "transformers": "4.55.4",
        "accelerate": "1.10.1",
        "safetensors": "0.6.2",
        "huggingface-hub": "0.36.2",
        "tokenizers": "0.21.4",
        "peft": "0.17.1",
        "lion-pytorch": "0.2.5",
        "prodigyopt": "1.1.2",
        "pytorch-optimizer": "4.1.0",
        "schedulefree": "1.4.1",
    }
    trainer = _pins("trainer.txt")
    assert {name: trainer[name] for name in proved} == {n: {v} for n, v in proved.items()}
    assert _pins("ui.txt")["gradio"] == {"6.17.3"}


def _needs_of_pinned(package: str, versions: set[str]) -> list[str]:
    """What an installed package of a pinned version declares to need."""
    try:
        found = importlib.metadata.distribution(package)
    except importlib.metadata.PackageNotFoundError:
        return []
    return (found.requires or []) if found.version in versions else []


def test_installed_packages_need_nothing_that_is_not_pinned() -> None:
    """With --no-deps nothing else comes in, so the lists must be complete."""
    requirements = pytest.importorskip("packaging.requirements")
    listed = {**_pins("trainer.txt"), **_pins("torch.txt"), **_pins("test.txt")}
    missing = []
    for package in listed:
        for need in map(requirements.Requirement, _needs_of_pinned(package, listed[package])):
            wanted = re.sub(r"[-_.]+", "-", need.name).lower()
            applies = need.marker is None or need.marker.evaluate({"extra": ""})
            if applies and wanted not in listed and package != "torch":
                missing.append(f"{package} needs {need}")
    assert missing == []


def test_of_two_first_starts_one_waits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path, naps = tmp_path / ".venv.lock", []
    with ExitStack() as first:
        first.enter_context(launch.alone(path))
        monkeypatch.setattr(launch.time, "sleep", lambda seconds: naps.append(first.close()))
        with launch.alone(path):
            assert len(naps) == 1
    assert "Another start is setting up" in capsys.readouterr().err
    monkeypatch.setattr(launch.os, "access", lambda path, mode: False)
    with launch.alone(tmp_path / "missing" / "x"):  # ready, on a drive that is only read
        pass
