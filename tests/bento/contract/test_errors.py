"""Errors: their attributes, and the descriptions of invalid requests and settings."""

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
    describe_details,
)
from bento.contract.search import SearchRequest


@pytest.mark.parametrize("name", ["<x>", "root", "normalise", "<match>"])
def test_an_unknown_field_is_named_even_if_it_looks_like_a_tag(name: str) -> None:
    with pytest.raises(ValidationError) as caught:
        TextRequest.model_validate({"text": "a", name: 1})
    assert describe(caught.value) == f"{name}: is not a field of this request"


def test_the_path_of_a_field_has_no_tags_of_conditions() -> None:
    given = {"text": "a", "filter": {"must": [{"key": "a", "match": {"value": 1.5}}]}}
    with pytest.raises(ValidationError) as caught:
        SearchRequest.model_validate(given)
    assert describe(caught.value).startswith("filter.must.0.match.value: 1.5 is not allowed")


def test_a_variable_is_named_with_its_value_unless_it_is_secret(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("MAX_BATCH_SIZE", "0")
    monkeypatch.setenv("API_KEY", "s3cret ")
    with pytest.raises(ValidationError) as caught:
        Settings()
    said = describe(caught.value)
    assert "MAX_BATCH_SIZE=0: " in said
    assert "API_KEY: " in said
    assert "s3cret" not in said


def test_only_the_first_ten_errors_are_listed() -> None:
    given = {"text": "a", **{f"x{n}": 1 for n in range(2)}}
    with pytest.raises(ValidationError) as caught:
        SearchRequest.model_validate(given)
    details = caught.value.errors() * 6
    said = describe_details(details)
    assert said.count("is not a field of this request") == 10
    assert said.endswith("; and 2 more")


def test_client_errors_are_not_service_errors() -> None:
    upstream = VisionEncoderError("no key", status=401, code="unauthorized")
    assert isinstance(upstream, VisionError)
    assert not isinstance(upstream, ServiceError)
    assert (upstream.status, upstream.code, upstream.retry_after) == (401, "unauthorized", None)


def test_errors_have_a_status_and_a_retry_after() -> None:
    assert VisionError("unreachable").status is None
    assert (Busy("later", retry_after=3).retry_after, Busy("later").retry_after) == (3, 1)
    assert EncoderError("broken").status == 500
