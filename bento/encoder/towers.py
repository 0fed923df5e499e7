"""The two towers of an OpenCLIP model: from prepared items to raw embeddings."""

from __future__ import annotations

import copy
import logging
import math
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from time import perf_counter
from typing import Any, Final, Protocol

import numpy as np
import torch
from open_clip import CLIP
from open_clip.transformer import TextTransformer, text_global_pool
from PIL import Image
from torch.nn.functional import cosine_similarity, pad
from torch.nn.utils.rnn import pad_sequence
from torchvision.transforms import Compose, Normalize  # type: ignore[import-untyped]

from bento.contract.errors import InvalidRequest, ModelLoadError
from bento.encoder.kernels.attention import LastBlock, read_one_token, reads_first_token
from bento.encoder.kernels.graphs import Graphs, sizes
from bento.encoder.kernels.packing import pack_weights
from bento.encoder.model import Embeddings
from bento.encoder.resizing import quick_resize
from bento.encoder.tokenizing import bounded

logger = logging.getLogger("vision_encoder")

# A lower precision is taken only if its embeddings have at least this cosine to float32's.
FIDELITY: Final = {"float16": 0.9999, "bfloat16": 0.999}
_GAIN: Final = 1.2  # and only if it is faster by this, so that noise does not decide
_TRIES: Final = 2  # and what does not seem faster is measured once more
# What one more forward costs, in tokens: on 2 cores of an x86-64 CPU a ViT-B-32 text forward
# in float32 takes about 18 ms + 0.45 ms a token; on a GPU 32 queries cost hardly more than one.
_FORWARD_TOKENS: Final = {"cpu": 40, "cuda": 100_000}
_LENGTH_STEP: Final = 16  # texts are padded to a multiple of it where forwards are recorded


class Tower(Protocol):
    """One encoder of the two, on its device."""

    module: Any
    dtype: str

    @property
    def lanes(self) -> int:
        """How many batches are best computed at a time: one by each core of a CPU.

        Cores that share a batch wait for each other after every layer, and for whatever else has
        one of them.
        """

    def use(self, module: Any, dtype: str) -> None:
        """Compute with a module whose weights have this dtype from now on."""

    def warm_batches(self) -> Iterator[list[torch.Tensor]]:
        """Yield the batches to run before the first that counts."""

    def probe(self) -> list[torch.Tensor]:
        """Return prepared items that are like what will come."""

    def size(self, item: torch.Tensor) -> int:
        """Return what an item costs: a batch takes as long as the sum of its sizes says."""

    def embed(self, items: Sequence[torch.Tensor]) -> Embeddings:
        """Return the raw embeddings of prepared items, float32 (n, dim)."""


class TextTower:
    """Texts to embeddings. A prepared text is its token ids, int64 (length,).

    Where attention is causal and the embedding is read at the end-of-text token, what lies
    behind that token has no influence: texts are cut there, and a batch is run in groups of
    similar length. All other text towers get their full context.
    """

    def __init__(self, model: Any, tokenizer: Any, device: str, max_batch_size: int) -> None:
        self.context_length = int(getattr(tokenizer, "context_length", None) or 77)
        self.cuts = _is_cuttable(_text_parts(model))
        self._tokenizer = bounded(tokenizer)
        nothing = tokenizer([""])[0]
        self._padding = nothing[-1]
        self._padding_ends = bool((nothing == nothing[-1]).all())  # SigLIP: the end is the padding
        self._device = device
        self._stream = _stream(device, priority=-1)  # before images
        self._forward_tokens = _FORWARD_TOKENS[device.partition(":")[0]]
        self._sizes = sizes(max_batch_size)
        self.lanes = torch.get_num_threads() if device == "cpu" else 1
        if self.cuts:
            read_one_token(_text_parts(model).transformer)
        self.use(model, "float32")

    def use(self, module: Any, dtype: str) -> None:
        self.module = module
        self.dtype = dtype
        self._graphs = _graphs(self._forward, self._device, self._sizes)

    def prepare(self, text: str) -> torch.Tensor:
        """Tokenize a text; what lies beyond the context is cut off."""
        tokens: torch.Tensor = self._tokenizer([text])[0]
        return tokens[: self._ends(tokens) + 1] if self.cuts else tokens

    def count_tokens(self, tokens: torch.Tensor) -> int:
        """Return how many tokens of a prepared text the model sees, padding left out."""
        if self.cuts:
            return len(tokens)
        seen = (tokens != self._padding).nonzero()
        last = int(seen[-1]) + 1 if len(seen) else 0
        return min(last + self._padding_ends, len(tokens))

    def probe(self) -> list[torch.Tensor]:
        return [self.prepare("a photo of a cat" * n) for n in (1, 1, 1, 1, 2, 2, 3, 4)]

    def warm_batches(self) -> Iterator[list[torch.Tensor]]:
        if self._graphs is None:
            yield self.probe()
            return
        lengths = {self._padded(n) for n in range(1, self.context_length + 1)}
        for length in sorted(lengths, reverse=True):
            for size in reversed(self._sizes):  # smaller ones get the memory of the first
                yield [torch.ones(length, dtype=torch.int64)] * size

    def size(self, item: torch.Tensor) -> int:
        return len(item)  # tokens

    def embed(self, items: Sequence[torch.Tensor]) -> Embeddings:
        groups = _groups([len(item) for item in items], self._forward_tokens)
        parts = [self._embed_group([items[i] for i in group]) for group in groups]
        embeddings = np.empty((len(items), parts[0].shape[1]), np.float32)
        for group, part in zip(groups, parts, strict=True):
            embeddings[group] = part
        return embeddings

    def _embed_group(self, items: Sequence[torch.Tensor]) -> Embeddings:
        tokens = pad_sequence(list(items), batch_first=True)  # (n, length)
        with torch.inference_mode(), self._stream():
            if self._graphs is None:
                embeddings = self._forward(tokens.to(self._device))
            else:
                length = tokens.shape[1]
                embeddings = self._graphs(pad(tokens, (0, self._padded(length) - length)))
            return np.asarray(embeddings.cpu().numpy())

    def _padded(self, length: int) -> int:
        """Return what texts of a length are padded to, so that few lengths are recorded."""
        if not self.cuts:
            return self.context_length
        return min(-(-length // _LENGTH_STEP) * _LENGTH_STEP, self.context_length)

    def _forward(self, tokens: torch.Tensor) -> torch.Tensor:
        if self.cuts:
            embeddings: torch.Tensor = self._cut_forward(tokens)
        else:
            embeddings = self.module.encode_text(tokens, normalize=False)
        return embeddings.float()

    def _cut_forward(self, tokens: torch.Tensor) -> Any:
        """Do what `encode_text` does, with mask and positions cut to (n, length) tokens."""
        parts = _text_parts(self.module)
        length = tokens.shape[1]
        dtype = parts.transformer.get_cast_dtype()
        x = parts.token_embedding(tokens).to(dtype) + parts.positional_embedding[:length].to(dtype)
        mask, transformer = parts.attn_mask[:length, :length], parts.transformer
        if isinstance(transformer.resblocks[-1], LastBlock):
            for block in transformer.resblocks[:-1]:
                x = block(x, attn_mask=mask)
            x = transformer.resblocks[-1](x, mask, at=self._ends(tokens))[:, 0]
        else:
            x = text_global_pool(transformer(x, attn_mask=mask), tokens, *_pooling(parts))
        x = parts.ln_final(x)  # (n, width)
        projection = parts.text_projection
        if isinstance(projection, torch.nn.Linear):
            x = projection(x)
        elif projection is not None:
            x = x @ projection
        return x  # (n, dim)

    def _ends(self, tokens: torch.Tensor) -> torch.Tensor:
        """Return where the embeddings of texts (..., length) are read, int64 (...)."""
        pool_type, eos_id = _pooling(_text_parts(self.module))
        at_end = tokens if pool_type == "argmax" else torch.eq(tokens, eos_id or 0).int()
        return at_end.argmax(-1)


class ImageTower:
    """Images to embeddings. A prepared image is uint8 (height, width, 3), on the device.

    The model's own preprocessing is split in two: resizing and cropping happen per request,
    scaling to 0..1 and normalising once a batch, on the device and in float32. Where the tower
    computes in 16 bits, `QuickResize` does the first.
    """

    def __init__(self, visual: Any, preprocess: Any, device: str, max_batch_size: int) -> None:
        *spatial, to_tensor, normalize = preprocess.transforms
        if not isinstance(normalize, Normalize) or "ToTensor" not in type(to_tensor).__name__:
            raise ModelLoadError(
                f"the preprocessing of this model does not end in ToTensor, Normalize: {preprocess}"
            )
        self._spatial = Compose(spatial)
        self._quick = quick_resize(spatial)
        # of values from 0 to 255
        self._mean = torch.tensor(normalize.mean, device=device).view(3, 1, 1) * 255
        self._std = torch.tensor(normalize.std, device=device).view(3, 1, 1) * 255
        self._device = device
        self._stream = _stream(device, priority=0)
        self._copies = _stream(device, priority=0)
        self._threads = torch.get_num_threads()
        self._sizes = sizes(max_batch_size)
        if reads_first_token(visual):
            read_one_token(visual.transformer)
        self.use(visual, "float32")

    @property
    def lanes(self) -> int:
        """As of any tower, but what is compiled runs one at a time."""
        return self._threads if self._device == "cpu" and self._compiled is None else 1

    def use(self, module: Any, dtype: str) -> None:
        self.module = module
        self.dtype = dtype
        self._compiled: Callable[[torch.Tensor], Any] | None = None
        self._graphs = _graphs(self._forward, self._device, self._sizes)

    def prepare(self, image: Image.Image) -> torch.Tensor:
        """Resize and crop an RGB image as the model does, and move it to the device.

        Raises `InvalidRequest` for a shape that the model's resizing leaves nothing of.
        """
        pixels = self._resized(image)
        if self._device == "cpu":
            return pixels
        with self._copies():  # while the batch before it runs
            moved = pixels.pin_memory().to(self._device, non_blocking=True)
            torch.cuda.current_stream(self._device).synchronize()
        return moved

    def _resized(self, image: Image.Image) -> torch.Tensor:
        if self.dtype != "float32" and self._quick is not None and self._quick.suits(image):
            return self._quick(image)
        try:
            return torch.from_numpy(np.array(self._spatial(image)))
        except ValueError as error:
            raise InvalidRequest(
                f"an image of {image.width} x {image.height} cannot be resized for this model: "
                f"{error}"
            ) from None

    def probe(self) -> list[torch.Tensor]:
        noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
        image = self.prepare(Image.fromarray(noise))
        return [image] * (1 if self._device == "cpu" else 16)

    def warm_batches(self) -> Iterator[list[torch.Tensor]]:
        several = self._graphs is not None or self._compiled is not None
        for size in reversed(self._sizes) if several else [1]:
            yield self.probe()[:1] * size

    def size(self, item: torch.Tensor) -> int:
        return 1

    def embed(self, items: Sequence[torch.Tensor]) -> Embeddings:
        with torch.inference_mode(), self._stream():
            batch = torch.stack(list(items))  # uint8 (n, height, width, 3)
            embeddings = self._forward(batch) if self._graphs is None else self._graphs(batch)
            return np.asarray(embeddings.cpu().numpy())

    def compile(self) -> None:
        """Compile for the few sizes that batches are padded to, each when it first runs.

        Raises `ModelLoadError` without a compiler.
        """
        if not (os.environ.get("CXX") or shutil.which("g++")):
            raise ModelLoadError(
                "COMPILE=true needs a C++ compiler, and there is no g++ here: install it (an image "
                "has it by `make image COMPILER=1`), or leave COMPILE away"
            )
        # dynamo gives up on a module after 8 shapes
        torch._dynamo.config.recompile_limit = len(self._sizes)
        self._compiled = torch.compile(self.module, dynamic=False)

    def _forward(self, batch: torch.Tensor) -> torch.Tensor:
        x = batch.permute(0, 3, 1, 2)  # (n, 3, height, width)
        x = x.to(torch.float32, memory_format=torch.contiguous_format)  # CPUs are slow at mixing
        x = x.sub_(self._mean).div_(self._std).to(getattr(torch, self.dtype))
        return (_first(self.module(x)) if self._compiled is None else self._run_compiled(x)).float()

    def _run_compiled(self, x: torch.Tensor) -> torch.Tensor:
        assert self._compiled is not None
        size = next(size for size in self._sizes if size >= len(x))
        padded = torch.cat([x, x.new_zeros(size - len(x), *x.shape[1:])])
        return _first(self._compiled(padded))[: len(x)]


def settle_dtype(tower: Tower, wanted: str, device: str, *, pack: bool = False) -> None:
    """Bring a float32 tower to the dtype wanted; `auto` is a faster one that is faithful enough.

    A dtype is faithful when its embeddings of the probe pass `FIDELITY`. Of two that are, the more
    exact one is taken, not the faster: noise would let workers of one service differ. `pack` is
    for the weights of a CPU's 16-bit products.
    """

    def converted(module: Any, dtype: str) -> Any:
        module.to(getattr(torch, dtype))
        if pack:
            pack_weights(module)
        return module

    if wanted != "auto":
        tower.use(converted(tower.module, wanted), wanted)
        return
    exact_module, items = tower.module, tower.probe()
    for dtype in _candidates(device):
        module = converted(copy.deepcopy(exact_module), dtype)
        exact_seconds = seconds = math.inf
        for _ in range(_TRIES):
            exact, took = _timed(tower, items)
            exact_seconds = min(exact_seconds, took)
            tower.use(module, dtype)
            embeddings, took = _timed(tower, items)
            seconds = min(seconds, took)
            if faster := seconds * _GAIN < exact_seconds:
                break
            tower.use(exact_module, "float32")
        cosine = cosine_similarity(torch.from_numpy(exact), torch.from_numpy(embeddings)).min()
        faithful = bool(cosine >= FIDELITY[dtype])  # False for NaN
        logger.info(
            "measured a dtype",
            extra={
                "tower": type(tower).__name__,
                "dtype": dtype,
                "speedup": round(exact_seconds / seconds, 2),
                "cosine": round(float(cosine), 6),
                "faithful": faithful,
            },
        )
        if faithful and faster:
            return
        tower.use(exact_module, "float32")


def out_of_memory(error: Exception) -> bool:
    """Say whether a batch failed for lack of memory; if so, free what the device has cached."""
    if isinstance(error, torch.OutOfMemoryError):
        torch.cuda.empty_cache()
        return True
    return isinstance(error, MemoryError) or "not enough memory" in str(error)


def device_lost(error: Exception) -> bool:
    """Say whether the device will answer nothing more: CUDA keeps failing after such an error."""
    return isinstance(error, torch.AcceleratorError)


def _candidates(device: str) -> list[str]:
    """Return the dtypes that the device may be faster in, the most exact one first."""
    if device != "cpu":
        return ["float16", "bfloat16"]
    has = torch.cpu.get_capabilities()
    return ["bfloat16"] if has.get("avx512_bf16") or has.get("amx_bf16") or has.get("bf16") else []


def _timed(tower: Tower, items: list[torch.Tensor]) -> tuple[Embeddings, float]:
    """Return the embeddings of items, and the shortest time that they took, in seconds.

    Of two runs at least, and of a fast tower as many as fit into a short while.
    """
    times: list[float] = []
    while len(times) < 2 or sum(times) < 0.1:
        started = perf_counter()
        embeddings = tower.embed(items)
        times.append(perf_counter() - started)
    return embeddings, min(times)


def _graphs(
    forward: Callable[[torch.Tensor], torch.Tensor], device: str, sizes: Sequence[int]
) -> Graphs | None:
    """Return what records a forward on a GPU, once its weights are there."""
    if device == "cpu":
        return None
    torch.cuda.synchronize(device)  # copies and casts ran on another stream
    return Graphs(forward, device, sizes)


def _stream(device: str, *, priority: int) -> Callable[[], AbstractContextManager[Any]]:
    """Return what makes a context in which work goes to a CUDA stream of its own."""
    if device == "cpu":
        return nullcontext
    stream = torch.cuda.Stream(device, priority=priority)  # type: ignore[no-untyped-call]
    return lambda: torch.cuda.stream(stream)


def _text_parts(model: Any) -> Any:
    """Return the module that has the parts of the text transformer."""
    return model if isinstance(model, CLIP) else model.text


def _pooling(parts: Any) -> tuple[str, int | None]:
    if isinstance(parts, CLIP):
        return parts.text_pool_type, getattr(parts, "text_eos_id", None)
    return parts.pool_type, getattr(parts, "eos_id", None)


def _is_cuttable(parts: Any) -> bool:
    if not isinstance(parts, CLIP | TextTransformer) or parts.attn_mask is None:
        return False
    # a class token at the end (CoCa) is read instead of the end-of-text token
    if isinstance(parts, TextTransformer) and (parts.cls_emb is not None or parts.use_pad_mask):
        return False
    pool_type, eos_id = _pooling(parts)
    return pool_type == "argmax" or (pool_type == "eos" and bool(eos_id))  # 0 is the padding


def _groups(lengths: Sequence[int], forward_tokens: int) -> list[list[int]]:
    """Group texts by length, so that padding costs less than one more forward would."""
    order = sorted(range(len(lengths)), key=lengths.__getitem__)
    groups = [[order[0]]]
    for i in order[1:]:
        group = groups[-1]
        if (lengths[i] - lengths[group[-1]]) * len(group) > forward_tokens:
            groups.append([i])
        else:
            group.append(i)
    return groups


def _first(output: Any) -> torch.Tensor:
    """Return the embedding of an image tower that gives its patch tokens as well (CoCa)."""
    embeddings: torch.Tensor = output[0] if isinstance(output, tuple) else output
    return embeddings
