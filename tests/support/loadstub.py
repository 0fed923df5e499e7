"""A stand-in for the service, for the load tests to find fault with.

It answers every route that they ask. With a fault it is slow to embed a text, fails one request in
fifty, is too busy for one text in five, exchanges the embeddings of texts that are asked for at the
same time, is slow for good after a second of many requests, answers one request after the other, or
answers nothing more after a while; or its embeddings are all alike, too short, or too long.
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

FAULTS = ("none", "slow", "failing", "busy", "swapping", "tiring", "narrow", "silent")
FAULTS += ("alike", "short", "doubled")  # their embeddings
TAKES = 0.02  # seconds, so that some requests are there at the same time
RETRY_AFTER = 2
_TABLE_TEXTS = 54  # asked for before the load
_TABLE = _TABLE_TEXTS + 24 + 42  # with images and searches
_MANY = 60  # requests a second
_TALKS = 100  # so many requests of the load are answered before it is silent


class Stub:
    """The service; `seen` counts requests, `refused` those that were told to come again later.

    `early` counts those of clients that came before that.
    """

    def __init__(self, fault: str = "none") -> None:
        assert fault in FAULTS
        self.url = f"http://127.0.0.1:{free_port()}"
        self.key = ""  # that it asks for
        self.seen: Counter[str] = Counter()
        self.refused = self.early = 0
        self._fault = fault
        self._away: dict[int, float] = {}  # until when, by the client's port
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
        return JSONResponse({**said, "qdrant_enabled": True})

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
        while self._fault == "silent" and self._asked() > _TALKS and not self._over:
            await asyncio.sleep(TAKES)
        async with self._one_at_a_time if self._fault == "narrow" else nullcontext():
            await asyncio.sleep(self._pause(path))
        return JSONResponse(await answer(request))

    def _refuse(self, request: Request) -> Response | None:
        if self._fault == "failing" and self._asked() > 0 and self._asked() % 50 == 0:
            return JSONResponse({"error": "out of order", "code": "internal_error"}, 500)
        if self._fault == "busy" and request.url.path == "/embed/text":
            now, port = time.monotonic(), request.client.port if request.client else 0
            self.early += now < self._away.get(port, 0)
            number = self.seen["/embed/text"] - _TABLE_TEXTS
            if number > 0 and number % 5 == 0:
                self.refused += 1
                self._away[port] = now + RETRY_AFTER
                headers = {"Retry-After": str(RETRY_AFTER)}
                return JSONResponse({"error": "busy", "code": "busy"}, 429, headers)
        return None

    def _asked(self) -> int:
        """Return how many requests of the load have come."""
        return self.seen.total() - self.seen["/images"] - _TABLE

    def _pause(self, path: str) -> float:
        self._seconds[int(time.monotonic())] += 1
        self._tired |= self._seconds[int(time.monotonic())] > _MANY
        if self._fault == "slow" and path == "/embed/text":
            return 0.12
        return 3 * TAKES if self._fault == "tiring" and self._tired else TAKES

    async def _text(self, request: Request) -> dict[str, Any]:
        text = (await request.json())["text"]
        if self._fault == "swapping":
            text = await self._exchanged(text)
        return {"embedding": self._embedding(text.encode())}

    def _embedding(self, data: bytes) -> list[float]:
        vector = vector_of(b"" if self._fault == "alike" else data)
        if self._fault == "doubled":
            vector = 2 * vector
        return vector[: DIM - (self._fault == "short")].tolist()

    async def _exchanged(self, text: str) -> str:
        """Return the text of whoever else asks within 20 ms, to whom this one goes."""
        if self._waiting:
            other, theirs = self._waiting.pop()
            theirs.set_result(text)
            return other
        mine = asyncio.get_running_loop().create_future()
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
