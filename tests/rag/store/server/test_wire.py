"""Requests to a Qdrant server conform to Qdrant's OpenAPI document.

QDRANT_OPENAPI names the document; the default is `../shared/data/qdrant-openapi-1.19.json`. A fake
server records the requests and answers them from qdrant-client's local mode.
"""

from __future__ import annotations

import json
import os
import re
import threading
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import pytest
from jsonschema import Draft202012Validator  # type: ignore[import-untyped]
from pydantic import TypeAdapter
from qdrant_client import QdrantClient, models

from bento.contract.errors import CollectionNotFound, StoreUnavailable
from bento.contract.filters import parse_filter
from rag.store.server.store import ServerStore
from tests.support.paths import ROOT
from tests.support.rag.engines import CLIP, OTHER, closed_port, make_points, point_id

pytestmark = pytest.mark.service

DOCUMENT = Path(
    os.environ.get("QDRANT_OPENAPI") or ROOT.parent / "shared/data/qdrant-openapi-1.19.json"
)
EVERY_CONDITION = parse_filter(
    {
        "must": [
            {"key": "category", "match": {"value": "cat"}},
            {"key": "n", "match": {"value": 7}},
            {"key": "hidden", "match": {"value": False}},
            {"key": "tags", "match": {"any": ["a", "b"]}},
            {"key": "people[].age", "match": {"except": [1, 2]}},
            {"key": "n", "range": {"gt": 1, "lte": 2.5}},
            {"key": "at", "range": {"gte": "2026-01-31", "lt": "2026-02-01T12:00:00.5+02:00"}},
        ],
        "should": [{"is_empty": {"key": "title"}}, {"must_not": [{"is_null": {"key": "n"}}]}],
        "must_not": [{"key": "dao_id", "match": {"value": "theirs"}}],
    }
)


class Checker:
    """Validate requests against an OpenAPI 3.0 document.

    Unlike the document, reject fields that it does not name.
    """

    def __init__(self, document: dict[str, Any]) -> None:
        self._components = _json_schema(document["components"])
        self._operations = {
            (method.upper(), path): operation
            for path, item in document["paths"].items()
            for method, operation in item.items()
        }

    def problems(self, method: str, target: str, body: bytes) -> list[str]:
        parts = urlsplit(target)
        named = [(m, p) for m, p in self._operations if m == method and _fits(p, parts.path)]
        if not named:
            return [f"{method} {parts.path} is not in the document"]
        # The most specific path: /collections/aliases is not a collection named aliases.
        operation = self._operations[min(named, key=lambda one: one[1].count("{"))]
        return [
            *self._query_problems(operation, parts.query),
            *self._body_problems(operation, body),
        ]

    def _query_problems(self, operation: dict[str, Any], query: str) -> Iterator[str]:
        allowed = {p["name"]: p for p in operation.get("parameters", []) if p["in"] == "query"}
        for name, text in parse_qsl(query, keep_blank_values=True):
            if name not in allowed:
                yield f"?{name}= is not in the document"
                continue
            try:
                value = json.loads(text)
            except ValueError:
                value = text
            for error in self._errors(_json_schema(allowed[name]["schema"]), value):
                yield f"?{name}={text}: {error}"

    def _body_problems(self, operation: dict[str, Any], body: bytes) -> Iterator[str]:
        if "requestBody" not in operation:
            if body:
                yield "the request has a body, but the document has none"
            return
        schema = operation["requestBody"]["content"]["application/json"]["schema"]
        yield from self._errors(_json_schema(schema), json.loads(body) if body else None)

    def _errors(self, schema: dict[str, Any], value: Any) -> Iterator[str]:
        validator = Draft202012Validator({**schema, "components": self._components})
        for error in validator.iter_errors(value):
            yield f"{error.json_path}: {error.message}"[:500]


def _json_schema(node: Any) -> Any:
    """Convert an OpenAPI 3.0 schema to JSON Schema: null becomes a type, and objects closed."""
    if isinstance(node, list):
        return [_json_schema(item) for item in node]
    if not isinstance(node, dict):
        return node
    plain = {key: _json_schema(value) for key, value in node.items() if key != "nullable"}
    if isinstance(node.get("properties"), dict) and node.get("type") == "object":
        plain.setdefault("additionalProperties", False)
    if node.get("nullable") is True:
        return {"anyOf": [plain, {"type": "null"}]} if plain else {"type": "null"}
    return plain


def _fits(template: str, path: str) -> bool:
    return re.fullmatch(re.sub(r"\{\w+\}", "[^/]+", template), path) is not None


@dataclass
class Recorder:
    """Answer HTTP requests as a Qdrant server does, and record them."""

    data: QdrantClient = field(default_factory=lambda: QdrantClient(":memory:"))
    sent: list[tuple[str, str, bytes]] = field(default_factory=list)
    faults: list[tuple[int, dict[str, str]]] = field(default_factory=list)  # for the next requests
    lock: threading.RLock = field(default_factory=threading.RLock)

    def answer(self, method: str, target: str, body: bytes) -> tuple[int, Any, dict[str, str]]:
        with self.lock:
            self.sent.append((method, target, body))
            if self.faults:
                status, headers = self.faults.pop(0)
                return status, {"status": {"error": "an injected fault"}}, headers
            path = urlsplit(target).path.strip("/").split("/")[1:]
            try:
                result = self._result(method, path, json.loads(body) if body else {})
            except ValueError as error:  # from local mode; the server words it differently
                words = f"Not found: Collection doesn't exist! {error}"
                return 404, {"status": {"error": words}}, {}
        return 200, {"result": _plain(result), "status": "ok", "time": 0.0}, {}

    def _result(self, method: str, path: list[str], body: dict[str, Any]) -> Any:
        name, *rest = path or [""]
        match (method, name, rest):
            case "GET", "", []:
                return self.data.get_collections()
            case "POST", "aliases", []:
                actions = TypeAdapter(list[models.AliasOperations]).validate_python(body["actions"])
                return self.data.update_collection_aliases(actions)
            case "GET", _, []:
                return self.data.get_collection(name)
            case "GET", _, ["exists"]:
                return {"exists": self.data.collection_exists(name)}
            case "PUT", _, []:
                vectors = models.VectorParams(**body["vectors"])
                return self.data.create_collection(name, vectors, metadata=body["metadata"])
            case "DELETE", _, []:
                return self.data.delete_collection(name)
            case "PUT", _, ["index"]:
                return _done()
            case "PUT", _, ["points"]:
                points = [models.PointStruct(**point) for point in body["points"]]
                return self.data.upsert(name, points)
            case "POST", _, ["points", "batch"]:
                operations = models.UpdateOperations(**body).operations
                return self.data.batch_update_points(name, operations)
            case "POST", _, ["points", "delete"]:
                return self.data.delete(name, models.PointIdsList(**body))
            case "POST", _, ["points"]:
                asked = models.PointRequest(**body)
                return self.data.retrieve(
                    name, asked.ids, asked.with_payload or False, asked.with_vector or False
                )
            case "POST", _, ["points", "query"]:
                return self._query(name, models.QueryRequest(**body))
            case "POST", _, ["points", "scroll"]:
                wanted = models.ScrollRequest(**body)
                records, following = self.data.scroll(
                    name, wanted.filter, limit=wanted.limit or 10, offset=wanted.offset
                )
                return {"points": _plain(records), "next_page_offset": following}
            case "POST", _, ["points", "count"]:
                return self.data.count(name, models.CountRequest(**body).filter)
        raise AssertionError(f"no answer for {method} {path}")

    def _query(self, name: str, asked: models.QueryRequest) -> Any:
        return self.data.query_points(
            name,
            asked.query,
            query_filter=asked.filter,
            limit=asked.limit or 10,
            offset=asked.offset,
            score_threshold=asked.score_threshold,
            with_vectors=asked.with_vector or False,
        )


def _plain(result: Any) -> Any:
    if isinstance(result, list):
        return [_plain(item) for item in result]
    return result.model_dump(mode="json") if hasattr(result, "model_dump") else result


def _done() -> dict[str, Any]:
    return {"operation_id": 1, "status": "completed"}


@pytest.fixture
def recorder() -> Iterator[Recorder]:
    recorder = Recorder()
    with closing(recorder.data):
        yield recorder


@pytest.fixture
def slept() -> list[float]:
    return []


@pytest.fixture
def store(recorder: Recorder, slept: list[float]) -> Iterator[ServerStore]:
    """Return a store whose server is the recorder, over HTTP."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _answer(self) -> None:
            body = self.rfile.read(int(self.headers.get("content-length", 0)))
            status, answer, headers = recorder.answer(self.command, self.path, body)
            content = json.dumps(answer).encode()
            self.send_response(status)
            for name, value in {**headers, "content-type": "application/json"}.items():
                self.send_header(name, value)
            self.send_header("content-length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        do_GET = do_PUT = do_POST = do_DELETE = _answer

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    client = QdrantClient(
        url=f"http://127.0.0.1:{server.server_address[1]}",
        prefer_grpc=False,
        check_compatibility=False,
        timeout=2,
    )
    try:
        with closing(ServerStore(client, sleep=slept.append)) as store:
            yield store
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture(scope="module")
def checker() -> Checker:
    if not DOCUMENT.is_file():
        pytest.skip(f"{DOCUMENT} is missing: set QDRANT_OPENAPI to Qdrant's OpenAPI document")
    return Checker(json.loads(DOCUMENT.read_text(encoding="utf-8")))


def do_everything(store: ServerStore) -> None:
    """Call every method of the store and of a collection, with every argument."""
    points = make_points(300, dao_id="ours", tags=["a"], none=None, nested={"x": [1.5, True]})
    ids = [p.id for p in points]
    collection = store.open("a", CLIP)
    store.open("a", CLIP, create=False)
    collection.upsert(points)
    assert collection.overwrite_payloads({id: {"n": n} for n, id in enumerate(ids)}) == 300
    assert len(collection.retrieve(ids)) == 300
    vector = collection.retrieve(ids[:1], with_vectors=True)[ids[0]].vector
    assert vector is not None
    assert collection.query(vector, 3)[0].id == ids[0]
    assert collection.query(vector, 3, offset=1, score_threshold=-0.5, with_vectors=True)
    assert collection.query(vector, 3, filter=EVERY_CONDITION) == []
    first, start = collection.scroll(limit=200)
    rest, end = collection.scroll(limit=200, start=start)
    assert (len(first), len(rest), end) == (200, 100, None)
    assert collection.scroll(filter=EVERY_CONDITION) == ([], None)
    assert (collection.count(), collection.count(filter=EVERY_CONDITION)) == (300, 0)
    assert collection.delete([*ids[:2], point_id("missing")]) == 2

    store.open("a", OTHER, staged=True).upsert(points[:2])
    store.publish("a", OTHER)
    assert [c.count() for c in store.generations("a")] == [2, 298]
    assert store.published("b") is None
    assert store.drop("a", CLIP.generation) is True
    with pytest.raises(CollectionNotFound):
        store.open("b", CLIP, create=False)


def test_all_requests_conform_to_the_document(
    store: ServerStore, recorder: Recorder, checker: Checker
) -> None:
    do_everything(store)

    problems = [
        f"{method} {target}: {problem}"
        for method, target, body in recorder.sent
        for problem in checker.problems(method, target, body)
    ]
    assert problems == []
    names = re.compile(r"(?<=^/collections/)[ab](--[0-9a-f]{8})?(?=/|$)")
    asked = {f"{m} {names.sub('NAME', urlsplit(target).path)}" for m, target, _ in recorder.sent}
    assert asked == {
        "GET /collections",
        "GET /collections/NAME",
        "PUT /collections/NAME",
        "DELETE /collections/NAME",
        "POST /collections/aliases",
        "PUT /collections/NAME/index",
        "PUT /collections/NAME/points",
        "POST /collections/NAME/points",
        "POST /collections/NAME/points/batch",
        "POST /collections/NAME/points/count",
        "POST /collections/NAME/points/delete",
        "POST /collections/NAME/points/query",
        "POST /collections/NAME/points/scroll",
    }


@pytest.mark.parametrize(
    ("method", "target", "body", "said"),
    [
        ("POST", "/collections/a/points/counts", {}, "is not in the document"),
        ("PATCH", "/collections/a/points/count", {}, "is not in the document"),
        ("POST", "/collections/a/points/count?wait=true", {}, "?wait= is not in the document"),
        ("PUT", "/collections/a/points?wait=maybe", {"points": []}, "?wait=maybe"),
        ("POST", "/collections/a/points/count", {"exact": "yes"}, "'yes' is not"),
        ("POST", "/collections/a/points/count", {"exactly": True}, "'exactly' was unexpected"),
        ("POST", "/collections/a/points/query", {"limit": 0}, "$.limit: 0 is not valid"),
        ("POST", "/collections/a/points/scroll", {"filter": {"must": [{"key": 1}]}}, "$.filter"),
        ("PUT", "/collections/a/points", {"points": [{"id": 1}]}, "$"),
        ("POST", "/collections/aliases", {"actions": [{"create_alias": {}}]}, "$.actions[0]"),
        ("POST", "/collections/aliases", {"vectors": {}}, "required"),
        ("GET", "/collections/a", {"x": 1}, "the request has a body"),
    ],
)
def test_the_checker_reports_nonconforming_requests(
    checker: Checker, method: str, target: str, body: Any, said: str
) -> None:
    problems = checker.problems(method, target, json.dumps(body).encode())
    assert said in " ".join(problems)


def test_writes_wait_until_they_are_applied(store: ServerStore, recorder: Recorder) -> None:
    collection = store.open("a", CLIP)
    points = make_points(2)
    recorder.sent.clear()
    collection.upsert(points)
    collection.overwrite_payloads({points[0].id: {}})
    collection.delete([points[0].id])
    writes = [target for method, target, _ in recorder.sent if "?" in target]
    assert [urlsplit(target).query for target in writes] == ["wait=true"] * 3


def test_queries_ask_for_rescoring(store: ServerStore, recorder: Recorder) -> None:
    collection = store.open("a", CLIP)
    recorder.sent.clear()
    collection.query(make_points(1)[0].vector, 3)
    [(_, _, body)] = recorder.sent
    asked = json.loads(body)["params"]["quantization"]
    assert (asked["rescore"], asked["oversampling"]) == (True, 3)


@pytest.mark.parametrize(
    ("status", "headers", "delays"),
    [
        (429, {"Retry-After": "2"}, [2, 2]),
        (429, {"Retry-After": "60"}, [3, 3]),
        (429, {"Retry-After": "Tue, 24 Nov 2026 00:00:00 GMT"}, [0.25, 0.5]),
        (429, {}, [0.25, 0.5]),
        (502, {}, [0.25, 0.5]),
        (503, {}, [0.25, 0.5]),
        (504, {}, [0.25, 0.5]),
        (400, {}, None),
        (401, {}, None),
        (500, {}, None),
    ],
)
def test_transient_failures_over_http_are_retried(
    store: ServerStore,
    recorder: Recorder,
    slept: list[float],
    status: int,
    headers: dict[str, str],
    delays: list[float] | None,
) -> None:
    collection = store.open("a", CLIP)
    recorder.faults = [(status, headers)] * 3
    with pytest.raises(StoreUnavailable, match="Qdrant at http"):
        collection.count()
    assert slept == (delays or [])

    recorder.faults = [(status, headers)] * 2
    if delays is None:
        with pytest.raises(StoreUnavailable):
            collection.count()
    else:
        assert collection.count() == 0


def test_a_closed_port_over_http_makes_the_store_unavailable(slept: list[float]) -> None:
    port = closed_port()
    client = QdrantClient(host="127.0.0.1", port=port, timeout=1, check_compatibility=False)
    with (
        closing(ServerStore(client, sleep=slept.append)) as store,
        pytest.raises(StoreUnavailable, match=f"127.0.0.1:{port} cannot be reached"),
    ):
        store.published("a")
    assert slept == [0.25, 0.5]
