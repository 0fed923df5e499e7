"""Health checks and the watchdog of the runners."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from bento.contract.errors import NotReady
from bento.runners.runners import Runners
from bento.runners.timing import Timing
from tests.bento.runners.towers import Towers, picture, until

pytestmark = pytest.mark.service


@pytest.fixture
def asking(towers: Towers) -> Iterator[Runners]:
    """Return runners whose every health check asks the towers for an embedding."""
    runners = towers.runners(timing=Timing(healthy=0.0, probe=0.3))
    yield runners
    for tower in (towers.text, towers.image):
        tower.free.set()
    runners.close()


def test_a_tower_that_answered_lately_is_healthy(towers: Towers, runners: Runners) -> None:
    asyncio.run(runners.embed_text("a", normalize=True))
    asyncio.run(runners.check())
    asyncio.run(runners.check())
    assert towers.text.batches == [1]


def test_a_health_check_asks_an_idle_tower_for_an_embedding(
    towers: Towers, asking: Runners
) -> None:
    asyncio.run(asking.check())
    assert towers.text.batches == [1]


def test_a_tower_that_fails_is_unhealthy_until_it_answers(towers: Towers, asking: Runners) -> None:
    towers.text.fails = RuntimeError("broken")
    with pytest.raises(NotReady, match=r"^the text tower fails: broken$"):
        asyncio.run(asking.check())
    towers.text.fails = None
    asyncio.run(asking.check())


def test_a_tower_that_hangs_is_unhealthy_until_it_answers(towers: Towers, asking: Runners) -> None:
    towers.text.free.clear()
    with pytest.raises(NotReady, match=r"^the text tower has not answered for 0 s$"):
        asyncio.run(asking.check())
    towers.text.free.set()
    asyncio.run(asking.check())


def test_concurrent_health_checks_share_one_probe(towers: Towers) -> None:
    runners = towers.runners(timing=Timing(healthy=60.0, probe=0.3))
    runners.text.answered = float("-inf")
    towers.text.free.clear()

    async def check() -> list[Any]:
        return await asyncio.gather(*(runners.check() for _ in range(20)), return_exceptions=True)

    try:
        assert [type(answer) for answer in asyncio.run(check())] == [NotReady] * 20
        assert towers.text.batches == [1]
    finally:
        towers.text.free.set()
        runners.close()


def test_a_runner_that_dies_is_not_alive(towers: Towers, runners: Runners) -> None:
    assert runners.alive
    towers.text.fails = SystemExit("over")
    with pytest.raises(NotReady):
        asyncio.run(runners.embed_text("a", normalize=True))
    assert not runners.alive
    asyncio.run(until(lambda: towers.deaths))  # `on_death` is called after the items failed
    assert towers.deaths == ["the text runner died: SystemExit: over"]
    with pytest.raises(NotReady):
        asyncio.run(runners.check())


def test_a_batch_request_fails_if_its_runner_dies(towers: Towers, runners: Runners) -> None:
    towers.image.fails = SystemExit("over")
    with pytest.raises(NotReady):
        asyncio.run(runners.embed_images([picture(4)] * 3, normalize=True))


def test_the_watchdog_fails_the_requests_of_a_tower_that_hangs(towers: Towers) -> None:
    runners = towers.runners(timing=Timing(stuck=0.2, tick=0.05))
    towers.image.free.clear()
    try:
        with pytest.raises(NotReady):
            asyncio.run(runners.embed_image(picture(4), normalize=True))
        assert not runners.alive
        asyncio.run(until(lambda: towers.deaths))  # `on_death` is called after the items failed
        asyncio.run(runners.embed_text("the text tower still answers", normalize=True))
    finally:
        runners.close()  # does not wait for the image tower
        towers.image.free.set()


def test_a_lost_device_ends_its_runner(towers: Towers, runners: Runners) -> None:
    towers.image.fails = torch.AcceleratorError("device-side assert")
    with pytest.raises(NotReady):
        asyncio.run(runners.embed_image(picture(4), normalize=True))
    assert not runners.alive


def test_out_of_memory_lowers_the_batch_limit(towers: Towers, runners: Runners) -> None:
    towers.image.fails = torch.OutOfMemoryError("CUDA out of memory")
    with pytest.raises(torch.OutOfMemoryError):
        asyncio.run(runners.embed_image(picture(4), normalize=True))
    assert runners.image.queue.count_limit() == 1
    assert runners.alive
