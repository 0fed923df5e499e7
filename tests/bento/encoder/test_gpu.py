"""The towers give the same embeddings on a GPU as on a CPU."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final

import numpy as np
import pytest
import torch

from bento import Encoder, Settings
from bento.encoder.embeddings import Embeddings, normalized
from bento.encoder.precision import FIDELITY
from bento.encoder.tower import Tower, out_of_memory
from bento.runners.batching import BatchQueue
from bento.runners.policy import Limits
from bento.web.metrics import Metrics, TowerMetrics
from tests.support.corpus import TEXTS
from tests.support.paths import BUNDLED, ROOT
from tests.support.pictures import scene_image
from tests.support.serving import serving

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
pytestmark = [pytest.mark.service, needs_gpu]

MOST: Final = 20  # the sizes are 1, 2, 4, 8, 16, 20: batches of 17 to 19 are padded to 20
SEEDS: Final = range(MOST)
DTYPES: Final = ["float32", "float16", "bfloat16"]


def load(**settings: Any) -> Encoder:
    return Encoder.load(
        Settings(
            **{
                "model_name": BUNDLED,
                "device": "cuda",
                "dtype": "float32",
                "max_batch_size": MOST,
                **settings,
            }
        )
    )


@pytest.fixture(scope="module", params=[None, *DTYPES[1:]], ids=DTYPES)
def on_gpu(request: pytest.FixtureRequest) -> Iterator[Encoder]:
    encoder = load(dtype=request.param or "float32")
    yield encoder
    del encoder
    torch.cuda.empty_cache()


@pytest.fixture(scope="module")
def text_rows(encoder: Encoder) -> Embeddings:
    return encoder.encode_texts(TEXTS)


@pytest.fixture(scope="module")
def image_rows(encoder: Encoder) -> Embeddings:
    return encoder.encode_images([scene_image(seed) for seed in SEEDS])


def assert_close(rows: Embeddings, wanted: Embeddings, dtype: str) -> None:
    rows = normalized(rows)
    if dtype == "float32":
        assert np.abs(rows - wanted).max() <= 1e-5
    else:
        assert (rows * wanted).sum(axis=-1).min() >= FIDELITY[dtype]


def prepared(tower: Any, items: Sequence[Any]) -> list[torch.Tensor]:
    return [tower.prepare(item) for item in items]


def test_texts_of_every_length_in_batches_of_every_size(
    on_gpu: Encoder, text_rows: Embeddings
) -> None:
    items = prepared(on_gpu.text, TEXTS)
    rng = np.random.default_rng(0)
    for size in (*range(1, MOST + 1), *range(MOST, 0, -1)):  # small batches after large ones too
        of = rng.choice(len(items), size, replace=False)
        rows = on_gpu.text.embed([items[i] for i in of])
        assert_close(rows, text_rows[of], on_gpu.text.dtype)


def test_images_in_batches_of_every_size(on_gpu: Encoder, image_rows: Embeddings) -> None:
    items = prepared(on_gpu.image, [scene_image(seed) for seed in SEEDS])
    assert {item.device.type for item in items} == {"cuda"}
    for size in (*range(1, MOST + 1), *range(MOST, 0, -1)):
        of = np.arange(MOST)[MOST - size :]
        rows = on_gpu.image.embed([items[i] for i in of])
        assert_close(rows, image_rows[of], on_gpu.image.dtype)


def test_both_towers_at_once_while_images_are_prepared(
    on_gpu: Encoder, text_rows: Embeddings, image_rows: Embeddings
) -> None:
    texts = prepared(on_gpu.text, TEXTS)

    def embed_texts(seed: int) -> None:
        of = np.random.default_rng(seed).choice(len(texts), 1 + seed % MOST, replace=False)
        assert_close(on_gpu.text.embed([texts[i] for i in of]), text_rows[of], on_gpu.text.dtype)

    def embed_images(seed: int) -> None:
        of = np.random.default_rng(seed).choice(MOST, 1 + seed % MOST, replace=False)
        items = list(pool.map(on_gpu.image.prepare, [scene_image(int(i)) for i in of]))
        assert_close(on_gpu.image.embed(items), image_rows[of], on_gpu.image.dtype)

    # one thread per tower, as in its runner
    with ThreadPoolExecutor(1) as one, ThreadPoolExecutor(1) as two, ThreadPoolExecutor(4) as pool:
        done = [one.submit(embed_texts, seed) for seed in range(300)]
        done += [two.submit(embed_images, seed) for seed in range(60)]
        for future in done:
            future.result()


def test_the_graphs_of_both_towers_are_recorded(caplog: pytest.LogCaptureFixture) -> None:
    encoder = load()
    with caplog.at_level(logging.WARNING, "vision_encoder"):
        for tower in (encoder.text, encoder.image):
            before = torch.cuda.memory_allocated()
            for batch in tower.warm_batches():
                tower.embed(batch)
            assert torch.cuda.memory_allocated() > before
    assert not caplog.records


def run(program: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", program],
        cwd=ROOT,
        env={**os.environ, "MODEL_NAME": BUNDLED},
        capture_output=True,
        text=True,
        timeout=120,
    )


FAIL_TO_RECORD: Final = """
import numpy as np
import torch
from bento import Encoder, Settings
from tests.support.pictures import scene_image

encoder = Encoder.load(Settings(device="cuda", dtype="float32"))
items = [encoder.image.prepare(scene_image(seed)) for seed in range(4)]
rows = encoder.image.embed(items)
visual = encoder.image.module


class Waits(torch.nn.Module):
    def forward(self, x):
        torch.cuda.current_stream().synchronize()  # makes a recording fail
        return visual(x)


encoder.image.use(Waits(), "float32")
for size in (1, 3, 4, 3):
    print(np.abs(encoder.image.embed(items[:size]) - rows[:size]).max())
"""


def test_a_forward_pass_that_cannot_be_recorded_runs_without_a_graph() -> None:
    # in a new process, because torch's allocator is unusable after a failed recording
    done = run(FAIL_TO_RECORD)
    assert [float(line) < 1e-4 for line in done.stdout.split()] == [True] * 4, done.stderr
    assert "run without a CUDA graph, because it cannot be recorded" in done.stderr


# inductor recommends TF32, which is not float32
@pytest.mark.filterwarnings("ignore:TensorFloat32 tensor cores")
def test_a_compiled_tower_gives_the_same_embeddings(image_rows: Embeddings) -> None:
    encoder = load(compile=True, max_batch_size=4)
    items = prepared(encoder.image, [scene_image(seed) for seed in SEEDS])
    for batch in encoder.image.warm_batches():
        encoder.image.embed(batch)
    for size in (1, 2, 3, 4, 3):
        rows = normalized(encoder.image.embed(items[:size]))
        assert np.abs(rows - image_rows[:size]).max() <= 1e-4
    torch.compiler.reset()


def test_a_batch_that_exceeds_the_memory_is_halved(image_rows: Embeddings) -> None:
    encoder = load()
    items = prepared(encoder.image, [scene_image(seed) for seed in SEEDS])
    visual = encoder.image.module

    class Hungry(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> Any:
            torch.empty(len(x) << 28, dtype=torch.uint8, device=x.device)  # 256 MB per image
            return visual(x)

    encoder.image.use(Hungry(), "float32")
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(0).total_memory
    allowed = torch.cuda.memory_reserved() + (9 << 28)
    torch.cuda.set_per_process_memory_fraction(allowed / total)
    queue = queue_of(encoder.image)
    try:
        futures = [queue.submit(item) for item in items]
        rows = np.stack([future.result(60) for future in futures])
        assert queue.count_limit() <= 5
    finally:
        queue.close()
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert_close(rows, image_rows, "float32")


def queue_of(tower: Tower) -> BatchQueue[torch.Tensor, Embeddings]:
    return BatchQueue(
        "image",
        lambda items: list(tower.embed(items)),
        Limits(MOST),
        TowerMetrics(Metrics(workers=1), "image"),
        exhausted=out_of_memory,
    )


LOSE: Final = """
import torch
from bento import Encoder, Settings
from bento.encoder.tower import device_lost

encoder = Encoder.load(Settings(device="cuda", dtype="float32"))
encoder.encode_texts(["a red circle"])
for tokens in ([10**6], [1]):  # an id beyond the vocabulary, then a valid one
    try:
        encoder.text.embed([torch.tensor(tokens)])
    except Exception as error:
        print(device_lost(error), end=" ")
    else:
        print("answered", end=" ")
"""


def test_a_lost_device_is_recognized_and_stays_lost() -> None:
    done = run(LOSE)
    assert done.stdout.split() == ["True", "True"], done.stderr


def test_the_service_reports_its_gpu_and_its_memory(tmp_path: Path) -> None:
    with (
        serving(tmp_path, DEVICE="auto", DTYPE="auto", QDRANT_ENABLED="false") as server,
        server.client() as client,
    ):
        health = client.get("/health").json()
        metrics = client.get("/metrics").text
    assert health["device"].startswith("cuda")
    assert health["cuda_available"] is True
    assert health["gpu_name"] == torch.cuda.get_device_name()
    (held,) = (
        float(line.split()[1])
        for line in metrics.splitlines()
        if line.startswith("vision_encoder_device_memory_bytes ")
    )
    assert held > 1e6
