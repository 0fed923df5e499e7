"""Test the service against its own OpenAPI document, with valid and invalid requests."""

from __future__ import annotations

from typing import Any, Final

import hypothesis
import pytest
import schemathesis
from hypothesis.errors import Unsatisfiable
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.core.result import Ok
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    negative_data_rejection,
    response_schema_conformance,
    status_code_conformance,
)

from tests.support.serving import Server

pytestmark = pytest.mark.service

CASES: Final = 10  # valid ones, and invalid ones, for each route
CHECKS: Final = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
    negative_data_rejection,
]


def try_all(operation: Any, mode: GenerationMode) -> None:
    @hypothesis.settings(
        max_examples=CASES,
        derandomize=True,  # the same cases in every run
        suppress_health_check=list(hypothesis.HealthCheck),
    )
    @hypothesis.given(case=operation.as_strategy(generation_mode=mode))
    def check(case: Any) -> None:
        tried.append(operation.label)
        case.call_and_validate(checks=CHECKS, timeout=60)

    tried: list[str] = []
    try:
        check()
    except Unsatisfiable:  # this route has no invalid requests
        assert mode is GenerationMode.NEGATIVE
    else:
        assert tried


@pytest.mark.parametrize("mode", [GenerationMode.POSITIVE, GenerationMode.NEGATIVE])
def test_answers_conform_to_the_openapi_document(server: Server, mode: GenerationMode) -> None:
    document = schemathesis.openapi.from_url(f"{server.url}/openapi.json")
    found = list(document.get_all_operations())
    operations = [each.ok() for each in found if isinstance(each, Ok)]
    assert len(operations) == len(found) >= 25
    for operation in operations:
        try_all(operation, mode)
