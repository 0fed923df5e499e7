"""Load an OpenCLIP model quickly, with errors that say what to do.

`load_model` skips work that most models do not need; `python -m benchmarks.startup` measures it.
OpenCLIP imports transformers and timm. torchvision imports torch's compiler, for an operator that
no CLIP model uses. These imports take longer than that of torch. Also, a model fills every weight
with random values before it copies the checkpoint.
"""

from __future__ import annotations

import errno
import importlib
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

from bento.contract.errors import ModelLoadError
from bento.settings import Settings


def load_model(settings: Settings) -> tuple[Any, Any, Any]:
    """Return OpenCLIP's model, preprocessing and tokenizer, on the CPU.

    Raises `ModelLoadError` with advice if the model or its weights cannot be loaded.
    """
    open_clip = _import_open_clip()
    name = settings.model_name
    with errors_with_advice(settings), _weights_as_mapped():
        _import_adapters(name)
        model, preprocess = open_clip.create_model_from_pretrained(
            name,
            # with a schema (local-dir:, hf-hub:) the name includes the weights
            pretrained=None if ":" in name else settings.model_pretrained,
            # OpenAI trained its weights with QuickGELU. By default OpenCLIP would load them into
            # a GELU model and only warn.
            force_quick_gelu=_wants_quick_gelu(settings),
            weights_only=True,
        )
        return model, preprocess, open_clip.get_tokenizer(name)


def _wants_quick_gelu(settings: Settings) -> bool:
    from open_clip.pretrained import get_pretrained_cfg

    name = settings.model_name.replace("/", "-")  # OpenCLIP accepts ViT-B/32 for ViT-B-32
    cfg = get_pretrained_cfg(name, settings.model_pretrained)
    return bool((cfg or {}).get("quick_gelu", False))


@contextmanager
def errors_with_advice(settings: Settings) -> Iterator[None]:
    """Turn any error of OpenCLIP into a `ModelLoadError` with advice."""
    name, pretrained = settings.model_name, settings.model_pretrained
    try:
        with warnings.catch_warnings():
            # Weights that were trained with QuickGELU give wrong embeddings without it, so this
            # warning becomes an error. The opposite warning only shows an inconsistency in
            # OpenCLIP's tables.
            mismatch = r"QuickGELU mismatch .*\(quick_gelu=False\) and"
            warnings.filterwarnings("error", message=mismatch, category=UserWarning)
            yield
    except Exception as error:  # OpenCLIP raises errors of many types
        what = str(error).strip() or type(error).__name__
        if "weights_only" in what or "allow_pickle" in what:
            # hide the message of the library, which advises to run the code in the file
            raise ModelLoadError(
                f"cannot load MODEL_NAME={name} MODEL_PRETRAINED={pretrained}: the checkpoint "
                "holds more than tensors. The rest may be code, which the service never runs: save "
                "the state dict as .safetensors"
            ) from None
        if name.startswith("local-dir:"):
            advice = (
                "the folder after local-dir: must hold open_clip_config.json and the weights that "
                "belong to it"
            )
        elif file := _unwritable(error):
            advice = (
                f"its weights are not in the cache, and {file} cannot be written. Mount the cache "
                "(HF_HOME) writable for the first start, or fill it with `make fetch-weights`"
            )
        elif "download" in what or "offline" in what.lower():
            advice = (
                "its weights are not in the local cache, and no model hub answered. Without a "
                "network, copy the cache (HF_HOME) of a machine that has the weights, or set "
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
            f"OpenCLIP reported: {what[:400]}"
        ) from error


def _unwritable(error: BaseException | None) -> str:
    """Return the file that an error or one of its causes could not write, or an empty string."""
    while error:
        if isinstance(error, OSError) and error.errno in (errno.EROFS, errno.EACCES):
            return str(error.filename or "it")
        error = error.__cause__ or error.__context__
    return ""


def _import_open_clip() -> Any:
    """Import OpenCLIP without transformers, timm and torch's compiler."""
    import torch  # noqa: F401 - imported first, so that torch itself gets the real modules

    with _without("transformers", "timm"), _compiler_later():
        import open_clip
    return open_clip


def _import_adapters(model_name: str) -> None:
    """Import transformers or timm if a tower of the model needs it."""
    import open_clip

    config = open_clip.get_model_config(model_name) or {}
    if config.get("text_cfg", {}).get("hf_model_name"):
        _import_again(open_clip.hf_model, "transformers")
    if config.get("vision_cfg", {}).get("timm_model_name"):
        _import_again(open_clip.timm_model, "timm")


def _import_again(adapter: ModuleType, library: str) -> None:
    """Reload OpenCLIP's adapter of a library if it was imported without that library.

    Modules that already imported the adapter see the change, because a reload keeps its object.
    """
    if vars(adapter)[library] is None:
        importlib.reload(adapter)


@contextmanager
def _without(*libraries: str) -> Iterator[None]:
    """Make imports of libraries fail, so that OpenCLIP considers them not installed."""
    absent = [name for name in libraries if name not in sys.modules]
    sys.modules.update(dict.fromkeys(absent))  # type: ignore[arg-type]
    try:
        yield
    finally:
        for name in absent:
            del sys.modules[name]


@contextmanager
def _compiler_later() -> Iterator[None]:
    """Delay torchvision's import of `torch._dynamo` until `roi_align` is called."""
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


def _weights_as_mapped() -> Any:
    """Return a context in which a model uses the checkpoint's own tensors as its parameters.

    Parameters get no initial values, and `load_state_dict` replaces a parameter instead of copying
    into it. safetensors maps its file, so its pages are read when they are first used, and
    processes share them. The checkpoint must have every parameter, which OpenCLIP checks.
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
