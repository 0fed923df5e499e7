"""The encoder: an OpenCLIP model, its preprocessing and its tokenizer."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

import numpy as np
from PIL import Image

from bento.contract.errors import EncoderError, ModelLoadError
from bento.contract.halving import Halving
from bento.encoder.cpus import AllCores, available_cpus, compute_on
from bento.encoder.devices import choose_device
from bento.encoder.embeddings import Embeddings, normalized
from bento.encoder.identity import describe_preprocess, pretrained_name, weights_digest
from bento.encoder.images import LARGE_PIXELS, load_image, load_preview, open_image
from bento.encoder.loading import load_model
from bento.settings import Settings

if TYPE_CHECKING:
    import torch

Item = TypeVar("Item")

_NICE: Final = 2  # the niceness of the thread that computes on all cores of a CPU
_CORE_BATCH: Final = 8  # images in a per-core batch: more images do not make it faster


class Encoder:
    """Turns texts and images into embeddings of the same vector space.

    It needs no service: `Encoder.load(Settings()).encode_texts(["a red circle"])`. Embeddings are
    NumPy arrays, float32 (n, `embedding_dim`), in the order of the items. Several threads may use
    an encoder at the same time.

    Attributes:
        embedding_dim: the dimension of every embedding.
        context_length: the most tokens of a text; longer texts are truncated.
        device: `cpu`, `cuda` or `cuda:N`.
        model_name, pretrained: the names of the model and its weights.
        weights_digest: 16 hex digits that identify the weights.
        preprocess_description: the preprocessing of images, in one line.
        logit_scale: the factor from cosine to logit in zero-shot classification.
        image_limits: the limits of a picture file, `max_bytes` and `max_pixels`.
        text, image: the towers.
        all_cores: the thread that computes on all cores.
    """

    def __init__(
        self,
        parts: Callable[[], tuple[Any, Any, Any]],
        settings: Settings,
        device: str,
        *,
        cpus: int | None = None,
        large_pixels: int = LARGE_PIXELS,
    ) -> None:
        """Build an encoder on the device from `parts`: OpenCLIP's model, preprocessing, tokenizer.

        This changes the model in place, and sets the number of torch's threads for the whole
        process. `cpus` is how many CPUs all workers may use, by default those that are available.
        Pictures with more than `large_pixels` are decoded one at a time.

        Raises `ModelLoadError` if the model cannot be served, and what `parts` raises.
        """
        self.device = device
        self.model_name = settings.model_name
        self.pretrained = pretrained_name(settings)
        self._max_batch_size = settings.max_batch_size
        self.image_limits = {
            "max_bytes": settings.max_image_bytes,
            "max_pixels": settings.max_image_pixels,
        }
        self._cpus = max(1, (cpus or available_cpus()) // settings.workers)
        self._large_pixels = large_pixels
        # each thread computes on one core
        self._cores = ThreadPoolExecutor(self._cpus, "core", compute_on, (1,))
        self.all_cores = AllCores(self._cpus, nice=_NICE if device == "cpu" else 0)
        self._large = threading.Lock()  # held while a large picture is decoded
        self.all_cores.run(self._build, parts, settings)

    def _build(self, parts: Callable[[], tuple[Any, Any, Any]], settings: Settings) -> None:
        """Load the model, and prepare it for this device. Computes on all cores."""
        model, preprocess, tokenizer = parts()  # imports OpenCLIP without what it does not need
        import torch

        from bento.encoder.image_tower import ImageTower
        from bento.encoder.kernels.activation import fold_quick_gelu
        from bento.encoder.kernels.attention import replace_attention
        from bento.encoder.precision import settle_dtype
        from bento.encoder.text_tower import TextTower

        device = self.device
        model.text_decoder = None  # CoCa's decoder, which writes captions
        self.weights_digest = weights_digest(model, settings.model_name)
        self.preprocess_description = describe_preprocess(preprocess)
        torch.backends.cudnn.allow_tf32 = False  # keeps float32 exact on a GPU
        model.to(device).eval().requires_grad_(False)
        replace_attention(model)
        fold_quick_gelu(model)
        self.logit_scale = float(model.logit_scale.exp())
        visual, model.visual = model.visual, torch.nn.Identity()
        self.image = ImageTower(visual, preprocess, device, settings.max_batch_size)
        self.text = TextTower(model, tokenizer, device, settings.max_batch_size)
        self.context_length = self.text.context_length
        on_cpu = device == "cpu"
        # torch.compile packs weights itself
        settle_dtype(self.image, settings.dtype, device, pack=on_cpu and not settings.compile)
        settle_dtype(self.text, settings.dtype, device, pack=on_cpu)
        self.embedding_dim = self._common_dimension()
        if settings.compile:
            self.image.compile()

    @classmethod
    def load(
        cls, settings: Settings, *, cpus: int | None = None, large_pixels: int = LARGE_PIXELS
    ) -> Encoder:
        """Load MODEL_NAME onto DEVICE.

        Raises `ModelLoadError` if the model is unknown, if its weights are unavailable or damaged,
        or if torch does not see the device.
        """
        device = choose_device(settings.device)
        load = partial(load_model, settings)
        return cls(load, settings, device, cpus=cpus, large_pixels=large_pixels)

    @property
    def model(self) -> str:
        """Return the model as `NAME/PRETRAINED`."""
        return f"{self.model_name}/{self.pretrained}"

    @property
    def image_batch(self) -> int:
        """Return how many images a thread should pass to `encode_images` at once."""
        lanes = self.image.lanes
        return min(_CORE_BATCH, self._max_batch_size) * lanes if lanes > 1 else self._max_batch_size

    @property
    def dtypes(self) -> dict[str, str]:
        """Return the dtype in which each tower computes: `float32`, `bfloat16` or `float16`."""
        return {"text": self.text.dtype, "image": self.image.dtype}

    def encode_texts(self, texts: Sequence[str], *, normalize: bool = True) -> Embeddings:
        """Return the embeddings of texts, float32 (n, `embedding_dim`).

        Each embedding has L2 norm 1 unless `normalize` is false. Texts are truncated at
        `context_length` tokens. An empty list gives an array of shape (0, `embedding_dim`).

        Raises `TypeError` for one string instead of a list.
        """
        if isinstance(texts, str):
            raise TypeError("texts is one string; pass a list of strings")
        n = self._max_batch_size
        rows = [
            self.all_cores.run(
                self.text.embed, [self.text.prepare(one) for one in texts[i : i + n]]
            )
            for i in range(0, len(texts), n)
        ]
        return self._stack(rows, normalize)

    def encode_images(
        self, images: Sequence[Image.Image | bytes | Path], *, normalize: bool = True
    ) -> Embeddings:
        """Return the embeddings of images, float32 (n, `embedding_dim`).

        An image is a Pillow image, the bytes of a picture file, or its path. Each embedding has
        L2 norm 1 unless `normalize` is false. An empty list gives an array of shape
        (0, `embedding_dim`).

        For the best throughput, call this from several threads with `image_batch` images each: one
        thread decodes while another computes. A batch that is too large for the device's memory is
        halved and retried.

        Raises the error of `decode_image` for the first image that cannot be decoded, `OSError` if
        a path cannot be read, and `EncoderError` if the device is lost.
        """
        n = self.image_batch
        rows: list[Embeddings] = []
        for i in range(0, len(images), n):
            parts = self._cores.map(self._preprocess_all, _parts(images[i : i + n], self._cpus))
            rows += self._embed_images([item for part in parts for item in part])
        return self._stack(rows, normalize)

    def preprocess(self, image: Image.Image | bytes | Path) -> torch.Tensor:
        """Return an image prepared for the image tower, uint8 (height, width, 3), on the device.

        Raises the errors of `decode_image` for a picture file, and `InvalidRequest` if the image
        cannot be resized for this model.
        """
        if isinstance(image, Path):
            image = image.read_bytes()
        if not isinstance(image, bytes):
            return self.image.prepare(image)
        opened = open_image(image, **self.image_limits)
        is_large = opened.width * opened.height > self._large_pixels
        with self._large if is_large else nullcontext():
            return self.image.prepare(load_image(opened))

    def is_large(self, data: bytes) -> bool:
        """Return whether decoding a picture file takes so much memory that it must run alone.

        Reads the header only. Raises the errors of `decode_image`.
        """
        opened = open_image(data, **self.image_limits)
        return opened.width * opened.height > self._large_pixels

    def preview(self, data: bytes, side: int) -> Image.Image:
        """Return an upright RGB image of a picture file, at most `side` x `side` pixels.

        Raises the errors of `decode_image`.
        """
        return load_preview(open_image(data, **self.image_limits), side)

    def _preprocess_all(self, images: Sequence[Image.Image | bytes | Path]) -> list[torch.Tensor]:
        return [self.preprocess(image) for image in images]

    def _embed_images(self, items: Sequence[torch.Tensor]) -> list[Embeddings]:
        """Embed a batch: as one batch per core of a CPU, or as one on the whole device."""
        if 1 < self.image.lanes <= len(items):
            parts = self._cores.map(self._embed_in_memory, _parts(items, self.image.lanes))
            return [rows for part in parts for rows in part]
        return self.all_cores.run(self._embed_in_memory, items)

    def _embed_in_memory(self, items: Sequence[torch.Tensor]) -> list[Embeddings]:
        """Embed a batch, in halves if it is too large for the device's memory."""
        from bento.encoder.tower import device_lost, out_of_memory

        rows = []
        for part in (parts := Halving(items)):
            try:
                rows.append(self.image.embed(part))
            except Exception as error:
                if device_lost(error):
                    raise EncoderError(
                        f"the device {self.device} is lost: {error}; restart this process"
                    ) from error
                if not out_of_memory(error) or not parts.halve():
                    raise
        return rows

    def _common_dimension(self) -> int:
        """Return the dimension of the embeddings. Raises `ModelLoadError` if the towers differ."""
        # the image towers of OpenCLIP have `output_dim`, which saves a forward pass
        image = getattr(self.image.module, "output_dim", None)
        image = image or self.image.embed(self.image.probe()[:1]).shape[1]
        text = self.text.embed(self.text.probe()[:1]).shape[1]
        if image != text:
            raise ModelLoadError(
                f"{self.model} gives images {image} dimensions and texts {text}, so they cannot be "
                "compared: choose a model whose dimensions are equal"
            )
        return int(text)

    def _stack(self, rows: list[Embeddings], normalize: bool) -> Embeddings:
        if not rows:
            return np.empty((0, self.embedding_dim), np.float32)
        embeddings = np.concatenate(rows)
        return normalized(embeddings) if normalize else embeddings


def _parts(items: Sequence[Item], count: int) -> list[Sequence[Item]]:
    """Divide items into at most `count` parts whose sizes differ by at most 1."""
    ends = [len(items) * i // count for i in range(count + 1)]
    return [items[start:end] for start, end in pairwise(ends) if start < end]
