"""What a load test requires of a deployment before the load."""

from __future__ import annotations

import pytest

from loadtests.traffic.deployment import Deployment, Unusable
from tests.support.loadstub import Stub
from tests.support.wire import answer, wire

pytestmark = pytest.mark.service


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("alike", "the same embedding"),
        ("short", r"the shape \(15,\) .* expected are \(16,\)"),
        ("doubled", "the norm 2.000"),
    ],
)
def test_implausible_embeddings_make_a_deployment_unusable(fault: str, message: str) -> None:
    unusable = pytest.raises(Unusable, match=message)
    with Stub(fault, takes=0).serving() as stub, Deployment(stub.url) as deployment, unusable:
        deployment.expected(None, with_searches=False)


@pytest.mark.parametrize("body", ["<html>", '{"a": 1}', "[]", "null"])
def test_a_host_that_is_not_a_vision_encoder_is_unusable(body: str) -> None:
    unusable = pytest.raises(Unusable, match="does not answer like a vision encoder")
    with wire(answer(200, body)) as told, Deployment(told.url) as deployment, unusable:
        deployment.info()
