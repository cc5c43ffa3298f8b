from __future__ import annotations

import dataclasses
from typing import Any

from dreambooth_core.api import endpoints
from dreambooth_core.config.control import field_specs
from dreambooth_core.config.schema import JOB_CONFIGS, Concept, TrainConfig
from dreambooth_core.config.serialize import from_dict, to_dict
from tests.api_standin import Bench, bench

__all__ = ["bench"]

CHECKS = {
    "boolean": lambda value: isinstance(value, bool),
    "integer": lambda value: isinstance(value, int) and not isinstance(value, bool),
    "number": lambda value: isinstance(value, int | float) and not isinstance(value, bool),
    "string": lambda value: isinstance(value, str),
    "array": lambda value: isinstance(value, list),
    "object": lambda value: isinstance(value, dict),
}


def faults(value: Any, schema: dict[str, Any], whole: dict[str, Any], path: str = "") -> list[str]:
    """What a JSON Schema finds wrong with a value: as much of the standard as we make use of."""
    if "$ref" in schema:
        *_, name = schema["$ref"].split("/")
        return faults(value, whole["$defs"][name], whole, path)
    if "const" in schema:
        return [] if value == schema["const"] else [path]
    if not CHECKS[schema["type"]](value):
        return [path]
    found = []
    if "enum" in schema and value not in schema["enum"]:
        found.append(path)
    if value_is_outside(value, schema):
        found.append(path)
    if schema["type"] == "array":
        for index, item in enumerate(value):
            found += faults(item, schema["items"], whole, f"{path}.{index}")
    if schema["type"] == "object":
        properties = schema["properties"]
        found += [f"{path}.{name}" for name in schema["required"] if name not in value]
        for name, inner in value.items():
            inside = f"{path}.{name}"
            found += (
                faults(inner, properties[name], whole, inside) if name in properties else [inside]
            )
    return [place.lstrip(".") for place in found]


def value_is_outside(value: Any, schema: dict[str, Any]) -> bool:
    """Whether a number is out of the schema's range."""
    low, high = schema.get("minimum"), schema.get("maximum")
    return (low is not None and value < low) or (high is not None and value > high)


def test_every_setting_is_described(bench: Bench) -> None:
    schema = bench.get("/schema")
    assert {kind["title"] for kind in schema["oneOf"]} == set(JOB_CONFIGS)
    for kind in schema["oneOf"]:
        cls = JOB_CONFIGS[kind["title"]]
        for spec in field_specs(cls):
            place = schema["$defs"][cls.__name__]
            *groups, name = spec.path.split(".")
            for group in groups:
                *_, inner = place["properties"][group]["$ref"].split("/")
                place = schema["$defs"][inner]
            described = place["properties"][name]
            assert described["title"] == spec.control.label
            assert described["description"] == spec.control.help
            assert (name in place["required"]) == spec.required
            if not spec.required:
                assert described["default"] == spec.default
            rules = described.get("items", described)
            assert rules.get("minimum") == spec.control.minimum
            assert rules.get("maximum") == spec.control.maximum
            assert tuple(rules.get("enum", ())) == spec.control.choices
            assert described.get("x-unit", "") == spec.control.unit
            assert described.get("x-kind", "") == spec.control.kind
            assert described.get("x-advanced", False) == spec.control.advanced


def test_the_defaults_fit_the_schema_and_wrong_ones_do_not(bench: Bench) -> None:
    schema = bench.get("/schema")
    (train,) = [kind for kind in schema["oneOf"] if kind["title"] == "train"]
    config = TrainConfig(model="ada", concepts=[Concept(instance_folder="x")])
    good = {"kind": "train", "config": to_dict(config)}
    assert faults(good, train, schema) == []
    assert from_dict(TrainConfig, good["config"]) == config
    wrong = to_dict(config)
    wrong["seed"] = -1
    wrong["optimizer"]["name"] = "magic"
    wrong["unet"]["train"] = 1
    wrong["concepts"][0]["sample_prompts"] = [7]
    wrong["loss"]["extra"] = 1
    del wrong["model"]
    assert sorted(faults({"kind": "train", "config": wrong}, train, schema)) == [
        "config.concepts.0.sample_prompts.0",
        "config.loss.extra",
        "config.model",
        "config.optimizer.name",
        "config.seed",
        "config.unet.train",
    ]
    assert faults({"kind": "dance", "config": good["config"]}, train, schema) == ["kind"]


def test_groups_are_referred_to_with_their_label(bench: Bench) -> None:
    train = bench.get("/schema")["$defs"]["TrainConfig"]
    assert train["properties"]["optimizer"]["$ref"] == "#/$defs/OptimizerSection"
    assert train["properties"]["optimizer"]["title"] == "Optimizer"
    assert train["properties"]["concepts"]["items"] == {"$ref": "#/$defs/Concept"}
    assert train["required"] == ["model"] and train["additionalProperties"] is False


def test_the_routes_are_described(bench: Bench) -> None:
    document = bench.get("/openapi.json")
    described = {
        (method.upper(), path) for path, methods in document["paths"].items() for method in methods
    }
    known = {(e.method, "/dreambooth" + e.path.replace(":path", "")) for e in endpoints()}
    assert described == known
    for methods in document["paths"].values():
        for operation in methods.values():
            assert operation["summary"] and not operation["summary"].endswith(".")
    started = document["paths"]["/dreambooth/jobs"]["post"]["requestBody"]
    assert started["required"] is True
    reference = started["content"]["application/json"]["schema"]["$ref"]
    assert reference == "#/components/schemas/Job"
    (shown,) = document["paths"]["/dreambooth/jobs/{run}"]["get"]["parameters"]
    assert shown["name"] == "run" and shown["required"]
    concepts = document["paths"]["/dreambooth/concepts"]["get"]["description"]
    assert "model_name" in concepts


def test_every_reference_leads_somewhere(bench: Bench) -> None:
    def references(value: Any) -> list[str]:
        if isinstance(value, dict):
            inner = [r for v in value.values() for r in references(v)]
            return inner + ([value["$ref"]] if "$ref" in value else [])
        return [r for v in value for r in references(v)] if isinstance(value, list) else []

    for address in ("/schema", "/openapi.json"):
        document = bench.get(address)
        found = references(document)
        assert len(found) > 15
        for reference in found:
            place = document
            for part in reference.removeprefix("#/").split("/"):
                place = place[part]
            assert "oneOf" in place or place["type"] == "object"


def test_no_two_routes_are_the_same() -> None:
    pairs = [(endpoint.method, endpoint.path) for endpoint in endpoints()]
    assert len(pairs) == len(set(pairs))
    assert all(dataclasses.is_dataclass(endpoint) for endpoint in endpoints())
