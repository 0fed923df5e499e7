"""Admission control and load shedding of the runners."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from bento.contract.errors import Busy
from bento.runners.runners import Runners
from bento.runners.timing import Timing
from tests.bento.runners.fakes import Clock
from tests.bento.runners.towers import Towers, picture, until

pytestmark = pytest.mark.service


def test_a_request_is_rejected_before_decoding_if_its_predicted_wait_is_too_long(
    towers: Towers,
) -> None:
    runners = towers.runners(max_queue_ms=2000)
    runners.image.queue.pace.observe(1, 1.0)  # an image takes 1 s

    async def scene() -> None:
        towers.image.free.clear()
        tasks = [
            asyncio.create_task(runners.embed_image(picture(4), normalize=False)) for _ in range(8)
        ]
        await until(lambda: sum(task.done() for task in tasks) == 6)
        assert towers.image.prepared <= 2
        wording = (
            r"^the image queue holds 2 items, .* about 3\.0 s; the limit is 2 s \(MAX_QUEUE_MS"
        )
        with pytest.raises(Busy, match=wording) as busy:
            await runners.embed_image(b"not even a picture", normalize=False)
        assert busy.value.retry_after == 1
        await runners.embed_text("texts have their own queue", normalize=True)
        assert await runners.embed_images([], normalize=True) == []
        towers.image.free.set()
        answers = await asyncio.gather(*tasks, return_exceptions=True)
        assert [type(answer) for answer in answers] == [np.ndarray] * 2 + [Busy] * 6
        await runners.embed_image(picture(4), normalize=False)  # the queue is empty again

    try:
        asyncio.run(scene())
    finally:
        runners.close()
    assert towers.metric("rejected_total", limit="queue") == 7
    assert towers.metric("queue_length", tower="image") == 0
    assert towers.budget.held == 0


def test_a_request_that_finds_an_empty_queue_is_never_rejected(towers: Towers) -> None:
    runners = towers.runners(max_queue_ms=0)
    for tower in (runners.text, runners.image):
        tower.queue.pace.observe(1, 100.0)
    try:
        for _ in range(3):
            asyncio.run(runners.embed_image(picture(4), normalize=True))
            asyncio.run(runners.embed_texts(["a", "b"], normalize=True))
    finally:
        runners.close()
    assert towers.metric("rejected_total", limit="late") == 0


def test_a_late_single_item_is_shed_but_no_item_of_several(towers: Towers, clock: Clock) -> None:
    runners = towers.runners(max_queue_ms=2000, timing=Timing(clock=clock))

    async def one() -> Any:
        return await runners.embed_image(picture(4), normalize=False)

    async def several(count: int) -> Any:
        return await runners.embed_images([picture(4)] * count, normalize=False)

    async def scene() -> list[Any]:
        towers.image.free.clear()
        tasks = [asyncio.create_task(one())]
        await until(lambda: towers.image.batches)
        tasks += [asyncio.create_task(request) for request in (one(), several(1), several(2))]
        await until(lambda: len(runners.image.queue) == 4)
        clock.now += 2.1
        towers.image.free.set()
        return await asyncio.gather(*tasks, return_exceptions=True)

    try:
        first, late, late_batch, two = asyncio.run(scene())
    finally:
        runners.close()
    assert isinstance(first, np.ndarray)
    assert isinstance(late, Busy)
    assert isinstance(late_batch, Busy)
    assert [type(row) for row in two] == [np.ndarray] * 2
    assert sum(towers.image.batches) == 3
    assert towers.metric("rejected_total", limit="late") == 2
    assert towers.budget.held == 0


def slow_preparation(
    towers: Towers, clock: Clock, seconds: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Let the preparation of each image advance the clock."""
    prepare = towers.image.prepare

    def slow(image: Any) -> torch.Tensor:
        clock.now += seconds
        return prepare(image)

    monkeypatch.setattr(towers.image, "prepare", slow)


def test_the_predicted_wait_includes_decoding(
    towers: Towers, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow_preparation(towers, clock, 30.0, monkeypatch)
    runners = towers.runners(max_queue_ms=1000, timing=Timing(clock=clock), cpus=1)

    async def scene() -> None:
        towers.image.free.clear()
        first = asyncio.create_task(runners.embed_image(picture(4), normalize=False))
        await until(lambda: towers.image.batches)
        assert runners.image.prepare_seconds == pytest.approx(3.0)
        with pytest.raises(Busy) as busy:
            await runners.embed_image(picture(4), normalize=False)
        assert busy.value.retry_after == 2
        towers.image.free.set()
        await first

    try:
        asyncio.run(scene())
    finally:
        runners.close()


@pytest.mark.parametrize(("large_pixels", "cores"), [(10**6, 1), (20, 3)])
def test_the_decoding_of_a_large_picture_costs_all_cores(
    towers: Towers,
    clock: Clock,
    monkeypatch: pytest.MonkeyPatch,
    large_pixels: int,
    cores: int,
) -> None:
    slow_preparation(towers, clock, 2.0, monkeypatch)
    runners = towers.runners(timing=Timing(clock=clock), cpus=3, large_pixels=large_pixels)
    try:
        for _ in range(2):
            asyncio.run(runners.embed_image(picture(11), normalize=False))
    finally:
        runners.close()
    assert runners.image.prepare_seconds == pytest.approx((0.1 + 0.9 * 0.1) * 2.0 * cores)
    assert towers.metric("stage_seconds_count", stage="decode", tower="image") == 2


def test_a_large_picture_that_is_late_is_not_decoded(towers: Towers, clock: Clock) -> None:
    runners = towers.runners(max_queue_ms=2000, timing=Timing(clock=clock))
    opened: list[None] = []
    decoded: list[None] = []
    free = threading.Event()

    def decode() -> torch.Tensor:
        assert free.wait(10)
        clock.now += 2.1
        decoded.append(None)
        return torch.tensor([11])

    def open_header() -> Callable[[], torch.Tensor]:
        opened.append(None)
        return decode

    async def scene() -> list[Any]:
        tasks = [asyncio.create_task(runners.image.embed(open_header)) for _ in range(4)]
        await until(lambda: len(opened) == 4)
        free.set()
        return await asyncio.gather(*tasks, return_exceptions=True)

    try:
        answers = asyncio.run(scene())
    finally:
        free.set()
        runners.close()
    assert [type(answer) for answer in answers] == [np.ndarray] + [Busy] * 3
    assert len(decoded) == 1
    assert towers.metric("rejected_total", limit="late") == 3
    assert towers.budget.held == 0


def test_prepared_items_count_in_the_byte_budget(towers: Towers, runners: Runners) -> None:
    async def scene() -> None:
        with towers.budget.claim() as other:
            other.take(985)  # of 1000; a prepared item has 10
            towers.image.free.clear()
            first = asyncio.create_task(runners.embed_image(picture(4), normalize=False))
            await until(lambda: towers.image.batches)
            with pytest.raises(Busy):
                await runners.embed_image(picture(4), normalize=False)
            towers.image.free.set()
            await first
            await runners.embed_image(picture(4), normalize=False)

    asyncio.run(scene())
    assert len(towers.rejections) == 1
    assert towers.budget.held == 0


def test_a_large_request_leaves_room_for_others(towers: Towers, runners: Runners) -> None:
    async def scene() -> None:
        towers.image.free.clear()
        large = asyncio.create_task(runners.embed_images([picture(4)] * 60, normalize=False))
        await until(lambda: towers.image.prepared == 16)  # twice the batch limit
        await asyncio.sleep(0.05)
        assert towers.image.prepared == 16
        single = asyncio.create_task(runners.embed_image(picture(5), normalize=False))
        await until(lambda: towers.image.prepared == 17)
        towers.image.free.set()
        done, _ = await asyncio.wait({large, single}, return_when=asyncio.FIRST_COMPLETED)
        assert done == {single}  # before the other 44 images
        assert len(await large) == 60

    asyncio.run(scene())


def test_a_cancelled_request_does_not_reach_the_tower(towers: Towers, runners: Runners) -> None:
    async def scene() -> None:
        towers.text.free.clear()
        first = asyncio.create_task(runners.embed_text("first", normalize=True))
        await until(lambda: towers.text.batches)
        cancelled = asyncio.create_task(runners.embed_text("cancelled", normalize=True))
        await until(lambda: len(runners.text.queue) == 1)
        cancelled.cancel()
        with pytest.raises(asyncio.CancelledError):
            await cancelled
        towers.text.free.set()
        await first
        await runners.embed_text("next", normalize=True)

    asyncio.run(scene())
    assert towers.text.batches == [1, 1]
    assert towers.metric("dropped_total", tower="text") == 1
