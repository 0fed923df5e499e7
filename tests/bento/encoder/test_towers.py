"""The towers of every architecture give what OpenCLIP's own model gives, one item at a time."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

import numpy as np
import open_clip
import pytest
import torch
from open_clip.tokenizer import SimpleTokenizer
from open_clip.transformer import ResidualAttentionBlock, VisionTransformer
from PIL import Image
from torchvision.transforms import (
    CenterCrop,
    Compose,
    ConvertImageDtype,
    Normalize,
    Resize,
    ToTensor,
)

from bento import Encoder, Settings
from bento.contract.errors import ModelLoadError
from bento.encoder.images import decode_image
from bento.encoder.kernels.attention import LastBlock
from bento.encoder.kernels.graphs import Graphs, sizes
from bento.encoder.kernels.packing import PackedLinear, PackedPatches, pack_weights
from bento.encoder.model import Embeddings
from bento.encoder.towers import ImageTower, TextTower, _groups, settle_dtype
from tests.support.corpus import TEXTS, images
from tests.support.reference import Reference

TOLERANCE: Final = 1e-5
DIM: Final = 64
CONTEXT: Final = 20
LONG: Final = "a red dog sits on the mat " * 10
WIDE: Final = (32, 48)

HAS_ONEDNN: Final = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
needs_onednn = pytest.mark.skipif(not HAS_ONEDNN, reason="this torch has no oneDNN")

VIT: Final = {"image_size": 32, "patch_size": 8, "width": 64, "head_width": 32, "layers": 2}
RESNET: Final = {"image_size": 64, "layers": (1, 1, 1, 1), "width": 16, "head_width": 32}
TIMM: Final = {"image_size": 32, "timm_model_name": "test_vit", "timm_pool": "map"} | {
    "timm_proj": "none"
}
TEXT: Final = {"context_length": CONTEXT, "width": 48, "heads": 4, "layers": 2}
BOTH_WAYS: Final = {"no_causal_mask": True}
EOS: Final = {"pool_type": "eos", "eos_id": 2}
CUSTOM: Final = {"qk_norm": True, "scale_heads": True, "scale_attn": True, "scale_fc": True}


@dataclass(frozen=True)
class Architecture:
    """How to build a model, and whether its texts can be cut at their end."""

    kind: Callable[..., Any]
    vision: dict[str, Any]
    text: dict[str, Any]
    cuts: bool
    others: dict[str, Any]

    @property
    def image_size(self) -> Any:
        return self.vision["image_size"]


def _architecture(
    kind: Callable[..., Any],
    vision: dict[str, Any],
    text: dict[str, Any],
    *,
    cuts: bool,
    **others: Any,
) -> Architecture:
    return Architecture(kind, vision, TEXT | text, cuts, others)


CLIP, CUSTOM_TEXT = open_clip.CLIP, open_clip.CustomTextCLIP
ARCHITECTURES: Final = {
    "clip": _architecture(CLIP, VIT, {}, cuts=True),
    "clip_quickgelu": _architecture(CLIP, VIT, {}, cuts=True, quick_gelu=True),
    "clip_resnet": _architecture(CLIP, RESNET, {}, cuts=True),
    "clip_wide": _architecture(CLIP, VIT | {"image_size": WIDE}, {}, cuts=True),
    "clip_eos": _architecture(CLIP, VIT, EOS, cuts=True),  # worldwide
    "clip_eos_0": _architecture(CLIP, VIT, EOS | {"eos_id": 0}, cuts=False),  # the padding
    "clipa": _architecture(
        CLIP,
        VIT | {"pool_type": "avg", "final_ln_after_pool": True},
        BOTH_WAYS | {"pool_type": "last"},
        cuts=False,
    ),
    "custom_text": _architecture(CUSTOM_TEXT, VIT, {}, cuts=True),  # MobileCLIP-B
    "layer_scale": _architecture(
        CUSTOM_TEXT, VIT | {"ls_init_value": 0.5}, {"ls_init_value": 0.5}, cuts=True
    ),
    "one_layer": _architecture(CLIP, VIT | {"layers": 1}, {"layers": 1}, cuts=True),
    "custom_text_eos": _architecture(CUSTOM_TEXT, VIT, EOS | {"proj_bias": True}, cuts=True),
    "custom_blocks": _architecture(
        CUSTOM_TEXT, VIT | CUSTOM, CUSTOM | {"ls_init_value": 0.5}, cuts=True
    ),
    "both_ways": _architecture(CUSTOM_TEXT, VIT, BOTH_WAYS, cuts=False),  # MobileCLIP-S1
    "siglip": _architecture(
        CUSTOM_TEXT,
        TIMM,
        BOTH_WAYS | {"pool_type": "last", "proj_bias": True},
        cuts=False,
        init_logit_bias=-10,
    ),
    "coca": _architecture(
        open_clip.CoCa,
        VIT
        | {"attentional_pool": True, "attn_pooler_queries": 8, "attn_pooler_heads": 4}
        | {"output_tokens": True},
        {"embed_cls": True, "output_tokens": True},
        cuts=False,
        multimodal_cfg=TEXT | {"attn_pooler_heads": 4},
    ),
    "hugging_face": _architecture(
        CUSTOM_TEXT, VIT, {"hf_model_name": "a folder", "hf_model_pretrained": False}, cuts=False
    ),
}


class EndsIn2(SimpleTokenizer):
    """A tokenizer whose end-of-text token is not the highest one, as those of other models."""

    def __call__(self, *args: Any, **options: Any) -> torch.Tensor:
        tokens = super().__call__(*args, **options)
        ends, twos = tokens == self.eot_token_id, tokens == 2
        return tokens.masked_fill(ends, 2).masked_fill(twos, self.eot_token_id)


class Model(Reference):
    """An OpenCLIP model with random weights, by hand and as an encoder."""

    def __init__(self, architecture: Architecture, folder: Path) -> None:
        text = dict(architecture.text)
        if "hf_model_name" in text:
            text["hf_model_name"] = bert_config(folder)
        torch.manual_seed(3)
        model = architecture.kind(
            embed_dim=DIM, vision_cfg=architecture.vision, text_cfg=text, **architecture.others
        )
        _shake(model)
        preprocess = open_clip.image_transform(
            architecture.image_size,
            is_train=False,
            mean=open_clip.OPENAI_DATASET_MEAN,
            std=open_clip.OPENAI_DATASET_STD,
        )
        self._tokenizer = EndsIn2 if text.get("eos_id") == 2 else SimpleTokenizer
        super().__init__(model, preprocess, self._tokenizer(context_length=CONTEXT))

    def encoder(self, **settings: Any) -> Encoder:
        """Return an encoder with a copy of this model: it takes what it is given apart."""
        return Encoder(
            copy.deepcopy(self.model),
            self.preprocess,
            self._tokenizer(context_length=CONTEXT),
            # so many workers leave one thread to each: models this small gain nothing by more
            Settings(device="cpu", workers=1000, **{"dtype": "float32", **settings}),
            "cpu",
        )


def bert_config(folder: Path) -> str:
    from transformers import BertConfig

    config = BertConfig(
        vocab_size=49408,
        hidden_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=96,
        max_position_embeddings=CONTEXT,
        pad_token_id=0,
    )
    config.save_pretrained(folder)
    return str(folder)


def _shake(model: Any) -> None:
    """Let every weight matter: some are initialised so that they do nothing, or hardly anything."""
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "emb" in name and "attnpool" not in name:
                weight.normal_(std=0.5)
            elif weight.ndim == 1 and name.endswith("weight"):  # of norms
                weight.uniform_(0.5, 1.5)
            elif weight.ndim == 4:  # of convolutions
                torch.nn.init.kaiming_normal_(weight)
            elif weight.ndim == 1:
                weight.add_(torch.randn_like(weight) * 0.2)
        for name, buffer in model.named_buffers():
            if name.endswith("running_mean"):
                buffer.normal_(std=0.2)
            elif name.endswith("running_var"):
                buffer.uniform_(0.5, 2)


@dataclass(frozen=True)
class Pair:
    """A model and the encoder that was made of a copy of it."""

    model: Model
    encoder: Encoder
    cuts: bool


def make_pair(name: str, folder: Path) -> Pair:
    model = Model(ARCHITECTURES[name], folder)
    return Pair(model, model.encoder(), ARCHITECTURES[name].cuts)


@pytest.fixture(scope="module", autouse=True)
def _threads() -> Iterator[None]:
    """Leave torch as many threads as it had: encoders set them for the whole process."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module", params=ARCHITECTURES)
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    return make_pair(request.param, tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    return make_pair("clip", tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def pictures() -> dict[str, Image.Image]:
    return {
        name: decode_image(data, max_bytes=len(data), max_pixels=100_000_000)
        for name, data in images().items()
    }


def assert_same(
    got: Embeddings, wanted: Embeddings, names: Sequence[str], tolerance: float = TOLERANCE
) -> None:
    """Hold embeddings to a tolerance, relative to their norm; say which is worst."""
    assert got.shape == wanted.shape and got.dtype == np.float32
    norms = np.linalg.norm(wanted, axis=1)
    differences = np.abs(got - wanted).max(1) / norms
    worst = int(np.nan_to_num(differences, nan=np.inf).argmax())
    assert differences[worst] <= tolerance, f"{differences[worst]:.1e} in {names[worst][:60]!r}"


# ---- both towers, every architecture


@pytest.mark.parametrize("normalize", [True, False])
def test_texts_are_embedded_as_open_clip_does(pair: Pair, normalize: bool) -> None:
    got = pair.encoder.encode_texts(TEXTS, normalize=normalize)
    assert_same(got, pair.model.texts(TEXTS, normalize=normalize), TEXTS)


@pytest.mark.parametrize("normalize", [True, False])
def test_images_are_embedded_as_open_clip_does(
    pair: Pair, pictures: dict[str, Image.Image], normalize: bool
) -> None:
    given = list(pictures.values())
    got = pair.encoder.encode_images(given, normalize=normalize)
    assert_same(got, pair.model.images(given, normalize=normalize), list(pictures))


def test_these_models_tell_their_texts_and_images_apart(
    pair: Pair, pictures: dict[str, Image.Image]
) -> None:
    # or else the tests here could not see rows that are mixed up
    names = ("photo", "gradient", "stripes", "white_noise", "2x3", "white")
    texts = pair.model.texts(["a", "a cat", "я", "a cat sits", "猫", LONG])
    for embeddings in (texts, pair.model.images([pictures[name] for name in names])):
        distances = np.linalg.norm(embeddings[:, None] - embeddings[None], axis=-1)
        assert distances[~np.eye(6, dtype=bool)].min() > 1000 * TOLERANCE


def test_rows_come_back_in_the_order_given(pair: Pair) -> None:
    order = np.random.default_rng(1).permutation(len(TEXTS))
    straight = pair.encoder.encode_texts(TEXTS)
    shuffled = pair.encoder.encode_texts([TEXTS[i] for i in order])
    assert_same(shuffled, straight[order], [TEXTS[i] for i in order])


@pytest.mark.parametrize("place", [0, 13, 31])
def test_a_long_text_changes_none_of_31_short_ones(pair: Pair, place: int) -> None:
    texts = [f"{i} cats"[: 1 + i % 7] for i in range(31)]
    texts.insert(place, LONG)
    together = pair.encoder.encode_texts(texts)
    assert_same(together, np.concatenate([pair.encoder.encode_texts([t]) for t in texts]), texts)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_an_explicit_dtype_is_obeyed_and_gives_float32_arrays(
    pair: Pair, pictures: dict[str, Image.Image], dtype: str
) -> None:
    encoder = pair.model.encoder(dtype=dtype)
    assert encoder.dtypes == {"text": dtype, "image": dtype}
    for tower in (encoder.text, encoder.image):
        assert {p.dtype for p in tower.module.parameters()} == {getattr(torch, dtype)}
    texts, given = TEXTS[:40], list(pictures.values())[:12]
    for got, wanted in (
        (encoder.encode_texts(texts), pair.model.texts(texts)),
        (encoder.encode_images(given), pair.model.images(given)),
    ):
        assert got.dtype == np.float32
        assert (got * wanted).sum(1).min() > 0.99  # weights at random, nothing is promised of them


# ---- the text tower


def test_texts_are_cut_where_nothing_behind_their_end_counts(pair: Pair) -> None:
    assert pair.encoder.text.cuts is pair.cuts
    short = pair.encoder.text.prepare("a cat")  # start, a, cat, end
    assert short.dtype == torch.int64
    assert len(short) == (4 if pair.cuts else CONTEXT)
    for text in TEXTS:
        tokens = pair.encoder.text.prepare(text)
        whole = pair.model.tokenizer([text])[0]
        assert torch.equal(tokens, whole[: len(tokens)])
        assert len(tokens) <= CONTEXT


def _counted(pair: Pair, text: str) -> int:
    tower = pair.encoder.text
    return tower.count_tokens(tower.prepare(text))


def test_a_text_beyond_the_context_has_as_many_tokens_as_the_context(pair: Pair) -> None:
    assert pair.encoder.context_length == CONTEXT
    assert len(pair.encoder.text.prepare(LONG)) == CONTEXT
    assert _counted(pair, LONG) == CONTEXT


def test_tokens_are_counted_without_padding(pair: Pair) -> None:
    counted = [_counted(pair, text) for text in ("a", "a cat", "a cat sits")]
    assert counted == [3, 4, 5]


def test_a_cut_text_costs_its_tokens(clip: Pair) -> None:
    text = clip.encoder.text
    assert [text.size(text.prepare(t)) for t in ("a", "a red cat", LONG)] == [3, 5, CONTEXT]


# ---- groups of similar length


def test_a_lone_long_text_is_grouped_apart_where_a_forward_is_cheap() -> None:
    lengths = [5] * 31
    lengths.insert(9, 77)
    groups = _groups(lengths, forward_tokens=40)
    assert sorted(groups, key=len) == [[9], [i for i in range(32) if i != 9]]


def test_all_texts_are_one_group_where_a_forward_is_dear() -> None:
    (group,) = _groups([5, 77, 6, 5, 30], forward_tokens=100_000)
    assert sorted(group) == [0, 1, 2, 3, 4]


def test_texts_of_one_length_are_one_group() -> None:
    assert _groups([7] * 100, forward_tokens=1) == [list(range(100))]
    assert _groups([7], forward_tokens=1) == [[0]]


@pytest.mark.parametrize("forward_tokens", [0, 1, 40, 300, 100_000])
def test_every_text_is_in_exactly_one_group(forward_tokens: int) -> None:
    rng = np.random.default_rng(forward_tokens)
    for _ in range(50):
        lengths = rng.integers(2, 78, rng.integers(1, 40)).tolist()
        groups = _groups(lengths, forward_tokens)
        assert sorted(i for group in groups for i in group) == list(range(len(lengths)))
        # no group reaches into another, so that each is padded as little as can be
        spans = sorted((min(of), max(of)) for of in ([lengths[i] for i in g] for g in groups))
        assert all(end <= start for (_, end), (start, _) in pairwise(spans))


# ---- the image tower


def test_a_prepared_image_is_8_bit_rows_of_pixels(
    pair: Pair, pictures: dict[str, Image.Image]
) -> None:
    size = pair.model.preprocess(pictures["photo"]).shape[1:]
    for name in ("photo", "1x1", "2x3", "2000x10", "10x2000", "4000x3000"):
        pixels = pair.encoder.image.prepare(pictures[name])
        assert pixels.dtype == torch.uint8
        assert pixels.shape == (*size, 3)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK"])
def test_an_image_of_another_mode_is_converted_as_open_clip_does(
    clip: Pair, pictures: dict[str, Image.Image], mode: str
) -> None:
    given = [pictures["photo"].convert(mode)]
    assert_same(clip.encoder.encode_images(given), clip.model.images(given), [mode])


@pytest.mark.parametrize(
    "options",
    [
        {"resize_mode": "longest"},
        {"resize_mode": "longest", "fill_color": 200},
        {"resize_mode": "squash"},
        {"resize_mode": "squash", "interpolation": "bilinear"},
        {"interpolation": "bilinear", "mean": (0.5,) * 3, "std": (0.5, 0.25, 0.1)},
    ],
)
def test_every_preprocessing_of_open_clip_is_followed(
    pictures: dict[str, Image.Image], tmp_path: Path, options: dict[str, Any]
) -> None:
    model = Model(ARCHITECTURES["clip"], tmp_path)
    model.preprocess = open_clip.image_transform(32, is_train=False, **options)
    # of an extreme shape the shorter side would be resized to nothing: Pillow refuses
    too_thin = {"2000x10", "10x2000"} if "longest" in options.values() else set()
    names = [name for name in pictures if name not in too_thin]
    given = [pictures[name] for name in names]
    assert_same(model.encoder().encode_images(given), model.images(given), names)


@pytest.mark.parametrize(
    "steps",
    [
        [Resize(32), CenterCrop(32), ToTensor()],
        [Resize(32), CenterCrop(32), ToTensor(), ConvertImageDtype(torch.float16)],
        [Resize(32), ToTensor(), Normalize(0.5, 0.5), CenterCrop(32)],
        [ToTensor(), Resize(32), CenterCrop(32), Normalize(0.5, 0.5)],
    ],
)
def test_a_preprocessing_that_cannot_be_split_is_refused(clip: Pair, steps: list[Any]) -> None:
    with pytest.raises(ModelLoadError, match="does not end in ToTensor, Normalize"):
        ImageTower(clip.model.model.visual, Compose(steps), "cpu", 8)


def test_each_core_of_a_cpu_computes_a_batch_unless_it_is_compiled(clip: Pair) -> None:
    torch.set_num_threads(3)
    model = copy.deepcopy(clip.model.model)
    text = TextTower(model, clip.model.tokenizer, "cpu", 32)
    tower = ImageTower(model.visual, clip.model.preprocess, "cpu", 32)
    assert tower.lanes == text.lanes == 3
    tower._compiled = tower.module
    assert tower.lanes == 1


@needs_onednn
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("gelu", [None, "none", "tanh"])
def test_a_packed_layer_computes_what_it_was_made_of(bias: bool, gelu: str | None) -> None:
    torch.manual_seed(1)
    layer = torch.nn.Linear(48, 96, bias=bias).bfloat16()
    behind = torch.nn.GELU(gelu) if gelu else None
    for shape in ((1, 48), (1, 7, 48), (3, 50, 48)):
        x = torch.randn(shape).bfloat16()
        with torch.inference_mode():
            got, wanted = PackedLinear(layer.weight, layer.bias, behind)(x), layer(x)
            wanted = behind(wanted) if behind else wanted
        assert got.dtype == torch.bfloat16
        torch.testing.assert_close(got, wanted, rtol=2**-7, atol=2**-7)


@needs_onednn
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(8, 8), (16, 24), (19, 30)])  # the last leaves a margin out
def test_packed_patches_are_embedded_as_by_the_convolution(
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
def test_other_convolutions_stay_as_they_are(clip: Pair, options: dict[str, Any]) -> None:
    visual = copy.deepcopy(clip.model.model.visual).bfloat16()
    usual = {"kernel_size": 8, "stride": 8, "bias": False}
    visual.conv1 = torch.nn.Conv2d(3, 64, **usual | options).bfloat16()
    pack_weights(visual)
    assert isinstance(visual.conv1, torch.nn.Conv2d)


def test_the_layers_of_16_bit_towers_are_packed_and_no_others(pair: Pair) -> None:
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
def test_the_last_block_computes_only_the_token_that_is_read_where_one_is(
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


@pytest.mark.skipif(
    not shutil.which("g++"), reason="torch.compile needs a C++ compiler: there is no g++ here"
)
def test_a_compiled_tower_gives_the_same_embeddings_for_every_batch_size(
    pictures: dict[str, Image.Image], tmp_path: Path
) -> None:
    model = Model(_architecture(CLIP, VIT | {"layers": 1}, {}, cuts=True), tmp_path)
    encoder = model.encoder(max_batch_size=4)
    names = ["photo", "gradient", "stripes", "white_noise", "2x3"]
    given = [pictures[name] for name in names]
    assert [len(batch) for batch in encoder.image.warm_batches()] == [1]
    encoder.image.compile()
    assert [len(batch) for batch in encoder.image.warm_batches()] == [4, 2, 1]
    for count in (1, 2, 3, 4):
        got = encoder.encode_images(given[:count], normalize=False)
        wanted = model.images(given[:count], normalize=False)
        assert_same(got, wanted, names, tolerance=1e-4)
    torch.compiler.reset()


def test_compiling_without_a_compiler_is_refused_before_anything_is_served(
    clip: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(ModelLoadError, match=r"COMPILE=true needs a C\+\+ compiler"):
        clip.model.encoder(compile=True)


# ---- settling on a dtype


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
        patch.setattr("bento.encoder.towers.perf_counter", lambda: tower.now)
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

    monkeypatch.setattr("bento.encoder.towers._timed", timed)
    monkeypatch.setattr("bento.encoder.towers._candidates", lambda device: ["bfloat16"])
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


# ---- forwards that are recorded, as on a GPU, by a stand-in that computes them anew


class Recording(Graphs):
    """Records as `Graphs` does, without CUDA: a replay fills the same result again."""

    def __init__(self, forward: Callable[[torch.Tensor], torch.Tensor], most: int) -> None:
        self._forward, self._device, self._sizes = forward, "cpu", sizes(most)
        self._recorded, self._pool = {}, None
        self.shapes: list[tuple[int, ...]] = []

    def _record(self, given: torch.Tensor) -> Callable[[], torch.Tensor]:
        self.shapes.append(tuple(given.shape))
        result = self._forward(given).clone()

        def replay() -> torch.Tensor:
            return result.copy_(self._forward(given))

        return replay


def test_recorded_texts_have_few_shapes_and_their_own_embeddings(clip: Pair) -> None:
    encoder = clip.model.encoder(max_batch_size=10)
    tower, texts = encoder.text, list(dict.fromkeys(TEXTS))
    tower._graphs = Recording(tower._forward, 10)
    wanted = clip.model.texts(texts, normalize=False)
    rng = np.random.default_rng(0)
    for count in (*range(1, 11), *range(10, 0, -1)):
        of = rng.choice(len(texts), count, replace=False)
        got = encoder.encode_texts([texts[i] for i in of], normalize=False)
        assert_same(got, wanted[of], [texts[i] for i in of])
    seen = set(tower._graphs.shapes)
    assert len(seen) == len(tower._graphs.shapes)
    warmed = {(len(batch), len(batch[0])) for batch in tower.warm_batches()}
    assert seen <= warmed
    assert {count for count, _ in warmed} == {1, 2, 4, 8, 10}


def test_recorded_images_have_few_shapes_and_their_own_embeddings(
    clip: Pair, pictures: dict[str, Image.Image]
) -> None:
    encoder = clip.model.encoder(max_batch_size=10)
    names = list(pictures)[:10]
    encoder.image._graphs = Recording(encoder.image._forward, 10)
    wanted = clip.model.images([pictures[name] for name in names], normalize=False)
    for count in (*range(1, 11), *range(10, 0, -1)):
        got = encoder.encode_images([pictures[name] for name in names[-count:]], normalize=False)
        assert_same(got, wanted[-count:], names[-count:])
    assert sorted(shape[0] for shape in encoder.image._graphs.shapes) == [1, 2, 4, 8, 10]
    assert [len(batch) for batch in encoder.image.warm_batches()] == [10, 8, 4, 2, 1]


def test_a_recording_that_the_memory_cannot_hold_frees_the_others() -> None:
    def forward(batch: torch.Tensor) -> torch.Tensor:
        if len(batch) > 4:
            raise torch.OutOfMemoryError
        return batch + 1

    graphs = Recording(forward, 8)
    assert graphs(torch.zeros(3, 2)).sum() == 6
    with pytest.raises(torch.OutOfMemoryError):
        graphs(torch.zeros(5, 2))
    assert graphs(torch.zeros(3, 2)).sum() == 6
    assert graphs.shapes == [(4, 2), (8, 2), (4, 2)]


def test_a_batch_beyond_all_sizes_is_recorded_as_it_is() -> None:
    graphs = Recording(lambda batch: batch + 1, 4)
    assert graphs(torch.zeros(6, 2)).sum() == 12
    assert graphs.shapes == [(6, 2)]


def test_batches_are_padded_to_few_sizes() -> None:
    assert sizes(1) == [1]
    assert sizes(32) == [1, 2, 4, 8, 16, 24, 32]
    assert sizes(100) == [1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 100]
