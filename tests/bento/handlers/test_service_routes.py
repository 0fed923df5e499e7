"""The service answers the routes of the route table, and no others."""

from __future__ import annotations

import json
import subprocess
import sys

import httpx
import pytest

from bento.contract.route import Route
from bento.contract.routes import BENTOML, ROUTES
from bento.web.api_docs import openapi
from tests.support.paths import ROOT
from tests.support.serving import Server

pytestmark = pytest.mark.service


def example_path(route: Route) -> str:
    path = route.path
    for parameter in route.parameters:
        path = path.replace(f"{{{parameter.name}}}", parameter.example)
    return path


@pytest.mark.parametrize("route", ROUTES, ids=lambda route: route.name)
def test_the_service_answers_a_route_by_its_method_only(server: Server, route: Route) -> None:
    with server.client() as http:
        answer = http.request(route.method, example_path(route), follow_redirects=False)
        assert answer.status_code != 405 or route.name in BENTOML
        if answer.status_code == 404:
            assert answer.json()["code"] != "not_found"
        assert http.request("PUT", example_path(route)).status_code == 405


def test_the_service_serves_the_openapi_document_of_the_table(server: Server) -> None:
    assert httpx.get(f"{server.url}/openapi.json").json() == openapi()


def test_the_service_has_no_route_outside_the_table() -> None:
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
