"""Every route of the table is where the table says."""

from __future__ import annotations

import inspect
import json
import re
import subprocess
import sys

import httpx
import pytest

from bento.contract.route import Route
from bento.contract.routes import BENTOML, ROUTES
from bento.web.api_docs import markdown, openapi
from router_client import AsyncVisionEncoderClient, VisionEncoderClient
from tests.parity.corpus import CORPUS
from tests.support.paths import ROOT
from tests.support.serving import Server

each_route = pytest.mark.parametrize("route", ROUTES, ids=lambda route: route.name)


def filled(route: Route) -> str:
    """Return a path that the route answers."""
    path = route.path
    for parameter in route.parameters:
        path = path.replace(f"{{{parameter.name}}}", parameter.example)
    return path


@each_route
def test_the_service_answers_it_by_its_method_alone(server: Server, route: Route) -> None:
    with server.client() as http:
        answer = http.request(route.method, filled(route), follow_redirects=False)
        assert answer.status_code not in (404, 405) or "no such route" not in answer.text
        if route.name not in BENTOML:
            assert answer.status_code != 405
        assert http.request("PUT", filled(route)).status_code == 405


@pytest.mark.parametrize(
    "route", [route for route in ROUTES if route.answer], ids=lambda route: route.name
)
def test_the_openapi_document_has_it(route: Route) -> None:
    operation = openapi()["paths"][route.path][route.method.lower()]
    assert operation["summary"] == route.summary.rstrip(".")
    body = operation.get("requestBody", {}).get("content", {})
    assert body.keys() == {
        *(["application/json"] if route.body else []),
        *(["multipart/form-data"] if route.form else []),
    }


def test_the_document_that_is_served_is_the_tables(server: Server) -> None:
    assert httpx.get(f"{server.url}/openapi.json").json() == openapi()


def test_no_route_is_served_that_the_table_does_not_have() -> None:
    code = (
        "import json, service\n"
        "apis = {method.route: name for name, method in service.VisionEncoder.apis.items()}\n"
        "print(json.dumps([apis, [route.path for route in service.web.app.routes]]))"
    )
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    apis, mounted = json.loads(done.stdout)
    assert apis == {route.path: route.name for route in ROUTES if route.is_api}
    table = {route.path for route in ROUTES if not route.is_api and route.name not in BENTOML}
    assert {path.replace("{id:path}", "{id}") for path in mounted} == table


def test_the_api_page_is_generated_from_the_table() -> None:
    page = (ROOT / "docs/api.md").read_text()
    assert page == markdown(), "run make api-docs"
    for route in ROUTES:
        assert f"### `{route.method} {route.path}`" in page


@pytest.mark.parametrize(
    "route", [route for route in ROUTES if route.client], ids=lambda route: route.name
)
def test_both_clients_have_a_method_for_it(route: Route) -> None:
    assert route.client is not None
    for client in (AsyncVisionEncoderClient, VisionEncoderClient):
        assert inspect.getdoc(getattr(client, route.client))
    source = (ROOT / "router_client/client").glob("*.py")
    called = "".join(file.read_text() for file in source)
    first = re.split(r"[{]", route.path)[0]
    assert first in called or first.rstrip("/") in called


@pytest.mark.parametrize(
    "route", [route for route in ROUTES if route.corpus], ids=lambda route: route.name
)
def test_the_parity_corpus_asks_for_it(route: Route) -> None:
    pattern = re.compile(re.sub(r"\{(\w+)\}", "[^/]+", route.path))
    assert any(
        ask.method == route.method and pattern.fullmatch(ask.path.partition("?")[0])
        for ask in CORPUS
    )


@pytest.mark.parametrize(
    "route", [route for route in ROUTES if route.body], ids=lambda route: route.name
)
def test_its_example_is_a_request_that_it_takes(route: Route) -> None:
    assert route.body is not None
    route.body.model_validate(route.example)
