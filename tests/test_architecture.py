"""The house's rules, read from the source: layers, imports and budgets (docs/architecture.md)."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "dreambooth_core"

FUNCTION_LINES, FUNCTION_LINES_P95, FILE_LINES, COMPLEXITY = 60, 40, 400, 10
TEST_RATIO = 0.8

# A module belongs to the longest prefix of its name that is listed.
LAYERS = {
    "dreambooth_core": 0,
    "dreambooth_core.errors": 0,
    "dreambooth_core.config": 0,
    "dreambooth_core.job": 0,
    "dreambooth_core.checkpoint": 0,
    "dreambooth_core.checkpoint.header": 0,
    "dreambooth_core.demo": 0,
    "dreambooth_core.cli": 0,
    "dreambooth_core.__main__": 0,
    "dreambooth_core.checkpoint.blocks": 1,
    "dreambooth_core.checkpoint.carried": 1,
    "dreambooth_core.checkpoint.file": 1,
    "dreambooth_core.checkpoint.merge": 1,
    "dreambooth_core.checkpoint.stored": 1,
    "dreambooth_core.checkpoint.stream": 1,
    "dreambooth_core.checkpoint.hashed": 1,
    "dreambooth_core.checkpoint.assembled": 1,
    "dreambooth_core.checkpoint.metadata": 1,
    "dreambooth_core.diffusion": 1,
    "dreambooth_core.optim": 1,
    "dreambooth_core.optim.lr": 0,
    "dreambooth_core.data": 1,
    "dreambooth_core.families": 2,
    "dreambooth_core.adapters": 2,
    "dreambooth_core.world": 2,
    "dreambooth_core.world.install": 0,
    "dreambooth_core.stages": 3,
    "dreambooth_core.host": 4,
    "dreambooth_core.ui": 4,
    "dreambooth_core.api": 4,
    "dreambooth_core.recording": 4,
    "dreambooth_core.worker": 4,
}
SIBLINGS = ("diffusion", "optim", "data", "checkpoint.file")
HOST_SIDE = ("cli", "__main__", "demo", "config", "job", "errors", "checkpoint.header")
HOST_SIDE += ("world.install", "checkpoint.clip_tokenizer")
HOST_SIDE += ("host", "api", "ui")
HEAVY = ("torch", "diffusers", "transformers", "accelerate", "safetensors", "numpy", "PIL")
PULLED_BY_GRADIO = ("numpy", "PIL")
BROAD_CATCHERS = ("worker.py", "edge.py", "dreambooth.py")
PRINTERS = ("dreambooth_core/cli/", "launch.py", "benchmarks/", "dreambooth_core/world/build/")

CHANGES_THE_DISK = {
    *("write_text", "write_bytes", "unlink", "rmdir", "mkdir", "makedirs", "touch", "symlink_to"),
    *("hardlink_to", "os.replace", "os.rename", "os.remove", "os.write", "os.truncate"),
    *("os.fsync", "rename", "rmtree", "copy2", "copyfile", "copyfileobj", "copytree", "FileIO"),
    *("shutil.copy", "shutil.move", "safe_open", "save_file"),
}
DISK = "dreambooth_core/job/disk.py"
CHANGES_IT_TOO = {
    "dreambooth_core/job/overlay.py log": "the log of pip and of the test of its packages",
    "dreambooth_core/job/pip_install.py log": "the log of pip, which writes the packages itself",
    "dreambooth_core/job/launcher.py log_path(folder)": "the log that the worker prints to",
    "dreambooth_core/stages/process_memory.py RESET": "a switch of the system, no file",
}
"""Where something else than our files is written: the file, and why `disk.py` is not asked."""

WEBUI = ("modules", "modules_forge", "backend", "ldm_patched")


def _project_files() -> list[Path]:
    folders = [PACKAGE, ROOT / "benchmarks", ROOT / "scripts"]
    found = [path for folder in folders for path in folder.rglob("*.py")]
    return sorted([*found, *ROOT.glob("*.py")])


SOURCES = _project_files()
TESTS = sorted((ROOT / "tests").rglob("*.py"))


@cache
def _tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def _module_name(path: Path) -> str:
    name = path.relative_to(ROOT).with_suffix("").as_posix().replace("/", ".")
    return name.removesuffix(".__init__")


MODULES = {_module_name(path): path for path in SOURCES if PACKAGE in path.parents}


def _type_checking_only(tree: ast.Module) -> set[int]:
    """The ids of imports that only type checkers follow."""
    blocks = [
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING")
    ]
    return {id(inner) for block in blocks for line in block.body for inner in ast.walk(line)}


def _imports(path: Path, with_typing: bool = False) -> Iterator[str]:
    """Every module that a file imports, lazily or not, by its full name."""
    tree = _tree(path)
    skipped = set() if with_typing else _type_checking_only(tree)
    for node in ast.walk(tree):
        if id(node) in skipped:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are written in full"
            base = node.module or ""
            for alias in node.names:
                full = f"{base}.{alias.name}"
                yield full if full in MODULES else base


def _layer(module: str) -> int:
    while module not in LAYERS:
        module = module.rpartition(".")[0]
    return LAYERS[module]


def _functions(path: Path) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    for node in ast.walk(_tree(path)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


def _length(node: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    return (node.end_lineno or node.lineno) - node.lineno + 1


def test_there_is_something_to_check() -> None:
    assert len(MODULES) > 30
    assert {"launch.py"} <= {path.name for path in SOURCES}


def _place(path: Path, node: ast.AST | None = None) -> str:
    line = f":{getattr(node, 'lineno', 0)}" if node is not None else ""
    return f"{path.relative_to(ROOT).as_posix()}{line} {getattr(node, 'name', '')}".strip()


def test_imports_point_down() -> None:
    assert not [
        f"{module} imports {imported}"
        for module, path in MODULES.items()
        for imported in _imports(path)
        if imported in MODULES and _layer(imported) > _layer(module)
    ]


def _sibling(module: str) -> str:
    inside = module.removeprefix("dreambooth_core.")
    return next((s for s in SIBLINGS if inside == s or inside.startswith(f"{s}.")), "")


def test_siblings_do_not_know_each_other() -> None:
    assert not [
        f"{module} imports {imported}"
        for module, path in MODULES.items()
        for imported in _imports(path)
        if _sibling(module) and _sibling(imported) not in ("", _sibling(module))
    ]


def test_there_are_no_import_cycles() -> None:
    graph = {
        module: {name for name in _imports(path) if name in MODULES and name != module}
        for module, path in MODULES.items()
    }
    done: set[str] = set()

    def walk(module: str, trail: tuple[str, ...]) -> None:
        assert module not in trail, " > ".join([*trail[trail.index(module) :], module])
        if module not in done:
            for imported in sorted(graph[module]):
                walk(imported, (*trail, module))
            done.add(module)

    for module in graph:
        walk(module, ())


def test_only_host_and_the_script_know_the_webui() -> None:
    assert not [
        f"{_place(path)} imports {imported}"
        for path in SOURCES
        if path.parent not in (PACKAGE / "host", ROOT / "scripts")
        for imported in _imports(path, with_typing=True)
        if imported.partition(".")[0] in WEBUI
    ]


def test_the_webui_is_imported_where_it_is_used() -> None:
    """At the top it would bring torch to whoever only asks which host there is."""
    assert not [
        _place(path, node)
        for path in (PACKAGE / "host").glob("*.py")
        for node in _tree(path).body
        if isinstance(node, ast.Import | ast.ImportFrom)
        and ast.unparse(node).split()[1].partition(".")[0] in WEBUI
    ]


def test_the_script_needs_only_the_host_side() -> None:
    imported = {name for name in _imports(ROOT / "scripts" / "dreambooth.py") if name in MODULES}
    assert imported == {"dreambooth_core.host.callbacks"}


def test_the_host_side_reaches_nothing_of_the_trainer() -> None:
    assert not [
        f"{module} imports {imported}"
        for module, path in MODULES.items()
        if _is_host_side(module)
        for imported in _imports(path)
        if imported in MODULES and _layer(imported) > 0 and not _is_host_side(imported)
    ]


def test_the_lowest_layer_imports_no_heavy_package() -> None:
    assert not [
        f"{module} imports {imported}"
        for module, path in MODULES.items()
        if _layer(module) == 0
        for imported in _imports(path)
        if imported.partition(".")[0] in HEAVY
    ]


def _is_host_side(module: str) -> bool:
    inside = module.removeprefix("dreambooth_core.")
    sides = (inside == side or inside.startswith(f"{side}.") for side in HOST_SIDE)
    return module == "dreambooth_core" or any(sides)


@pytest.mark.parametrize("with_page", [False, True])
def test_the_host_side_never_loads_torch(with_page: bool) -> None:
    pages = "dreambooth_core.ui"
    modules = [
        name
        for name in MODULES
        if _is_host_side(name)
        and name.startswith(pages) == with_page
        and not name.endswith("__main__")
    ]
    assert modules
    heavy = [name for name in HEAVY if not with_page or name not in PULLED_BY_GRADIO]
    if with_page:
        pytest.importorskip("gradio")
    code = (
        "import importlib, sys\n"
        f"for name in {modules!r}:\n"
        "    importlib.import_module(name)\n"
        f"print([name for name in {heavy!r} if name in sys.modules])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("words", [["--help"], ["train", "--help"], ["models"]])
def test_the_command_line_starts_without_torch(words: list[str], tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "dreambooth_core", *words],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    loaded = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert "dreambooth_core.cli" in loaded
    assert not loaded & set(HEAVY)


def test_files_are_short() -> None:
    lengths = {_place(p): len(p.read_text(encoding="utf-8").splitlines()) for p in SOURCES}
    assert not {place: count for place, count in lengths.items() if count > FILE_LINES}


def test_functions_are_short() -> None:
    assert not [
        _place(path, function)
        for path in SOURCES
        for function in _functions(path)
        if _length(function) > FUNCTION_LINES
    ]


def test_most_functions_are_shorter() -> None:
    lengths = sorted(_length(function) for path in SOURCES for function in _functions(path))
    assert lengths[int(len(lengths) * 0.95)] <= FUNCTION_LINES_P95


BRANCHES = (
    *(ast.If, ast.For, ast.AsyncFor, ast.While),
    *(ast.ExceptHandler, ast.comprehension, ast.match_case),
)


def _complexity(function: ast.AST) -> int:
    """McCabe's number; functions inside count for themselves, not for the one around them."""
    total, queue = 1, list(ast.iter_child_nodes(function))
    while queue:
        node = queue.pop()
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            total += isinstance(node, BRANCHES)
            queue += ast.iter_child_nodes(node)
    return total


def test_complexity_is_counted() -> None:
    code = "def f(a):\n if a:\n  for b in [c for c in a]: pass\n elif b: pass\n def g():\n  if x: y"
    assert _complexity(ast.parse(code).body[0]) == 5


def test_functions_are_simple() -> None:
    numbers = {
        _place(path, function): _complexity(function)
        for path in SOURCES
        for function in _functions(path)
    }
    assert not {place: number for place, number in numbers.items() if number > COMPLEXITY}


def _is_typed(function: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    given = function.args
    named = [*given.posonlyargs, *given.args, *given.kwonlyargs]
    starred = [argument for argument in (given.vararg, given.kwarg) if argument]
    return function.returns is not None and all(
        argument.annotation or argument.arg in ("self", "cls") for argument in [*named, *starred]
    )


def test_everything_is_typed() -> None:
    assert not [
        _place(path, function)
        for path in SOURCES
        for function in _functions(path)
        if not _is_typed(function)
    ]


def _is_narrow(path: Path, handler: ast.ExceptHandler) -> bool:
    if handler.type is None:
        return False
    names = {n.id for n in ast.walk(handler.type) if isinstance(n, ast.Name)}
    last = handler.body[-1]
    raised_again = isinstance(last, ast.Raise) and last.exc is None
    broad = names & {"Exception", "BaseException"}
    return not broad or raised_again or path.name in BROAD_CATCHERS


def test_no_broad_or_bare_except() -> None:
    assert not [
        _place(path, node)
        for path in SOURCES
        for node in ast.walk(_tree(path))
        if isinstance(node, ast.ExceptHandler) and not _is_narrow(path, node)
    ]


def test_no_global() -> None:
    assert not [
        _place(path, node)
        for path in SOURCES
        for node in ast.walk(_tree(path))
        if isinstance(node, ast.Global)
    ]


def test_print_only_where_people_read_it() -> None:
    assert not [
        _place(path, node)
        for path in SOURCES
        if not _place(path).startswith(PRINTERS)
        for node in ast.walk(_tree(path))
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "print"
    ]


def _disk_calls(path: Path) -> Iterator[tuple[str, str]]:
    """Yield the calls in a file that change the disk past `disk.py`: what on, and their place."""
    for node in ast.walk(_tree(path)):
        if not isinstance(node, ast.Call):
            continue
        name = ast.unparse(node.func)
        owner, _, last = name.rpartition(".")
        subject = (
            owner
            if owner and owner not in ("os", "shutil", "io")
            else "".join(ast.unparse(argument) for argument in node.args[:1])
        )
        mode = node.args[1:2] if name in ("open", "io.open", "os.fdopen") else node.args[:1]
        mode += [word.value for word in node.keywords if word.arg == "mode"]
        modes = [each.value for each in mode if isinstance(each, ast.Constant)]
        writes = last == "open" and any(set("wax+") & set(str(value)) for value in modes)
        known = name in CHANGES_THE_DISK or last in CHANGES_THE_DISK
        if (known or writes) and owner != "disk":
            yield subject.removeprefix("self."), _place(path, node)


def test_only_one_module_changes_the_disk() -> None:
    """Every other goes through it, so that faults can be tried at each call of it."""
    found = [
        (f"{path.relative_to(ROOT).as_posix()} {subject}", place)
        for path in SOURCES
        if PACKAGE in path.parents and "build" not in path.parts and _place(path) != DISK
        for subject, place in _disk_calls(path)
    ]
    assert not [place for subject, place in found if subject not in CHANGES_IT_TOO]
    assert {subject for subject, _ in found} == set(CHANGES_IT_TOO)


def test_no_module_is_a_drawer_for_leftovers() -> None:
    drawers = ("utils", "util", "helpers", "common", "misc")
    assert not [_place(path) for path in SOURCES if path.stem in drawers]


def _says_annotations(tree: ast.Module) -> bool:
    """Whether annotations are kept as text, or there is no code that could have any."""
    imports = [node for node in tree.body if isinstance(node, ast.ImportFrom)]
    plain = all(isinstance(node, ast.Assign | ast.Expr) for node in tree.body)
    return plain or any(node.module == "__future__" for node in imports)


def test_annotations_are_not_evaluated() -> None:
    assert not [_place(p) for p in [*SOURCES, *TESTS] if not _says_annotations(_tree(p))]


def test_there_is_enough_test_for_the_source() -> None:
    def lines(paths: list[Path]) -> int:
        texts = (path.read_text(encoding="utf-8") for path in paths)
        return sum(bool(line.strip()) for text in texts for line in text.splitlines())

    source = [path for path in SOURCES if "benchmarks" not in path.parts]
    assert lines(TESTS) >= TEST_RATIO * lines(source)
