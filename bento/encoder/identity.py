"""Identify a model by its name, its weights and its preprocessing."""

from __future__ import annotations

import hashlib
import json
from typing import Any, Final

import numpy as np

from bento.contract.errors import ModelLoadError
from bento.settings import Settings

_SAMPLES: Final = 64  # how many values of each tensor are hashed


def pretrained_name(settings: Settings) -> str:
    """Return MODEL_PRETRAINED, or `local` or `hub` if MODEL_NAME already names the weights."""
    schema = settings.model_name.partition(":")[0]
    return {"local-dir": "local", "hf-hub": "hub"}.get(schema, settings.model_pretrained)


def weights_digest(model: Any, model_name: str) -> str:
    """Return 16 hex digits that identify the weights of a loaded model.

    Only a sample of each tensor is hashed, so that a large model takes milliseconds. For a local
    folder the configuration is hashed too, because users may change it and keep the weights.

    Raises `ModelLoadError` if a sample contains NaN.
    """
    digest = hashlib.blake2b(digest_size=8)
    for name, tensor in sorted(model.state_dict().items()):
        flat = tensor.detach().reshape(-1)
        step = max(1, flat.numel() // _SAMPLES)
        sample = flat[::step].float().cpu().numpy()
        if np.isnan(sample).any():
            raise ModelLoadError(
                f"the weights of {model_name} are damaged, because {name} contains NaN: "
                "download or copy them again"
            )
        digest.update(f"{name}{tuple(tensor.shape)}".encode())
        digest.update(sample.tobytes())
    if model_name.startswith("local-dir:"):
        from open_clip import get_model_config

        digest.update(json.dumps(get_model_config(model_name), sort_keys=True).encode())
    return digest.hexdigest()


def describe_preprocess(preprocess: Any) -> str:
    """Return the preprocessing steps in one line, to read and to compare models."""
    steps = [str(step) for step in getattr(preprocess, "transforms", [preprocess])]
    return " > ".join(s for s in steps if not s.startswith("<function"))
