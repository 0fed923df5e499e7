"""The files in deploy/ as `kubectl apply -k` renders them, and queries on them."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import Draft202012Validator  # type: ignore[import-untyped]
from jsonschema.exceptions import best_match  # type: ignore[import-untyped]

from tests.support.paths import ROOT

DEPLOY = ROOT / "deploy"
Object = dict[str, Any]
KUBERNETES = ["kubernetes/overlays/cpu", "kubernetes/overlays/gpu"]
KNATIVE = ["knative/cpu", "knative/gpu"]
EVERY = pytest.mark.parametrize("name", [*KUBERNETES, *KNATIVE])
BOTH = pytest.mark.parametrize("name", KUBERNETES)


def kustomize(folder: Path) -> list[Object]:
    """Render a kustomization. Needs kubectl, but no cluster."""
    if not shutil.which("kubectl"):
        pytest.skip("kubectl is not installed")
    done = subprocess.run(["kubectl", "kustomize", folder], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return list(yaml.safe_load_all(done.stdout))


@cache
def rendered(name: str) -> list[Object]:
    """Return the objects of a folder in deploy/. They are shared: do not change them."""
    return kustomize(DEPLOY / name)


def of_kind(objects: list[Object], *kinds: str) -> dict[str, Object]:
    return {each["metadata"]["name"]: each for each in objects if each["kind"] in kinds}


def pods(objects: list[Object]) -> dict[str, Object]:
    """Return the pod template of each workload."""
    return {
        each["metadata"]["name"]: each["spec"]["template"]
        for each in objects
        if "template" in each.get("spec", {})
    }


def container(pod: Object) -> Object:
    (only,) = pod["spec"]["containers"]
    return dict(only)


def variables(objects: list[Object], name: str) -> dict[str, str | None]:
    """Return the variables of a workload's container; None for a value from a Secret."""
    found: dict[str, str | None] = {}
    only = container(pods(objects)[name])
    for source in only.get("envFrom", ()):
        found |= of_kind(objects, "ConfigMap")[source["configMapRef"]["name"]]["data"]
    return found | {each["name"]: each.get("value") for each in only["env"]}


@cache
def _schema(api_version: str, kind: str) -> Draft202012Validator:
    """Return the schema of a kind, as Kubernetes or Knative publishes it.

    It rejects unknown fields, unlike the models that it is made from.
    """
    group, _, version = api_version.rpartition("/")
    package = "knative_serving" if group.endswith("knative.dev") else "kubernetes"
    name = group.partition(".")[0] or "core"
    module = import_module(f"cloudcoil.models.{package}.{name}.{version}")
    schema = getattr(module, kind).model_json_schema()
    for definition in (schema, *schema["$defs"].values()):
        if "properties" in definition:
            definition["additionalProperties"] = False
    return Draft202012Validator(schema)


def problem(each: Object) -> str | None:
    """Return how an object violates the schema of its kind; None if it is valid."""
    error = best_match(_schema(each["apiVersion"], each["kind"]).iter_errors(each))
    return f"{error.json_path}: {error.message}" if error else None


def mounts(pod: Object) -> Iterator[tuple[str, str, Object]]:
    """Yield the path, the kind of volume and the volume of each mount of a pod."""
    volumes = {volume["name"]: volume for volume in pod["spec"].get("volumes", ())}
    for mount in container(pod)["volumeMounts"]:
        volume = volumes.get(mount["name"], {"claim": mount["name"]})
        (kind,) = volume.keys() - {"name"}
        yield mount["mountPath"], kind, volume | mount
