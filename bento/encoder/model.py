"""The encoder: an OpenCLIP model, its preprocessing and its tokenizer."""

from __future__ import annotations

import hashlib
import json
import threading
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

import numpy as np
import numpy.typing as npt
from PIL import Image

from bento.contract.errors import EncoderError, ModelLoadError
from bento.contract.halving import Halving
from bento.encoder.cpus import available_cpus, compute_on
from bento.encoder.images import LARGE_PIXELS, load_image, open_image
from bento.encoder.loading import import_open_clip, import_towers_of, weights_as_mapped
from bento.settings import Settings

if TYPE_CHECKING:
    import torch

Embeddings = npt.NDArray[np.float32]

Item = TypeVar("Item")

_CORE_BATCH: Final = 8  # images that a core of a CPU computes at once: more are not faster
_SAMPLES: Final = 64  # values of each weight that go into the digest


class Encoder:
    """Turns texts and images into embeddings of one space.

    Usable without HTTP: `Encoder.load(Settings()).encode_texts(["a red circle"])`.
    """

    def __init__(
        self, model: Any, preprocess: Any, tokenizer: Any, settings: Settings, device: str
    ) -> None:
        import torch

        from bento.encoder.kernels.attention import replace_attention
        from bento.encoder.towers import ImageTower, TextTower, settle_dtype

        self.device = device
        self.model_name = settings.model_name
        self.pretrained = _pretrained(settings)
        model.text_decoder = None  # CoCa's writes captions
        self.weights_digest = _weights_digest(model, settings.model_name)
        self.preprocess_description = _describe(preprocess)
        self._max_batch_size = settings.max_batch_size
        self.image_limits = {
            "max_bytes": settings.max_image_bytes,
            "max_pixels": settings.max_image_pixels,
        }
        self._cpus = max(1, available_cpus() // settings.workers)
        torch.set_num_threads(self._cpus)
        # each computes alone
        self._cores = ThreadPoolExecutor(self._cpus, "core", compute_on, (1,))
        self._whole = threading.Lock()  # held by what computes on all of the device
        self._large = threading.Lock()  # held by what decodes a large picture
        torch.backends.cudnn.allow_tf32 = False  # float32 means that on a GPU too
        model.to(device).eval().requires_grad_(False)
        replace_attention(model)
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
    def load(cls, settings: Settings) -> Encoder:
        """Load the model that the settings name onto their device.

        Raises `ModelLoadError` with what to do about it: an unknown name, weights that
        cannot be had, a device that is not there.
        """
        open_clip = import_open_clip()
        device = _device(settings.device)
        name = settings.model_name
        with _explained(settings), weights_as_mapped():
            import_towers_of(name)
            model, preprocess = open_clip.create_model_from_pretrained(
                name,
                # with a schema (local-dir:, hf-hub:) the weights come with the name
                pretrained=None if ":" in name else settings.model_pretrained,
                # OpenAI's weights were trained with QuickGELU; without this, open_clip
                # loads them into a GELU model and only warns.
                force_quick_gelu=_wants_quick_gelu(settings),
                weights_only=True,
            )
            tokenizer = open_clip.get_tokenizer(name)
        return cls(model, preprocess, tokenizer, settings, device)

    @property
    def model(self) -> str:
        """The model as `NAME/PRETRAINED`."""
        return f"{self.model_name}/{self.pretrained}"

    @property
    def image_batch(self) -> int:
        """How many images are best given to `encode_images` at once by one of several threads."""
        lanes = self.image.lanes
        return min(_CORE_BATCH, self._max_batch_size) * lanes if lanes > 1 else self._max_batch_size

    @property
    def dtypes(self) -> dict[str, str]:
        """What each tower computes in."""
        return {"text": self.text.dtype, "image": self.image.dtype}

    def encode_texts(self, texts: Sequence[str], *, normalize: bool = True) -> Embeddings:
        """Return the embeddings of texts, float32 (n, dim), L2-normalised unless told not to.

        What lies beyond `context_length` tokens of a text is cut off.
        """
        if isinstance(texts, str):
            raise TypeError("texts must be a list of strings, not one string")
        n = self._max_batch_size
        with self._whole:
            compute_on(self._cpus)
            rows = [
                self.text.embed([self.text.prepare(text) for text in texts[i : i + n]])
                for i in range(0, len(texts), n)
            ]
        return self._stack(rows, normalize)

    def encode_images(
        self, images: Sequence[Image.Image | bytes | Path], *, normalize: bool = True
    ) -> Embeddings:
        """Return the embeddings of images, float32 (n, dim), L2-normalised unless told not to.

        An image is a Pillow image, the bytes of a picture file, or its path. Several threads may
        call it at a time; then each is best given `image_batch` images, while the others read
        theirs and keep what they got.

        Raises what `decode_image` raises, and `EncoderError` when the device is lost.
        """
        n = self.image_batch
        rows: list[Embeddings] = []
        for i in range(0, len(images), n):
            parts = self._cores.map(self._preprocess_all, _parts(images[i : i + n], self._cpus))
            rows += self._embed_images([item for part in parts for item in part])
        return self._stack(rows, normalize)

    def preprocess(self, image: Image.Image | bytes | Path) -> torch.Tensor:
        """Return an image as the image tower takes it, uint8 (height, width, 3).

        Raises what `decode_image` raises when it is not yet decoded.
        """
        if isinstance(image, Path):
            image = image.read_bytes()
        if not isinstance(image, bytes):
            return self.image.prepare(image)
        opened = open_image(image, **self.image_limits)
        with self._large if opened.width * opened.height > LARGE_PIXELS else nullcontext():
            return self.image.prepare(load_image(opened))

    def _preprocess_all(self, images: Sequence[Image.Image | bytes | Path]) -> list[torch.Tensor]:
        return [self.preprocess(image) for image in images]

    def _embed_images(self, items: Sequence[torch.Tensor]) -> list[Embeddings]:
        """Embed a batch: a part of it on each core of a CPU, or all of it on the device."""
        if 1 < self.image.lanes <= len(items):
            parts = self._cores.map(self._embed_in_memory, _parts(items, self.image.lanes))
            return [rows for part in parts for rows in part]
        with self._whole:
            compute_on(self._cpus)
            return self._embed_in_memory(items)

    def _embed_in_memory(self, items: Sequence[torch.Tensor]) -> list[Embeddings]:
        """Embed a batch, in halves when the device's memory is too small for all of it."""
        from bento.encoder.towers import device_lost, out_of_memory

        rows = []
        for part in (parts := Halving(items)):
            try:
                rows.append(self.image.embed(part))
            except Exception as error:
                if device_lost(error):
                    raise EncoderError(f"the device {self.device} is lost: {error}") from error
                if not out_of_memory(error) or not parts.halve():
                    raise
        return rows

    def _common_dimension(self) -> int:
        """Return the width of both towers' embeddings."""
        # OpenCLIP's own image towers know theirs; asking saves a start a forward pass
        image = getattr(self.image.module, "output_dim", None)
        image = image or self.image.embed(self.image.probe()[:1]).shape[1]
        text = self.text.embed(self.text.probe()[:1]).shape[1]
        if image != text:
            raise ModelLoadError(
                f"{self.model} gives images {image} and texts {text} dimensions; only models "
                "with one space for both can be served"
            )
        return int(text)

    def _stack(self, rows: list[Embeddings], normalize: bool) -> Embeddings:
        if not rows:
            return np.empty((0, self.embedding_dim), np.float32)
        embeddings = np.concatenate(rows)
        return normalized(embeddings) if normalize else embeddings


def _parts(items: Sequence[Item], count: int) -> list[Sequence[Item]]:
    """Return items in up to `count` parts of the same size, or one less."""
    ends = [len(items) * i // count for i in range(count + 1)]
    return [items[start:end] for start, end in pairwise(ends) if start < end]


def normalized(embeddings: Embeddings) -> Embeddings:
    """Return embeddings (…, dim) divided by their L2 norm."""
    norm = np.linalg.norm(embeddings, axis=-1, keepdims=True)
    return np.asarray(embeddings / np.maximum(norm, 1e-12), np.float32)


def _pretrained(settings: Settings) -> str:
    """Return what names the weights: the tag, or `local` or `hub` where the name does."""
    schema = settings.model_name.partition(":")[0]
    return {"local-dir": "local", "hf-hub": "hub"}.get(schema, settings.model_pretrained)


def _device(wanted: str) -> str:
    import torch

    if wanted == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if wanted.startswith("cuda"):
        count = torch.cuda.device_count()
        if int(wanted.partition(":")[2] or 0) >= count:
            raise ModelLoadError(
                f"DEVICE={wanted}, but torch sees {count} CUDA devices here; "
                "allowed: auto, cpu" + "".join(f", cuda:{i}" for i in range(count))
            )
    return wanted


def _wants_quick_gelu(settings: Settings) -> bool:
    from open_clip.pretrained import get_pretrained_cfg

    name = settings.model_name.replace("/", "-")  # as OpenCLIP takes ViT-B/32
    cfg = get_pretrained_cfg(name, settings.model_pretrained)
    return bool((cfg or {}).get("quick_gelu", False))


@contextmanager
def _explained(settings: Settings) -> Iterator[None]:
    """Turn what open_clip raises while loading into a `ModelLoadError` that helps."""
    name, pretrained = settings.model_name, settings.model_pretrained
    try:
        with warnings.catch_warnings():
            # Weights trained with QuickGELU give wrong vectors without it. (Of a model that has
            # it and a tag that does not say so, the tables of OpenCLIP alone are at odds.)
            mismatch = r"QuickGELU mismatch .*\(quick_gelu=False\) and"
            warnings.filterwarnings("error", message=mismatch, category=UserWarning)
            yield
    except Exception as error:
        what = str(error).strip() or type(error).__name__
        if "weights_only" in what or "allow_pickle" in what:
            # the libraries' own words advise to run what is in the file
            raise ModelLoadError(
                f"cannot load MODEL_NAME={name} MODEL_PRETRAINED={pretrained}: the file of its "
                "weights does not hold tensors alone, and what else is in it may be code, which "
                "is never run here; save its state dict as .safetensors"
            ) from None
        if name.startswith("local-dir:"):
            advice = "local-dir: needs a folder with open_clip_config.json and its weights"
        elif "download" in what or "offline" in what.lower():
            advice = (
                "its weights are not in the local cache and no model hub could be reached. "
                "Offline, either copy the cache of a machine that has them (HF_HOME), or set "
                "MODEL_PRETRAINED to a checkpoint file, or set MODEL_NAME=local-dir:PATH "
                "(the bundled model is local-dir:models/shapes)"
            )
        else:
            advice = (
                "allowed: a model and tag of open_clip.list_pretrained(), a checkpoint file as "
                "MODEL_PRETRAINED, hf-hub:org/name, or local-dir:PATH"
            )
        raise ModelLoadError(
            f"cannot load MODEL_NAME={name} MODEL_PRETRAINED={pretrained}: {advice}. "
            f"OpenCLIP said: {what[:400]}"
        ) from error


def _weights_digest(model: Any, model_name: str) -> str:
    """Return 16 hex digits that tell these weights from others, whatever their dtype later.

    A sample of every tensor is hashed, so that a large model costs milliseconds; of a local folder
    also its configuration, which somebody may change beside the weights. Raises `ModelLoadError`
    for a sample that is no number.
    """
    digest = hashlib.blake2b(digest_size=8)
    for name, tensor in sorted(model.state_dict().items()):
        flat = tensor.detach().reshape(-1)
        step = max(1, flat.numel() // _SAMPLES)
        sample = flat[::step].float().cpu().numpy()
        if np.isnan(sample).any():
            raise ModelLoadError(f"the weights of {model_name} are damaged: {name} has NaN")
        digest.update(f"{name}{tuple(tensor.shape)}".encode())
        digest.update(sample.tobytes())
    if model_name.startswith("local-dir:"):
        from open_clip import get_model_config

        digest.update(json.dumps(get_model_config(model_name), sort_keys=True).encode())
    return digest.hexdigest()


def _describe(preprocess: Any) -> str:
    """Return the preprocessing steps in one line, for people and for comparing models."""
    steps = [str(step) for step in getattr(preprocess, "transforms", [preprocess])]
    return " > ".join(s for s in steps if not s.startswith("<function"))
