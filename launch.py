"""Runs the project alone: makes `.venv` from exact pins with only Python, then does the verb.

Set-up is a row of steps (make .venv, install the packages, install torch). `.venv/dreambooth.json`
remembers a fingerprint of each finished step and the name of one that has begun, so a start with
nothing to do is instant, and a set-up that was interrupted is repaired by the next start.
"""

from __future__ import annotations

import errno
import hashlib
import importlib.metadata
import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parent
VENV = ROOT / ".venv"
REQUIREMENTS = ROOT / "requirements"
OLDEST_PYTHON = (3, 10)
NEWEST_TRIED_PYTHON = (3, 13)
OLDEST_TORCH = (2, 1)
INDEX_VARIABLE = "TORCH_INDEX_URL"
BASE_PATH_FILE = "dreambooth_torch.pth"

HELP = """\
usage: python launch.py VERB [...]

Needs Python 3.10 or newer and nothing else. The first start makes .venv beside this file from exact
pins; later starts use it at once and need no network.

  demo          train the built-in small model on a built-in subject and compare the results
  create, plan, dry-run, class-images, train, sample, save, compare, merge, extract-lora,
  bake-lora, models, watch, stop, send, resume, import, settings
                the command line: python launch.py VERB --help explains each
  test [...]    run the tests; more words go to pytest
  lint          check format, lint and types
  bench NAME    run a benchmark of the folder benchmarks/
  ui            the page in the browser; --listen lets other computers in, with a password

torch: an installed one is used, that of the Python that runs this file or one put into .venv by
hand. Otherwise the platform's normal build of the pinned version is installed. To choose another
build, set TORCH_INDEX_URL to the package index that has it, for one start.
"""


class SetupError(Exception):
    """Set-up cannot go on; the message says why and what to do."""


@dataclass
class State:
    """What `.venv/dreambooth.json` remembers."""

    path: Path
    done: dict[str, str] = field(default_factory=dict)
    begun: str = ""

    @classmethod
    def read(cls, path: Path) -> State:
        """Return the state in the file; an empty one if there is no readable file."""
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
            return cls(path, dict(values["done"]), str(values["begun"]))
        except (OSError, ValueError, KeyError, TypeError):
            return cls(path)

    def begin(self, step: str) -> None:
        """Remember that a step has begun and not finished."""
        self.begun = step
        self.done.pop(step, None)
        self._write()

    def finish(self, step: str, fingerprint: str) -> None:
        """Remember that a step is finished."""
        self.begun = ""
        self.done[step] = fingerprint
        self._write()

    def _write(self) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        temporary = self.path.with_name(self.path.name + ".tmp")
        text = json.dumps({"begun": self.begun, "done": self.done}, indent=2)
        with temporary.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, self.path)


@dataclass(frozen=True)
class BaseTorch:
    """The torch of the Python that runs this file: its version and the folder it lies in."""

    version: str
    folder: Path


def say(text: str) -> None:
    """Tell about the set-up, apart from what the verb prints."""
    print(text, file=sys.stderr, flush=True)


def venv_python(venv: Path, platform: str = sys.platform) -> Path:
    """Return where a virtual environment has its interpreter."""
    return venv / "Scripts" / "python.exe" if platform == "win32" else venv / "bin" / "python"


def fingerprint(names: Sequence[str], *facts: str) -> str:
    """Return a hash of requirement files and of what else a step depends on."""
    digest = hashlib.sha256("\n".join(facts).encode())
    for name in names:
        digest.update(b"\0" + (REQUIREMENTS / name).read_bytes())
    return digest.hexdigest()[:16]


def version_numbers(version: str) -> tuple[int, int]:
    """Return the first two numbers of a version such as "2.13.0+cpu"."""
    major, minor = [*version.split("+")[0].split("."), "0"][:2]
    return int(major), int(minor)


def find_base_torch() -> BaseTorch | None:
    """Return the torch of the running Python without importing it; None if there is none to use."""
    spec = importlib.util.find_spec("torch")
    if spec is None or spec.origin is None:
        return None
    version = importlib.metadata.version("torch")
    if version_numbers(version) < OLDEST_TORCH:
        say(f"torch {version} of {sys.executable} is too old and is not used.")
        return None
    return BaseTorch(version, Path(spec.origin).resolve().parents[1])


def choose_torch(
    remembered: str, pin: str, index_url: str, base: Callable[[], BaseTorch | None]
) -> str:
    """Return which torch to use: "own"; or "index", "base" or "pin" with facts and the pin's hash.

    TORCH_INDEX_URL wins when it is set; one put into .venv by hand ("own") stays for good, any
    other choice stays while the pin is the same.
    """
    if index_url:
        return f"index {index_url} {pin}"
    if remembered == "own":
        return remembered
    folder = base_folder(remembered)
    if remembered.endswith(pin) and (folder is None or (folder / "torch").is_dir()):
        return remembered
    found = base()
    return f"base {found.version} {found.folder} {pin}" if found else f"pin {pin}"


def base_folder(choice: str) -> Path | None:
    """Return the folder of a torch chosen as "base VERSION FOLDER HASH"; None for other choices."""
    kind, _, rest = choice.partition(" ")
    return Path(rest.partition(" ")[2].rpartition(" ")[0]) if kind == "base" else None


def set_up(groups: Sequence[str], venv: Path = VENV) -> Path:
    """Make what is missing of .venv and return its interpreter; does nothing if all is there."""
    state = State.read(venv / "dreambooth.json")
    python = venv_python(venv)
    made_for = f"{sys.version_info[0]}.{sys.version_info[1]}"
    usable = python.exists() and state.done.get("venv") == made_for
    if state.begun == "venv" or (state.done and not usable):
        say(f"Removing {venv}, which is unfinished or made for another Python.")
        shutil.rmtree(venv)
        state = State(state.path)
    if not python.exists():
        _make_venv(venv, state, made_for)
    elif "venv" not in state.done:
        say(f"Using {venv}, which was there already.")
        state.finish("venv", made_for)
    torch = choose_torch(
        state.done.get("torch", ""),
        fingerprint(["torch.txt", "torch-constraints.txt"]),
        os.environ.get(INDEX_VARIABLE, ""),
        find_base_torch,
    )
    base = base_folder(torch)
    # A torch that is there already was built for the numpy beside it.
    skip_numpy = base is not None and (base / "numpy").is_dir()
    for group in groups:
        _install_group(group, python, state, skip_numpy)
        if group == "trainer":
            _install_torch(torch, python, state)
    return python


def _make_venv(venv: Path, state: State, made_for: str) -> None:
    say(f"Making {venv} with Python {made_for} ...")
    state.begin("venv")
    code = subprocess.call([sys.executable, "-m", "venv", str(venv)], stdout=sys.stderr)
    if code or not venv_python(venv).exists():
        raise SetupError(
            "The virtual environment could not be made. On Debian and Ubuntu the package"
            " python3-venv has what is missing."
        )
    state.finish("venv", made_for)


def _install_group(group: str, python: Path, state: State, skip_numpy: bool) -> None:
    """Install a requirements file; it lists every package that is needed, so no others come."""
    wanted = fingerprint([f"{group}.txt"], "without numpy" if skip_numpy else "")
    if state.done.get(group) == wanted:
        return
    say(f"Installing the packages of requirements/{group}.txt ...")
    lines = (REQUIREMENTS / f"{group}.txt").read_text(encoding="utf-8").splitlines()
    packages = [line for line in lines if line and not line.startswith("#")]
    if skip_numpy:
        packages = [line for line in packages if not line.startswith("numpy==")]
    repair = ["--force-reinstall"] if state.begun == group else []
    state.begin(group)
    listed = state.path.with_name(f"install-{group}.txt")
    listed.write_text("\n".join(packages) + "\n", encoding="utf-8")
    _pip(python, ["install", "--no-deps", *repair, "-r", str(listed)])
    state.finish(group, wanted)


def _install_torch(choice: str, python: Path, state: State) -> None:
    if state.done.get("torch") == choice:
        return
    path_file = _site_packages(python) / BASE_PATH_FILE
    kind, _, detail = choice.partition(" ")
    base = base_folder(choice)
    if base is not None:
        say(f"Using torch {detail.partition(' ')[0]} of {base}.")
        path_file.write_text(f"{base}\n")
    elif kind == "pin" and _has_own_torch(python, state):
        say("Using the torch that is in .venv already.")
        choice = "own"
    else:
        path_file.unlink(missing_ok=True)
        _download_torch(detail.rpartition(" ")[0] if kind == "index" else "", python, state)
    state.finish("torch", choice)


def _download_torch(index_url: str, python: Path, state: State) -> None:
    """Install the pinned torch, from another index if one is given."""
    say("Installing torch, which is large ...")
    interrupted = state.begun == "torch"
    state.begin("torch")
    wanted = ["-r", str(REQUIREMENTS / "torch.txt")]
    if index_url:
        wanted += ["--index-url", index_url]
    else:
        wanted += ["-c", str(REQUIREMENTS / "torch-constraints.txt")]
    if interrupted:
        _pip(python, ["install", "--force-reinstall", "--no-deps", *wanted])
    _pip(python, ["install", *wanted])


def _pip(python: Path, arguments: Sequence[str]) -> None:
    options = ["--disable-pip-version-check", "--no-input", "--progress-bar", "off"]
    command = [str(python), "-m", "pip", *arguments, *options]
    if subprocess.call(command, stdout=sys.stderr, env=_clean_environment(os.environ)):
        raise SetupError(
            "The packages could not be installed; pip says why above. Start again when that is put"
            " right: set-up goes on from here."
        )


def _has_own_torch(python: Path, state: State) -> bool:
    """Whether a torch that set-up did not put there is in .venv."""
    ours = "torch" in state.done or state.begun == "torch"
    return not ours and any(_site_packages(python).glob("torch-*.dist-info/RECORD"))


def _site_packages(python: Path) -> Path:
    code = "import sysconfig; print(sysconfig.get_path('purelib'))"
    return Path(subprocess.check_output([str(python), "-c", code], text=True).strip())


def _clean_environment(inherited: Mapping[str, str]) -> dict[str, str]:
    """Return the environment without what would mix other packages in."""
    dropped = ("PYTHONPATH", "PYTHONHOME")
    clean = {name: value for name, value in inherited.items() if name.upper() not in dropped}
    return {**clean, "PYTHONNOUSERSITE": "1", "PYTHONUTF8": "1"}


def commands_for(verb: str, rest: Sequence[str]) -> list[list[str]]:
    """Return what .venv's interpreter is to run for a verb, one after the other."""
    if verb == "test":
        return [["-m", "pytest", "-n2", "--dist=loadfile", "--no-loadscope-reorder", *rest]]
    if verb == "lint":
        return [
            ["-m", "ruff", "format", "--check", "."],
            ["-m", "ruff", "check", "."],
            ["-m", "mypy"],
        ]
    if verb == "bench":
        return [_benchmark(rest)]
    if verb == "ui":
        return [["-m", "dreambooth_core.ui", *rest]]
    return [["-m", "dreambooth_core", verb, *rest]]


def _benchmark(rest: Sequence[str]) -> list[str]:
    names = sorted(path.stem for path in (ROOT / "benchmarks").glob("[!_]*.py"))
    if not rest or rest[0] not in names:
        raise SetupError(f"Name a benchmark: {', '.join(names)}.")
    return ["-m", f"benchmarks.{rest[0]}", *rest[1:]]


def run(python: Path, verb: str, rest: Sequence[str]) -> int:
    """Run a verb in .venv; the last command takes this process's place where the system can."""
    environment = {**_clean_environment(os.environ), "PYTHONPATH": str(ROOT)}
    if verb in ("test", "lint", "bench"):
        os.chdir(ROOT)
    if verb == "test":
        environment.setdefault("OMP_NUM_THREADS", "1")
    *first, last = commands_for(verb, rest)
    for command in first:
        code = subprocess.call([str(python), *command], env=environment)
        if code:
            return code
    return _replace_process([str(python), *last], environment)


def _replace_process(command: Sequence[str], environment: Mapping[str, str]) -> int:
    sys.stdout.flush()
    if sys.platform != "win32":
        os.execve(command[0], list(command), dict(environment))
    # Ctrl-C reaches the child too, which decides what it means.
    signal.signal(signal.SIGINT, lambda signum, frame: None)
    return subprocess.call(command, env=environment)


def main(arguments: Sequence[str]) -> int:
    """Set up what the verb needs and run it."""
    if sys.version_info[:2] < OLDEST_PYTHON:
        say(f"Python 3.10 or newer is needed; this is {sys.version.split()[0]}.")
        return 2
    verb, *rest = arguments or ["--help"]
    if verb in ("--help", "-h", "help"):
        print(HELP, end="")
        return 0 if arguments else 2
    try:
        return set_up_and_run(verb, rest)
    except SetupError as error:
        say(f"error: {error}")
        return 1
    except KeyboardInterrupt:
        say("Interrupted. The next start goes on from here.")
        return 130


def set_up_and_run(verb: str, rest: Sequence[str]) -> int:
    """Make sure that .venv has what the verb needs, and run it there."""
    if sys.version_info[:2] > NEWEST_TRIED_PYTHON:
        say("This Python is newer than those tried, 3.10 to 3.13; going on with it.")
    if verb == "bench":
        _benchmark(rest)  # a wrong name is told before anything is installed
    with alone(VENV.with_name(f"{VENV.name}.lock")):
        python = set_up(groups_for(verb))
    return run(python, verb, rest)


@contextmanager
def alone(path: Path) -> Iterator[None]:
    """Let one start at a time set up; others wait. A folder that cannot be written to is ready."""
    with path.open("ab") if os.access(path.parent, os.W_OK) else nullcontext() as file:
        if file and not _lock(file.fileno()):
            say("Another start is setting up; waiting for its end ...")
            while not _lock(file.fileno()):
                time.sleep(1)
        yield


def _lock(descriptor: int) -> bool:
    """Take the system's lock of a file, which ends with this process; False if another has it."""
    try:
        if sys.platform == "win32":
            importlib.import_module("msvcrt").locking(descriptor, 2, 1)  # without waiting
        else:
            fcntl = importlib.import_module("fcntl")
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return error.errno not in (errno.EAGAIN, errno.EACCES)  # others: it cannot be locked
    return True


def groups_for(verb: str) -> list[str]:
    """Return the groups of packages that a verb needs."""
    more = {"ui": ["ui"], "test": ["ui", "test"], "lint": ["ui", "test"]}
    return ["trainer", *more.get(verb, [])]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
