"""`DTYPE=auto` chooses a lower precision only if it is faster and faithful."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Final

import pytest
import torch

from bento.encoder.embeddings import Embeddings
from bento.encoder.kernels.packing import PackedLinear
from bento.encoder.precision import settle_dtype
from tests.support.bento.architectures import HAS_ONEDNN, Pair

pytestmark = [pytest.mark.service, pytest.mark.usefixtures("restored_threads")]


class FakeTower:
    """A tower with a given behaviour in each dtype: its milliseconds, and its cosine to float32."""

    lanes = 1
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
        # the last item has this cosine to float32, the others are exact
        rows[-1, 0], rows[-1, 1] = cosine, max(0.0, 1 - cosine**2) ** 0.5
        return rows.numpy()


def settle(tower: FakeTower, wanted: str) -> None:
    """Settle the dtype of a tower by its own clock."""
    settle_dtype(tower, wanted, "cuda", clock=lambda: tower.now)


def settled(wanted: str = "auto", **behaviour: tuple[float, float]) -> FakeTower:
    """Return a tower with a settled dtype. In float32 it takes 4 ms by default."""
    tower = FakeTower(**behaviour)
    settle(tower, wanted)
    assert {weight.dtype for weight in tower.module.parameters()} == {getattr(torch, tower.dtype)}
    return tower


FAITHFUL_16: Final = 0.99995
FAITHFUL_B16: Final = 0.9995
SLOW: Final = (5.0, 1.0)


def test_auto_chooses_a_dtype_that_is_faithful_and_faster() -> None:
    assert settled(bfloat16=(1, FAITHFUL_B16), float16=SLOW).dtype == "bfloat16"
    assert settled(float16=(1, FAITHFUL_16), bfloat16=SLOW).dtype == "float16"


def test_auto_chooses_the_most_exact_of_two_faithful_and_faster_dtypes() -> None:
    assert settled(float16=(2, FAITHFUL_16), bfloat16=(1, FAITHFUL_B16)).dtype == "float16"
    assert settled(float16=(3.9, FAITHFUL_16), bfloat16=(1, FAITHFUL_B16)).dtype == "bfloat16"
    assert settled(float16=(1, 0.9), bfloat16=(2, FAITHFUL_B16)).dtype == "bfloat16"
    assert settled(float16=(2, FAITHFUL_16), bfloat16=(0.5, 0.9)).dtype == "float16"


class Disturbed(FakeTower):
    """A tower that is slow when it first computes in bfloat16, as if another process ran."""

    tries = 0

    def use(self, module: torch.nn.Module, dtype: str) -> None:
        super().use(module, dtype)
        self.tries += dtype == "bfloat16"

    def embed(self, items: Sequence[torch.Tensor]) -> Embeddings:
        if self.dtype == "bfloat16" and self.tries == 1:
            self.now += 0.01
        return super().embed(items)


def test_auto_measures_a_dtype_once_more_if_it_does_not_seem_faster() -> None:
    tower = Disturbed(bfloat16=(1, FAITHFUL_B16), float16=SLOW)
    settle(tower, "auto")
    assert (tower.dtype, tower.tries) == ("bfloat16", 2)
    assert {weight.dtype for weight in tower.module.parameters()} == {torch.bfloat16}


def test_auto_measures_16_bits_with_packed_weights(
    clip: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    tower = clip.model.encoder().text
    embed, measured, now = tower.embed, list[tuple[str, bool]](), [0.0]

    def watched(items: Any) -> Embeddings:
        packed = any(isinstance(part, PackedLinear) for part in tower.module.modules())
        measured.append((tower.dtype, packed))
        now[0] += 1.0 if tower.dtype == "float32" else 0.5
        return embed(items)

    monkeypatch.setattr(tower, "embed", watched)
    settle_dtype(tower, "auto", "cpu", pack=True, clock=lambda: now[0], candidates=["bfloat16"])
    assert measured == [("float32", False)] * 2 + [("bfloat16", HAS_ONEDNN)] * 2


def test_auto_stays_in_float32_if_the_gain_may_be_noise() -> None:
    slow = settled(float32=(20, 1.0), float16=(18.5, 1.0), bfloat16=(18.5, 1.0))
    assert slow.dtype == "float32"


@pytest.mark.parametrize(
    ("dtype", "cosine"),
    [("float16", 0.9998), ("bfloat16", 0.9985), ("bfloat16", -1.0), ("float16", float("nan"))],
)
def test_auto_rejects_a_dtype_that_is_unfaithful_in_one_item(dtype: str, cosine: float) -> None:
    behaviour = {"float16": SLOW, "bfloat16": SLOW, dtype: (1.0, cosine)}
    assert settled("auto", **behaviour).dtype == "float32"


def test_a_rejected_dtype_does_not_change_the_float32_weights() -> None:
    before = FakeTower().module.state_dict()
    after = settled(float16=(1, 0.5), bfloat16=(1, float("nan"))).module.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_a_rejected_dtype_does_not_change_the_weights_of_the_chosen_one() -> None:
    before = FakeTower().module.state_dict()
    after = settled(float16=(1, 0.5), bfloat16=(2, FAITHFUL_B16)).module.state_dict()
    assert all(torch.equal(before[name].bfloat16(), after[name]) for name in before)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_an_explicit_dtype_is_used_even_if_slow_and_unfaithful(dtype: str) -> None:
    assert settled(dtype, **{dtype: (9, 0.1)}).dtype == dtype


def test_auto_settles_the_dtype_of_real_towers(clip: Pair) -> None:
    encoder, exact = clip.model.encoder(dtype="auto"), clip.model.encoder()
    before = exact.image.module.state_dict()
    settled = encoder.image.module.state_dict()
    if encoder.image.dtype == "float32":
        assert before.keys() == settled.keys()
        assert all(torch.equal(before[name], settled[name]) for name in before)
    for tower in (encoder.text, encoder.image):
        assert tower.dtype in ("float32", "bfloat16", "float16")
        assert {w.dtype for w in tower.module.parameters()} == {getattr(torch, tower.dtype)}
