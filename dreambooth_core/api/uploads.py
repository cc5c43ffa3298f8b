"""Pictures and captions that are sent to us, into the workspace's folder for uploads only."""

from __future__ import annotations

import base64
import binascii
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Any

from starlette.datastructures import UploadFile
from starlette.responses import Response

from dreambooth_core.api.answers import Refused, not_found, ok, unprocessable
from dreambooth_core.api.bodies import UPLOAD_BODY
from dreambooth_core.api.edge import Call, Endpoint
from dreambooth_core.api.files import CAPTION_BYTES, caption_of, is_inside, pictures_in
from dreambooth_core.config.pictures import IMAGE_SUFFIXES
from dreambooth_core.job import disk
from dreambooth_core.job.storage import atomic_copy, atomic_write_bytes
from dreambooth_core.job.workspace import Workspace, check_name

MOST_PARTS = 3
MAGIC = (b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"BM", b"II*\0", b"MM\0*", b"GIF87a", b"GIF89a")
MAGIC_BYTES = 16


@dataclass(frozen=True)
class Upload:
    """A picture to write: its name, its bytes, and its caption if one came with it."""

    name: str
    data: IO[bytes]
    caption: str | None = None


def upload_folder(workspace: Workspace, name: str) -> Path:
    """Return the folder for uploads of this name, such as "ada/dog"; raises InputError or Refused.

    The folder need not exist yet.
    """
    parts = name.split("/")
    if len(parts) > MOST_PARTS:
        raise unprocessable(f"folder is {name!r}.", f"Use at most {MOST_PARTS} names.", "folder")
    for part in parts:
        check_name(part, what="folder")
    root = workspace.uploads_dir
    folder = root.joinpath(*parts)
    if not is_inside(folder, root):
        raise unprocessable(f"The folder {name!r} is a link to elsewhere.", field="folder")
    return folder


def upload(call: Call) -> Response:
    """Keep pictures and captions in the upload folder `folder`, as a form's files or as JSON.

    A name that is there already with other contents is refused unless `overwrite` is true.
    """
    folder = upload_folder(call.workspace, call.text("folder"))
    overwrite = call.flag("overwrite", False)
    uploads, captions = _sent(call)
    _check_captions(folder, captions, overwrite)
    names = save_uploads(folder, uploads, overwrite)
    for stem, caption in captions.items():
        atomic_write_bytes(folder / f"{stem}.txt", _caption_bytes(stem, caption))
        names.append(f"{stem}.txt")
    return ok({"folder": str(folder), "files": names}, 201)


def list_upload(call: Call) -> Response:
    """List the pictures of the upload folder `folder`, or without one the folders there are."""
    name = call.text("folder", "")
    root = call.workspace.uploads_dir
    if not name:
        folders = {path.parent for path in pictures_in(root)}
        return ok({"folders": sorted(path.relative_to(root).as_posix() for path in folders)})
    folder = upload_folder(call.workspace, name)
    if not folder.is_dir():
        raise not_found(f"There is no upload folder {name!r}.", field="folder")
    files = [
        {"name": path.relative_to(folder).as_posix(), "caption": caption_of(path)}
        for path in pictures_in(folder)
    ]
    return ok({"folder": str(folder), "files": files})


def save_uploads(folder: Path, uploads: Sequence[Upload], overwrite: bool) -> list[str]:
    """Write pictures with their captions and return the names of the files; all or none is judged.

    Raises Refused or InputError for a name or picture that cannot be used, before anything is
    written.
    """
    _check_names([item.name for item in uploads])
    for item in uploads:
        _check_picture(item)
        _check_place(folder / item.name, item.data, overwrite)
        if item.caption is not None:
            data = _caption_bytes(item.name, item.caption)
            _check_place(_text_path(folder, item.name), io.BytesIO(data), overwrite)
    return [name for item in uploads for name in _write(folder, item)]


def decoded(name: str, text: Any) -> IO[bytes]:
    """Return the bytes of a base64 text, which may be a data address."""
    if not isinstance(text, str):
        raise unprocessable(f"The data of {name!r} is not a text.", "Send it as base64.", "data")
    _, _, inside = text.partition(",") if text.startswith("data:") else ("", "", text)
    try:
        return io.BytesIO(base64.b64decode("".join(inside.split()), validate=True))
    except (binascii.Error, ValueError) as error:
        raise unprocessable(
            f"The data of {name!r} is not base64: {error}.", "Encode the file's bytes.", "data"
        ) from error


def image_objects(body: dict[str, Any], field: str) -> list[dict[str, Any]]:
    """Return the list of objects under a name of a JSON body."""
    images = body.get(field)
    if not isinstance(images, list) or not images or not all(isinstance(i, dict) for i in images):
        raise unprocessable(
            f"{field} is not a list of objects.", f'Send {{"{field}": [{{"name": ...}}]}}.', field
        )
    return images


def _sent(call: Call) -> tuple[list[Upload], dict[str, str]]:
    """Return the pictures of a request, and the captions that came without their picture."""
    if not call.body.files:
        images = image_objects(call.body.object() if call.body.json is not None else {}, "images")
        return [_from_json(image) for image in images], {}
    texts = {_stem(file): _read_text(file) for file in call.body.files if _is_text(_name(file))}
    pictures = [file for file in call.body.files if not _is_text(_name(file))]
    uploads = [Upload(_name(file), file.file, texts.pop(_stem(file), None)) for file in pictures]
    return uploads, texts


def _from_json(image: dict[str, Any]) -> Upload:
    unknown = sorted(set(image) - {"name", "data", "caption"})
    if unknown:
        raise unprocessable(f"{unknown[0]} is not known.", "Use name, data, caption.", unknown[0])
    name, caption = image.get("name"), image.get("caption")
    if not isinstance(name, str) or not isinstance(caption, str | None):
        raise unprocessable("A name or caption is not a text.", field="name")
    return Upload(name, decoded(name, image.get("data")), caption)


def _name(file: UploadFile) -> str:
    return file.filename or ""


def _stem(file: UploadFile) -> str:
    """Return a file's name without its ending; raises InputError for a name with folders in it."""
    check_name(_name(file), what="file")
    return PurePosixPath(_name(file)).stem


def _is_text(name: str) -> bool:
    return PurePosixPath(name).suffix.lower() == ".txt"


def _read_text(file: UploadFile) -> str:
    data = file.file.read(CAPTION_BYTES + 1)
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise unprocessable(
            f"The caption {_name(file)!r} is not UTF-8.", "Save it as UTF-8.", "file"
        ) from error


def _check_captions(folder: Path, captions: dict[str, str], overwrite: bool) -> None:
    """Raise for captions that came without their picture and belong to none that is there."""
    there = {path.stem for path in pictures_in(folder)} if folder.is_dir() else set()
    for stem, caption in captions.items():
        check_name(f"{stem}.txt", what="file")
        if stem not in there:
            raise unprocessable(f"{stem}.txt describes no picture.", "Upload the picture too.")
        data = _caption_bytes(stem, caption)
        _check_place(folder / f"{stem}.txt", io.BytesIO(data), overwrite)


def _check_names(names: Iterable[str]) -> None:
    """Raise for names that leave the folder, are no picture's, or would share a caption file."""
    stems: set[str] = set()
    for name in names:
        check_name(name, what="file")
        if not name.lower().endswith(IMAGE_SUFFIXES):
            raise Refused(
                415,
                f"{name!r} is not named like a picture.",
                remedy=f"Use one of: {', '.join(IMAGE_SUFFIXES)}.",
                field="name",
            )
        stem = Path(name).stem.lower()
        if stem in stems:
            raise unprocessable(
                f"{name!r} would share its caption file with another picture.",
                "Give each picture a name of its own.",
                "name",
            )
        stems.add(stem)


def _check_picture(item: Upload) -> None:
    start = item.data.read(MAGIC_BYTES)
    item.data.seek(0)
    if start.startswith(MAGIC) or (start[:4] == b"RIFF" and start[8:12] == b"WEBP"):
        return
    raise Refused(
        415,
        f"{item.name!r} is not a picture.",
        remedy="Send PNG, JPEG, WebP, BMP, TIFF or GIF.",
        field="data",
    )


def _check_place(path: Path, data: IO[bytes], overwrite: bool) -> None:
    """Raise if the file is there with other contents, or is a link to elsewhere."""
    if path.is_symlink():
        raise unprocessable(f"{path.name!r} is a link.", "Choose another name.", "name")
    if overwrite or not path.exists():
        return
    same = path.is_file() and disk.read(path) == data.read()
    data.seek(0)
    if not same:
        raise Refused(
            409,
            f"{path.name!r} is there already with other contents.",
            remedy="Choose another name, or add overwrite=true.",
            field="name",
        )


def _caption_bytes(name: str, caption: str) -> bytes:
    data = caption.encode("utf-8")
    if len(data) > CAPTION_BYTES:
        raise unprocessable(f"The caption of {name!r} is too long.", "Shorten it.", "caption")
    return data


def _text_path(folder: Path, name: str) -> Path:
    return folder / f"{Path(name).stem}.txt"


def _write(folder: Path, item: Upload) -> list[str]:
    """Write a picture and its caption, the caption first, so that none is seen without it."""
    names = [item.name]
    if item.caption is not None:
        path = _text_path(folder, item.name)
        atomic_write_bytes(path, _caption_bytes(item.name, item.caption))
        names.append(path.name)
    atomic_copy(folder / item.name, item.data)
    return names


ENDPOINTS = (
    Endpoint("POST", "/upload", upload, UPLOAD_BODY, changes=True),
    Endpoint("GET", "/upload", list_upload),
)
