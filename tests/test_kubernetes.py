"""The manifest in docker/ against the fields of the Kubernetes API, and against itself."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

yaml = pytest.importorskip("yaml", reason="PyYAML is not installed: pip install 'textguide[eval]'")
FILE = Path(__file__).parents[1] / "docker" / "kubernetes.yaml"
OBJECTS: dict[str, Any] = {one["kind"]: one for one in yaml.safe_load_all(FILE.read_text(encoding="utf-8"))}
POD_MONITOR = {
    "spec": {"selector", "podMetricsEndpoints"},
    "endpoint": {"port", "path", "interval", "authorization"},
    "authorization": {"type", "credentials"},
}
"""Fields of monitoring.coreos.com/v1 that the manifest uses, from the reference of Prometheus's operator."""


def wrong(value: Any, kind: str, place: str, models: Any) -> list[str]:
    """What of ``value`` is no ``kind`` of the API's own description: fields it does not have, values of other types."""
    if inner := re.fullmatch(r"[Ll]ist\[(.+)\]", kind):
        if not isinstance(value, list):
            return [f"{place} is no list"]
        return [line for n, one in enumerate(value) for line in wrong(one, inner[1], f"{place}[{n}]", models)]
    if inner := re.fullmatch(r"[Dd]ict[(\[]str(?:ing)?, (.+)[)\]]", kind):
        if not isinstance(value, dict):
            return [f"{place} is no mapping"]
        return [line for key, one in value.items() for line in wrong(one, inner[1], f"{place}.{key}", models)]
    model = getattr(models, kind, None)
    if model is None:
        types: dict[str, Any] = {"str": str, "int": int, "bool": bool, "object": (str, int), "float": (int, float)}
        fits = isinstance(value, types[kind]) and (kind == "bool" or not isinstance(value, bool))
        return [] if fits else [f"{place}={value!r} is no {kind}"]
    names = {name: field for field, name in model.attribute_map.items()}
    found = [f"{place} has no field {name!r}" for name in value if name not in names]
    known = {names[name]: one for name, one in value.items() if name in names}
    try:
        model(**known)
    except ValueError as error:  # a field that must be there
        found.append(f"{place}: {error}")
    for field, one in known.items():
        found += wrong(one, model.openapi_types[field], f"{place}.{model.attribute_map[field]}", models)
    return found


KINDS = {
    "PersistentVolumeClaim": "V1PersistentVolumeClaim",
    "Deployment": "V1Deployment",
    "Service": "V1Service",
    "PodDisruptionBudget": "V1PodDisruptionBudget",
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_field_is_one_of_the_api(kind: str) -> None:
    models = pytest.importorskip("kubernetes.client.models", reason="kubernetes is not installed: pip install '.[dev]'")
    assert wrong(OBJECTS[kind], KINDS[kind], kind, models) == []


def test_wrong_fields_are_seen() -> None:
    models = pytest.importorskip("kubernetes.client.models", reason="kubernetes is not installed: pip install '.[dev]'")
    for value, said in (
        ({"spec": {"replica": 2, "selector": {}, "template": {}}}, "no field 'replica'"),
        ({"spec": {"replicas": "2", "selector": {}, "template": {}}}, "is no int"),
        ({"spec": {"selector": {}}}, "template"),
        ({"spec": {"selector": {"matchLabels": ["a"]}, "template": {}}}, "is no mapping"),
    ):
        assert said in "\n".join(wrong(value, "V1Deployment", "Deployment", models))


def test_the_monitor() -> None:
    assert set(OBJECTS) == {*KINDS, "PodMonitor"}
    spec = OBJECTS["PodMonitor"]["spec"]
    (endpoint,) = spec["podMetricsEndpoints"]
    assert set(spec) == POD_MONITOR["spec"]
    assert set(endpoint) == POD_MONITOR["endpoint"]
    assert set(endpoint["authorization"]) == POD_MONITOR["authorization"]


def test_the_parts_fit_each_other() -> None:
    spec = OBJECTS["Deployment"]["spec"]
    pod = spec["template"]["spec"]
    (container,) = pod["containers"]
    labels = spec["template"]["metadata"]["labels"].items()
    for other in (
        OBJECTS["PodMonitor"]["spec"]["selector"],
        OBJECTS["PodDisruptionBudget"]["spec"]["selector"],
        spec["selector"],
    ):
        assert other["matchLabels"].items() <= labels
    assert OBJECTS["Service"]["spec"]["selector"].items() <= labels
    ports = {port["name"] for port in container["ports"]}
    probes = [container[name]["httpGet"] for name in ("startupProbe", "readinessProbe", "livenessProbe")]
    assert {probe["path"] for probe in probes} == {"/health"}
    named = {probe["port"] for probe in probes} | {OBJECTS["Service"]["spec"]["ports"][0]["targetPort"]}
    named.add(OBJECTS["PodMonitor"]["spec"]["podMetricsEndpoints"][0]["port"])
    assert named == ports
    assert f"--port={container['ports'][0]['containerPort']}" in container["args"]
    assert {mount["name"] for mount in container["volumeMounts"]} == {volume["name"] for volume in pod["volumes"]}
    (timeout,) = [int(one.split("=")[1]) for one in container["args"] if one.startswith("--shutdown-timeout")]
    assert timeout < pod["terminationGracePeriodSeconds"]
    secret = OBJECTS["PodMonitor"]["spec"]["podMetricsEndpoints"][0]["authorization"]["credentials"]
    assert container["env"][0]["valueFrom"]["secretKeyRef"] == secret
