"""The files that the API gives out: pictures of models and saved checkpoints, and nothing else."""

from __future__ import annotations

import stat
import tempfile
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any
from urllib.parse import quote

from starlette.responses import FileResponse, Response, StreamingResponse

from dreambooth_core.api.answers import not_found, ok
from dreambooth_core.api.edge import Call, Endpoint
from dreambooth_core.config.pictures import picture_files
from dreambooth_core.errors import InputError
from dreambooth_core.job import disk
from dreambooth_core.job.workspace import ModelFolder, check_name

MEDIA_TYPES = {
    ".png": "image/png",
    ".jpg": "image/jpeg",
    ".jpeg": "image/jpeg",
    ".webp": "image/webp",
    ".bmp": "image/bmp",
    ".gif": "image/gif",
    ".tif": "image/tiff",
    ".tiff": "image/tiff",
}
ZIP_TYPE = "application/x-zip-compressed"
CHUNK_BYTES = 256 * 1024
CAPTION_BYTES = 64 * 1024
NO_SNIFFING = {"X-Content-Type-Options": "nosniff"}


def path_inside(folder: Path, relative: str) -> Path:
    """Return the path of a file below a folder; raises Refused with 404 if it would lie elsewhere.

    Links are followed first, and names that mean something else on Windows are refused.
    """
    parts = relative.split("/")
    try:
        for part in parts:
            check_name(part, what="file")
    except InputError as error:
        raise not_found(error.message, error.remedy) from error
    path = folder.joinpath(*parts).resolve()
    if not path.is_relative_to(folder.resolve()):
        raise not_found(f"There is no {relative!r} in {folder.name}.")
    return path


def is_inside(path: Path, folder: Path) -> bool:
    """Whether a file lies in a folder once links are followed."""
    return path.resolve().is_relative_to(folder.resolve())


def existing_model(call: Call, name: str) -> ModelFolder:
    """Return a model's folder; raises Refused with 404 if there is no such model."""
    try:
        model = call.workspace.model(name)
        model.require()
    except InputError as error:
        raise not_found(error.message, error.remedy, "model") from error
    return model


def list_samples(call: Call) -> Response:
    """List the pictures that were made with a model, newest first."""
    model = existing_model(call, call.text("model"))
    pictures = _described(call, model.samples_dir, f"samples/{model.name}")
    pictures.sort(key=lambda picture: (picture["modified"], picture["path"]), reverse=True)
    return ok({"samples": pictures})


def list_classes(call: Call) -> Response:
    """List the class images that were made for a model, with their prompts."""
    model = existing_model(call, call.text("model"))
    folder = model.class_images_dir
    pictures = _described(call, folder, f"classes/{model.name}")
    for picture in pictures:
        picture["prompt"] = caption_of(folder / picture["path"])
    return ok({"classes": pictures})


def show_sample(call: Call) -> Response:
    """Give out one picture that was made with a model."""
    model = existing_model(call, call.path["model"])
    return _picture(model.samples_dir, call.path["file"])


def show_class_image(call: Call) -> Response:
    """Give out one class image that was made for a model."""
    model = existing_model(call, call.path["model"])
    return _picture(model.class_images_dir, call.path["file"])


def pictures_in(folder: Path) -> list[Path]:
    """Return the pictures in a folder of ours; links that lead out of it are left out."""
    return [path for path in picture_files(folder) if is_inside(path, folder)]


def caption_of(picture: Path) -> str:
    """Return what stands in the text file beside a picture; "" if there is none."""
    path = picture.with_suffix(".txt")
    try:
        with disk.open_read(path) as file:
            return file.read(CAPTION_BYTES).decode("utf-8", "replace").strip()
    except OSError:
        return ""


def picture_response(path: Path) -> Response:
    """Return a picture as it lies on the disk."""
    return FileResponse(path, media_type=MEDIA_TYPES[path.suffix.lower()], headers=NO_SNIFFING)


def zip_response(files: Sequence[tuple[Path, str]], name: str) -> Response:
    """Return files, each under its name in the archive, as one archive."""
    file: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 (the answer closes it)
    try:
        with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
            for path, inside in files:
                archive.write(path, inside)
        size = file.tell()
        file.seek(0)
    except BaseException:
        file.close()
        raise
    headers = {
        "Content-Disposition": f"attachment; filename*=UTF-8''{quote(name)}",
        "Content-Length": str(size),
    }
    return StreamingResponse(_chunks(file), media_type=ZIP_TYPE, headers=headers)


def with_captions(pictures: Sequence[Path], folder: Path) -> list[tuple[Path, str]]:
    """Return pictures and the text files beside them, each with its name inside an archive."""
    found = []
    for picture in pictures:
        text = picture.with_suffix(".txt")
        for path in [picture, *([text] if text.is_file() and is_inside(text, folder) else [])]:
            found.append((path, path.relative_to(folder).as_posix()))
    return found


def address_in(call: Call, kind: str, relative: str) -> str:
    """Return the address of a file of a model."""
    return f"{call.prefix}/{quote(f'{kind}/{relative}')}"


def _picture(folder: Path, relative: str) -> Response:
    path = path_inside(folder, relative)
    if path.suffix.lower() not in MEDIA_TYPES or not path.is_file():
        raise not_found(f"There is no picture {relative!r}.")
    return picture_response(path)


def _described(call: Call, folder: Path, address: str) -> list[dict[str, Any]]:
    found = []
    for path in pictures_in(folder):
        try:
            facts, relative = path.stat(), path.relative_to(folder).as_posix()
        except FileNotFoundError:  # gone since it was listed
            continue
        if not stat.S_ISREG(facts.st_mode):
            continue
        found.append(
            {
                "path": relative,
                "url": address_in(call, address, relative),
                "size": facts.st_size,
                "modified": facts.st_mtime,
            }
        )
    return found


def _chunks(file: IO[bytes]) -> Iterator[bytes]:
    with file:
        while chunk := file.read(CHUNK_BYTES):
            yield chunk


ENDPOINTS = (
    Endpoint("GET", "/samples", list_samples),
    Endpoint("GET", "/samples/{model}/{file:path}", show_sample),
    Endpoint("GET", "/classes", list_classes),
    Endpoint("GET", "/classes/{model}/{file:path}", show_class_image),
)
