from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
import zipfile
from pathlib import Path

import pytest
from filelock import FileLock

from dreambooth_core.errors import OverlayError
from dreambooth_core.job import overlay as overlay_module
from dreambooth_core.job import overlay_state, pip_install
from dreambooth_core.job.interpreter import PACKAGE_ROOT, module_command, worker_environment
from dreambooth_core.job.overlay import Overlay, WorkerPython, host_overlay, note_use, users
from dreambooth_core.job.overlay_state import Facts, read_facts, torch_problem
from dreambooth_core.job.pip_install import Report, pins
from dreambooth_core.job.process import start_mark
from tests.wheels import make_wheel

Said = list[tuple[str, int, int]]


@pytest.fixture
def wheels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The only place where pip finds packages, and a self-test that needs no torch."""
    folder = tmp_path / "wheels"
    folder.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setenv("PIP_NO_CACHE_DIR", "1")
    monkeypatch.setattr(overlay_module, "SELF_TEST_MODULE", "tests.fake_self_test")
    monkeypatch.setattr(pip_install, "pip_settings", lambda python: {})
    return folder


@pytest.fixture
def overlay(tmp_path: Path, wheels: Path) -> Overlay:
    """An overlay that is to hold alpha and beta."""
    requirements = tmp_path / "overlay.txt"
    library = {"beta/__init__.py": "", "beta/quick.abi3.so": "machine code"}
    requirements.write_text(
        make_wheel(wheels, "alpha", "1.0", {"alpha/__init__.py": "import beta\nVERSION = '1.0'\n"})
        + make_wheel(wheels, "beta", "2.5", library)
    )
    return Overlay(tmp_path / "packages", requirements, sys.executable)


@pytest.fixture
def unzipped(wheels: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Wheels are unzipped, which is quicker than pip; for tests of what comes after."""

    def install(
        python: str, requirements: Path, target: Path, temporary: Path, log: Path, report: Report
    ) -> None:
        assert temporary.is_dir()
        target.mkdir()
        for number, (name, version) in enumerate(pins(requirements).items(), 1):
            report(f"Getting {name}", number, len(pins(requirements)))
            with zipfile.ZipFile(wheels / f"{name}-{version}-py3-none-any.whl") as wheel:
                wheel.extractall(target)

    monkeypatch.setattr(overlay_module, "install", install)


def _ignore(text: str, done: int, total: int) -> None:
    pass


def _made(overlay: Overlay, again: bool = False) -> Said:
    said: Said = []
    overlay.make(lambda *words: said.append(words), again=again)
    return said


def _left(overlay: Overlay) -> set[str]:
    """What is in the root besides what always may be there."""
    return {path.name for path in overlay.root.iterdir()} - {".lock", "install.log"}


def test_made_from_nothing(overlay: Overlay) -> None:
    before = overlay.state()
    assert (before.kind, before.ready) == ("missing", False)
    assert "start a job" in before.remedy
    said = _made(overlay)
    assert overlay.state().kind == "ready"
    assert _left(overlay) == {overlay.folder.name}
    assert said[0] == ("Getting alpha", 1, 3)
    assert said[1] == ("Getting beta", 2, 3)
    assert [word for word, _, _ in said[2:]] == ["Unpacking", "Testing the packages"]
    assert [done for _, done, _ in said] == sorted(done for _, done, _ in said)
    assert {total for _, _, total in said} == {3}
    marker = json.loads((overlay.folder / "overlay.json").read_text())
    assert marker["pins"] == {"alpha": "1.0", "beta": "2.5"}
    assert marker["files"]["beta/quick.abi3.so"] == len("machine code")
    assert "alpha/__init__.py" in marker["files"]
    assert "beta-2.5.dist-info/RECORD" in marker["files"]


@pytest.mark.usefixtures("unzipped")
def test_workers_see_it_and_nobody_else(overlay: Overlay) -> None:
    _made(overlay)
    worker = overlay.worker()
    assert worker == WorkerPython(sys.executable, (overlay.folder,))
    code = "import alpha; print(alpha.VERSION, alpha.__file__)"
    command = [worker.python, "-c", code]
    inside = worker_environment({"PYTHONPATH": "/host"}, worker.paths)
    said = subprocess.check_output(command, env=inside, text=True)
    assert said.split() == ["1.0", str(overlay.folder / "alpha" / "__init__.py")]
    outside = subprocess.run(command, capture_output=True, text=True, check=False)
    assert "No module named 'alpha'" in outside.stderr


@pytest.mark.usefixtures("unzipped")
def test_what_is_there_is_not_made_again(overlay: Overlay, monkeypatch: pytest.MonkeyPatch) -> None:
    _made(overlay)
    with monkeypatch.context() as patched:
        patched.setattr(overlay_module, "install", lambda *given: pytest.fail("pip was started"))
        assert overlay.make(_ignore) == overlay.folder
    (overlay.folder / "extra.py").write_text("left by an accident")
    assert _made(overlay, again=True)[0] == ("Getting alpha", 1, 3)
    assert not (overlay.folder / "extra.py").exists()


def test_a_changed_package_is_refused(overlay: Overlay, wheels: Path) -> None:
    make_wheel(wheels, "beta", "2.5", {"beta/__init__.py": "other = True"})
    with pytest.raises(OverlayError, match="not the one that was expected") as caught:
        overlay.make(_ignore)
    assert str(overlay.log) in caught.value.remedy
    assert "DO NOT MATCH" in overlay.log.read_text()
    assert _left(overlay) == set()
    assert overlay.state().kind == "missing"


def test_a_package_that_cannot_be_had(overlay: Overlay, wheels: Path) -> None:
    (wheels / "beta-2.5-py3-none-any.whl").unlink()
    with pytest.raises(OverlayError, match="no build of a package"):
        overlay.make(_ignore)
    assert _left(overlay) == set()


@pytest.mark.usefixtures("unzipped")
def test_packages_that_do_not_work_are_not_put_in_place(overlay: Overlay, wheels: Path) -> None:
    pin = make_wheel(wheels, "alpha", "2.0", {"alpha/__init__.py": "import a_host_package\n"})
    overlay.requirements.write_text(pin)
    with pytest.raises(OverlayError, match="No module named 'a_host_package'") as caught:
        overlay.make(_ignore)
    assert "WebUI should have a_host_package" in caught.value.remedy
    assert "Traceback" in overlay.log.read_text()
    assert _left(overlay) == set()


@pytest.mark.usefixtures("unzipped")
def test_a_self_test_that_hangs_or_is_silent(
    overlay: Overlay, wheels: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    overlay.requirements.write_text(
        make_wheel(wheels, "alpha", "3.0", {"alpha/__init__.py": "import os; os._exit(9)\n"})
    )
    with pytest.raises(OverlayError, match="no word"):
        overlay.make(_ignore)
    monkeypatch.setattr(overlay_module, "SELF_TEST_SECONDS", 0.001)
    with pytest.raises(OverlayError, match="took longer"):
        overlay.make(_ignore)
    assert _left(overlay) == set()


class Changed(Exception):
    """The person changed their mind."""


def test_stopped_in_the_middle(overlay: Overlay) -> None:
    def stop(text: str, done: int, total: int) -> None:
        raise Changed

    with pytest.raises(Changed):
        overlay.make(stop)
    assert _left(overlay) == set()
    assert overlay.state().kind == "missing"
    _made(overlay)
    assert overlay.state().ready


@pytest.mark.skipif(sys.platform == "win32", reason="the signal is POSIX's")
def test_killed_in_the_middle(overlay: Overlay) -> None:
    code = (
        "import os, signal, sys; from pathlib import Path\n"
        "from dreambooth_core.job.overlay import Overlay\n"
        "def report(*said): os.kill(os.getpid(), signal.SIGKILL)\n"
        f"Overlay(Path({str(overlay.root)!r}), Path({str(overlay.requirements)!r}),"
        " sys.executable).make(report)"
    )
    killed = subprocess.run([sys.executable, "-c", code], cwd=PACKAGE_ROOT, check=False)
    assert killed.returncode == -signal.SIGKILL
    assert any(name.startswith("tmp-") for name in _left(overlay))
    assert overlay.state().kind == "missing"
    _made(overlay)
    assert _left(overlay) == {overlay.folder.name}


@pytest.mark.usefixtures("unzipped")
def test_two_at_once(overlay: Overlay) -> None:
    said: Said = []
    with FileLock(str(_root(overlay) / ".lock")):
        second = threading.Thread(target=lambda: said.extend(_made(overlay)))
        second.start()
        time.sleep(0.3)
        assert _left(overlay) == set()
    second.join(60)
    assert overlay.state().ready
    assert said[-1][0] == "Testing the packages"


def test_who_waits_is_told(overlay: Overlay, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(overlay_module, "WAIT_SECONDS", 0.01)

    def stop(text: str, done: int, total: int) -> None:
        assert "Waiting" in text
        raise Changed

    with FileLock(str(_root(overlay) / ".lock")), pytest.raises(Changed):
        overlay.make(stop)


def _root(overlay: Overlay) -> Path:
    overlay.root.mkdir(exist_ok=True)
    return overlay.root


@pytest.mark.usefixtures("unzipped")
def test_new_pins_replace_the_old_packages(overlay: Overlay, wheels: Path) -> None:
    _made(overlay)
    old = overlay.folder
    overlay.requirements.write_text(
        make_wheel(wheels, "alpha", "1.1", {"alpha/__init__.py": "VERSION = '1.1'\n"})
    )
    assert overlay.folder != old
    assert overlay.state().kind == "stale"
    note_use([old], os.getpid(), start_mark(os.getpid()))
    _made(overlay)
    assert old.is_dir(), "a running job uses it"
    assert overlay.state().kind == "ready"
    (old / ".users" / str(os.getpid())).write_text("another process of that number")
    _made(overlay)
    assert _left(overlay) == {overlay.folder.name}


DAMAGES = {
    "beta/quick.abi3.so is": lambda folder: (folder / "beta" / "quick.abi3.so").unlink(),
    "beta/quick.abi3.so": lambda folder: (folder / "beta" / "quick.abi3.so").write_text("short"),
    "alpha/__init__.py": lambda folder: shutil.rmtree(folder / "alpha"),
    "alpha-1.0.dist-info/RECORD": lambda folder: shutil.rmtree(folder / "alpha-1.0.dist-info"),
    "overlay.json": lambda folder: (folder / "overlay.json").unlink(),
    "overlay.json is": lambda folder: (folder / "overlay.json").write_text("[]"),
    "overlay.json is missing": lambda folder: (folder / "overlay.json").write_text('{"files": {}}'),
}


@pytest.mark.usefixtures("unzipped")
@pytest.mark.parametrize("named", DAMAGES)
def test_damage_is_seen_and_repaired(overlay: Overlay, named: str) -> None:
    _made(overlay)
    DAMAGES[named](overlay.folder)
    state = overlay.state()
    assert state.kind == "broken"
    assert f"damaged: {named}" in state.message
    assert "Repair" in state.remedy
    _made(overlay)
    assert overlay.state().ready
    assert _left(overlay) == {overlay.folder.name}


@pytest.mark.usefixtures("unzipped")
def test_packages_in_use_are_not_replaced(overlay: Overlay) -> None:
    _made(overlay)
    note_use([overlay.folder], os.getpid(), start_mark(os.getpid()))
    with pytest.raises(OverlayError, match=f"in use by a job .process {os.getpid()}"):
        overlay.make(_ignore, again=True)
    assert overlay.state().ready


def test_users_come_and_go(tmp_path: Path) -> None:
    note_use([tmp_path], os.getpid(), start_mark(os.getpid()))
    note_use([tmp_path], 2**22 + 1, "gone")
    note_use([tmp_path / "none"], os.getpid(), "")  # cannot be noted, and is no error
    (tmp_path / ".users" / "odd").write_text("")
    assert users(tmp_path) == [os.getpid()]
    assert sorted(path.name for path in (tmp_path / ".users").iterdir()) == sorted(
        [str(os.getpid()), "odd"]
    )


def test_not_enough_disk(overlay: Overlay, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(overlay.requirements.parent)._replace(free=100 * 1024**2)
    monkeypatch.setattr(overlay_module.shutil, "disk_usage", lambda path: usage)
    with pytest.raises(OverlayError, match="100 MB free") as caught:
        overlay.make(_ignore)
    assert "300 MB" in caught.value.message
    assert _left(overlay) == set()


def test_a_folder_that_cannot_be_written(overlay: Overlay, tmp_path: Path) -> None:
    (tmp_path / "packages").write_text("a file is in the way")
    with pytest.raises(OverlayError, match="could not be put into"):
        overlay.make(_ignore)


def test_a_package_of_the_host_is_missing(
    overlay: Overlay, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "filelock", None)
    with pytest.raises(OverlayError, match="lacks the package filelock"):
        overlay.make(_ignore)


@pytest.mark.parametrize(
    "version", ["2.1.0", "2.1.2+cu121", "2.3.1", "2.13.0+cpu", "2.13.1a0+git1234"]
)
def test_torch_that_is_proven(version: str) -> None:
    assert torch_problem(version) is None


@pytest.mark.parametrize("version", ["", "1.13.1", "2.0.1+cu118", "2.14.0", "3.0", "unknown"])
def test_torch_that_is_not(version: str, overlay: Overlay, monkeypatch: pytest.MonkeyPatch) -> None:
    facts = Facts(version, (3, 10), "linux", "x86_64")
    monkeypatch.setattr(overlay_module, "read_facts", lambda python: facts)
    state = overlay.state()
    assert state.kind == "unsupported_torch"
    assert (version or "no torch") in state.message
    assert "2.1 to 2.13" in state.remedy
    with pytest.raises(OverlayError, match=r"2\.1 to 2\.13"):
        overlay.make(_ignore)
    assert not overlay.root.exists()


def test_newer_torch_can_be_tried_and_older_cannot(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "DREAMBOOTH_ANY_TORCH=1" in torch_problem("2.20.0").remedy
    assert "DREAMBOOTH_ANY_TORCH" not in torch_problem("2.0.1").remedy
    monkeypatch.setenv("DREAMBOOTH_ANY_TORCH", "1")
    assert torch_problem("2.20.0") is None
    assert torch_problem("2.0.1") is not None


def test_the_folder_is_named_by_what_it_must_fit(
    overlay: Overlay, monkeypatch: pytest.MonkeyPatch
) -> None:
    def named(torch: str = "2.1.2", minor: int = 10, system: str = "linux", cpu: str = "x") -> str:
        facts = Facts(torch, (3, minor), system, cpu)
        monkeypatch.setattr(overlay_module, "read_facts", lambda python: facts)
        return overlay.folder.name

    assert named() == named("2.3.1"), "one set serves every torch"
    assert len({named(), named(minor=11), named(system="win32"), named(cpu="arm")}) == 4
    before = named()
    overlay.requirements.write_bytes(overlay.requirements.read_bytes().replace(b"\n", b"\r\n"))
    assert named() == before, "git may change line ends"
    overlay.requirements.write_text("alpha==9")
    assert named() != before


def test_another_interpreter_is_asked(tmp_path: Path) -> None:
    link = tmp_path / "another-python"
    link.symlink_to(sys.executable)
    overlay_state._ask_facts.cache_clear()
    asked, own = read_facts(str(link)), read_facts(sys.executable)
    assert (asked.python, asked.system, asked.machine) == (own.python, own.system, own.machine)
    with pytest.raises(OverlayError, match="no-such-python"):
        read_facts("no-such-python")


def test_no_torch_in_this_python(monkeypatch: pytest.MonkeyPatch) -> None:
    metadata = overlay_state.importlib.metadata

    def version(name: str) -> str:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "version", version)
    assert read_facts(sys.executable).torch == ""


def test_asking_for_the_state_loads_nothing_heavy() -> None:
    code = (
        "import sys; from dreambooth_core.job.overlay import host_overlay; host_overlay().state();"
        "print([n for n in ('torch', 'numpy', 'filelock', 'asyncio') if n in sys.modules])"
    )
    said = subprocess.check_output([sys.executable, "-c", code], cwd=PACKAGE_ROOT, text=True)
    assert said.strip() == "[]"


def test_the_extensions_overlay() -> None:
    ours = host_overlay()
    assert ours.root == PACKAGE_ROOT / ".trainer-packages"
    assert ours.requirements.is_file()
    assert ours.python == sys.executable
    ignored = (PACKAGE_ROOT / ".gitignore").read_text().splitlines()
    assert "/.trainer-packages/" in ignored


def test_the_self_test_is_the_workers() -> None:
    command = module_command(
        sys.executable, overlay_module.SELF_TEST_MODULE, overlay_module.SELF_TEST_WORD, "x"
    )
    assert command[-3:] == ["dreambooth_core.worker", "--self-test", "x"]
