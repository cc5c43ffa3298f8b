from __future__ import annotations

from pathlib import Path

import pytest

from dreambooth_core.errors import InputError, ModelNotFoundError
from dreambooth_core.job.workspace import ModelInfo, Workspace, check_name


def _checkpoint(workspace: Workspace, name: str) -> Path:
    path = workspace.checkpoints_dir / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"")
    return path


def test_the_places(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path)
    assert workspace.models_dir == tmp_path / "models" / "dreambooth"
    assert workspace.checkpoints_dir == tmp_path / "models" / "Stable-diffusion"
    assert workspace.jobs_dir == workspace.models_dir / ".jobs"
    assert workspace.uploads_dir == workspace.models_dir / ".uploads"
    folder = workspace.model("ada")
    assert folder.path == workspace.models_dir / "ada"
    assert folder.name == "ada"
    assert folder.component("unet") == folder.path / "unet"
    places = {
        "info_path": "model.json",
        "layout_path": "layout.json",
        "extras_path": "extras.safetensors",
        "states_dir": "state",
        "class_images_dir": "class_images",
        "cache_dir": "cache",
        "samples_dir": "samples",
        "logging_dir": "logging",
    }
    for name, place in places.items():
        assert getattr(folder, name) == folder.path / place


def test_the_root_is_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert Workspace(Path("here")).root == tmp_path / "here"


def test_model_info_there_and_back(workspace: Workspace) -> None:
    info = ModelInfo("ada", "sd1", "/x.safetensors", steps=3, checkpoints=["a"])
    folder = workspace.model("ada")
    assert not folder.exists()
    folder.write_info(info)
    assert folder.exists()
    assert folder.read_info() == info
    workspace.model("bob").write_info(ModelInfo("bob", "sd1", ""))
    assert [model.name for model in workspace.models()] == ["ada", "bob"]


def test_no_models(tmp_path: Path) -> None:
    assert Workspace(tmp_path).models() == []
    with pytest.raises(ModelNotFoundError, match="no models yet") as caught:
        Workspace(tmp_path).model("ada").require()
    assert "create --name ada" in str(caught.value)


def test_a_missing_model_names_those_there_are(workspace: Workspace) -> None:
    workspace.model("bob").write_info(ModelInfo("bob", "sd1", ""))
    with pytest.raises(ModelNotFoundError, match=r"no model 'ada'.*bob"):
        workspace.model("ada").read_info()


@pytest.mark.parametrize("text", ["{", '{"name": "a", "later": 1}', "[]"])
def test_a_damaged_info_is_named(workspace: Workspace, text: str) -> None:
    folder = workspace.model("ada")
    folder.path.mkdir(parents=True)
    folder.info_path.write_text(text)
    with pytest.raises(InputError, match=r"model\.json cannot be read"):
        folder.read_info()


@pytest.mark.parametrize("name", ["ada", "Ada 2.1_x-y", "日本", "a" * 100, "console", "com"])
def test_good_names(name: str) -> None:
    check_name(name)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("", "empty"),
        ("  ", "empty"),
        ("a/b", "slash"),
        ("a\\b", "slash"),
        ("..", "dot"),
        (".hidden", "dot"),
        ("end.", "dot"),
        (" a", "space"),
        ("a\n", "character"),
        ("a:b", "character"),
        ("{a}", "brace"),
        ("CON", "Windows"),
        ("nul.txt", "Windows"),
        ("com1", "Windows"),
        ("a" * 101, "longer"),
    ],
)
def test_bad_names(workspace: Workspace, name: str, reason: str) -> None:
    with pytest.raises(InputError, match=reason) as caught:
        workspace.model(name)
    assert caught.value.remedy
    assert len(str(caught.value)) < 300
    with pytest.raises(InputError, match="run name"):
        workspace.run_folder(name)


def test_checkpoints_are_found_by_path_name_and_stem(
    workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inside = _checkpoint(workspace, "base.safetensors")
    below = _checkpoint(workspace, "sub/deep.v1.ckpt")
    outside = tmp_path / "other.safetensors"
    outside.write_bytes(b"")
    monkeypatch.chdir(tmp_path)
    assert workspace.find_checkpoint("other.safetensors") == outside
    assert workspace.find_checkpoint(str(outside)) == outside
    for text in ("base.safetensors", "base", " base.safetensors [0a1b2c3d4e]"):
        assert workspace.find_checkpoint(text) == inside
    for text in ("sub/deep.v1.ckpt", "deep.v1.ckpt", "deep.v1", "sub/deep.v1"):
        assert workspace.find_checkpoint(text) == below
    assert workspace.checkpoints() == [inside, below]


def test_what_is_no_checkpoint(workspace: Workspace) -> None:
    _checkpoint(workspace, "base.safetensors")
    _checkpoint(workspace, "sub/base.safetensors")
    _checkpoint(workspace, "one/twin.ckpt")
    _checkpoint(workspace, "two/twin.ckpt")
    with pytest.raises(InputError, match=r"Did you mean base\.safetensors"):
        workspace.find_checkpoint("bas.safetensors")
    with pytest.raises(InputError, match=r"several checkpoints.*one.*two"):
        workspace.find_checkpoint("twin")
    with pytest.raises(InputError, match="No checkpoint was named"):
        workspace.find_checkpoint("  ")
    with pytest.raises(InputError, match="Give the path"):
        workspace.find_checkpoint("xyz")
    with pytest.raises(InputError, match="no checkpoint file"):
        workspace.find_checkpoint(str(workspace.root))


def test_models_and_checkpoints_may_lie_elsewhere(tmp_path: Path) -> None:
    plain = Workspace(tmp_path)
    assert Workspace(tmp_path, None, None) == plain
    moved = Workspace(tmp_path, tmp_path / "trained", tmp_path / "files")
    assert moved.models_dir == moved.model("ada").path.parent == tmp_path / "trained"
    assert moved.jobs_dir == tmp_path / "trained" / ".jobs"
    (tmp_path / "files" / "sub").mkdir(parents=True)
    (tmp_path / "files" / "sub" / "a.safetensors").write_bytes(b"")
    assert moved.find_checkpoint("a") == tmp_path / "files" / "sub" / "a.safetensors"
    assert Workspace(tmp_path, models_elsewhere=Path("near")).models_dir == Path.cwd() / "near"


def test_loras_are_found_by_path_name_and_stem(workspace: Workspace, tmp_path: Path) -> None:
    assert workspace.lora_dir == workspace.root / "models" / "Lora"
    paths = [workspace.lora_dir / name for name in ("ada.safetensors", "sub/style.safetensors")]
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")
    assert workspace.find_lora(str(paths[0])) == paths[0]
    assert workspace.find_lora("ada") == workspace.find_lora("ada.safetensors") == paths[0]
    assert workspace.find_lora("style") == workspace.find_lora("sub/style") == paths[1]
    with pytest.raises(InputError, match="no LoRA file 'styles'") as caught:
        workspace.find_lora("styles")
    assert "Did you mean style?" in str(caught.value)
    twice = workspace.lora_dir / "more" / "style.safetensors"
    twice.parent.mkdir()
    twice.write_bytes(b"")
    with pytest.raises(InputError, match="several LoRA files"):
        workspace.find_lora("style")
    with pytest.raises(InputError, match="no LoRA file ''"):
        workspace.find_lora(" ")


def test_loras_can_lie_elsewhere(tmp_path: Path) -> None:
    assert Workspace(tmp_path, loras_elsewhere=tmp_path / "x").lora_dir == tmp_path / "x"
