"""`DTYPE=auto` takes a lower precision only if it is faster and faithful."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Final

import numpy as np
import pytest
import torch

from bento.encoder.embeddings import Embeddings
from bento.encoder.kernels.packing import PackedLinear
from bento.encoder.precision import settle_dtype
from tests.support.bento.architectures import (
    HAS_ONEDNN,
    Pair,
)

pytestmark = pytest.mark.usefixtures("restored_threads")


class FakeTower:
    """A tower whose embeddings and speed depend on its dtype as a test says.

    A dtype takes `milliseconds`, and its embeddings have the `cosine` to float32's.
    """

    now = 0.0  # seconds

    def __init__(self, **behaviour: tuple[float, float]) -> None:
        torch.manual_seed(5)
        self.use(torch.nn.Linear(8, 8), "float32")
        self._behaviour = {"float32": (4.0, 1.0), **behaviour}

    def use(self, module: torch.nn.Module, dtype: str) -> None:
        self.module, self.dtype = module, dtype

    def warm_batches(self) -> Iterator[list[torch.Tensor]]:
        yield self.probe()

    def probe(self) -> list[torch.Tensor]:
        return list(torch.randn(6, 8, generator=torch.Generator().manual_seed(6)))

    def size(self, item: torch.Tensor) -> int:
        return 1

    def embed(self, items: Sequence[torch.Tensor]) -> Embeddings:
        milliseconds, cosine = self._behaviour[self.dtype]
        self.now += milliseconds / 1000
        weight = self.module.weight
        assert weight.dtype == getattr(torch, self.dtype)
        rows = torch.zeros(len(items), 8)
        rows[:, 0] = 1
        # the last item is as far off as is said, the others are right
        rows[-1, 0], rows[-1, 1] = cosine, max(0.0, 1 - cosine**2) ** 0.5
        return rows.numpy()


def settle(tower: FakeTower, wanted: str) -> None:
    """Settle a tower's dtype by the clock that goes as it says."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("bento.encoder.precision.perf_counter", lambda: tower.now)
        settle_dtype(tower, wanted, "cuda")


def settled(wanted: str = "auto", **behaviour: tuple[float, float]) -> FakeTower:
    """Settle a tower that starts in float32, at 4 ms, as on a device that has both dtypes."""
    tower = FakeTower(**behaviour)
    settle(tower, wanted)
    assert {weight.dtype for weight in tower.module.parameters()} == {getattr(torch, tower.dtype)}
    return tower


FAITHFUL_16: Final = 0.99995
FAITHFUL_B16: Final = 0.9995
SLOW: Final = (5.0, 1.0)


def test_auto_takes_a_dtype_that_is_faithful_and_faster() -> None:
    assert settled(bfloat16=(1, FAITHFUL_B16), float16=SLOW).dtype == "bfloat16"
    assert settled(float16=(1, FAITHFUL_16), bfloat16=SLOW).dtype == "float16"


def test_auto_takes_the_most_exact_of_those_that_are_faithful_and_faster() -> None:
    assert settled(float16=(2, FAITHFUL_16), bfloat16=(1, FAITHFUL_B16)).dtype == "float16"
    assert settled(float16=(3.9, FAITHFUL_16), bfloat16=(1, FAITHFUL_B16)).dtype == "bfloat16"
    assert settled(float16=(1, 0.9), bfloat16=(2, FAITHFUL_B16)).dtype == "bfloat16"
    assert settled(float16=(2, FAITHFUL_16), bfloat16=(0.5, 0.9)).dtype == "float16"


class Disturbed(FakeTower):
    """Is slow the first time that it computes in bfloat16, as if something else ran just then."""

    tries = 0

    def use(self, module: torch.nn.Module, dtype: str) -> None:
        super().use(module, dtype)
        self.tries += dtype == "bfloat16"

    def embed(self, items: Sequence[torch.Tensor]) -> Embeddings:
        if self.dtype == "bfloat16" and self.tries == 1:
            self.now += 0.01
        return super().embed(items)


def test_auto_measures_once_more_what_does_not_seem_faster() -> None:
    tower = Disturbed(bfloat16=(1, FAITHFUL_B16), float16=SLOW)
    settle(tower, "auto")
    assert (tower.dtype, tower.tries) == ("bfloat16", 2)
    assert {weight.dtype for weight in tower.module.parameters()} == {torch.bfloat16}


def test_auto_measures_16_bits_as_they_will_run(
    clip: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured = []

    def timed(tower: Any, items: Any) -> tuple[Embeddings, float]:
        packed = any(isinstance(part, PackedLinear) for part in tower.module.modules())
        measured.append((tower.dtype, packed))
        return np.ones((1, 8), np.float32), 1.0 if tower.dtype == "float32" else 0.5

    monkeypatch.setattr("bento.encoder.precision._timed", timed)
    monkeypatch.setattr("bento.encoder.precision._candidates", lambda device: ["bfloat16"])
    clip.model.encoder(dtype="auto")
    assert measured == 2 * [("float32", False), ("bfloat16", HAS_ONEDNN)]


def test_auto_stays_in_float32_for_a_gain_that_may_be_noise() -> None:
    slow = settled(float32=(20, 1.0), float16=(18.5, 1.0), bfloat16=(18.5, 1.0))
    assert slow.dtype == "float32"


@pytest.mark.parametrize(
    ("dtype", "cosine"),
    [("float16", 0.9998), ("bfloat16", 0.9985), ("bfloat16", -1.0), ("float16", float("nan"))],
)
def test_auto_refuses_a_dtype_that_is_off_in_one_item_however_fast(
    dtype: str, cosine: float
) -> None:
    behaviour = {"float16": SLOW, "bfloat16": SLOW, dtype: (1, cosine)}
    assert settled(**behaviour).dtype == "float32"


def test_a_refused_dtype_leaves_the_float32_weights_bit_for_bit_as_they_were() -> None:
    before = FakeTower().module.state_dict()
    after = settled(float16=(1, 0.5), bfloat16=(1, float("nan"))).module.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_auto_has_no_trace_of_a_refused_dtype_in_the_one_that_it_takes() -> None:
    before = FakeTower().module.state_dict()
    after = settled(float16=(1, 0.5), bfloat16=(2, FAITHFUL_B16)).module.state_dict()
    assert all(torch.equal(before[name].bfloat16(), after[name]) for name in before)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_an_explicit_dtype_is_obeyed_though_slow_and_unfaithful(dtype: str) -> None:
    assert settled(dtype, **{dtype: (9, 0.1)}).dtype == dtype


def test_auto_on_a_real_tower_leaves_float32_weights_as_they_were_or_takes_a_faithful_dtype(
    clip: Pair,
) -> None:
    encoder, exact = clip.model.encoder(dtype="auto"), clip.model.encoder()
    before = exact.image.module.state_dict()
    settled = encoder.image.module.state_dict()
    if encoder.image.dtype == "float32":
        assert before.keys() == settled.keys()
        assert all(torch.equal(before[name], settled[name]) for name in before)
    for tower in (encoder.text, encoder.image):
        assert tower.dtype in ("float32", "bfloat16", "float16")
        assert {w.dtype for w in tower.module.parameters()} == {getattr(torch, tower.dtype)}
