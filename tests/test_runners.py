"""The runners: signs of life, and faults at the model's boundary."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch

from bento import runners as module
from bento.errors import NotReady
from bento.runners import Runners


class Towers:
    """A stand-in for the encoder, whose towers can be made to fail or to hang."""

    def __init__(self) -> None:
        self.calls = 0
        self.prepared = 0
        self.fails = False
        self.free = threading.Event()
        self.free.set()

    def tokenize(self, texts: list[str]) -> torch.Tensor:
        self.prepared += 1
        return torch.tensor([[len(text)] for text in texts])

    def preprocess(self, image: Any) -> torch.Tensor:
        return torch.zeros(3)

    def text_embeddings(self, tokens: torch.Tensor) -> Any:
        self.calls += 1
        assert self.free.wait(10)
        if self.fails:
            raise RuntimeError("out of memory")
        return np.array([[3.0 * n, 4.0 * n] for n in tokens[:, 0].tolist()], np.float32)

    def image_embeddings(self, pixels: torch.Tensor) -> Any:
        return np.ones((len(pixels), 2), np.float32)


@pytest.fixture
def towers() -> Towers:
    return Towers()


@pytest.fixture
def runners(towers: Towers, monkeypatch: pytest.MonkeyPatch) -> Iterator[Runners]:
    monkeypatch.setattr(module, "HEALTH_TIMEOUT", 0.3)
    runners = Runners(towers, max_batch_size=8)  # type: ignore[arg-type]
    yield runners
    towers.free.set()
    runners.close()


def test_an_embedding_is_normalised_when_asked(runners: Runners) -> None:
    raw = asyncio.run(runners.embed_text("ab", normalize=False))
    np.testing.assert_array_equal(raw, [6, 8])
    unit = asyncio.run(runners.embed_text("ab", normalize=True))
    np.testing.assert_allclose(unit, [0.6, 0.8])


def test_a_tower_that_answered_lately_is_not_asked_again(towers: Towers, runners: Runners) -> None:
    asyncio.run(runners.embed_text("a", normalize=True))
    asyncio.run(runners.check())
    asyncio.run(runners.check())
    assert towers.calls == 1


def test_a_quiet_tower_is_asked_for_an_embedding(
    towers: Towers, runners: Runners, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "HEALTH_SECONDS", 0.0)
    asyncio.run(runners.check())
    assert towers.calls == 1


def test_a_tower_that_fails_is_not_healthy_until_it_answers_again(
    towers: Towers, runners: Runners, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "HEALTH_SECONDS", 0.0)
    towers.fails = True
    with pytest.raises(NotReady, match="text tower fails: out of memory"):
        asyncio.run(runners.check())
    towers.fails = False
    asyncio.run(runners.check())


def test_a_tower_that_hangs_is_not_healthy_until_it_answers_again(
    towers: Towers, runners: Runners, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "HEALTH_SECONDS", 0.0)
    towers.free.clear()
    with pytest.raises(NotReady, match="text tower has not answered"):
        asyncio.run(runners.check())
    towers.free.set()
    asyncio.run(runners.check())


def test_many_who_ask_about_a_hanging_tower_wait_for_one_probe(
    towers: Towers, runners: Runners, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "HEALTH_SECONDS", 60.0)
    runners._answered["text"] = float("-inf")  # quiet for ever
    towers.free.clear()

    async def ask() -> list[Any]:
        return await asyncio.gather(*(runners.check() for _ in range(20)), return_exceptions=True)

    assert [type(answer) for answer in asyncio.run(ask())] == [NotReady] * 20
    assert towers.prepared == 1


def test_a_request_that_was_given_up_does_not_reach_the_tower(
    towers: Towers, runners: Runners
) -> None:
    async def scene() -> None:
        towers.free.clear()
        held = asyncio.create_task(runners.embed_text("held", normalize=True))
        while towers.calls == 0:
            await asyncio.sleep(0.01)
        gone = asyncio.create_task(runners.embed_text("gone", normalize=True))
        await asyncio.sleep(0.1)
        gone.cancel()
        with pytest.raises(asyncio.CancelledError):
            await gone
        towers.free.set()
        await held
        await runners.embed_text("next", normalize=True)

    asyncio.run(scene())
    assert towers.calls == 2
