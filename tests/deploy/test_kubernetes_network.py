"""The network of deploy/kubernetes and deploy/knative: ports, probes, services, policies."""

from __future__ import annotations

import re
from urllib.parse import urlsplit

import httpx
import pytest
from pydantic import ValidationError

from bento import Settings
from rag import RagSettings
from router_client.router.app import create_router
from tests.support.deploy.manifests import (
    BOTH,
    EVERY,
    Object,
    container,
    of_kind,
    pods,
    rendered,
    variables,
)
from tests.support.paths import ROOT
from tests.support.serving import Server

pytestmark = pytest.mark.service

OPEN_PORTS = {"vision-encoder": {8001}, "qdrant": {6333, 6334, 6335}, "router": {9102}}


@EVERY
def test_pods_get_no_variables_of_services(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(
        "QDRANT_PORT", "tcp://10.0.0.1:6333"
    )  # as Kubernetes sets it for the Service `qdrant`
    with pytest.raises(ValidationError):
        RagSettings()
    assert "qdrant" in of_kind(rendered(name), "Service")
    for pod in pods(rendered(name)).values():
        assert pod["spec"]["enableServiceLinks"] is False


@EVERY
def test_every_probe_requests_a_served_route(name: str, server: Server) -> None:
    routes = {getattr(route, "path", None) for route in create_router([], {}).routes}
    for each, pod in pods(rendered(name)).items():
        if each == "fetch-weights":
            continue
        only = container(pod)
        ports = {port.get("name") for port in only["ports"]}
        for kind in ("startupProbe", "readinessProbe", "livenessProbe"):
            (asked,) = (only[kind][how] for how in only[kind] if how == "httpGet")
            assert asked.get("port") in ports  # Knative has one port without a name
            if each == "router":
                assert asked["path"] in routes
            elif each == "qdrant":
                assert asked["path"] in {"/livez", "/readyz"}
            else:
                assert httpx.get(server.url + asked["path"]).status_code == 200
        if each != "router":
            assert only["readinessProbe"]["httpGet"]["path"] == "/readyz"
            assert only["livenessProbe"]["httpGet"]["path"] == "/livez"


@EVERY
def test_ports_are_those_on_which_the_programs_listen(name: str) -> None:
    objects = rendered(name)
    for each, pod in pods(objects).items():
        if each != "fetch-weights":
            opened = {port["containerPort"] for port in container(pod)["ports"]}
            assert opened == OPEN_PORTS[each]
    assert {Settings.model_fields["port"].default} == OPEN_PORTS["vision-encoder"]
    fields = RagSettings.model_fields
    talked_to = {fields[f"qdrant_{kind}port"].default for kind in ("", "grpc_")}
    (qdrant,) = (
        each
        for each in objects
        if each["metadata"]["name"] == "qdrant" and each["kind"] == "Service"
    )
    assert talked_to == {port["port"] for port in qdrant["spec"]["ports"]}


@EVERY
def test_every_service_leads_to_a_port_of_a_pod(name: str) -> None:
    templates = {
        each["metadata"]["labels"]["app.kubernetes.io/name"]: container(each)
        for each in pods(rendered(name)).values()
        if "metadata" in each
    }
    for each in rendered(name):
        if (each["apiVersion"], each["kind"]) == ("v1", "Service"):
            target = templates[each["spec"]["selector"]["app.kubernetes.io/name"]]
            ports = {port["name"]: port["containerPort"] for port in target["ports"]}
            for port in each["spec"]["ports"]:
                assert ports[port["targetPort"]] == port["port"]


@EVERY
def test_the_addresses_in_pods_are_services(name: str) -> None:
    services = of_kind(rendered(name), "Service")
    asked = {("qdrant", 6334): variables(rendered(name), "vision-encoder")["QDRANT_HOST"]}
    if "router" in pods(rendered(name)):
        asked["vision-encoder", 8001] = variables(rendered(name), "router")["VISION_ENCODER_URL"]
    for (host, port), url in asked.items():
        assert urlsplit(url).hostname == host
        assert port in {each["port"] for each in services[host]["spec"]["ports"]}


def allowed(policies: dict[str, Object], direction: str, peer: str) -> set[tuple[str, str, int]]:
    """Return (client, server, port) as the policies allow it at one end of the connection."""
    found = set()
    for policy in policies.values():
        here = policy["spec"]["podSelector"].get("matchLabels", {}).get("app.kubernetes.io/name")
        for rule in policy["spec"].get(direction, ()):
            for other in rule[peer]:
                there = other.get("podSelector", {}).get("matchLabels", {})
                if there and "namespaceSelector" not in other:
                    ends = (there["app.kubernetes.io/name"], here)
                    asking, asked = ends if direction == "ingress" else reversed(ends)
                    found |= {(asking, asked, port["port"]) for port in rule["ports"]}
    return found


@BOTH
def test_pods_reach_one_another_only_as_needed(name: str) -> None:
    policies = of_kind(rendered(name), "NetworkPolicy")
    needed = {
        ("router", "vision-encoder", 8001),
        ("vision-encoder", "qdrant", 6333),
        ("vision-encoder", "qdrant", 6334),
        ("qdrant", "qdrant", 6333),
        ("qdrant", "qdrant", 6335),
    }
    labels = [pod["metadata"]["labels"] for pod in pods(rendered(name)).values()]
    there = {each["app.kubernetes.io/name"] for each in labels}
    assert there == {end for *ends, _ in needed for end in ends}
    assert allowed(policies, "ingress", "from") == needed
    assert allowed(policies, "egress", "to") == needed
    assert policies["default"]["spec"]["podSelector"] == {}
    assert "ingress" not in policies["default"]["spec"]
    for policy in policies.values():
        assert policy["spec"]["policyTypes"] == ["Ingress", "Egress"]


@BOTH
def test_only_the_encoder_reaches_public_addresses_and_only_by_https(name: str) -> None:
    policies = of_kind(rendered(name), "NetworkPolicy")
    out = {
        (each, port["port"])
        for each, policy in policies.items()
        for rule in policy["spec"].get("egress", ())
        if any(
            block["ipBlock"]["cidr"].endswith("/0") for block in rule["to"] if "ipBlock" in block
        )
        for port in rule["ports"]
    }
    assert out == {("vision-encoder", 443)}


@EVERY
def test_a_restricted_pod_reaches_the_dns(name: str) -> None:
    policies = of_kind(rendered(name), "NetworkPolicy")
    assert "qdrant" in policies  # also on Knative, which lacks the other policies
    for pod in pods(rendered(name)).values():
        labels = pod["metadata"].get("labels", {}) if "metadata" in pod else {}
        rules = [
            rule
            for policy in policies.values()
            if policy["spec"]["podSelector"].get("matchLabels", {}).items() <= labels.items()
            for rule in policy["spec"]["egress"]
        ]
        asked = [rule["to"] for rule in rules for port in rule["ports"] if port["port"] == 53]
        assert bool(rules) == bool(asked)
        for targets in asked:
            assert [list(each) for each in targets] == [["namespaceSelector"], ["ipBlock"]]


@BOTH
def test_clients_are_the_namespaces_with_the_label_of_the_page(name: str) -> None:
    page = (ROOT / "docs" / "deploy.md").read_text()
    label, value = re.findall(r"kubectl label namespace \S+ (\S+)=(\S+)", page)[0]
    clients = {
        (each, port["port"])
        for each, policy in of_kind(rendered(name), "NetworkPolicy").items()
        for rule in policy["spec"].get("ingress", ())
        if {"namespaceSelector": {"matchLabels": {label: value}}} in rule["from"]
        for port in rule["ports"]
    }
    assert clients == {("vision-encoder", 8001), ("router", 9102)}


@BOTH
def test_prometheus_of_a_labelled_namespace_reaches_the_encoder_alone(name: str) -> None:
    page = (ROOT / "docs" / "operations.md").read_text()
    label, value = re.findall(r"kubectl label namespace \S+ (\S+)=(\S+)", page)[0]
    peer = {
        "namespaceSelector": {"matchLabels": {label: value}},
        "podSelector": {"matchLabels": {"app.kubernetes.io/name": "prometheus"}},
    }
    reached = {
        (each, port["port"])
        for each, policy in of_kind(rendered(name), "NetworkPolicy").items()
        for rule in policy["spec"].get("ingress", ())
        if peer in rule["from"]
        for port in rule["ports"]
    }
    assert reached == {("vision-encoder", 8001)}
