"""Scaling to zero: the files in deploy/knative, and deploy/bentocloud as BentoML reads it."""

from __future__ import annotations

import re
import warnings
from typing import Any

import httpx
import pytest
import yaml

from bento import Settings
from tests.support.deploy.manifests import (
    DEPLOY,
    KNATIVE,
    KUBERNETES,
    Object,
    container,
    mounts,
    of_kind,
    pods,
    rendered,
    variables,
)
from tests.support.deploy.variables import FIELDS
from tests.support.paths import ROOT
from tests.support.serving import Server

pytestmark = pytest.mark.service

BOTH = pytest.mark.parametrize("name", KNATIVE)
BENTOCLOUD = DEPLOY / "bentocloud" / "deployment.yaml"


def revision(name: str) -> Object:
    return pods(rendered(name))["vision-encoder"]


@BOTH
def test_knative_scales_to_zero_and_by_requests(name: str) -> None:
    annotations = revision(name)["metadata"]["annotations"]
    assert annotations["autoscaling.knative.dev/min-scale"] == "0"
    target = int(annotations["autoscaling.knative.dev/target"])
    assert 0 < target < revision(name)["spec"]["containerConcurrency"]


@BOTH
def test_a_cold_start_measures_and_downloads_nothing(name: str) -> None:
    given = variables(rendered(name), "vision-encoder")
    assert given["DTYPE"] != Settings.model_fields["dtype"].default == "auto"
    assert given["COMPILE"] == "false"
    assert given["HF_HUB_OFFLINE"] == "1"
    fetching = variables(rendered(name), "fetch-weights")
    assert fetching == {variable: given[variable] for variable in fetching}
    assert fetching.keys() == {"MODEL_NAME", "MODEL_PRETRAINED", "HF_HOME"}


@BOTH
def test_the_weights_are_written_by_the_job_and_read_by_the_service(name: str) -> None:
    def weights(each: str) -> Object:
        pod = pods(rendered(name))[each]
        return next(volume for path, _, volume in mounts(pod) if path == "/data/weights")

    job, read = weights("fetch-weights"), weights("vision-encoder")
    assert job["persistentVolumeClaim"]["claimName"] == read["persistentVolumeClaim"]["claimName"]
    assert (job.get("readOnly"), read["readOnly"]) == (None, True)
    assert read["persistentVolumeClaim"]["readOnly"] is True  # Knative accepts nothing else
    command = container(pods(rendered(name))["fetch-weights"])["args"]
    assert command[:2] == ["python", "-m"]
    assert (ROOT / (command[2].replace(".", "/") + ".py")).exists()


@BOTH
def test_fields_that_knative_reserves_are_not_set(name: str) -> None:
    assert "PORT" not in variables(rendered(name), "vision-encoder")
    assert len(container(revision(name))["ports"]) == 1
    assert revision(name)["spec"].keys().isdisjoint({"securityContext", "tolerations"})


@BOTH
def test_a_start_and_a_request_have_enough_time(name: str) -> None:
    assert revision(name)["spec"]["timeoutSeconds"] > 60
    probe = container(revision(name))["startupProbe"]
    minutes = revision(name)["metadata"]["annotations"]["serving.knative.dev/progress-deadline"]
    assert int(minutes.removesuffix("m")) * 60 > probe["periodSeconds"] * probe["failureThreshold"]


@BOTH
def test_the_function_is_not_public(name: str) -> None:
    (found,) = (
        each
        for each in rendered(name)
        if each["kind"] == "Service" and each["apiVersion"] == "serving.knative.dev/v1"
    )
    label = "networking.knative.dev/visibility"
    assert found["metadata"]["labels"][label] == "cluster-local"


@BOTH
def test_qdrant_lets_the_function_in(name: str) -> None:
    (policy,) = of_kind(rendered(name), "NetworkPolicy").values()
    (selector,) = policy["spec"]["ingress"][0]["from"]
    labels = revision(name)["metadata"]["labels"]
    assert selector["podSelector"]["matchLabels"].items() <= labels.items()


def as_bentocloud_reads_it(written: Object) -> Object:
    """Return the fields of a file that `bentoml deploy -f` would send."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # from BentoML's use of pathspec
        from bentoml._internal.cloud.schemas.schemasv2 import CreateDeploymentSchema
        from bentoml._internal.utils.cattr import bentoml_cattr

    read: Object = bentoml_cattr.unstructure(
        bentoml_cattr.structure(written, CreateDeploymentSchema)
    )
    return read


def bentocloud() -> Any:
    return yaml.safe_load(BENTOCLOUD.read_text())


def test_bentocloud_reads_every_field_of_its_file() -> None:
    assert as_bentocloud_reads_it(bentocloud()) == bentocloud()


def test_an_unknown_field_for_bentocloud_is_found() -> None:
    written = bentocloud()
    written["services"]["vision-encoder"]["scaling"]["min_replica"] = 0
    assert as_bentocloud_reads_it(written) != written
    written["services"]["vision-encoder"]["scaling"] = 0
    with pytest.raises(Exception, match="structuring"):
        as_bentocloud_reads_it(written)


def test_bentocloud_deploys_the_bento_that_is_built(server: Server) -> None:
    built = yaml.safe_load((ROOT / "bentofile.yaml").read_text())["name"]
    assert bentocloud()["bento"] == f"{built}:latest"
    assert list(bentocloud()["services"]) == [httpx.get(f"{server.url}/schema.json").json()["name"]]
    (deployed,) = bentocloud()["services"].values()
    assert deployed["scaling"]["min_replicas"] == 0
    assert deployed["deployment_strategy"] == "RollingUpdate"


def test_bentocloud_sets_only_known_settings_and_no_secret(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    given = {each["name"]: each["value"] for each in bentocloud()["envs"]}
    assert given.keys() <= FIELDS.keys() - {"PORT", "HOST", "API_KEY", "QDRANT_API_KEY"}
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    assert Settings().dtype == given["DTYPE"] != "auto"


def test_the_commands_of_the_page_name_existing_files() -> None:
    page = (ROOT / "docs" / "deploy.md").read_text()
    applied = set(re.findall(r"kubectl apply -k (deploy/\S+)", page))
    assert applied - {"deploy/kubernetes/base/qdrant"} == {
        f"deploy/{name}" for name in (*KUBERNETES, *KNATIVE)
    }
    assert "bentoml deploy -f deploy/bentocloud/deployment.yaml" in page
