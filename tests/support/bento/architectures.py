"""Models of every architecture with random weights, each with an encoder made from it."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import open_clip
import torch
from open_clip.tokenizer import SimpleTokenizer

from bento import Encoder, Settings
from bento.encoder.embeddings import Embeddings
from tests.support.reference import Reference

TOLERANCE: Final = 1e-5
DIM: Final = 64
CONTEXT: Final = 20
LONG: Final = "a red dog sits on the mat " * 10
WIDE: Final = (32, 48)

HAS_ONEDNN: Final = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]

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
    """How to build a model; `cuts` says whether its texts can be cut at the end-of-text token."""

    kind: Callable[..., Any]
    vision: dict[str, Any]
    text: dict[str, Any]
    cuts: bool
    others: dict[str, Any]

    @property
    def image_size(self) -> Any:
        return self.vision["image_size"]


def architecture(
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
    "clip": architecture(CLIP, VIT, {}, cuts=True),
    "clip_quickgelu": architecture(CLIP, VIT, {}, cuts=True, quick_gelu=True),
    "clip_resnet": architecture(CLIP, RESNET, {}, cuts=True),
    "clip_wide": architecture(CLIP, VIT | {"image_size": WIDE}, {}, cuts=True),
    "clip_eos": architecture(CLIP, VIT, EOS, cuts=True),  # worldwide
    "clip_eos_0": architecture(CLIP, VIT, EOS | {"eos_id": 0}, cuts=False),  # the padding token
    "clipa": architecture(
        CLIP,
        VIT | {"pool_type": "avg", "final_ln_after_pool": True},
        BOTH_WAYS | {"pool_type": "last"},
        cuts=False,
    ),
    "custom_text": architecture(CUSTOM_TEXT, VIT, {}, cuts=True),  # MobileCLIP-B
    "layer_scale": architecture(
        CUSTOM_TEXT, VIT | {"ls_init_value": 0.5}, {"ls_init_value": 0.5}, cuts=True
    ),
    "one_layer": architecture(CLIP, VIT | {"layers": 1}, {"layers": 1}, cuts=True),
    "custom_text_eos": architecture(CUSTOM_TEXT, VIT, EOS | {"proj_bias": True}, cuts=True),
    "custom_blocks": architecture(
        CUSTOM_TEXT, VIT | CUSTOM, CUSTOM | {"ls_init_value": 0.5}, cuts=True
    ),
    "both_ways": architecture(CUSTOM_TEXT, VIT, BOTH_WAYS, cuts=False),  # MobileCLIP-S1
    "siglip": architecture(
        CUSTOM_TEXT,
        TIMM,
        BOTH_WAYS | {"pool_type": "last", "proj_bias": True},
        cuts=False,
        init_logit_bias=-10,
    ),
    "coca": architecture(
        open_clip.CoCa,
        VIT
        | {"attentional_pool": True, "attn_pooler_queries": 8, "attn_pooler_heads": 4}
        | {"output_tokens": True},
        {"embed_cls": True, "output_tokens": True},
        cuts=False,
        multimodal_cfg=TEXT | {"attn_pooler_heads": 4},
    ),
    "hugging_face": architecture(
        CUSTOM_TEXT, VIT, {"hf_model_name": "a folder", "hf_model_pretrained": False}, cuts=False
    ),
}


class EndsIn2(SimpleTokenizer):  # type: ignore[misc]  # OpenCLIP has no types
    """A tokenizer whose end-of-text token is 2 and not the highest token, as in other models."""

    def __call__(self, *args: Any, **options: Any) -> torch.Tensor:
        tokens: torch.Tensor = super().__call__(*args, **options)
        ends, twos = tokens == self.eot_token_id, tokens == 2
        return tokens.masked_fill(ends, 2).masked_fill(twos, self.eot_token_id)


class Model(Reference):
    """An OpenCLIP model with random weights, as a reference and as an encoder."""

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
        """Return an encoder with a copy of this model. The encoder takes its model apart."""
        tokenizer = self._tokenizer(context_length=CONTEXT)
        return Encoder(
            lambda: (copy.deepcopy(self.model), self.preprocess, tokenizer),
            # 1000 workers leave one thread to each; small models are not faster with more
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
    """Randomize the weights that are initialized to have little or no effect."""
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "emb" in name and "attnpool" not in name:
                weight.normal_(std=0.5)
            elif weight.ndim == 1 and name.endswith("weight"):  # norms
                weight.uniform_(0.5, 1.5)
            elif weight.ndim == 4:  # convolutions
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
    """A model, and an encoder made from a copy of it."""

    model: Model
    encoder: Encoder
    cuts: bool


def make_pair(name: str, folder: Path) -> Pair:
    model = Model(ARCHITECTURES[name], folder)
    return Pair(model, model.encoder(), ARCHITECTURES[name].cuts)


def assert_same(
    got: Embeddings, wanted: Embeddings, names: Sequence[str], tolerance: float = TOLERANCE
) -> None:
    """Compare embeddings within a tolerance relative to their norm; report the worst one."""
    assert got.shape == wanted.shape
    assert got.dtype == np.float32
    norms = np.linalg.norm(wanted, axis=1)
    differences = np.abs(got - wanted).max(1) / norms
    worst = int(np.nan_to_num(differences, nan=np.inf).argmax())
    assert differences[worst] <= tolerance, f"{differences[worst]:.1e} in {names[worst][:60]!r}"
