"""A stub of the service with a fault for the load tests to find. It has every route that they use.

The faults:

slow      takes 120 ms to embed a text
failing   answers every 50th request with 500
busy      answers every fifth text with 429
swapping  exchanges the embeddings of two texts that arrive at the same time
tiring    becomes slower, for good, once it gets more than 60 requests in a second
narrow    answers one request at a time
silent    answers nothing more after 100 requests
alike     returns the same embedding for all inputs
short     returns embeddings with one dimension too few
doubled   returns embeddings of norm 2
"""

from __future__ import annotations

import asyncio
import base64
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from tests.support.rag.fakes import DIM, vector_of
from tests.support.serving import free_port

FAULTS = (
    *("none", "slow", "failing", "busy", "swapping", "tiring", "narrow", "silent"),
    *("alike", "short", "doubled"),
)
TAKES = 0.02  # seconds of a request, so that some overlap
RETRY_AFTER = 2  # seconds
_TABLE_TEXTS = 54  # texts that the test embeds before the load
_TABLE = _TABLE_TEXTS + 24 + 42  # its texts, images and searches before the load
_MANY = 60  # requests per second
_ANSWERED = 100  # requests of the load that are answered before the stub is silent


class Stub:
    """The stub. `seen` counts the requests to each route, `refused` those that got a 429.

    `early` counts the requests of clients that did not wait for the time in Retry-After.
    """

    def __init__(self, fault: str = "none", takes: float = TAKES, *, indexes: bool = True) -> None:
        assert fault in FAULTS
        self.url = f"http://127.0.0.1:{free_port()}"
        self.key = ""  # the API key that it requires
        self.seen: Counter[str] = Counter()
        self.refused = self.early = 0
        self._fault = fault
        self._takes = takes
        self._indexes = indexes  # without it, a run is quicker by the indexing of 500 images
        self._pause_until: dict[int, float] = {}  # by the client's port
        self._seconds: Counter[int] = Counter()
        self._tired = self._over = False
        self._waiting: list[tuple[str, asyncio.Future[str]]] = []
        self._one_at_a_time = asyncio.Lock()

    @contextmanager
    def serving(self) -> Iterator[Stub]:
        port = int(self.url.rpartition(":")[2])
        server = uvicorn.Server(uvicorn.Config(self._app(), port=port, log_config=None))
        thread = threading.Thread(target=server.run)
        thread.start()
        try:
            while not server.started:
                assert thread.is_alive()
            yield self
        finally:
            server.should_exit = self._over = True
            thread.join(30)

    def _app(self) -> Starlette:
        answers: dict[str, Any] = {
            "/embed/text": self._text,
            "/embed/texts": self._texts,
            "/embed/image": self._image,
            "/embed/image/upload": self._upload,
            "/embed/images": self._uploads,
            "/search": self._search,
            "/route": self._route,
            "/v1/embeddings": self._openai,
            "/images": None,
        }

        def routed(answer: Any) -> Any:
            async def respond(request: Request) -> Response:
                return await self._respond(request, answer)

            return respond

        posts = [Route(path, routed(each), methods=["POST"]) for path, each in answers.items()]
        return Starlette(routes=[Route("/info", self._info), *posts])

    async def _info(self, request: Request) -> Response:
        said = {"model_name": "stub", "device": "none", "embedding_dim": DIM}
        return JSONResponse({**said, "qdrant_enabled": self._indexes})

    async def _respond(self, request: Request, answer: Any) -> Response:
        path = request.url.path
        if self.key and request.headers.get("authorization") != f"Bearer {self.key}":
            return JSONResponse({"error": "no key", "code": "unauthorized"}, 401)
        self.seen[path] += 1
        if path == "/images":
            return JSONResponse({"outcome": "indexed"})
        await request.body()
        if refusal := self._refuse(request):
            return refusal
        while self._fault == "silent" and self._load() > _ANSWERED and not self._over:
            await asyncio.sleep(TAKES)
        async with self._one_at_a_time if self._fault == "narrow" else nullcontext():
            await asyncio.sleep(self._pause(path))
        return JSONResponse(await answer(request))

    def _refuse(self, request: Request) -> Response | None:
        if self._fault == "failing" and self._load() > 0 and self._load() % 50 == 0:
            return JSONResponse({"error": "out of order", "code": "internal_error"}, 500)
        if self._fault == "busy" and request.url.path == "/embed/text":
            now, port = time.monotonic(), request.client.port if request.client else 0
            self.early += now < self._pause_until.get(port, 0)
            number = self.seen["/embed/text"] - _TABLE_TEXTS
            if number > 0 and number % 5 == 0:
                self.refused += 1
                self._pause_until[port] = now + RETRY_AFTER
                headers = {"Retry-After": str(RETRY_AFTER)}
                return JSONResponse({"error": "busy", "code": "busy"}, 429, headers)
        return None

    def _load(self) -> int:
        """Return the number of requests of the load so far, at most 0 before it."""
        return self.seen.total() - self.seen["/images"] - _TABLE

    def _pause(self, path: str) -> float:
        if self._load() <= 0:
            return 0
        self._seconds[int(time.monotonic())] += 1
        self._tired |= self._seconds[int(time.monotonic())] > _MANY
        if self._fault == "slow" and path == "/embed/text":
            return 0.12
        return 3 * self._takes if self._fault == "tiring" and self._tired else self._takes

    async def _text(self, request: Request) -> dict[str, Any]:
        text = (await request.json())["text"]
        if self._fault == "swapping":
            text = await self._exchanged(text)
        return {"embedding": self._embedding(text.encode())}

    def _embedding(self, data: bytes) -> list[float]:
        vector: list[float] = vector_of(b"" if self._fault == "alike" else data).tolist()
        if self._fault == "doubled":
            vector = [2 * value for value in vector]
        return vector[: DIM - (self._fault == "short")]

    async def _exchanged(self, text: str) -> str:
        """Exchange a text with another request that arrives within 20 ms."""
        if self._waiting:
            other, future = self._waiting.pop()
            future.set_result(text)
            return other
        mine: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._waiting.append((text, mine))
        await asyncio.wait([mine], timeout=TAKES)
        if mine.done():
            return mine.result()
        self._waiting.remove((text, mine))
        return text

    async def _texts(self, request: Request) -> dict[str, Any]:
        texts = (await request.json())["texts"]
        return {"embeddings": [vector_of(text.encode()).tolist() for text in texts]}

    async def _image(self, request: Request) -> dict[str, Any]:
        data = base64.b64decode((await request.json())["image_base64"])
        return {"embedding": self._embedding(data)}

    async def _upload(self, request: Request) -> dict[str, Any]:
        return {"embedding": (await self._files(request))[0]}

    async def _uploads(self, request: Request) -> dict[str, Any]:
        return {"embeddings": await self._files(request)}

    async def _files(self, request: Request) -> list[list[float]]:
        async with request.form() as form:
            files = [file for _, file in form.multi_items() if not isinstance(file, str)]
            return [vector_of(await file.read()).tolist() for file in files]

    async def _search(self, request: Request) -> dict[str, Any]:
        return {"hits": self._found(await request.json())}

    def _found(self, body: dict[str, Any]) -> list[dict[str, Any]]:
        vector = vector_of(repr((body.get("text"), body.get("image"))).encode())
        hits = [{"id": f"{x:.6f}", "score": float(x)} for x in sorted(vector, reverse=True)]
        return hits[: body["top_k"]]

    async def _route(self, request: Request) -> dict[str, Any]:
        body = await request.json()
        if body["mode"] == "image_search":
            images = self._found({"text": body["message"], "top_k": body["payload"]["top_k"]})
            return {"ok": True, "data": {"images": images}, "error": None, "metadata": {}}
        data = {"embedding": vector_of(body["payload"]["text"].encode()).tolist()}
        return {"ok": True, "data": data, "error": None, "metadata": {}}

    async def _openai(self, request: Request) -> dict[str, Any]:
        texts = (await request.json())["input"]
        rows = [base64.b64encode(vector_of(text.encode()).tobytes()).decode() for text in texts]
        return {"data": [{"index": n, "embedding": row} for n, row in enumerate(rows)]}
