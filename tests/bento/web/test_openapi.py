"""The service against its own OpenAPI document: whatever is sent, what it says is what comes."""

from __future__ import annotations

from typing import Any, Final

import hypothesis
import pytest
import schemathesis
from hypothesis.errors import Unsatisfiable
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    negative_data_rejection,
    response_schema_conformance,
    status_code_conformance,
)

from tests.support.serving import Server

CASES: Final = 10  # of each route, of what the document allows and of what it does not
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
        derandomize=True,  # the same in every run
        suppress_health_check=list(hypothesis.HealthCheck),
    )
    @hypothesis.given(case=operation.as_strategy(generation_mode=mode))
    def check(case: Any) -> None:
        tried.append(operation.label)
        case.call_and_validate(checks=CHECKS, timeout=60)

    tried: list[str] = []
    try:
        check()
    except Unsatisfiable:  # nothing that the document does not allow can be said to this route
        assert mode is GenerationMode.NEGATIVE
    else:
        assert tried


@pytest.mark.parametrize("mode", [GenerationMode.POSITIVE, GenerationMode.NEGATIVE])
def test_answers_conform_to_the_openapi_document(server: Server, mode: GenerationMode) -> None:
    document = schemathesis.openapi.from_url(f"{server.url}/openapi.json")
    operations = [found.ok() for found in document.get_all_operations()]
    assert len(operations) >= 25
    for operation in operations:
        try_all(operation, mode)
