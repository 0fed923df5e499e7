"""Large answers: sent in pieces, and counted until the client has read them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial

from starlette.responses import Response
from starlette.types import Message

from bento.runners.admission import ByteBudget
from bento.settings import Settings
from bento.web.access import Access
from bento.web.metrics import Metrics
from bento.web.middleware import RequestMiddleware

PIECE = 65_536
BODY = bytes(range(256)) * 1000  # 256,000 bytes


class Client:
    """A client that reads a piece of an answer each time that the test lets it."""

    def __init__(self) -> None:
        self.sent: list[Message] = []
        self.reads = asyncio.Semaphore(0)
        self._asked = False

    async def receive(self) -> Message:
        if self._asked:
            await asyncio.Event().wait()
        self._asked = True
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.body":
            await self.reads.acquire()
        self.sent.append(message)

    def has_read(self, pieces: int) -> bool:
        return bool(self.sent) and len(self.bodies) == pieces

    @property
    def bodies(self) -> list[bytes]:
        return [one["body"] for one in self.sent if one["type"] == "http.response.body"]


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.001)


def test_an_answer_counts_in_the_budget_until_the_client_has_read_it() -> None:
    budget = ByteBudget(1000, lambda: None)
    middleware = RequestMiddleware(
        Response(BODY),
        access=Access(Settings()),
        max_body_bytes=500,
        max_items=10,
        max_requests=3,
        budget=budget,
        metrics=Metrics(workers=1),
    )
    scope = {"type": "http", "method": "GET", "path": "/", "headers": [(b"host", b"localhost")]}

    async def scene() -> None:
        client = Client()
        task = asyncio.create_task(middleware(scope, client.receive, client.send))
        for read in range(4):
            await until(partial(client.has_read, read))
            assert budget.held == len(BODY)
            client.reads.release()
            await until(partial(client.has_read, read + 1))
        await task
        assert max(map(len, client.bodies)) == PIECE
        assert b"".join(client.bodies) == BODY
        assert [one.get("more_body", False) for one in client.sent[1:]] == [True] * 3 + [False]
        assert budget.held == 0

    asyncio.run(scene())
