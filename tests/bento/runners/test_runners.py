"""The runners: from the texts and images of a request to their embeddings."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import numpy as np
import pytest
import torch

from bento.contract.errors import EncoderError, NotAnImage
from bento.encoder.cpus import AllCores
from bento.runners.runners import Runners
from tests.bento.runners.towers import Towers, picture, until
from tests.support.pictures import file_bytes, scene_image

pytestmark = pytest.mark.service


def test_the_warm_up_skips_a_batch_that_exceeds_the_memory(
    towers: Towers, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    items = [torch.tensor([1])] * 8
    embed = towers.image.embed

    def at_most_four(batch: list[torch.Tensor]) -> Any:
        if len(batch) > 4:
            raise MemoryError
        return embed(batch)

    monkeypatch.setattr(towers.image, "warm_batches", lambda: [items, items[:4], items[:1]])
    monkeypatch.setattr(towers.image, "embed", at_most_four)
    runners = towers.runners()
    runners.close()
    assert towers.image.batches == [4, 4, 1, 1]
    assert (
        "the device has too little memory for a batch of 8 in the image queue: lower MAX_BATCH_SIZE"
    ) in caplog.text


def test_the_runners_do_not_start_if_a_warm_up_fails(
    towers: Towers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(towers.text, "warm_batches", lambda: [[torch.tensor([1])]])
    towers.text.fails = RuntimeError("no kernel")
    with pytest.raises(RuntimeError, match="no kernel"):
        towers.runners()


def test_an_embedding_is_normalized_on_request(runners: Runners) -> None:
    raw = asyncio.run(runners.embed_text("ab", normalize=False))
    np.testing.assert_array_equal(raw, [6, 8])
    unit = asyncio.run(runners.embed_text("ab", normalize=True))
    np.testing.assert_allclose(unit, [0.6, 0.8])


def test_the_embeddings_of_many_texts_keep_their_order(towers: Towers, runners: Runners) -> None:
    texts = ["x" * (i % 50 + 1) for i in range(200)]
    raw, tokens = asyncio.run(runners.embed_texts(texts, normalize=False))
    np.testing.assert_array_equal(raw[:, 0], [3 * len(text) for text in texts])
    assert tokens == sum(map(len, texts))
    assert max(towers.text.batches) > 1


def test_a_bad_image_of_a_batch_request_fails_alone(runners: Runners) -> None:
    images = [picture(5), b"text", picture(7), b""]
    rows = asyncio.run(runners.embed_images(images, normalize=False))
    np.testing.assert_array_equal(rows[0], [15, 20])
    np.testing.assert_array_equal(rows[2], [21, 28])
    assert isinstance(rows[1], NotAnImage)
    assert isinstance(rows[3], EncoderError)


def test_an_image_on_which_the_device_fails_has_its_own_error(
    towers: Towers, runners: Runners
) -> None:
    towers.image.fails = RuntimeError("kernel")
    (row,) = asyncio.run(runners.embed_images([picture(5)], normalize=False))
    assert isinstance(row, EncoderError)
    assert row.code == "internal_error"
    assert str(row) == "the service failed on this image; its log has the reason"
    assert towers.metric("failed_total", tower="image") == 1


def test_a_large_picture_is_decoded_by_the_thread_for_large_pictures(
    towers: Towers, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads: list[str] = []
    prepare = towers.image.prepare

    def watched(image: Any) -> torch.Tensor:
        threads.append(threading.current_thread().name.rpartition("_")[0])
        return prepare(image)

    monkeypatch.setattr(towers.image, "prepare", watched)
    runners = towers.runners(large_pixels=20)
    try:
        asyncio.run(runners.embed_image(picture(10), normalize=True))
        asyncio.run(runners.embed_image(picture(11), normalize=True))
    finally:
        runners.close()
    assert threads == ["prepare", "prepare-large"]


def test_image_batches_have_few_sizes_on_a_cpu(towers: Towers) -> None:
    runners = towers.runners(max_batch_size=16)

    async def both() -> None:
        await asyncio.gather(
            runners.embed_image(picture(4), normalize=False),
            runners.embed_text("a", normalize=False),
        )

    async def scene() -> None:
        for tower in (towers.text, towers.image):
            tower.free.clear()
        tasks = [asyncio.create_task(both())]
        await until(lambda: towers.image.batches and towers.text.batches)
        tasks += [asyncio.create_task(both()) for _ in range(11)]
        await until(lambda: len(runners.image.queue) == len(runners.text.queue) == 11)
        for tower in (towers.text, towers.image):
            tower.free.set()
        await asyncio.gather(*tasks)

    try:
        asyncio.run(scene())
    finally:
        runners.close()
    assert towers.image.batches == [1, 8, 3]
    assert towers.text.batches == [1, 11]


def test_whole_batches_of_both_towers_share_a_thread_and_per_core_batches_have_one_core(
    towers: Towers,
) -> None:
    before = torch.get_num_threads()
    towers.all_cores = AllCores(3)
    towers.image.lanes = 3
    runners = towers.runners(cpus=3)

    async def scene() -> None:
        await runners.embed_text("a", normalize=False)
        towers.image.free.clear()
        images = [asyncio.create_task(runners.embed_image(picture(4), normalize=False))]
        await until(lambda: towers.image.batches)
        images += [
            asyncio.create_task(runners.embed_image(picture(4), normalize=False)) for _ in range(4)
        ]
        await until(lambda: len(runners.image.queue) == 4)
        towers.image.free.set()
        await asyncio.gather(*images)

    try:
        asyncio.run(scene())
    finally:
        runners.close()
        torch.set_num_threads(before)
    assert sum(towers.image.batches) == 5
    computed = {cores for cores in towers.image.cores if not cores[0].startswith("prepare")}
    assert computed == {("all-cores", 3), ("runner-image", 1)}
    assert ("all-cores", 3) in towers.text.cores
    prepared = towers.image.cores | towers.text.cores
    assert {count for name, count in prepared if name.startswith("prepare")} == {1}


def test_the_texts_of_a_request_are_one_batch(towers: Towers, runners: Runners) -> None:
    asyncio.run(runners.embed_texts(["a"] * 8, normalize=False))
    assert towers.text.batches == [8]


def test_the_metrics_record_each_stage(towers: Towers, runners: Runners) -> None:
    data = file_bytes(scene_image(1))
    asyncio.run(runners.embed_images([data] * 3, normalize=True))
    for stage in ("decode", "queue"):
        assert towers.metric("stage_seconds_count", tower="image", stage=stage) == 3
    batches = len(towers.image.batches)
    assert towers.metric("stage_seconds_count", tower="image", stage="device") == batches
    assert towers.metric("batch_size_sum", tower="image") == 3
