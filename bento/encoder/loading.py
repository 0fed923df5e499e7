"""Loading an OpenCLIP model without doing what its answers do not need.

OpenCLIP imports transformers and timm for towers that most models do not have, and torchvision
imports torch's compiler for one operator that no CLIP model has: together more than torch itself
takes. Then every weight gets a random value, and after that a copy of the checkpoint's
(`python -m benchmarks.startup`).
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any


def import_open_clip() -> Any:
    """Import OpenCLIP, and none of transformers, timm and torch's compiler."""
    import torch  # noqa: F401  # before anything of it is stood in for

    with _without("transformers", "timm"), _compiler_later():
        import open_clip
    return open_clip


def import_towers_of(model_name: str) -> None:
    """Import what the towers of a model are made with, where OpenCLIP does not have it yet."""
    import open_clip

    config = open_clip.get_model_config(model_name) or {}
    if config.get("text_cfg", {}).get("hf_model_name"):
        _import_again(open_clip.hf_model, "transformers")
    if config.get("vision_cfg", {}).get("timm_model_name"):
        _import_again(open_clip.timm_model, "timm")


def weights_as_mapped() -> Any:
    """Return a context in which a model is made of the checkpoint's own tensors.

    Parameters get no initial values, and what `load_state_dict` would copy becomes the parameter
    itself. safetensors maps its file: nothing is read before it is used, and several processes
    share the memory. The checkpoint must have every parameter, which OpenCLIP checks.
    """
    from torch import Tensor
    from torch.nn import Parameter
    from torch.overrides import TorchFunctionMode

    class WeightsAsMapped(TorchFunctionMode):
        def __torch_function__(
            self, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            kwargs = kwargs or {}
            target = args[0] if args else kwargs.get("tensor")
            if isinstance(target, Parameter):
                if func in (Tensor.uniform_, Tensor.normal_) or _initialises(func):
                    return target
                if func is Tensor.copy_ and _alike(target, args[1]):
                    target.data = args[1]
                    return target
            return func(*args, **kwargs)

    return WeightsAsMapped()


def _initialises(func: Any) -> bool:
    return getattr(func, "__module__", None) == "torch.nn.init"


def _alike(parameter: Any, value: Any) -> bool:
    return all(
        getattr(parameter, name) == getattr(value, name) for name in ("shape", "dtype", "device")
    )


def _import_again(adapter: ModuleType, library: str) -> None:
    """Execute OpenCLIP's adapter of a library once more, now that it can be imported.

    Its names stay where they are, so that who has imported them has the library too.
    """
    if vars(adapter)[library] is None:
        importlib.reload(adapter)


@contextmanager
def _without(*libraries: str) -> Iterator[None]:
    """Make imports of libraries raise ImportError, which OpenCLIP takes for not installed."""
    absent = [name for name in libraries if name not in sys.modules]
    sys.modules.update(dict.fromkeys(absent))  # type: ignore[arg-type]
    try:
        yield
    finally:
        for name in absent:
            del sys.modules[name]


@contextmanager
def _compiler_later() -> Iterator[None]:
    """Let torchvision import `torch._dynamo` when `roi_align` is called, not before."""
    name = "torch._dynamo.utils"
    if name in sys.modules:
        yield
        return

    def is_compile_supported(device_type: str) -> Any:
        return importlib.import_module(name).is_compile_supported(device_type)

    sys.modules[name] = ModuleType(name)
    vars(sys.modules[name])["is_compile_supported"] = is_compile_supported
    try:
        yield
    finally:
        del sys.modules[name]
