"""Where everything lies: models, checkpoints, runs. Every path in the product is asked for here."""

from __future__ import annotations

import dataclasses
import difflib
import re
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unicodedata import category

from dreambooth_core.errors import InputError, ModelNotFoundError, UsageError
from dreambooth_core.job import disk, plain_json
from dreambooth_core.job.formats import MODEL
from dreambooth_core.job.lock import alone
from dreambooth_core.job.storage import atomic_write_json

CHECKPOINT_SUFFIXES = (".safetensors", ".ckpt")
COMPONENTS = ("unet", "vae", "text_encoder", "tokenizer", "scheduler")
MAX_NAME_LENGTH = 100
JOBS_FOLDER = ".jobs"
MAX_NAME_BYTES = 200
"""File systems end at 255; what files are called besides, such as "_12000.safetensors", follows."""
_FORBIDDEN = re.compile(r'[<>:"/\\|?*\x00-\x1f]')
_WINDOWS_DEVICES = re.compile(
    r"(con|prn|aux|nul|conin\$|conout\$|(com|lpt)[0-9\u00b9\u00b2\u00b3])\s*(\..*)?", re.IGNORECASE
)
_UNSEEN = ("Cc", "Cf", "Cs", "Zl", "Zp")
"""Controls, marks that turn the direction of writing, halves of characters, line separators."""
_JOINERS = "\u200c\u200d"
"""Unseen too, but some scripts and emoji are not written without them."""


@dataclass
class ModelInfo:
    """What is remembered of a model, in its `model.json`."""

    name: str
    family: str
    source: str
    source_sha256: str = ""
    prediction_type: str = "epsilon"
    resolution: int = 512
    dtype: str = "fp16"
    created: str = ""
    steps: int = 0
    epochs: int = 0
    last_run: str = ""
    checkpoints: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class ModelFolder:
    """The folder of one model, which need not exist yet."""

    path: Path

    @property
    def name(self) -> str:
        """The model's name, which is its folder's."""
        return self.path.name

    @property
    def info_path(self) -> Path:
        """What is remembered of the model; written last, so its presence means "complete"."""
        return self.path / "model.json"

    @property
    def lock_path(self) -> Path:
        """The lock of the job that works on the model; it need not exist."""
        return self.path.parent / JOBS_FOLDER / "locks" / f"{self.name}.lock"

    @property
    def layout_path(self) -> Path:
        """The source file's keys in order: [[key, dtype, shape], ...]."""
        return self.path / "layout.json"

    @property
    def extras_path(self) -> Path:
        """The source file's tensors that belong to no component."""
        return self.path / "extras.safetensors"

    @property
    def kept_side_file(self) -> Path:
        """The `.yaml` that goes beside checkpoints: the source's, or one that they need."""
        return self.path / "source.yaml"

    @property
    def states_dir(self) -> Path:
        """Training states: `<run_id>/step_00000400/`."""
        return self.path / "state"

    @property
    def class_images_dir(self) -> Path:
        """Class pictures that we made."""
        return self.path / "class_images"

    @property
    def cache_dir(self) -> Path:
        """Latents kept between runs."""
        return self.path / "cache"

    @property
    def samples_dir(self) -> Path:
        """Preview and sample pictures."""
        return self.path / "samples"

    @property
    def logging_dir(self) -> Path:
        """TensorBoard logs and loss tables, one folder per run."""
        return self.path / "logging"

    @property
    def settings_path(self) -> Path:
        """The training settings that the page keeps for the model."""
        return self.path / "settings.json"

    def component(self, name: str) -> Path:
        """Return the folder of a component such as "unet"."""
        return self.path / name

    def exists(self) -> bool:
        """Whether the model was created completely."""
        return self.info_path.is_file()

    def require(self) -> None:
        """Raise ModelNotFoundError, naming the models there are, if the model does not exist."""
        if self.exists():
            return
        names = _model_names(self.path.parent)
        known = f"The models here are: {', '.join(names)}." if names else "There are no models yet."
        raise ModelNotFoundError(
            f"There is no model {self.name!r} in {self.path.parent}.",
            remedy=f"{known} Make one with: create --name {self.name} --source CHECKPOINT",
        )

    def read_info(self) -> ModelInfo:
        """Return what is remembered; raises ModelNotFoundError or InputError naming the file."""
        self.require()
        try:
            values = MODEL.read(plain_json.parse(disk.read(self.info_path)), self.info_path)
            return ModelInfo(**values)
        except (ValueError, TypeError, AttributeError, OSError) as error:
            raise InputError(
                f"{self.info_path} cannot be read: {error}.",
                remedy="It is damaged. Restore it, or create the model again.",
            ) from error

    def write_info(self, info: ModelInfo) -> None:
        """Write `model.json` in one step."""
        atomic_write_json(self.info_path, MODEL.stamped(dataclasses.asdict(info)))

    def change_info(self, change: Callable[[ModelInfo], object]) -> None:
        """Let `change` alter what is remembered; nobody else changes it meanwhile."""
        with alone(self.lock_path):
            info = self.read_info()
            before = dataclasses.asdict(info)
            change(info)
            if dataclasses.asdict(info) != before:
                self.write_info(info)


@dataclass(frozen=True)
class Workspace:
    """The folder that holds `models/`: a WebUI's own folder, or one of ours.

    A WebUI can be told to keep models, checkpoints or LoRA files elsewhere than below its folder.
    """

    root: Path
    models_elsewhere: Path | None = None
    checkpoints_elsewhere: Path | None = None
    loras_elsewhere: Path | None = None

    def __post_init__(self) -> None:
        """Make the paths absolute, so that a worker started elsewhere sees the same ones."""
        object.__setattr__(self, "root", Path(self.root).absolute())
        for name in ("models_elsewhere", "checkpoints_elsewhere", "loras_elsewhere"):
            path = getattr(self, name)
            object.__setattr__(self, name, Path(path).absolute() if path else None)

    @property
    def models_dir(self) -> Path:
        """The folder of models in training."""
        return self.models_elsewhere or self.root / "models" / "dreambooth"

    @property
    def checkpoints_dir(self) -> Path:
        """The WebUI's folder of checkpoint files, where saved ones go."""
        return self.checkpoints_elsewhere or self.root / "models" / "Stable-diffusion"

    @property
    def lora_dir(self) -> Path:
        """The WebUI's folder of LoRA files, where trained ones go."""
        return self.loras_elsewhere or self.root / "models" / "Lora"

    @property
    def jobs_dir(self) -> Path:
        """The folder of runs."""
        return self.models_dir / JOBS_FOLDER

    @property
    def presets_dir(self) -> Path:
        """The folder of the person's own presets."""
        return self.models_dir / ".presets"

    @property
    def uploads_dir(self) -> Path:
        """The folder of pictures that were sent to the API."""
        return self.models_dir / ".uploads"

    @property
    def built_in_clip_dir(self) -> Path:
        """The text encoder's config and tokenizer that the built-in checkpoint's `.yaml` names."""
        return self.models_dir / ".built-in" / "clip"

    def run_folder(self, run_id: str) -> Path:
        """Return the folder of a run; raises InputError for an id that is no plain name."""
        check_name(run_id, what="run")
        return self.jobs_dir / run_id

    def model(self, name: str) -> ModelFolder:
        """Return the folder of a model, existing or not; raises InputError for a bad name."""
        check_name(name)
        return ModelFolder(self.models_dir / name)

    def models(self) -> list[ModelInfo]:
        """Return all complete models by name, but for those that cannot be read."""
        return self.models_and_problems()[0]

    def models_and_problems(self) -> tuple[list[ModelInfo], dict[str, UsageError]]:
        """Return the complete models by name, and why the others cannot be read, by their names."""
        found, problems = [], {}
        for name in _model_names(self.models_dir):
            try:
                found.append(ModelFolder(self.models_dir / name).read_info())
            except UsageError as error:
                problems[name] = error
        return found, problems

    def model_names(self) -> list[str]:
        """Return the names of all complete models, sorted; nothing of them is read."""
        return _model_names(self.models_dir)

    def find_checkpoint(self, text: str) -> Path:
        """Return the file meant by a path, a name in the checkpoints folder, or a name's stem.

        A hash as the WebUI shows it ("model.safetensors [0a1b2c3d4e]") may follow. Raises
        InputError if no file or more than one is meant.
        """
        wanted = re.sub(r"\s*\[[0-9a-fA-F]+\]$", "", text.strip())
        if not wanted:
            raise InputError("No checkpoint was named.", remedy="Give a file or a file's name.")
        for candidate in (Path(wanted).expanduser(), self.checkpoints_dir / wanted):
            if candidate.is_file():
                return candidate.absolute()
        found = [p for p in self.checkpoints() if wanted in _names_of(p, self.checkpoints_dir)]
        if len(found) == 1:
            return found[0]
        raise self._no_checkpoint(wanted, found)

    def find_lora(self, text: str) -> Path:
        """Return the file meant by a path, a name in the Lora folder, or a name's stem.

        Raises InputError if no file or more than one is meant.
        """
        wanted = text.strip()
        for candidate in (Path(wanted).expanduser(), self.lora_dir / wanted):
            if wanted and candidate.is_file():
                return candidate.absolute()
        loras = sorted(self.lora_dir.rglob("*.safetensors"))
        found = [path for path in loras if wanted in _names_of(path, self.lora_dir)]
        if len(found) == 1:
            return found[0]
        close = difflib.get_close_matches(wanted, [path.stem for path in loras], n=3, cutoff=0.5)
        raise InputError(
            f"There is no LoRA file {wanted!r}, neither as a path nor in {self.lora_dir}."
            if not found
            else f"{wanted!r} could mean several LoRA files: {', '.join(map(str, found))}.",
            remedy=f"Did you mean {', '.join(close)}?" if close else "Give the path of a LoRA.",
        )

    def find_saved(self, text: str) -> Path:
        """Return the checkpoint, else the LoRA file, that is meant; raises InputError for none."""
        try:
            return self.find_checkpoint(text)
        except InputError:
            with suppress(InputError):
                return self.find_lora(text)
            raise

    def checkpoints(self) -> list[Path]:
        """Return all checkpoint files in the checkpoints folder and below, sorted."""
        files = self.checkpoints_dir.rglob("*")
        return sorted(p for p in files if p.suffix.lower() in CHECKPOINT_SUFFIXES and p.is_file())

    def _no_checkpoint(self, wanted: str, found: list[Path]) -> InputError:
        if found:
            listed = ", ".join(str(p.relative_to(self.checkpoints_dir)) for p in found)
            return InputError(
                f"{wanted!r} could mean several checkpoints: {listed}.",
                remedy="Give the path as listed.",
            )
        names = [p.name for p in self.checkpoints()]
        close = difflib.get_close_matches(wanted, names, n=3, cutoff=0.5)
        remedy = f"Did you mean {', '.join(close)}?" if close else "Give the path of a checkpoint."
        return InputError(
            f"There is no checkpoint file {wanted!r}, neither as a path nor in"
            f" {self.checkpoints_dir}.",
            remedy=remedy,
        )


def check_name(name: str, what: str = "model") -> None:
    """Raise InputError unless `name` can be a folder's name on Linux and on Windows."""
    reason = next((words for is_wrong, words in _NO_NAMES if is_wrong(name)), "")
    if reason:
        shown = name if len(name) <= MAX_NAME_LENGTH else name[:20] + "..."
        raise InputError(
            f"The {what} name {shown!r} {reason}.",
            remedy="Use letters, digits, spaces, dots, dashes and underscores.",
            field="name",
        )


def _holds_unseen(name: str) -> bool:
    return any(category(letter) in _UNSEEN and letter not in _JOINERS for letter in name)


_NO_NAMES: tuple[tuple[Callable[[str], object], str], ...] = (
    (lambda name: not name.strip(), "is empty"),
    (
        _FORBIDDEN.search,
        r'holds a slash or another character that folder names cannot have (< > : " / \ | ? *)',
    ),
    (lambda name: name != name.strip().strip("."), "begins or ends with a dot or a space"),
    (
        lambda name: name.startswith("{"),
        "begins with a brace, which the WebUI would take for JSON in a file's metadata",
    ),
    (_WINDOWS_DEVICES.fullmatch, "is a name that Windows keeps for a device"),
    (_holds_unseen, "holds a character that cannot be seen, such as one that turns the direction"),
    (lambda name: len(name) > MAX_NAME_LENGTH, f"is longer than {MAX_NAME_LENGTH} characters"),
    (
        lambda name: len(name.encode("utf-8")) > MAX_NAME_BYTES,
        f"is longer than {MAX_NAME_BYTES} bytes, as its characters take several each",
    ),
)
"""What makes a text no name, in the order in which it is said, and in words."""


def _model_names(models_dir: Path) -> list[str]:
    return sorted(p.parent.name for p in models_dir.glob("[!.]*/model.json"))


def _names_of(path: Path, folder: Path) -> tuple[Any, ...]:
    relative = path.relative_to(folder)
    return path.name, path.stem, relative.as_posix(), relative.with_suffix("").as_posix()
