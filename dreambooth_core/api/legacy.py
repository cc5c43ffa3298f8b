"""The routes of the older extension that read and change what there is.

Each is a thin alias with the older names of parameters, settings and answers. Where an older route
has the path of a newer one, `model_name` in the address says that the older one is meant.
"""

from __future__ import annotations

import io
import re
from pathlib import Path
from typing import Any

from starlette.responses import Response

from dreambooth_core.api.answers import not_found, ok, unprocessable
from dreambooth_core.api.bodies import FORM_BODY, JSON_BODY, parse_json
from dreambooth_core.api.edge import Call, Endpoint
from dreambooth_core.api.fetching import fetch
from dreambooth_core.api.files import (
    caption_of,
    existing_model,
    pictures_in,
    with_captions,
    zip_response,
)
from dreambooth_core.api.legacy_names import concept_out, concepts_in, put_settings, settings_out
from dreambooth_core.api.models import delete_model
from dreambooth_core.api.settings import (
    edit_settings,
    read_settings,
    settings_from,
    write_settings,
)
from dreambooth_core.api.uploads import (
    Upload,
    decoded,
    image_objects,
    save_uploads,
    upload_folder,
)
from dreambooth_core.config.schema import Concept
from dreambooth_core.config.serialize import to_dict
from dreambooth_core.job.workspace import CHECKPOINT_SUFFIXES, ModelFolder

FILEWORDS = "[filewords]"
MOST_FETCHED = 100
NEW_CONCEPT = dict.fromkeys(("instance_prompt", "class_prompt", "save_sample_prompt"), FILEWORDS)


def named_model(call: Call) -> ModelFolder:
    """Return the model that the older parameter `model_name` names."""
    return existing_model(call, call.text("model_name"))


def get_model_config(call: Call) -> Response:
    """Show all settings of the model `model_name` under the older names."""
    return _settings(call, named_model(call), [])


def set_model_config(call: Call) -> Response:
    """Replace all settings of the model that the body names under the older names."""
    given = call.body.object()
    model = existing_model(call, call.text("model_name"))
    return _put(call, model, {"model": model.name}, given)


def set_model_params(call: Call) -> Response:
    """Change some settings of the model `model_name`; `params` is a JSON object."""
    params = parse_json(call.text("params").encode("utf-8"))
    if not isinstance(params, dict):
        raise unprocessable("params is not a JSON object.", 'Send {"name": value}.', "params")
    model = named_model(call)
    return _put(call, model, None, params)


def get_concepts(call: Call) -> Response:
    """List the concepts of the model `model_name` under the older names."""
    return ok(_concepts(call, named_model(call)))


def set_concepts(call: Call) -> Response:
    """Replace the concepts of the model `model_name` with a list under the older names."""
    given = call.body.json
    if given is None and "concepts" in call.body.fields:
        given = parse_json(call.body.fields["concepts"].encode("utf-8"))
    if isinstance(given, dict):
        given = given.get("concepts", given.get("concepts_list"))
    if not isinstance(given, list):
        raise unprocessable("The body is not a list of concepts.", "Send [{...}].", "concepts")
    model = named_model(call)
    concepts, _ = concepts_in(given)
    return ok(_write_concepts(call, model, concepts))


def set_concept(call: Call) -> Response:
    """Add a concept to the model `model_name`, or replace the one with the same pictures."""
    model = named_model(call)
    return ok(_add_concept(call, model, _given_concept(call)))


def remove_model(call: Call) -> Response:
    """Delete the model `model_name` and the checkpoints that were saved of it."""
    model = named_model(call)
    delete_model(call, model, with_checkpoints=True)
    return ok(f"Model {model.name} has been deleted.")


def list_loras(call: Call) -> Response:
    """List the files in the LoRA folder."""
    if call.text("model_name", ""):
        named_model(call)
    folder = call.services.host.lora_dir()
    suffixes = (*CHECKPOINT_SUFFIXES, ".pt")
    files = [path for path in folder.rglob("*") if path.suffix.lower() in suffixes]
    return ok(sorted(path.relative_to(folder).as_posix() for path in files if path.is_file()))


def get_classifiers(call: Call) -> Response:
    """Give out the class images that were made for `model_name`, or for one concept of it."""
    model = named_model(call)
    pictures = pictures_in(model.class_images_dir)
    index = call.whole("concept_idx", -1)
    if index >= 0:
        concepts = read_settings(call.workspace, model.name).concepts
        if index >= len(concepts):
            raise not_found(f"There is no concept {index}.", "Count from 0.", "concept_idx")
        pictures = [path for path in pictures if shows_class(caption_of(path), concepts[index])]
    if not pictures:
        return ok({"Result": "No images found."})
    return zip_response(
        with_captions(pictures, model.class_images_dir), f"{model.name}_class_images.zip"
    )


def shows_class(prompt: str, concept: Concept) -> bool:
    """Whether a class image's prompt could be one of the concept's.

    The concept's words must be there in order; instead of [filewords] there may be any.
    """
    words = [concept.class_prompt, concept.class_token]
    if not any(text.strip() for text in words):
        return False
    pieces = [re.escape(" ".join(piece.split())) for piece in concept.class_prompt.split(FILEWORDS)]
    found = re.search(".*".join(pieces), " ".join(prompt.split()), re.DOTALL)
    return found is not None and concept.class_token in prompt


def upload(call: Call) -> Response:
    """Keep pictures, sent as base64, for a concept `instance_name` of the model `model_name`."""
    images = image_objects(call.body.object(), "imageList")
    return _save(call, [_upload(image, decoded) for image in images])


def upload_url(call: Call) -> Response:
    """Fetch pictures from the web for a concept `instance_name` of the model `model_name`."""
    images = image_objects(call.body.object(), "imageList")
    if len(images) > MOST_FETCHED:
        raise unprocessable(f"More than {MOST_FETCHED} pictures.", "Send fewer.", "imageList")
    return _save(call, [_upload(image, _fetched) for image in images])


def _upload(image: dict[str, Any], read: Any) -> Upload:
    name, caption = image.get("name"), image.get("txt", "")
    if not isinstance(name, str) or not isinstance(caption, str):
        raise unprocessable("A name or txt is not a text.", field="imageList")
    # Older clients send paths as they have them; only the file's own name counts.
    name = re.split(r"[/\\]", name)[-1]
    return Upload(name, read(name, image.get("data")), caption or None)


def _fetched(name: str, address: Any) -> io.BytesIO:
    if not isinstance(address, str):
        raise unprocessable(f"The data of {name!r} is no address.", field="data")
    return io.BytesIO(fetch(address.strip()))


def _save(call: Call, uploads: list[Upload]) -> Response:
    create_concept = call.flag("create_concept", True)
    model_name, instance_name = call.text("model_name"), call.text("instance_name")
    model = named_model(call) if create_concept else None
    folder = upload_folder(call.workspace, f"{model_name}/{instance_name}")
    save_uploads(folder, uploads, overwrite=True)
    answer: dict[str, Any] = {
        "Status": f"Saved {len(uploads)} images.",
        "Image dir": str(folder),
    }
    if model is not None:
        concept = {"instance_data_dir": str(folder), **NEW_CONCEPT}
        answer["Concepts"] = _add_concept(call, model, concept)
    return ok(answer)


def _given_concept(call: Call) -> dict[str, Any]:
    """Return the concept of a request under the older names: a whole one, or a form's words."""
    given = call.body.json
    if given is None and call.body.fields.get("concept"):
        given = parse_json(call.body.fields["concept"].encode("utf-8"))
    if isinstance(given, dict) and isinstance(given.get("concept"), dict):
        given = given["concept"]
    if isinstance(given, dict) and "instance_data_dir" in given:
        return {name: value for name, value in given.items() if name != "model_name"}
    return {
        "instance_data_dir": call.text("instance_dir"),
        "instance_token": call.text("instance_token", ""),
        "class_token": call.text("class_token", ""),
        **NEW_CONCEPT,
    }


def _add_concept(call: Call, model: ModelFolder, given: dict[str, Any]) -> list[dict[str, Any]]:
    (concept,), _ = concepts_in([given])

    def add(data: dict[str, Any]) -> dict[str, Any]:
        concepts = data["concepts"]
        folders = [_folder(old) for old in concepts]
        if _folder(concept) in folders:
            concepts[folders.index(_folder(concept))] = concept
        else:
            concepts.append(concept)
        return data

    edit_settings(call.workspace, model.name, add)
    return _concepts(call, model)


def _folder(concept: dict[str, Any]) -> Path:
    return Path(str(concept.get("instance_folder", ""))).expanduser().absolute()


def _write_concepts(
    call: Call, model: ModelFolder, concepts: list[dict[str, Any]]
) -> list[dict[str, Any]]:
    edit_settings(call.workspace, model.name, lambda data: {**data, "concepts": concepts})
    return _concepts(call, model)


def _concepts(call: Call, model: ModelFolder) -> list[dict[str, Any]]:
    data = to_dict(read_settings(call.workspace, model.name))
    return [concept_out(concept) for concept in data["concepts"]]


def _put(
    call: Call, model: ModelFolder, base: dict[str, Any] | None, given: dict[str, Any]
) -> Response:
    """Keep `base`, or the settings that the model has, with those that are given put in."""
    unused: list[str] = []

    def put(kept: dict[str, Any]) -> dict[str, Any]:
        data = kept if base is None else base
        unused.extend(put_settings(data, given))
        return data

    if base is None:
        edit_settings(call.workspace, model.name, put)
    else:
        write_settings(call.workspace, settings_from(model.name, put(base)))
    return _settings(call, model, unused)


def _settings(call: Call, model: ModelFolder, unused: list[str]) -> Response:
    data = to_dict(read_settings(call.workspace, model.name))
    content = settings_out(data, model, model.read_info())
    return ok({**content, "not_used": unused} if unused else content)


ENDPOINTS = (
    Endpoint("GET", "/classifiers", get_classifiers),
    Endpoint("POST", "/concept", set_concept, FORM_BODY, changes=True),
    Endpoint("POST", "/concepts", set_concepts, FORM_BODY, changes=True),
    Endpoint("DELETE", "/model", remove_model, FORM_BODY, changes=True),
    Endpoint("GET", "/model_config", get_model_config),
    Endpoint("POST", "/model_config", set_model_config, JSON_BODY, changes=True),
    Endpoint("POST", "/model_params", set_model_params, FORM_BODY, changes=True),
    Endpoint("GET", "/models_lora", list_loras),
    Endpoint("POST", "/upload_url", upload_url, JSON_BODY, changes=True),
)
