"""The kernels compute the same as the layers that they replace."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from open_clip.transformer import QuickGELU, ResidualAttentionBlock, VisionTransformer
from PIL import Image

from bento.encoder.kernels.attention import LastBlock
from bento.encoder.kernels.graphs import Graphs, sizes
from bento.encoder.kernels.packing import PackedLinear, PackedPatches, pack_weights
from tests.support.bento.architectures import (
    ARCHITECTURES,
    HAS_ONEDNN,
    Model,
    Pair,
    assert_same,
)
from tests.support.corpus import TEXTS

pytestmark = [pytest.mark.service, pytest.mark.usefixtures("restored_threads")]

needs_onednn = pytest.mark.skipif(not HAS_ONEDNN, reason="needs a torch with oneDNN")


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(
    "behind", [None, torch.nn.GELU("none"), torch.nn.GELU("tanh"), torch.nn.SiLU()], ids=str
)
def test_a_packed_layer_computes_the_same_as_its_original(bias: bool, behind: Any) -> None:
    torch.manual_seed(1)
    layer = torch.nn.Linear(48, 96, bias=bias).bfloat16()
    for shape in ((1, 48), (1, 7, 48), (3, 50, 48)):
        x = torch.randn(shape).bfloat16()
        with torch.inference_mode():
            got, wanted = PackedLinear(layer.weight, layer.bias, behind)(x), layer(x)
            wanted = behind(wanted) if behind else wanted
        assert got.dtype == torch.bfloat16
        torch.testing.assert_close(got, wanted, rtol=2**-7, atol=2**-7)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_quick_gelu_becomes_silu(tmp_path: Path, dtype: str) -> None:
    encoder = Model(ARCHITECTURES["clip_quickgelu"], tmp_path).encoder(dtype=dtype)
    layers = [*encoder.text.module.modules(), *encoder.image.module.modules()]
    kinds = [type(layer) for layer in layers]
    assert QuickGELU not in kinds
    # a CPU with the instructions for it fuses SiLU into packed products
    fused = [layer for layer in layers if getattr(layer, "_then", ("",))[0] == "swish"]
    assert kinds.count(torch.nn.SiLU) + len(fused) == 4
    assert not fused or dtype == "bfloat16"


@needs_onednn
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(8, 8), (16, 24), (19, 30)])  # the last has a margin
def test_packed_patches_compute_the_same_as_the_convolution(
    bias: bool, shape: tuple[int, int]
) -> None:
    torch.manual_seed(1)
    conv = torch.nn.Conv2d(3, 48, kernel_size=8, stride=8, bias=bias).bfloat16()
    x = torch.randn(2, 3, *shape).bfloat16()
    with torch.inference_mode():
        got, wanted = PackedPatches(conv)(x), conv(x)
    torch.testing.assert_close(got, wanted, rtol=2**-7, atol=2**-7)


@pytest.mark.parametrize(
    "options", [{"padding": 1}, {"stride": 4}, {"dilation": 2}, {"kernel_size": (8, 4)}], ids=str
)
def test_other_convolutions_are_not_packed(clip: Pair, options: dict[str, Any]) -> None:
    visual = copy.deepcopy(clip.model.model.visual).bfloat16()
    usual = {"kernel_size": 8, "stride": 8, "bias": False}
    visual.conv1 = torch.nn.Conv2d(3, 64, **usual | options).bfloat16()
    pack_weights(visual)
    assert isinstance(visual.conv1, torch.nn.Conv2d)


def test_only_the_layers_of_bfloat16_towers_are_packed(pair: Pair) -> None:
    def packed(dtype: str) -> tuple[int, int]:
        encoder = pair.model.encoder(dtype=dtype)
        layers = [*encoder.text.module.modules(), *encoder.image.module.modules()]
        kinds = [type(layer) for layer in layers]
        for block in layers:
            if dtype == "bfloat16" and isinstance(block, LastBlock):
                assert not any(isinstance(layer, torch.nn.Linear) for layer in block.modules())
        return kinds.count(PackedLinear), kinds.count(PackedPatches)

    blocks = [b for b in pair.model.model.modules() if isinstance(b, ResidualAttentionBlock)]
    assert packed("float32") == packed("float16") == (0, 0)
    linear, patches = packed("bfloat16")
    assert linear >= 2 * len(blocks)
    assert patches == isinstance(pair.model.model.visual, VisionTransformer)


@pytest.mark.parametrize(
    ("name", "text", "image"),
    [
        ("clip_eos", True, True),
        ("layer_scale", True, True),
        ("clip_resnet", True, False),
        ("both_ways", False, True),
        ("clipa", False, False),
        ("coca", False, False),
        ("custom_blocks", False, False),
    ],
)
def test_the_last_block_computes_only_the_token_at_the_pooling_position(
    name: str, text: bool, image: bool, tmp_path: Path
) -> None:
    encoder = Model(ARCHITECTURES[name], tmp_path).encoder()
    computed: list[torch.Tensor] = []
    for tower, items, one in (
        (encoder.text, encoder.text.probe()[:3], text),
        (encoder.image, encoder.image.probe()[:1] * 3, image),
    ):
        blocks = [
            m
            for m in tower.module.modules()
            if isinstance(getattr(m, "mlp", None), torch.nn.Module)
        ]
        if blocks:  # a ResNet has none
            blocks[-1].mlp.register_forward_hook(lambda _, given, __: computed.append(given[0]))
        computed.clear()
        tower.embed(items)
        assert [x.shape[1] == 1 for x in computed] == [one] * bool(blocks)


# ---- CUDA graphs, with a fake that runs on a CPU


class FakeGraphs(Graphs):
    """Graphs that repeat the forward pass on the CPU, and overwrite their result as CUDA does."""

    def __init__(self, forward: Callable[[torch.Tensor], torch.Tensor], most: int) -> None:
        super().__init__(forward, "cpu", sizes(most))
        self.shapes: list[tuple[int, ...]] = []

    def record(self, given: torch.Tensor) -> Callable[[], torch.Tensor]:
        self.shapes.append(tuple(given.shape))
        result = self.forward(given).clone()

        def replay() -> torch.Tensor:
            return result.copy_(self.forward(given))

        return replay


def test_graphs_of_texts_have_few_shapes_and_do_not_mix_items(clip: Pair) -> None:
    encoder = clip.model.encoder(max_batch_size=10)
    tower, texts = encoder.text, list(dict.fromkeys(TEXTS))
    tower.graphs = graphs = FakeGraphs(tower.forward, 10)
    wanted = clip.model.texts(texts, normalize=False)
    rng = np.random.default_rng(0)
    for count in (*range(1, 11), *range(10, 0, -1)):
        of = rng.choice(len(texts), count, replace=False)
        got = encoder.encode_texts([texts[i] for i in of], normalize=False)
        assert_same(got, wanted[of], [texts[i] for i in of])
    seen = set(graphs.shapes)
    assert len(seen) == len(graphs.shapes)
    warmed = {(len(batch), len(batch[0])) for batch in tower.warm_batches()}
    assert seen <= warmed
    assert {count for count, _ in warmed} == {1, 2, 4, 8, 10}


def test_graphs_of_images_have_few_shapes_and_do_not_mix_items(
    clip: Pair, pictures: dict[str, Image.Image]
) -> None:
    encoder = clip.model.encoder(max_batch_size=10)
    names = list(pictures)[:10]
    encoder.image.graphs = graphs = FakeGraphs(encoder.image.forward, 10)
    wanted = clip.model.images([pictures[name] for name in names], normalize=False)
    for count in (*range(1, 11), *range(10, 0, -1)):
        got = encoder.encode_images([pictures[name] for name in names[-count:]], normalize=False)
        assert_same(got, wanted[-count:], names[-count:])
    assert sorted(shape[0] for shape in graphs.shapes) == [1, 2, 4, 8, 10]
    assert [len(batch) for batch in encoder.image.warm_batches()] == [10, 8, 4, 2, 1]


def test_out_of_memory_during_a_recording_frees_the_other_graphs() -> None:
    def forward(batch: torch.Tensor) -> torch.Tensor:
        if len(batch) > 4:
            raise torch.OutOfMemoryError
        return batch + 1

    graphs = FakeGraphs(forward, 8)
    assert graphs(torch.zeros(3, 2)).sum() == 6
    with pytest.raises(torch.OutOfMemoryError):
        graphs(torch.zeros(5, 2))
    assert graphs(torch.zeros(3, 2)).sum() == 6
    assert graphs.shapes == [(4, 2), (8, 2), (4, 2)]


def test_a_batch_beyond_all_sizes_is_not_padded() -> None:
    graphs = FakeGraphs(lambda batch: batch + 1, 4)
    assert graphs(torch.zeros(6, 2)).sum() == 12
    assert graphs.shapes == [(6, 2)]


def test_batches_are_padded_to_few_sizes() -> None:
    assert sizes(1) == [1]
    assert sizes(32) == [1, 2, 4, 8, 16, 24, 32]
    assert sizes(100) == [1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 100]
