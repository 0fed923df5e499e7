"""Train the bundled model from scratch.

The loss is CLIP's contrastive loss. Each language has its own, over the same pictures, so that both
languages share one vector space. Three measures make the model learn within an hour:

* Half of each batch are hard negatives: scenes that differ from their neighbour in one respect.
* Easy scenes come first.
* Linear heads predict every attribute of a scene from its embedding. Both towers share these heads,
  and the saved model does not have them.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import open_clip
import torch
import torch.nn.functional as F
from open_clip.tokenizer import SimpleTokenizer
from PIL import Image
from safetensors.torch import save_file
from tqdm import tqdm

from models.shapes.captions import LANGUAGES, caption
from models.shapes.scenes import (
    ANY,
    CODE_LENGTH,
    KINDS,
    NONE,
    Scene,
    caption_code,
    draw_scene,
    sample_scene,
    similar_scene,
)

IMAGE_SIZE: Final = 64
MODEL_CFG: Final[dict[str, Any]] = {
    "embed_dim": 128,
    "vision_cfg": {
        "image_size": IMAGE_SIZE,
        "layers": [2, 2, 2, 1],  # a list selects CLIP's ResNet, which learns shapes sooner
        "width": 16,
        "head_width": 64,
        "patch_size": None,
    },
    "text_cfg": {
        "context_length": 128,
        "vocab_size": 49408,
        "width": 64,
        "heads": 2,
        "layers": 4,
    },
}
PREPROCESS_CFG: Final[dict[str, Any]] = {
    "mean": [0.5, 0.5, 0.5],
    "std": [0.25, 0.25, 0.25],
    "interpolation": "bicubic",
    "resize_mode": "shortest",
}
_CLASSES: Final = 16  # attributes have fewer values; the last class means "no such attribute"
# Training starts with single scenes. Count, pair and triple scenes join at these fractions of it.
_LESSON_ENDS: Final = (0.04, 0.16, 0.32)
_MAX_SCALE: Final = 4.6052  # ln 100, CLIP's limit of the temperature (arXiv:2103.00020, 2.5)


@dataclass(frozen=True)
class TrainingPlan:
    """The size, the speed and the seed of a training."""

    steps: int = 5000
    batch: int = 128
    scenes: int = 100_000
    learning_rate: float = 2e-3
    seed: int = 7


def train(folder: Path, plan: TrainingPlan) -> None:
    """Train the model and write `open_clip_config.json` and the weights (fp16) to `folder`."""
    torch.manual_seed(plan.seed)
    model = open_clip.CLIP(**MODEL_CFG).to(memory_format=torch.channels_last)
    heads = torch.nn.Linear(MODEL_CFG["embed_dim"], CODE_LENGTH * _CLASSES)
    started = time.monotonic()
    scenes, pictures = _draw_pool(plan)
    print(f"drew {len(scenes)} scenes in {time.monotonic() - started:.0f} s")
    parameters = [*model.parameters(), *heads.parameters()]
    optimizer = torch.optim.AdamW(
        [
            {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": 0.1},
            {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
        ],
        lr=plan.learning_rate,
        betas=(0.9, 0.98),
    )
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, plan.learning_rate, total_steps=plan.steps, pct_start=0.05, cycle_momentum=False
    )
    # scenes come in pairs, one and its hard negative; lesson i has the pairs of kinds 0 to i
    kinds = np.array([KINDS.index(scene.kind) for scene in scenes[::2]])
    lessons = [np.flatnonzero(kinds <= hardest) for hardest in range(len(KINDS))]
    rng = np.random.default_rng(plan.seed)
    seen = torch.zeros(MODEL_CFG["text_cfg"]["vocab_size"], dtype=torch.bool)
    started, cpu_started = time.monotonic(), time.process_time()
    for step in (bar := tqdm(range(plan.steps), unit="step", mininterval=10)):
        lesson = lessons[int(np.searchsorted(_LESSON_ENDS, step / plan.steps, side="right"))]
        pairs = rng.choice(lesson, plan.batch // 2, replace=False)
        chosen = np.stack([2 * pairs, 2 * pairs + 1], 1).ravel()
        # Ukrainian takes six times as many tokens and as much time, so use it in every third step
        languages = LANGUAGES if step % 3 == 0 else LANGUAGES[:1]
        loss, shown = _loss(
            model,
            heads,
            [scenes[i] for i in chosen],
            pictures[torch.from_numpy(chosen)],
            languages,
            rng,
            seen,
        )
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
        with torch.no_grad():
            model.logit_scale.clamp_(0, _MAX_SCALE)
        if step % 60 == 0:
            bar.set_postfix_str(f"loss {loss.item():.3f} {shown}")
    with torch.no_grad():
        # tokens that training never used get zero instead of random embeddings
        model.token_embedding.weight[~seen] = 0.0
    _save(model, folder)
    minutes, cpu_minutes = (
        (time.monotonic() - started) / 60,
        (time.process_time() - cpu_started) / 60,
    )
    print(f"trained {plan.steps} steps in {minutes:.0f} min ({cpu_minutes:.0f} min of CPU time)")


def _loss(
    model: open_clip.CLIP,
    heads: torch.nn.Linear,
    scenes: list[Scene],
    pixels: torch.Tensor,  # uint8 (n, side, side, 3)
    languages: Sequence[str],
    rng: np.random.Generator,
    seen: torch.Tensor,
) -> tuple[torch.Tensor, str]:
    """Return the sum of the contrastive and attribute losses, and the accuracies as text."""
    mean = torch.tensor(PREPROCESS_CFG["mean"]).view(1, 3, 1, 1)
    std = torch.tensor(PREPROCESS_CFG["std"]).view(1, 3, 1, 1)
    images = (pixels.permute(0, 3, 1, 2).float() / 255 - mean) / std
    image_embeddings = model.encode_image(images.to(memory_format=torch.channels_last))
    codes = torch.tensor([scene.code() for scene in scenes])
    read, right = _attribute_loss(heads, image_embeddings, codes)
    image_embeddings = F.normalize(image_embeddings, dim=-1)
    targets = torch.arange(len(scenes))
    contrast, words, shown = torch.zeros(()), torch.zeros(()), f"attributes {right}"
    for language in languages:
        texts, said = [], []
        for scene in scenes:
            # a quarter of the captions omit sizes, 15 % the background
            sizes, background = (rng.random(2) > (0.25, 0.15)).tolist()
            texts.append(caption(scene, language, rng, sizes=sizes, background=background))
            said.append(caption_code(scene, sizes=sizes, background=background))
        tokens = tokenize(texts)
        seen[tokens.unique()] = True
        text_embeddings = encode_tokens(model, tokens)
        wanted = torch.tensor(said)
        words = words + _attribute_loss(heads, text_embeddings, wanted)[0]
        text_embeddings = F.normalize(text_embeddings, dim=-1)
        logits = model.logit_scale.exp() * text_embeddings @ image_embeddings.T
        # a scene is no negative of a partial caption that describes it, too
        true = ((wanted[:, None] == ANY) | (wanted[:, None] == codes[None])).all(-1)
        logits = logits.masked_fill(true & ~torch.eye(len(scenes), dtype=torch.bool), -1e4)
        contrast = contrast + F.cross_entropy(logits, targets) + F.cross_entropy(logits.T, targets)
        shown += f" {language} {(logits.argmax(1) == targets).float().mean():.2f}"
    return contrast / 2 / len(languages) + read + words / len(languages), shown


def _attribute_loss(
    heads: torch.nn.Linear, embeddings: torch.Tensor, codes: torch.Tensor
) -> tuple[torch.Tensor, str]:
    """Return the loss of predicting codes from embeddings, and the accuracy per attribute."""
    logits = heads(embeddings).view(-1, _CLASSES)
    wanted = codes.masked_fill(codes == NONE, _CLASSES - 1).masked_fill(codes == ANY, -100)
    right = (logits.argmax(-1).view(codes.shape) == wanted).float().mean(0)
    shown = "/".join(f"{100 * value:.0f}" for value in right.tolist())
    return F.cross_entropy(logits, wanted.view(-1)), shown


_tokenizer = SimpleTokenizer(context_length=MODEL_CFG["text_cfg"]["context_length"])


@lru_cache(maxsize=4096)
def _word_tokens(word: str) -> list[int]:
    return list(_tokenizer.encode(word))


def tokenize(texts: Sequence[str]) -> torch.Tensor:
    """Return the tokens of texts, int64 (n, longest), with a cache for each word."""
    rows = [[_tokenizer.sot_token_id] for _ in texts]
    for row, text in zip(rows, texts, strict=True):
        for word in text.split():
            row += _word_tokens(word)
        row.append(_tokenizer.eot_token_id)
    tokens = torch.zeros(len(rows), max(map(len, rows)), dtype=torch.long)
    for i, row in enumerate(rows):
        tokens[i, : len(row)] = torch.tensor(row)
    return tokens


def encode_tokens(model: open_clip.CLIP, tokens: torch.Tensor) -> torch.Tensor:
    """Return the embeddings (n, dim) of tokens (n, longest).

    They are exact without padding to the context length, because attention is causal.
    """
    length = tokens.shape[1]
    x = model.token_embedding(tokens) + model.positional_embedding[:length]
    x = model.transformer(x, attn_mask=model.attn_mask[:length, :length])
    x = model.ln_final(x)
    ends = x[torch.arange(len(x)), tokens.argmax(-1)]
    embeddings: torch.Tensor = ends @ model.text_projection
    return embeddings


def _draw_pool(plan: TrainingPlan) -> tuple[list[Scene], torch.Tensor]:
    """Return the training scenes and their pictures, uint8 (n, side, side, 3).

    Worker processes draw the pictures.
    """
    jobs = [(plan.seed, part) for part in range(plan.scenes // _PART)]
    scenes: list[Scene] = []
    pictures = np.empty((plan.scenes, IMAGE_SIZE, IMAGE_SIZE, 3), np.uint8)
    with get_context("spawn").Pool() as pool:
        results = pool.imap(_draw_part, jobs)
        for part, drawn in tqdm(results, total=len(jobs), unit_scale=_PART, unit="scene"):
            pictures[len(scenes) : len(scenes) + _PART] = drawn
            scenes += part
    return scenes, torch.from_numpy(pictures)


_PART: Final = 1000


def _draw_part(job: tuple[int, int]) -> tuple[list[Scene], npt.NDArray[np.uint8]]:
    rng = np.random.default_rng(job)
    scenes: list[Scene] = []
    while len(scenes) < _PART:
        scene = sample_scene(rng)
        scenes += [scene, similar_scene(scene, rng)]
    small = [
        draw_scene(scene, rng).resize((IMAGE_SIZE, IMAGE_SIZE), Image.Resampling.BICUBIC)
        for scene in scenes
    ]
    return scenes, np.stack([np.asarray(image) for image in small])


def _save(model: open_clip.CLIP, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    weights = {name: value.half().contiguous() for name, value in model.state_dict().items()}
    save_file(weights, folder / "open_clip_model.safetensors")
    config = {"model_cfg": MODEL_CFG, "preprocess_cfg": PREPROCESS_CFG}
    (folder / "open_clip_config.json").write_text(json.dumps(config, indent=2) + "\n")
