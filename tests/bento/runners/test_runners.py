"""The runners: admission, faults at the model's boundary, signs of life."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from bento import Settings
from bento.contract.errors import Busy, EncoderError, NotAnImage, NotReady
from bento.runners import batching, runner
from bento.runners import runners as runners_module
from bento.runners.admission import ByteBudget
from bento.runners.runners import Runners
from bento.web.metrics import Metrics
from tests.support.pictures import file_bytes, scene_image


class Tower:
    """A stand-in for a tower: it can be made to fail, to hang or to die."""

    lanes = 1

    def __init__(self) -> None:
        self.batches: list[int] = []
        self.prepared = 0
        self.cores: set[tuple[str, int]] = set()  # threads, and how many cores they compute on
        self.fails: BaseException | None = None
        self.free = threading.Event()
        self.free.set()

    def probe(self) -> list[torch.Tensor]:
        return [torch.zeros(10, dtype=torch.uint8)]

    def warm_batches(self) -> list[list[torch.Tensor]]:
        return []

    def size(self, item: torch.Tensor) -> int:
        return 1

    def prepare(self, given: Any) -> torch.Tensor:
        self.prepared += 1
        self.cores.add((threading.current_thread().name, torch.get_num_threads()))
        return torch.tensor([len(given) if isinstance(given, str) else given.width])

    def count_tokens(self, item: torch.Tensor) -> int:
        return int(item[0])

    def embed(self, items: list[torch.Tensor]) -> Any:
        self.batches.append(len(items))
        self.cores.add((threading.current_thread().name, torch.get_num_threads()))
        assert self.free.wait(10)
        if self.fails:
            raise self.fails
        return np.array([[3.0 * int(n[0]), 4.0 * int(n[0])] for n in items], np.float32)


class Towers:
    def __init__(self) -> None:
        self.text, self.image = Tower(), Tower()
        self.model_name, self.pretrained = "local-dir:model", "local"
        self.device = "cpu"
        self.embedding_dim = 2
        self.image_limits = {"max_bytes": 10**6, "max_pixels": 10**8}
        self.deaths: list[str] = []
        self.metrics = Metrics(workers=1)
        self.refused: list[None] = []
        self.budget = ByteBudget(1000, lambda: self.refused.append(None))


@pytest.fixture
def towers() -> Towers:
    return Towers()


@pytest.fixture
def runners(towers: Towers, monkeypatch: pytest.MonkeyPatch) -> Iterator[Runners]:
    monkeypatch.setattr(runner, "HEALTH_TIMEOUT", 0.3)
    runners = make(towers)
    yield runners
    for tower in (towers.text, towers.image):
        tower.free.set()
    runners.close()


def make(towers: Towers, **settings: Any) -> Runners:
    return Runners(
        towers,  # type: ignore[arg-type]
        Settings(**{"max_batch_size": 8, **settings}),
        budget=towers.budget,
        metrics=towers.metrics,
        on_death=towers.deaths.append,
    )


def quiet(monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
    """Set how long an answer counts as a sign of life."""
    for module in (runner, runners_module):
        monkeypatch.setattr(module, "HEALTH_SECONDS", seconds)


def picture(width: int) -> bytes:
    return file_bytes(Image.new("RGB", (width, 2)))


def sample(towers: Towers, name: str, **labels: str) -> float:
    """Return a metric's value as Prometheus would read it."""
    wanted = "{" + ",".join(f'{key}="{value}"' for key, value in sorted(labels.items())) + "}"
    for line in towers.metrics.exposition().decode().splitlines():
        if line.startswith(f"vision_encoder_{name}{wanted if labels else ''} "):
            return float(line.rpartition(" ")[2])
    raise AssertionError(f"no {name}{wanted}")


def test_a_size_that_the_memory_does_not_hold_is_left_out_of_the_warm_up(
    towers: Towers, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    items = [torch.tensor([1])] * 8
    embed = towers.image.embed

    def only_four(batch: list[torch.Tensor]) -> Any:
        if len(batch) > 4:
            raise MemoryError
        return embed(batch)

    monkeypatch.setattr(towers.image, "warm_batches", lambda: [items, items[:4], items[:1]])
    monkeypatch.setattr(towers.image, "embed", only_four)
    runners = make(towers)
    runners.close()
    assert towers.image.batches == [4, 4, 1, 1]
    assert "too small for 8 items of the image runner at once: see MAX_BATCH_SIZE" in caplog.text


def test_what_else_fails_in_the_warm_up_lets_nothing_start(
    towers: Towers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(towers.text, "warm_batches", lambda: [[torch.tensor([1])]])
    towers.text.fails = RuntimeError("no kernel")
    with pytest.raises(RuntimeError, match="no kernel"):
        make(towers)


def test_an_embedding_is_normalised_when_asked(runners: Runners) -> None:
    raw = asyncio.run(runners.embed_text("ab", normalize=False))
    np.testing.assert_array_equal(raw, [6, 8])
    unit = asyncio.run(runners.embed_text("ab", normalize=True))
    np.testing.assert_allclose(unit, [0.6, 0.8])


def test_many_texts_come_back_in_their_order(towers: Towers, runners: Runners) -> None:
    texts = ["x" * (i % 50 + 1) for i in range(200)]
    raw, tokens = asyncio.run(runners.embed_texts(texts, normalize=False))
    np.testing.assert_array_equal(raw[:, 0], [3 * len(text) for text in texts])
    assert tokens == sum(map(len, texts))
    assert max(towers.text.batches) > 1


def test_a_bad_image_among_many_gets_its_error_and_the_others_their_embeddings(
    runners: Runners,
) -> None:
    images = [picture(5), b"text", picture(7), b""]
    rows = asyncio.run(runners.embed_images(images, normalize=False))
    np.testing.assert_array_equal(rows[0], [15, 20])
    np.testing.assert_array_equal(rows[2], [21, 28])
    assert isinstance(rows[1], NotAnImage)
    assert isinstance(rows[3], EncoderError)


def test_an_image_that_the_device_fails_on_gets_an_error_of_its_own(
    towers: Towers, runners: Runners
) -> None:
    towers.image.fails = RuntimeError("kernel")
    (row,) = asyncio.run(runners.embed_images([picture(5)], normalize=False))
    assert isinstance(row, EncoderError)
    assert row.code == "internal_error"
    assert sample(towers, "failed_total", tower="image") == 1


def test_a_large_picture_is_decoded_by_the_thread_for_large_ones(
    towers: Towers, runners: Runners, monkeypatch: pytest.MonkeyPatch
) -> None:
    names: list[str] = []
    prepare = towers.image.prepare

    def watch(image: Any) -> torch.Tensor:
        names.append(threading.current_thread().name.rpartition("_")[0])
        return prepare(image)

    monkeypatch.setattr(towers.image, "prepare", watch)
    monkeypatch.setattr(runners_module, "LARGE_PIXELS", 20)
    asyncio.run(runners.embed_image(picture(10), normalize=True))
    asyncio.run(runners.embed_image(picture(11), normalize=True))
    assert names == ["prepare", "prepare-large"]


async def until(condition: Any) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.005)


def test_beyond_the_predicted_wait_the_answer_is_busy_before_anything_is_decoded(
    towers: Towers,
) -> None:
    runners = make(towers, max_queue_ms=2000)
    runners.image.queue.pace.observe(1, 1.0)  # a second an image

    async def scene() -> None:
        towers.image.free.clear()
        asked = [
            asyncio.create_task(runners.embed_image(picture(4), normalize=False)) for _ in range(8)
        ]
        await until(lambda: sum(task.done() for task in asked) == 6)
        prepared = towers.image.prepared
        assert prepared <= 2
        with pytest.raises(Busy, match=r"2 image items .* about 3\.0 s where 2 s") as busy:
            await runners.embed_image(b"not even a picture", normalize=False)
        assert busy.value.retry_after == 1
        await runners.embed_text("texts have a queue of their own", normalize=True)
        assert await runners.embed_images([], normalize=True) == []  # waits for nobody
        towers.image.free.set()
        answers = await asyncio.gather(*asked, return_exceptions=True)
        assert [type(answer) for answer in answers] == [np.ndarray] * 2 + [Busy] * 6
        await runners.embed_image(picture(4), normalize=False)  # there is room again

    try:
        asyncio.run(scene())
    finally:
        runners.close()
    assert sample(towers, "rejected_total", limit="queue") == 7
    assert sample(towers, "queue_length", tower="image") == 0
    assert towers.budget.held == 0


def test_who_is_alone_is_answered_however_slow_the_tower(towers: Towers) -> None:
    runners = make(towers, max_queue_ms=0)
    for tower in (runners.text, runners.image):
        tower.queue.pace.observe(1, 100.0)
    try:
        for _ in range(3):
            asyncio.run(runners.embed_image(picture(4), normalize=True))
            asyncio.run(runners.embed_texts(["a", "b"], normalize=True))
    finally:
        runners.close()
    assert sample(towers, "rejected_total", limit="late") == 0


def test_an_item_whose_turn_comes_too_late_is_refused_but_none_of_many(
    towers: Towers, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [1000.0]
    for module in (runner, batching):
        monkeypatch.setattr(module, "monotonic", lambda: now[0])
    runners = make(towers, max_queue_ms=2000)

    async def scene() -> list[Any]:
        towers.image.free.clear()
        asked = [asyncio.create_task(runners.embed_image(picture(4), normalize=False))]
        await until(lambda: towers.image.batches)
        asked += [
            asyncio.create_task(runners.embed_image(picture(4), normalize=False)),
            asyncio.create_task(runners.embed_images([picture(4)], normalize=False)),
            asyncio.create_task(runners.embed_images([picture(4)] * 2, normalize=False)),
        ]
        await until(lambda: len(runners.image.queue) == 4)
        now[0] += 2.1
        towers.image.free.set()
        return await asyncio.gather(*asked, return_exceptions=True)

    try:
        alone, late, late_too, many = asyncio.run(scene())
    finally:
        runners.close()
    assert isinstance(alone, np.ndarray)
    assert isinstance(late, Busy) and isinstance(late_too, Busy)
    assert [type(row) for row in many] == [np.ndarray] * 2
    assert sum(towers.image.batches) == 3
    assert sample(towers, "rejected_total", limit="late") == 2
    assert towers.budget.held == 0


def test_image_batches_have_few_sizes_on_a_cpu(towers: Towers) -> None:
    runners = make(towers, max_batch_size=16)

    async def scene() -> None:
        for tower in (towers.text, towers.image):
            tower.free.clear()
        asked = [asyncio.create_task(runners.embed_image(picture(4), normalize=False))]
        asked += [asyncio.create_task(runners.embed_text("a", normalize=False))]
        await until(lambda: towers.image.batches and towers.text.batches)
        asked += [
            asyncio.create_task(runners.embed_image(picture(4), normalize=False)) for _ in range(11)
        ]
        asked += [asyncio.create_task(runners.embed_text("a", normalize=False)) for _ in range(11)]
        await until(lambda: len(runners.image.queue) == len(runners.text.queue) == 11)
        for tower in (towers.text, towers.image):
            tower.free.set()
        await asyncio.gather(*asked)

    try:
        asyncio.run(scene())
    finally:
        runners.close()
    assert towers.image.batches == [1, 8, 3]
    assert towers.text.batches == [1, 11]


@pytest.mark.parametrize("kind", ["image", "text"])
def test_a_lone_item_has_all_cores_and_of_several_batches_each_has_one(
    towers: Towers, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = torch.get_num_threads()
    monkeypatch.setattr(runners_module, "available_cpus", lambda: 3)
    tower, other = getattr(towers, kind), towers.text if kind == "image" else towers.image
    tower.lanes = 3
    runners = make(towers)

    def embed(kind: str) -> Coroutine[Any, Any, Any]:
        if kind == "image":
            return runners.embed_image(picture(4), normalize=False)
        return runners.embed_text("a", normalize=False)

    async def scene() -> None:
        tower.free.clear()
        asked = [asyncio.create_task(embed(kind))]
        await until(lambda: tower.batches)
        asked += [asyncio.create_task(embed(kind)) for _ in range(4)]
        await until(lambda: len(getattr(runners, kind).queue) == 4)
        tower.free.set()
        await asyncio.gather(*asked)
        await embed("text" if kind == "image" else "image")

    try:
        asyncio.run(scene())
    finally:
        runners.close()
        torch.set_num_threads(before)
    assert sum(tower.batches) == 5
    assert {count for name, count in tower.cores if name == f"runner-{kind}"} == {3, 1}
    assert {count for name, count in tower.cores if name.startswith("prepare")} == {1}
    assert {count for name, count in other.cores if name.startswith("runner")} == {3}


def test_slow_decoding_counts_in_the_predicted_wait(towers: Towers) -> None:
    runners = make(towers, max_queue_ms=1000)
    runners.image._prepare_seconds = 3.0 * runners.image._shared.cpus

    async def scene() -> None:
        towers.image.free.clear()
        first = asyncio.create_task(runners.embed_image(picture(4), normalize=False))
        await until(lambda: towers.image.batches)
        runners.image._prepare_seconds = 3.0 * runners.image._shared.cpus
        with pytest.raises(Busy, match=r"about 3\.0 s") as busy:
            await runners.embed_image(picture(4), normalize=False)
        assert busy.value.retry_after == 2
        towers.image.free.set()
        await first

    try:
        asyncio.run(scene())
    finally:
        runners.close()


def test_a_large_picture_that_is_already_late_is_not_decoded(
    towers: Towers, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [1000.0]
    for module in (runner, batching):
        monkeypatch.setattr(module, "monotonic", lambda: now[0])
    monkeypatch.setattr(runners_module, "LARGE_PIXELS", 20)
    prepare, free = towers.image.prepare, threading.Event()

    def slow(image: Any) -> torch.Tensor:
        assert free.wait(10)
        now[0] += 2.1
        return prepare(image)

    monkeypatch.setattr(towers.image, "prepare", slow)
    runners = make(towers, max_queue_ms=2000)

    async def scene() -> list[Any]:
        asked = [
            asyncio.create_task(runners.embed_image(picture(11), normalize=False)) for _ in range(4)
        ]
        await until(lambda: runners._large._work_queue.qsize() == 3)
        free.set()
        return await asyncio.gather(*asked, return_exceptions=True)

    try:
        answers = asyncio.run(scene())
    finally:
        free.set()
        runners.close()
    assert [type(answer) for answer in answers] == [np.ndarray] + [Busy] * 3
    assert towers.image.prepared == 1
    assert sample(towers, "rejected_total", limit="late") == 3
    assert towers.budget.held == 0


@pytest.mark.parametrize(("large", "cores"), [(10**6, 1), (20, 3)])
def test_what_a_picture_takes_is_learnt_from_its_decoding_and_the_cores_that_it_keeps(
    towers: Towers, monkeypatch: pytest.MonkeyPatch, large: int, cores: int
) -> None:
    now = [1000.0]
    monkeypatch.setattr(runner, "monotonic", lambda: now[0])
    monkeypatch.setattr(runners_module, "available_cpus", lambda: 3)
    monkeypatch.setattr(runners_module, "LARGE_PIXELS", large)
    prepare = towers.image.prepare

    def slow(image: Any) -> torch.Tensor:
        now[0] += 2.0
        return prepare(image)

    monkeypatch.setattr(towers.image, "prepare", slow)
    runners = make(towers)
    try:
        for _ in range(2):
            asyncio.run(runners.embed_image(picture(11), normalize=False))
    finally:
        runners.close()
    assert runners.image._prepare_seconds == pytest.approx((0.1 + 0.9 * 0.1) * 2.0 * cores)
    assert sample(towers, "stage_seconds_count", stage="decode", tower="image") == 2


def test_prepared_items_count_in_the_byte_budget(towers: Towers, runners: Runners) -> None:
    # 10 bytes an item, as the tower's probe says
    async def scene() -> None:
        with towers.budget.hold(985):
            towers.image.free.clear()
            first = asyncio.create_task(runners.embed_image(picture(4), normalize=False))
            await until(lambda: towers.image.batches)
            with pytest.raises(Busy, match="over the limit of 1,000"):
                await runners.embed_image(picture(4), normalize=False)
            towers.image.free.set()
            await first
            await runners.embed_image(picture(4), normalize=False)

    asyncio.run(scene())
    assert len(towers.refused) == 1
    assert towers.budget.held == 0


def test_of_a_large_request_a_part_is_worked_on_at_a_time(towers: Towers, runners: Runners) -> None:
    async def scene() -> None:
        towers.image.free.clear()
        many = asyncio.create_task(runners.embed_images([picture(4)] * 60, normalize=False))
        await until(lambda: towers.image.prepared == 16)  # twice the batch limit
        await asyncio.sleep(0.05)
        assert towers.image.prepared == 16
        lone = asyncio.create_task(runners.embed_image(picture(5), normalize=False))
        await until(lambda: towers.image.prepared == 17)
        towers.image.free.set()
        done, _ = await asyncio.wait({many, lone}, return_when=asyncio.FIRST_COMPLETED)
        assert done == {lone}  # before the other 44
        assert len(await many) == 60

    asyncio.run(scene())


def test_a_runner_that_dies_says_so_and_is_not_alive(towers: Towers, runners: Runners) -> None:
    assert runners.alive
    towers.text.fails = SystemExit("gone")
    with pytest.raises(NotReady, match="the text runner died: SystemExit: gone"):
        asyncio.run(runners.embed_text("a", normalize=True))
    assert not runners.alive
    asyncio.run(until(lambda: towers.deaths))  # told after those who waited
    assert towers.deaths == ["the text runner died: SystemExit: gone"]
    with pytest.raises(NotReady, match="died"):
        asyncio.run(runners.check())


def test_a_dead_runner_answers_no_item_of_many(towers: Towers, runners: Runners) -> None:
    towers.image.fails = SystemExit("gone")
    with pytest.raises(NotReady):
        asyncio.run(runners.embed_images([picture(4)] * 3, normalize=True))


def test_a_tower_that_hangs_is_noticed_and_fails_what_waits(
    towers: Towers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batching, "STUCK_SECONDS", 0.2)
    monkeypatch.setattr(runners_module, "TICK_SECONDS", 0.05)
    runners = make(towers)
    towers.image.free.clear()
    try:
        with pytest.raises(NotReady, match="the image tower has not answered"):
            asyncio.run(runners.embed_image(picture(4), normalize=True))
        assert not runners.alive
        asyncio.run(until(lambda: towers.deaths))  # told after those who waited
        asyncio.run(runners.embed_text("the other tower answers", normalize=True))
    finally:
        runners.close()  # does not wait for it
        towers.image.free.set()


def test_a_lost_device_ends_the_runner(towers: Towers, runners: Runners) -> None:
    towers.image.fails = torch.AcceleratorError("device-side assert")
    with pytest.raises(NotReady, match="device-side assert"):
        asyncio.run(runners.embed_image(picture(4), normalize=True))
    assert not runners.alive


def test_out_of_memory_lowers_the_batch_limit(towers: Towers, runners: Runners) -> None:
    towers.image.fails = torch.OutOfMemoryError("CUDA out of memory")
    with pytest.raises(torch.OutOfMemoryError):
        asyncio.run(runners.embed_image(picture(4), normalize=True))
    assert runners.image.queue.count_limit() == 1
    assert runners.alive


def test_a_tower_that_answered_lately_is_not_asked_again(towers: Towers, runners: Runners) -> None:
    asyncio.run(runners.embed_text("a", normalize=True))
    asyncio.run(runners.check())
    asyncio.run(runners.check())
    assert towers.text.batches == [1]


def test_a_quiet_tower_is_asked_for_an_embedding(
    towers: Towers, runners: Runners, monkeypatch: pytest.MonkeyPatch
) -> None:
    quiet(monkeypatch, 0.0)
    asyncio.run(runners.check())
    assert towers.text.batches == [1]


def test_a_tower_that_fails_is_not_healthy_until_it_answers_again(
    towers: Towers, runners: Runners, monkeypatch: pytest.MonkeyPatch
) -> None:
    quiet(monkeypatch, 0.0)
    towers.text.fails = RuntimeError("broken")
    with pytest.raises(NotReady, match="text tower fails: broken"):
        asyncio.run(runners.check())
    towers.text.fails = None
    asyncio.run(runners.check())


def test_a_tower_that_hangs_is_not_healthy_until_it_answers_again(
    towers: Towers, runners: Runners, monkeypatch: pytest.MonkeyPatch
) -> None:
    quiet(monkeypatch, 0.0)
    towers.text.free.clear()
    with pytest.raises(NotReady, match="text tower has not answered"):
        asyncio.run(runners.check())
    towers.text.free.set()
    asyncio.run(runners.check())


def test_many_who_ask_about_a_hanging_tower_wait_for_one_probe(
    towers: Towers, runners: Runners, monkeypatch: pytest.MonkeyPatch
) -> None:
    quiet(monkeypatch, 60.0)
    runners.text.answered = float("-inf")  # quiet for ever
    towers.text.free.clear()

    async def ask() -> list[Any]:
        return await asyncio.gather(*(runners.check() for _ in range(20)), return_exceptions=True)

    assert [type(answer) for answer in asyncio.run(ask())] == [NotReady] * 20
    assert towers.text.batches == [1]


def test_a_request_that_was_given_up_does_not_reach_the_tower(
    towers: Towers, runners: Runners
) -> None:
    async def scene() -> None:
        towers.text.free.clear()
        held = asyncio.create_task(runners.embed_text("held", normalize=True))
        await until(lambda: towers.text.batches)
        gone = asyncio.create_task(runners.embed_text("gone", normalize=True))
        await until(lambda: len(runners.text.queue) == 1)
        gone.cancel()
        with pytest.raises(asyncio.CancelledError):
            await gone
        towers.text.free.set()
        await held
        await runners.embed_text("next", normalize=True)

    asyncio.run(scene())
    assert towers.text.batches == [1, 1]
    assert sample(towers, "dropped_total", tower="text") == 1


def test_the_stages_are_measured(towers: Towers, runners: Runners) -> None:
    data = file_bytes(scene_image(1))
    asyncio.run(runners.embed_images([data] * 3, normalize=True))
    for stage in ("decode", "queue"):
        assert sample(towers, "stage_seconds_count", tower="image", stage=stage) == 3
    batches = len(towers.image.batches)
    assert sample(towers, "stage_seconds_count", tower="image", stage="device") == batches
    assert sample(towers, "batch_size_sum", tower="image") == 3
