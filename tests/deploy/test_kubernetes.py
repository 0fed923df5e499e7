"""The files in deploy/kubernetes and deploy/knative, compared with the schemas and the code.

No cluster runs them.
"""

from __future__ import annotations

import copy
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from bentoml._internal.container.generate import BENTO_UID_GID
from qdrant_client import models

from bento import Settings
from rag import RagSettings
from router_client import ClientSettings
from tests.support.deploy.compose import FIXED, FOLDERS, SERVICES, VARIABLE
from tests.support.deploy.manifests import (
    BOTH,
    DEPLOY,
    EVERY,
    KUBERNETES,
    container,
    kustomize,
    mounts,
    of_kind,
    pods,
    problem,
    rendered,
    variables,
)
from tests.support.deploy.variables import FIELDS
from tests.support.paths import ROOT
from tests.support.serving import Server

pytestmark = pytest.mark.service


def in_compose(workload: str) -> dict[str, Any]:
    """Return the Compose service of a workload; `fetch-weights` belongs to the encoder."""
    return dict(SERVICES.get(workload) or SERVICES["vision-encoder"])


@EVERY
def test_every_object_is_valid(name: str) -> None:
    for each in rendered(name):
        assert problem(each) is None, each["metadata"]["name"]
        assert each["metadata"]["namespace"] == "vision-encoder"


Break = Callable[[Any], Any]
WRONG: list[tuple[str, str, Break]] = [
    ("kubernetes/overlays/gpu", "Deployment", lambda spec: spec.update(replica=1)),
    ("kubernetes/overlays/gpu", "Deployment", lambda spec: spec.pop("selector")),
    ("kubernetes/overlays/gpu", "StatefulSet", lambda spec: spec.update(replicas="3")),
    ("kubernetes/overlays/gpu", "Service", lambda spec: spec["ports"][0].update(port="a")),
    ("kubernetes/overlays/gpu", "NetworkPolicy", lambda spec: spec.update(ingres=[])),
    ("kubernetes/overlays/gpu", "PodDisruptionBudget", lambda spec: spec.update(min=1)),
    ("kubernetes/overlays/gpu", "HorizontalPodAutoscaler", lambda spec: spec.pop("maxReplicas")),
    ("kubernetes/overlays/gpu", "PersistentVolumeClaim", lambda spec: spec.update(size="1Gi")),
    ("knative/gpu", "Job", lambda spec: spec["template"]["spec"].update(restart="Never")),
    ("knative/gpu", "Service", lambda spec: spec["template"]["spec"].update(concurrency=1)),
    ("knative/gpu", "Service", lambda spec: spec["template"]["spec"].update(timeoutSeconds="5m")),
    ("knative/gpu", "Service", lambda spec: spec["template"]["spec"].pop("containers")),
    (
        "knative/gpu",
        "Service",
        lambda spec: spec["template"]["spec"]["containers"][0]["startupProbe"].update(period=1),
    ),
]


@pytest.mark.parametrize(("name", "kind", "broken"), WRONG)
def test_a_wrong_field_is_found(name: str, kind: str, broken: Break) -> None:
    each = copy.deepcopy(next(each for each in rendered(name) if each["kind"] == kind))
    broken(each["spec"])
    assert problem(each) is not None


@EVERY
def test_images_are_those_of_compose(name: str) -> None:
    for each, pod in pods(rendered(name)).items():
        only = container(pod)
        assert only["image"] == VARIABLE.sub(r"\2", in_compose(each)["image"])
        assert only.get("imagePullPolicy") != "Always"


@EVERY
def test_an_image_of_another_registry_reaches_all_our_pods(name: str, tmp_path: Path) -> None:
    shutil.copytree(DEPLOY, tmp_path / "deploy")
    for file in (tmp_path / "deploy").rglob("kustomization.yaml"):
        written = file.read_text().replace("newName: vision-encoder", "newName: r.example/encoder")
        file.write_text(written.replace("newTag: latest", "newTag: v2"))
    for each, pod in pods(kustomize(tmp_path / "deploy" / name)).items():
        theirs = SERVICES["qdrant"]["image"] if each == "qdrant" else "r.example/encoder:v2"
        assert container(pod)["image"] == theirs


@EVERY
def test_a_pod_is_given_only_variables_that_are_read(name: str) -> None:
    for each in pods(rendered(name)).keys() - {"qdrant"}:
        known = FIELDS.keys() | FOLDERS | {"HF_HUB_OFFLINE"}
        assert variables(rendered(name), each).keys() <= known, each


@EVERY
def test_the_settings_of_a_pod_are_valid(
    name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    for each in pods(rendered(name)).keys() - {"qdrant", "fetch-weights"}:
        given = variables(rendered(name), each)
        classes = (ClientSettings,) if each == "router" else (Settings, RagSettings)
        with monkeypatch.context() as patch:
            for variable, value in given.items():
                if value is not None:
                    patch.setenv(variable, value)
            for settings in classes:
                read = settings().model_dump()
                for variable, value in given.items():
                    if value is not None and variable.lower() in read:
                        assert str(read[variable.lower()]).lower() == value.lower()
    given = variables(rendered(name), "vision-encoder")
    assert given["DEVICE"] == ("cuda" if name.endswith("gpu") else "cpu")


@BOTH
def test_variables_fixed_in_compose_have_the_same_values(name: str) -> None:
    for each, fixed in FIXED.items():
        assert fixed.items() <= variables(rendered(name), each).items()
        theirs = SERVICES[each]["environment"]
        for folder in FOLDERS & theirs.keys():
            assert variables(rendered(name), each)[folder] == theirs[folder]


@EVERY
def test_keys_come_from_an_optional_secret(name: str) -> None:
    assert of_kind(rendered(name), "Secret") == {}
    asked = {}
    for each, pod in pods(rendered(name)).items():
        for variable in container(pod)["env"]:
            if "KEY" in variable["name"]:
                assert "value" not in variable
                reference = variable["valueFrom"]["secretKeyRef"]
                assert (reference["name"], reference["optional"]) == ("vision-encoder", True)
                asked[each, variable["name"]] = reference["key"]
    router = {("router", "API_KEY"): "API_KEY"} if name in KUBERNETES else {}
    assert asked == router | {
        ("vision-encoder", "API_KEY"): "API_KEY",
        ("vision-encoder", "QDRANT_API_KEY"): "QDRANT_API_KEY",
        ("qdrant", "QDRANT__SERVICE__API_KEY"): "QDRANT_API_KEY",
    }


@EVERY
def test_volumes_are_mounted_where_the_image_has_folders(name: str) -> None:
    script = (DEPLOY / "oci" / "make-data-folders.sh").read_text()
    folders = set(re.findall(r"/data/\w+", script))
    folders |= {volume.split(":")[1] for volume in SERVICES["qdrant"]["volumes"]}
    claims = of_kind(rendered(name), "PersistentVolumeClaim")
    for each, pod in pods(rendered(name)).items():
        mounted = list(mounts(pod))
        for path, kind, volume in mounted:
            assert path == "/tmp" if kind == "emptyDir" else path in folders
            if kind == "persistentVolumeClaim":
                assert volume[kind]["claimName"] in claims
        paths = tuple(f"{path}/" for path, _, _ in mounted)
        for variable, value in variables(rendered(name), each).items():
            if variable in FOLDERS | {"THUMBNAILS_PATH", "QDRANT_INIT_FILE_PATH"}:
                assert f"{value}/".startswith(paths), (each, variable)
    made = of_kind(rendered(name), "StatefulSet")["qdrant"]["spec"]["volumeClaimTemplates"]
    assert {each["metadata"]["name"] for each in made} == {"storage", "snapshots"}


@EVERY
def test_a_pod_has_no_more_rights_than_it_needs(name: str) -> None:
    for each, pod in pods(rendered(name)).items():
        spec, only = pod["spec"], container(pod)
        assert spec["automountServiceAccountToken"] is False
        rights = spec.get("securityContext", {}) | only["securityContext"]
        user = 1000 if each == "qdrant" else BENTO_UID_GID
        assert (rights["runAsUser"], rights["runAsGroup"]) == (user, user)
        if any("laim" in kind for _, kind, v in mounts(pod) if not v.get("readOnly")):
            assert rights["fsGroup"] == user  # otherwise root owns a new volume
        assert rights["runAsNonRoot"] is True
        assert rights["readOnlyRootFilesystem"] is True
        assert rights["allowPrivilegeEscalation"] is False
        assert rights["capabilities"] == {"drop": ["ALL"]}
        assert rights["seccompProfile"] == {"type": "RuntimeDefault"}
        assert only["resources"]["requests"].keys() == {"cpu", "memory"}
        assert "cpu" not in only["resources"]["limits"]
        theirs = in_compose(each)["deploy"]["resources"]["limits"]["memory"]
        assert gigabytes(only["resources"]["limits"]["memory"]) >= gigabytes(theirs)
        gpus = "1" if name.endswith("gpu") and each == "vision-encoder" else None
        assert only["resources"]["limits"].get("nvidia.com/gpu") == gpus


def gigabytes(quantity: str) -> float:
    return float(quantity[:-1]) * {"G": 1, "M": 1e-3}[quantity[-1]]


@BOTH
def test_a_pod_has_time_to_drain(name: str) -> None:
    waits = {"vision-encoder": 60, "router": 30, "qdrant": 60}
    for each, pod in pods(rendered(name)).items():
        pause = container(pod)["lifecycle"]["preStop"]["sleep"]["seconds"]
        assert pod["spec"]["terminationGracePeriodSeconds"] > 60
        assert pod["spec"]["terminationGracePeriodSeconds"] > waits[each] + pause


@BOTH
def test_the_first_start_may_take_half_an_hour(name: str) -> None:
    probe = container(pods(rendered(name))["vision-encoder"])["startupProbe"]
    allowed = probe["periodSeconds"] * probe["failureThreshold"]
    assert allowed >= 1800
    deployment = of_kind(rendered(name), "Deployment")["vision-encoder"]["spec"]
    assert deployment["progressDeadlineSeconds"] > allowed


@BOTH
def test_the_encoders_are_scaled_and_protected(name: str, server: Server) -> None:
    objects = rendered(name)
    (scaler,) = of_kind(objects, "HorizontalPodAutoscaler").values()
    target = scaler["spec"]["scaleTargetRef"]
    assert "replicas" not in of_kind(objects, target["kind"])[target["name"]]["spec"]
    (metric,) = scaler["spec"]["metrics"]
    asked = container(pods(objects)["vision-encoder"])["resources"]["requests"]
    if name.endswith("gpu"):
        exposed = httpx.get(f"{server.url}/metrics").text
        assert f"# TYPE {metric['pods']['metric']['name']} gauge" in exposed
    else:
        assert metric["resource"]["name"] in asked
    budgets = of_kind(objects, "PodDisruptionBudget")
    assert budgets.keys() == pods(objects).keys()
    for each, budget in budgets.items():
        labels = pods(objects)[each]["metadata"]["labels"]
        assert budget["spec"]["selector"]["matchLabels"].items() <= labels.items()
        assert budget["spec"]["maxUnavailable"] == 1


@BOTH
def test_the_router_runs_as_in_compose(name: str) -> None:
    router = container(pods(rendered(name))["router"])
    assert router["args"] == SERVICES["router"]["command"]
    assert router["workingDir"] == SERVICES["router"]["working_dir"]


@EVERY
def test_qdrant_is_a_cluster_that_its_first_pod_starts(name: str) -> None:
    spec = of_kind(rendered(name), "StatefulSet")["qdrant"]["spec"]
    headless = of_kind(rendered(name), "Service")[spec["serviceName"]]["spec"]
    assert headless["clusterIP"] == "None"
    assert headless["publishNotReadyAddresses"] is True
    given = variables(rendered(name), "qdrant")
    first = str(given["QDRANT_URI"]).replace("$(POD_NAME)", "qdrant-0")
    assert given["QDRANT_BOOTSTRAP"] == first == f"http://qdrant-0.{spec['serviceName']}:6335"
    names = [variable["name"] for variable in container(spec["template"])["env"]]
    assert names.index("POD_NAME") < names.index(
        "QDRANT_URI"
    )  # otherwise Kubernetes does not expand it
    copies = int(given["QDRANT__STORAGE__COLLECTION__REPLICATION_FACTOR"] or 0)
    assert 1 < copies < spec["replicas"]
    assert int(given["QDRANT__STORAGE__COLLECTION__WRITE_CONSISTENCY_FACTOR"] or 0) < copies
    for variable, value in SERVICES["qdrant"]["environment"].items():
        if "API_KEY" not in variable:
            assert given[variable] == value


def test_the_collection_of_the_page_is_valid_in_qdrant() -> None:
    page = (ROOT / "docs" / "deploy.md").read_text()
    section = page.partition("## A Qdrant cluster")[2]
    (body,) = re.findall(
        r"-X PUT http://localhost:6333/collections/(\w+).*?-d '([^']+)'", section, re.S
    )
    assert body[0] == RagSettings.model_fields["image_search_collection"].default
    asked = json.loads(body[1])
    assert asked == models.CreateCollection.model_validate(asked).model_dump(exclude_unset=True)
    assert kustomize(DEPLOY / "kubernetes/base/qdrant") != []
    assert "-n vision-encoder apply -k deploy/kubernetes/base/qdrant" in page
