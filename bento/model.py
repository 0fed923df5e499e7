"""The encoder: an OpenCLIP model, its preprocessing and its tokenizer."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt
from PIL import Image

from bento.errors import ModelLoadError
from bento.images import decode_image
from bento.settings import Settings

if TYPE_CHECKING:
    import torch

Embeddings = npt.NDArray[np.float32]

_SAMPLES: Final = 64  # values of each weight that go into the digest


class Encoder:
    """Turns texts and images into embeddings of one space.

    Usable without HTTP: `Encoder.load(Settings()).encode_texts(["a red circle"])`.
    """

    def __init__(
        self, model: Any, preprocess: Any, tokenizer: Any, settings: Settings, device: str
    ) -> None:
        import torch

        self.device = device
        self.model_name = settings.model_name
        self.pretrained = _pretrained(settings)
        self.dtype = _dtype(settings.dtype, device)
        self.weights_digest = _weights_digest(model)
        self.context_length = int(getattr(tokenizer, "context_length", None) or 77)
        self.preprocess_description = _describe(preprocess)
        self._max_batch_size = settings.max_batch_size
        self._limits = {
            "max_bytes": settings.max_image_bytes,
            "max_pixels": settings.max_image_pixels,
        }
        self._torch_dtype = getattr(torch, self.dtype)
        self._model = model.to(device=device, dtype=self._torch_dtype).eval().requires_grad_(False)
        self._preprocess = preprocess
        self._tokenizer = tokenizer
        self.embedding_dim = self._warm_up()

    @classmethod
    def load(cls, settings: Settings) -> Encoder:
        """Load the model that the settings name onto their device.

        Raises `ModelLoadError` with what to do about it: an unknown name, weights that
        cannot be had, a device that is not there.
        """
        import open_clip

        device = _device(settings.device)
        name = settings.model_name
        with _explained(settings):
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

    def encode_texts(self, texts: Sequence[str], *, normalize: bool = True) -> Embeddings:
        """Return the embeddings of texts, float32 (n, dim), L2-normalised unless told not to.

        What lies beyond `context_length` tokens of a text is cut off.
        """
        if isinstance(texts, str):
            raise TypeError("texts must be a list of strings, not one string")
        rows = [
            self.text_embeddings(self.tokenize(texts[i : i + self._max_batch_size]))
            for i in range(0, len(texts), self._max_batch_size)
        ]
        return self._stack(rows, normalize)

    def encode_images(
        self, images: Sequence[Image.Image | bytes | Path], *, normalize: bool = True
    ) -> Embeddings:
        """Return the embeddings of images, float32 (n, dim), L2-normalised unless told not to.

        An image is a Pillow image, the bytes of a picture file, or its path.
        """
        import torch

        rows = []
        for i in range(0, len(images), self._max_batch_size):
            part = images[i : i + self._max_batch_size]
            rows.append(self.image_embeddings(torch.stack([self.preprocess(x) for x in part])))
        return self._stack(rows, normalize)

    def tokenize(self, texts: Sequence[str]) -> torch.Tensor:
        """Return token ids, int64 (n, context_length)."""
        tokens: torch.Tensor = self._tokenizer(list(texts))
        return tokens

    def preprocess(self, image: Image.Image | bytes | Path) -> torch.Tensor:
        """Return an image as the model takes it, float32 (3, height, width).

        Raises what `decode_image` raises when it is not yet decoded.
        """
        if isinstance(image, Path):
            image = image.read_bytes()
        if isinstance(image, bytes):
            image = decode_image(image, **self._limits)
        pixels: torch.Tensor = self._preprocess(image)
        return pixels

    def text_embeddings(self, tokens: torch.Tensor) -> Embeddings:
        """Run the text tower: (n, context_length) token ids to float32 (n, dim), raw."""
        return self._forward(self._model.encode_text, tokens)

    def image_embeddings(self, pixels: torch.Tensor) -> Embeddings:
        """Run the image tower: (n, 3, height, width) pixels to float32 (n, dim), raw."""
        return self._forward(self._model.encode_image, pixels.to(self._torch_dtype))

    def _warm_up(self) -> int:
        """Run both towers once, as later requests will, and return the embedding's width."""
        import torch

        image = self.image_embeddings(torch.stack([self.preprocess(Image.new("RGB", (32, 32)))]))
        text = self.text_embeddings(self.tokenize(["warm-up"]))
        if image.shape != text.shape:
            raise ModelLoadError(
                f"{self.model} gives images {image.shape[1]} and texts {text.shape[1]} "
                "dimensions; only models with one space for both can be served"
            )
        return int(text.shape[1])

    def _forward(self, tower: Any, batch: torch.Tensor) -> Embeddings:
        import torch

        with torch.inference_mode():
            embeddings: Embeddings = tower(batch.to(self.device)).float().cpu().numpy()
        return embeddings

    def _stack(self, rows: list[Embeddings], normalize: bool) -> Embeddings:
        if not rows:
            return np.empty((0, self.embedding_dim), np.float32)
        embeddings = np.concatenate(rows)
        return normalized(embeddings) if normalize else embeddings


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


def _dtype(wanted: str, device: str) -> str:
    if wanted == "auto":
        return "float32" if device == "cpu" else "float16"
    return wanted


def _wants_quick_gelu(settings: Settings) -> bool:
    from open_clip.pretrained import get_pretrained_cfg

    cfg = get_pretrained_cfg(settings.model_name, settings.model_pretrained)
    return bool((cfg or {}).get("quick_gelu", False))


@contextmanager
def _explained(settings: Settings) -> Iterator[None]:
    """Turn what open_clip raises while loading into a `ModelLoadError` that helps."""
    name, pretrained = settings.model_name, settings.model_pretrained
    try:
        with warnings.catch_warnings():
            # a model and weights trained with different activations give wrong vectors
            warnings.filterwarnings("error", message="QuickGELU mismatch", category=UserWarning)
            yield
    except Exception as error:
        what = str(error).strip() or type(error).__name__
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


def _weights_digest(model: Any) -> str:
    """Return 16 hex digits that tell these weights from others, whatever their dtype later.

    A sample of every tensor is hashed, so that a large model costs milliseconds.
    """
    digest = hashlib.blake2b(digest_size=8)
    for name, tensor in sorted(model.state_dict().items()):
        flat = tensor.detach().reshape(-1)
        step = max(1, flat.numel() // _SAMPLES)
        digest.update(f"{name}{tuple(tensor.shape)}".encode())
        digest.update(flat[::step].float().cpu().numpy().tobytes())
    return digest.hexdigest()


def _describe(preprocess: Any) -> str:
    """Return the preprocessing steps in one line, for people and for comparing models."""
    steps = [str(step) for step in getattr(preprocess, "transforms", [preprocess])]
    return " > ".join(s for s in steps if not s.startswith("<function"))
