"""What is said of wrong requests and variables."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from bento import Settings
from bento.contract.embedding import TextRequest
from bento.contract.errors import (
    Busy,
    EncoderError,
    ServiceError,
    VisionEncoderError,
    VisionError,
    describe,
)
from bento.contract.search import SearchRequest


@pytest.mark.parametrize("name", ["<x>", "root", "normalise", "<match>"])
def test_an_unknown_field_is_named_whatever_its_name(name: str) -> None:
    with pytest.raises(ValidationError) as caught:
        TextRequest.model_validate({"text": "a", name: 1})
    assert describe(caught.value) == f"{name}: is not a field of this request"


def test_the_path_of_a_field_has_no_tags() -> None:
    given = {"text": "a", "filter": {"must": [{"key": "a", "match": {"value": 1.5}}]}}
    with pytest.raises(ValidationError) as caught:
        SearchRequest.model_validate(given)
    assert describe(caught.value).startswith("filter.must.0.match.value: 1.5 is not allowed")


def test_a_variable_is_named_with_its_value_but_for_secrets(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("MAX_BATCH_SIZE", "0")
    monkeypatch.setenv("API_KEY", "s3cret ")
    with pytest.raises(ValidationError) as caught:
        Settings()
    said = describe(caught.value)
    assert "MAX_BATCH_SIZE=0: " in said and "API_KEY: " in said and "s3cret" not in said


def test_only_the_services_own_errors_are_of_the_service() -> None:
    upstream = VisionEncoderError("no key", status=401, code="unauthorized")
    assert isinstance(upstream, VisionError) and not isinstance(upstream, ServiceError)
    assert (upstream.status, upstream.code, upstream.retry_after) == (401, "unauthorized", None)
    assert VisionError("away").status is None
    assert (Busy("later", retry_after=3).retry_after, Busy("later").retry_after) == (3, 1)
    assert EncoderError("broken").status == 500
