"""The image tower of an OpenCLIP model: from images to embeddings."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torchvision.transforms import Compose, Normalize  # type: ignore[import-untyped]

from bento.contract.errors import InvalidRequest, ModelLoadError
from bento.encoder.embeddings import Embeddings
from bento.encoder.kernels.attention import read_one_token, reads_first_token
from bento.encoder.kernels.graphs import sizes
from bento.encoder.resizing import quick_resize
from bento.encoder.tower import graphs_on, stream_on


class ImageTower:
    """Turns images into embeddings. A prepared image is uint8 (height, width, 3), on the device.

    The model's preprocessing is split in two. `prepare` resizes and crops one image; a tower that
    computes in 16 bits uses `QuickResize`. `embed` scales a batch to 0..1 and normalizes it, on the
    device in float32.
    """

    def __init__(self, visual: Any, preprocess: Any, device: str, max_batch_size: int) -> None:
        *spatial, to_tensor, normalize = preprocess.transforms
        if not isinstance(normalize, Normalize) or "ToTensor" not in type(to_tensor).__name__:
            raise ModelLoadError(
                "this model cannot be served, because its preprocessing does not end with ToTensor "
                f"and Normalize: {preprocess}"
            )
        self._spatial = Compose(spatial)
        self._quick = quick_resize(spatial)
        # for pixel values from 0 to 255
        self._mean = torch.tensor(normalize.mean, device=device).view(3, 1, 1) * 255
        self._std = torch.tensor(normalize.std, device=device).view(3, 1, 1) * 255
        self._device = device
        self._stream = stream_on(device, priority=0)
        self._copies = stream_on(device, priority=0)
        self._threads = torch.get_num_threads()
        self._sizes = sizes(max_batch_size)
        if reads_first_token(visual):
            read_one_token(visual.transformer)
        self.use(visual, "float32")

    @property
    def lanes(self) -> int:
        """Return how many batches to compute at the same time.

        One per core of a CPU, because cores that share a large batch wait for each other after
        every layer; 1 on a GPU or if compiled.
        """
        return self._threads if self._device == "cpu" and self._compiled is None else 1

    def use(self, module: Any, dtype: str) -> None:
        self.module = module
        self.dtype = dtype
        self._compiled: Callable[[torch.Tensor], Any] | None = None
        self.graphs = graphs_on(self._device, self.forward, self._sizes)

    def prepare(self, image: Image.Image) -> torch.Tensor:
        """Return an image, resized and cropped as the model does, on the device.

        Raises `InvalidRequest` if the model's resizing would leave no pixels.
        """
        pixels = self._resized(image)
        if self._device == "cpu":
            return pixels
        with self._copies():  # copies while a batch runs on the other stream
            moved = pixels.pin_memory().to(self._device, non_blocking=True)
            torch.cuda.current_stream(self._device).synchronize()
        return moved

    def _resized(self, image: Image.Image) -> torch.Tensor:
        if self.dtype != "float32" and self._quick is not None and self._quick.suits(image):
            return self._quick(image)
        try:
            return torch.from_numpy(np.array(self._spatial(image)))
        except ValueError:
            raise InvalidRequest(
                f"an image of {image.width} x {image.height} pixels cannot be resized for this "
                "model: send one that is closer to a square"
            ) from None

    def probe(self) -> list[torch.Tensor]:
        noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
        image = self.prepare(Image.fromarray(noise))
        return [image] * (1 if self._device == "cpu" else 16)

    def warm_batches(self) -> Iterator[list[torch.Tensor]]:
        several = self.graphs is not None or self._compiled is not None
        for size in reversed(self._sizes) if several else [1]:
            yield self.probe()[:1] * size

    def size(self, item: torch.Tensor) -> int:  # noqa: ARG002 - all images cost the same
        return 1

    def embed(self, items: Sequence[torch.Tensor]) -> Embeddings:
        with torch.inference_mode(), self._stream():
            batch = torch.stack(list(items))  # uint8 (n, height, width, 3)
            embeddings = self.forward(batch) if self.graphs is None else self.graphs(batch)
            return np.asarray(embeddings.cpu().numpy())

    def compile(self) -> None:
        """Compile the tower, for each batch size when it first runs.

        Batches are padded to a few sizes. Raises `ModelLoadError` if there is no C++ compiler.
        """
        if not (os.environ.get("CXX") or shutil.which("g++")):
            raise ModelLoadError(
                "COMPILE=true needs a C++ compiler, but g++ is not installed: install it (for a "
                "container image, run `make image COMPILER=1`), or set COMPILE=false"
            )
        # by default torch compiles a module for at most 8 shapes
        torch._dynamo.config.recompile_limit = len(self._sizes)
        self._compiled = torch.compile(self.module, dynamic=False)

    def forward(self, batch: torch.Tensor) -> torch.Tensor:
        """Return the embeddings, float32 (n, dim), of prepared images (n, height, width, 3)."""
        x = batch.permute(0, 3, 1, 2)  # (n, 3, height, width)
        # convert first, because torch is slow at arithmetic that mixes uint8 and float32
        x = x.to(torch.float32, memory_format=torch.contiguous_format)
        x = x.sub_(self._mean).div_(self._std).to(getattr(torch, self.dtype))
        if self._compiled is None:
            return _first(self.module(x)).float()
        size = next(size for size in self._sizes if size >= len(x))
        padded = torch.cat([x, x.new_zeros(size - len(x), *x.shape[1:])])
        return _first(self._compiled(padded))[: len(x)].float()


def _first(output: Any) -> torch.Tensor:
    """Return the embeddings (n, dim) of an output that may include patch tokens (CoCa)."""
    embeddings: torch.Tensor = output[0] if isinstance(output, tuple) else output
    return embeddings
