"""The clients return models of the contract, and accept them in searches."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import httpx
import numpy as np
import pytest

from bento.contract.embedding import HealthResponse, InfoResponse, RankedText
from bento.contract.filters import Filter
from bento.contract.images import IndexedImage, PublishResponse, StatsResponse
from bento.contract.search import Hit, ImageExample, SearchRequest, SearchResponse, image_example
from router_client import VisionEncoderError
from tests.support.router_client.asking import Ask, Script, both, mock, npy, ok

HIT = {"id": "7", "score": 0.5}
FOUND = {"hits": [HIT], "formatted_text": "Found 1 image:"}

CASES: list[tuple[Callable[[Any], Any], dict[str, Any], Any]] = [
    (lambda c: c.health(), {"status": "healthy"}, HealthResponse(status="healthy")),
    (
        lambda c: c.info(),
        {"model_name": "m", "embedding_dim": 2},
        InfoResponse(model_name="m", embedding_dim=2),
    ),
    (
        lambda c: c.search("a"),
        FOUND,
        SearchResponse(hits=[Hit(id="7", score=0.5)], formatted_text="Found 1 image:"),
    ),
    (
        lambda c: c.stats("c"),
        {"collection": "c", "points": 3},
        StatsResponse(collection="c", points=3),
    ),
    (lambda c: c.publish("c"), {"generation": "g"}, PublishResponse(generation="g")),
    (lambda c: c.index_image("a", b"x"), {"outcome": "indexed"}, "indexed"),
    (lambda c: c.update_image("a"), {"updated": True}, True),
    (lambda c: c.delete_image("a"), {"deleted": False}, False),
    (lambda c: c.drop("c", "g"), {"dropped": True}, True),
    (
        lambda c: c.rank(b"x", ["a"]),
        {"ranking": [{"text": "a", "probability": 1.0}]},
        [RankedText(text="a", probability=1)],
    ),
    (lambda c: c.images("c"), {"images": [{"id": "a"}], "next": None}, [IndexedImage(id="a")]),
    (
        lambda c: c.search_many([{"text": "a"}]),
        {"results": [{"success": False, "hits": [], "formatted_text": "", "code": "busy"}]},
        [SearchResponse(success=False, hits=[], formatted_text="", code="busy")],
    ),
]


@both
@pytest.mark.parametrize(("call", "body", "expected"), CASES)
def test_unknown_fields_are_ignored_and_missing_ones_have_defaults(
    ask: Ask, call: Callable[[Any], Any], body: dict[str, Any], expected: Any
) -> None:
    assert ask(call, transport=mock(lambda _: ok(body))) == expected
    newer = _with_unknown_fields(body)
    assert ask(call, transport=mock(lambda _: ok(newer))) == expected


def _with_unknown_fields(value: Any) -> Any:
    if isinstance(value, dict):
        return {"unknown": [1], **{k: _with_unknown_fields(v) for k, v in value.items()}}
    return [_with_unknown_fields(one) for one in value] if isinstance(value, list) else value


@both
@pytest.mark.parametrize(("call", "body"), [case[:2] for case in CASES])
def test_an_answer_without_an_essential_field_is_an_error(
    ask: Ask, call: Callable[[Any], Any], body: dict[str, Any]
) -> None:
    names = body.keys() - {"success"}
    assert names
    for name in names:
        lacking = {key: value for key, value in body.items() if key != name}
        script = Script(ok(lacking))
        with pytest.raises(VisionEncoderError) as caught:
            ask(call, transport=mock(script))
        assert (caught.value.code, caught.value.status) == ("bad_answer", 200)
        assert len(script.requests) == 1


@both
@pytest.mark.parametrize(
    "found",
    [
        {**FOUND, "hits": [{"id": "7"}]},
        {**FOUND, "hits": None},
        {**FOUND, "formatted_text": 7},
        {"error": "what was wrong"},
    ],
)
def test_a_malformed_search_is_an_error(ask: Ask, found: dict[str, Any]) -> None:
    with pytest.raises(VisionEncoderError) as caught:
        ask(lambda c: c.search("a"), transport=mock(lambda _: ok(found)))
    assert caught.value.code == "bad_answer"


@both
def test_embeddings_are_arrays(ask: Ask) -> None:
    media_type = {"Content-Type": "application/x-npy"}
    row = httpx.Response(200, content=npy(np.ones(2, np.float32)), headers=media_type)
    for answered in (row, ok({"embedding": [1.0, 1.0], "model": "m", "unknown": 1})):
        script = Script(answered)
        got = ask(lambda c: c.embed_text("a"), transport=mock(script))
        assert (type(got), got.dtype, got.tolist()) == (np.ndarray, np.float32, [1.0, 1.0])
        assert script.requests[0].headers["Accept"] == "application/x-npy"


# The body of a search


def sent(ask: Ask, call: Callable[[Any], Any]) -> Any:
    script = Script(ok({**FOUND, "results": [FOUND]}))
    ask(call, transport=mock(script))
    assert script.requests[0].headers["Content-Type"] == "application/json"
    return json.loads(script.requests[0].content)


@both
def test_a_search_sends_its_arguments_without_validating_them(ask: Ask) -> None:
    options: dict[str, Any] = {"top_k": None, "filter": {"must": [{"key": 1}]}, "no_such": [None]}
    assert sent(ask, lambda c: c.search("кіт", **options)) == {"text": "кіт", **options}
    assert sent(ask, lambda c: c.search(["a", "b"])) == {"text": ["a", "b"]}
    assert sent(ask, lambda c: c.search(image={"id": "7"})) == {"image": {"id": "7"}}
    assert sent(ask, lambda c: c.search_many([{"text": "a", "top_k": None}])) == {
        "searches": [{"text": "a", "top_k": None}]
    }


@both
def test_a_search_accepts_models_of_the_contract(ask: Ask) -> None:
    condition = {"key": "tags", "match": {"except": ["dog"]}}
    near = Filter.model_validate({"must": [condition]})
    request = SearchRequest(text=["a cat"], image=[ImageExample(id="7")], filter=near, top_k=None)
    fields = {"text": ["a cat"], "image": [{"id": "7"}], "filter": {"must": [condition]}}
    assert sent(ask, lambda c: c.search(request)) == fields
    assert sent(ask, lambda c: c.search_many([request])) == {"searches": [fields]}
    examples = [ImageExample(id="7"), {"id": "8"}, image_example(b"abc")]
    given = {"image": examples, "filter": {"must": [near]}, "negative": {"image": examples[0]}}
    assert sent(ask, lambda c: c.search("a cat", **given)) == {
        "text": "a cat",
        "image": [{"id": "7"}, {"id": "8"}, {"image_base64": "YWJj"}],
        "filter": {"must": [{"must": [condition]}]},
        "negative": {"image": {"id": "7"}},
    }
    with pytest.raises(TypeError, match="not both"):
        ask(lambda c: c.search(request, top_k=3), transport=mock(Script(ok(FOUND))))
