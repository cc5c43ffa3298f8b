"""Models: what there is, what is remembered of one, its settings, concepts and checkpoints."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from starlette.responses import FileResponse, Response

from dreambooth_core.api.answers import Refused, not_found, ok, unprocessable
from dreambooth_core.api.bodies import JSON_BODY
from dreambooth_core.api.edge import Call, Endpoint
from dreambooth_core.api.files import NO_SNIFFING, address_in, existing_model, is_inside
from dreambooth_core.api.settings import (
    edit_settings,
    merged,
    read_settings,
    settings_from,
    write_settings,
)
from dreambooth_core.config.serialize import to_dict
from dreambooth_core.job import disk, lock
from dreambooth_core.job.claims import ours
from dreambooth_core.job.workspace import ModelFolder, ModelInfo, Workspace

PEER_FILE = "db_config.json"


def list_models(call: Call) -> Response:
    """List the models' names after an empty one, or with `details` all that is known of them."""
    if not call.flag("details", False):
        return ok(["", *call.workspace.model_names()])
    models, problems = call.workspace.models_and_problems()
    unreadable = [
        {"name": name, "message": error.message, "remedy": error.remedy}
        for name, error in problems.items()
    ]
    return ok({"models": [dataclasses.asdict(info) for info in models], "unreadable": unreadable})


def show_model(call: Call) -> Response:
    """Show what is remembered of a model, and the checkpoints that were saved of it."""
    info = existing_model(call, call.path["model"]).read_info()
    return ok({**dataclasses.asdict(info), "checkpoints": _saved(call, info)})


def remove_model(call: Call) -> Response:
    """Delete a model; with `checkpoints` also the checkpoint files that were saved of it."""
    model = existing_model(call, call.path["model"])
    files = delete_model(call, model, with_checkpoints=call.flag("checkpoints", False))
    return ok({"deleted": model.name, "checkpoints": [str(path) for path in files]})


def show_settings(call: Call) -> Response:
    """Show the training settings that are kept for a model."""
    model = existing_model(call, call.path["model"])
    return ok(to_dict(read_settings(call.workspace, model.name)))


def replace_settings(call: Call) -> Response:
    """Replace a model's training settings; what is not given gets its default."""
    model = existing_model(call, call.path["model"])
    given = call.body.object()
    _refuse_another(model, given)
    config = settings_from(model.name, given)
    write_settings(call.workspace, config)
    return ok(to_dict(config))


def change_settings(call: Call) -> Response:
    """Change some of a model's training settings; the others stay."""
    model = existing_model(call, call.path["model"])
    given = call.body.object()
    _refuse_another(model, given)
    config = edit_settings(call.workspace, model.name, lambda old: merged(old, given))
    return ok(to_dict(config))


def list_concepts(call: Call) -> Response:
    """List the concepts of the model `model`."""
    model = existing_model(call, call.text("model"))
    settings = read_settings(call.workspace, model.name)
    return ok({"concepts": to_dict(settings)["concepts"]})


def replace_concepts(call: Call) -> Response:
    """Replace the concepts of the model `model` with {"concepts": [...]}."""
    body = call.body.object()
    if not isinstance(body.get("concepts"), list):
        raise unprocessable("concepts is not a list.", 'Send {"concepts": [...]}.', "concepts")
    model = existing_model(call, call.text("model"))
    concepts = {"concepts": body["concepts"]}
    config = edit_settings(call.workspace, model.name, lambda old: {**old, **concepts})
    return ok({"concepts": to_dict(config)["concepts"]})


def list_checkpoints(call: Call) -> Response:
    """List the checkpoints to make a model from; of `model`, or with `details`, those saved."""
    name = call.text("model", "")
    if name:
        return ok({"checkpoints": _saved(call, existing_model(call, name).read_info())})
    if not call.flag("details", False):
        return ok(call.services.host.checkpoint_names())
    workspace = call.workspace
    saved = {i.name: _saved(call, i) for i in workspace.models()}
    return ok({"sources": call.services.host.checkpoint_names(), "saved": saved})


def show_checkpoint(call: Call) -> Response:
    """Give out one checkpoint file that was saved of a model."""
    info = existing_model(call, call.path["model"]).read_info()
    for path in saved_files(call.workspace, info):
        if _name_in(path, call.workspace) == call.path["file"]:
            return checkpoint_response(path)
    raise not_found(f"There is no checkpoint {call.path['file']!r} of {info.name!r}.")


def checkpoint_response(path: Path) -> Response:
    """Return a checkpoint file."""
    return FileResponse(
        path, media_type="application/octet-stream", filename=path.name, headers=NO_SNIFFING
    )


def saved_files(workspace: Workspace, info: ModelInfo) -> list[Path]:
    """Return the files that were saved of a model and are still in the checkpoints folder."""
    folder = workspace.checkpoints_dir
    paths = [Path(text) for text in info.checkpoints]
    return [path for path in paths if path.is_file() and is_inside(path, folder)]


def delete_model(call: Call, model: ModelFolder, with_checkpoints: bool) -> list[Path]:
    """Delete a model's folder and return the checkpoint files that were deleted with it.

    Raises BusyError while a job uses it, and Refused for a folder that is not only ours.
    """
    if model.path.is_symlink() or (model.path / PEER_FILE).exists():
        raise Refused(
            409,
            f"The folder {model.path} is a link or holds another program's files.",
            remedy="Delete it yourself.",
            field="model",
        )
    with _locked(call.workspace, model):
        files = saved_files(call.workspace, model.read_info()) if with_checkpoints else []
        # In one step it is gone for everybody; what takes long comes afterwards.
        gone = model.path.with_name(f".deleted-{time.time_ns()}")
        with lock.alone(model.lock_path):  # nobody writes its settings meanwhile
            disk.rename(model.path, gone)
        for path in files:
            disk.remove(path)
            disk.remove(path.with_suffix(".yaml"))
        disk.remove_folder(gone)
    return files


@contextmanager
def _locked(workspace: Workspace, model: ModelFolder) -> Iterator[None]:
    """Hold a model so that no job begins to use it; raises BusyError if one does already."""
    path, run_id = workspace.model(model.name).lock_path, f"{lock.DELETING}{time.time_ns()}"
    lock.acquire(path, ours(run_id, "delete"), model.name)
    try:
        yield
    finally:
        lock.release(path, run_id)


def _refuse_another(model: ModelFolder, data: dict[str, Any]) -> None:
    if data.get("model", model.name) != model.name:
        raise unprocessable(
            f"model is {data['model']!r}, but the address names {model.name!r}.",
            "Leave it out.",
            "model",
        )


def _saved(call: Call, info: ModelInfo) -> list[dict[str, Any]]:
    found = []
    for path in saved_files(call.workspace, info):
        facts, name = path.stat(), _name_in(path, call.workspace)
        found.append(
            {
                "name": name,
                "url": address_in(call, "checkpoints", f"{info.name}/{name}"),
                "size": facts.st_size,
                "modified": facts.st_mtime,
            }
        )
    return found


def _name_in(path: Path, workspace: Workspace) -> str:
    return path.resolve().relative_to(workspace.checkpoints_dir.resolve()).as_posix()


ENDPOINTS = (
    Endpoint("GET", "/models", list_models),
    Endpoint("GET", "/models/{model}", show_model),
    Endpoint("DELETE", "/models/{model}", remove_model, changes=True),
    Endpoint("GET", "/models/{model}/settings", show_settings),
    Endpoint("PUT", "/models/{model}/settings", replace_settings, JSON_BODY, changes=True),
    Endpoint("PATCH", "/models/{model}/settings", change_settings, JSON_BODY, changes=True),
    Endpoint("GET", "/concepts", list_concepts),
    Endpoint("PUT", "/concepts", replace_concepts, JSON_BODY, changes=True),
    Endpoint("GET", "/checkpoints", list_checkpoints),
    Endpoint("GET", "/checkpoints/{model}/{file:path}", show_checkpoint),
)
