"""The built-in checkpoint among a WebUI's: complete, loadable there, nothing written over."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from io import FileIO
from pathlib import Path

import pytest
import yaml
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from dreambooth_core.checkpoint.header import read_header
from dreambooth_core.config.schema import CreateConfig, SaveConfig
from dreambooth_core.families.clip_text import PREFIX, text_config
from dreambooth_core.families.side_file import read_side_file, side_value
from dreambooth_core.job import disk
from dreambooth_core.job.storage import atomic_write_bytes
from dreambooth_core.job.workspace import Workspace
from dreambooth_core.stages import create, save
from dreambooth_core.world.install import CHECKPOINT, NAME, TEXT_CONFIG, install, side_settings
from tests.tiny import stage_context

VERSION = "model.params.cond_stage_config.params.version"


@pytest.fixture(scope="module")
def workspace(module_folder: Path) -> Workspace:
    """A workspace, in a folder of an awkward name, with the checkpoint put in place."""
    workspace = Workspace(module_folder / '"web ui" ü')
    install(workspace)
    return workspace


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_the_copy_is_whole_and_found_by_name(workspace: Workspace) -> None:
    path = workspace.find_checkpoint(NAME)
    assert path == workspace.checkpoints_dir / f"{NAME}.safetensors"
    assert _digest(path) == _digest(CHECKPOINT)


def test_the_side_file_names_the_text_encoders_folder(workspace: Workspace) -> None:
    side = read_side_file(workspace.find_checkpoint(NAME))
    assert Path(side_value(side, VERSION)) == workspace.built_in_clip_dir
    assert workspace.built_in_clip_dir.is_absolute()


def test_only_the_version_is_added_to_the_side_file(workspace: Workspace) -> None:
    ours = yaml.safe_load(side_settings(workspace.built_in_clip_dir))
    original = yaml.safe_load(CHECKPOINT.with_suffix(".yaml").read_text(encoding="utf-8"))
    del ours["model"]["params"]["cond_stage_config"]["params"]
    assert ours == original


def test_a_windows_path_survives_the_side_file() -> None:
    class Folder:
        def absolute(self) -> str:
            return "C:\\Users\\new\\ü"

    side = yaml.safe_load(side_settings(Folder()))  # type: ignore[arg-type]
    assert side_value(side, VERSION) == "C:\\Users\\new\\ü"


def test_the_config_is_the_one_that_the_header_tells() -> None:
    assert text_config(read_header(CHECKPOINT), read_side_file(CHECKPOINT)) == TEXT_CONFIG


def test_transformers_builds_the_encoder_from_the_folder(workspace: Workspace) -> None:
    """As the WebUI does: `from_pretrained(version)` for both, without a network."""
    folder = str(workspace.built_in_clip_dir)
    tokenizer = CLIPTokenizer.from_pretrained(folder, local_files_only=True)
    assert tokenizer("ohwx", add_special_tokens=False).input_ids == [47993]
    config = CLIPTextConfig.from_pretrained(folder, local_files_only=True)
    built = {name: list(w.shape) for name, w in CLIPTextModel(config).state_dict().items()}
    header = read_header(CHECKPOINT).tensors
    stored = {
        key.removeprefix(PREFIX): list(info.shape)
        for key, info in header.items()
        if key.startswith(PREFIX) and not key.endswith("position_ids")
    }
    assert {name: shape for name, shape in built.items() if name in stored} == stored


def test_a_second_call_changes_nothing(workspace: Workspace) -> None:
    files = [p for p in workspace.root.rglob("*") if p.is_file()]
    before = {p: p.stat().st_mtime_ns for p in files}
    assert install(workspace) == workspace.find_checkpoint(NAME)
    assert {p: p.stat().st_mtime_ns for p in workspace.root.rglob("*") if p.is_file()} == before


def test_a_moved_folder_is_corrected(tmp_path: Path) -> None:
    path = install(Workspace(tmp_path / "old"))
    (tmp_path / "old").rename(tmp_path / "new")
    moved = install(Workspace(tmp_path / "new"))
    assert moved == tmp_path / "new" / path.relative_to(tmp_path / "old")
    assert str(tmp_path / "new") in moved.with_suffix(".yaml").read_text(encoding="utf-8")


@pytest.mark.parametrize("suffix", [".safetensors", ".yaml"])
def test_a_file_of_somebody_elses_stays(tmp_path: Path, suffix: str) -> None:
    workspace = Workspace(tmp_path)
    other = workspace.checkpoints_dir / f"{NAME}{suffix}"
    atomic_write_bytes(other, b"precious")
    path = install(workspace)
    assert path.name == f"{NAME}-2.safetensors"
    assert other.read_bytes() == b"precious"
    assert install(workspace) == path


def test_an_interrupted_copy_is_not_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = disk.write

    def fail(file: FileIO, data: bytes) -> None:
        if "safetensors" not in str(file.name):
            return real(file, data)
        file.write(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(disk, "write", fail)
    workspace = Workspace(tmp_path)
    with pytest.raises(OSError, match="disk full"):
        install(workspace)
    assert workspace.checkpoints() == []
    monkeypatch.undo()
    assert install(workspace).name == f"{NAME}.safetensors"


@pytest.mark.parametrize("damage", ["{}", "{", ""])
def test_a_damaged_encoder_folder_is_written_again(tmp_path: Path, damage: str) -> None:
    workspace = Workspace(tmp_path)
    install(workspace)
    config = workspace.built_in_clip_dir / "config.json"
    config.write_text(damage, encoding="utf-8")
    (workspace.built_in_clip_dir / "vocab.json").unlink()
    install(workspace)
    assert json.loads(config.read_text(encoding="utf-8")) == TEXT_CONFIG
    assert (workspace.built_in_clip_dir / "vocab.json").is_file()


def test_a_saved_checkpoint_takes_the_side_file_along(workspace: Workspace) -> None:
    source = workspace.find_checkpoint(NAME)
    context = stage_context(workspace)
    create.run(CreateConfig(name="small", source=str(source)), context)
    saved = Path(save.run(SaveConfig(model="small"), context)["path"])
    assert saved.with_suffix(".yaml").read_bytes() == source.with_suffix(".yaml").read_bytes()


def test_the_host_can_import_it_cheaply() -> None:
    code = (
        "import sys, dreambooth_core.world.install\n"
        "print([m for m in ('torch', 'transformers', 'numpy', 'PIL', 'yaml') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
