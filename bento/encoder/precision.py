"""Choose the dtype of a tower: a faster one than float32 if it is faithful enough."""

from __future__ import annotations

import copy
import logging
import math
from collections.abc import Callable, Sequence
from time import perf_counter
from typing import Any, Final

import torch
from torch.nn.functional import cosine_similarity

from bento.encoder.embeddings import Embeddings
from bento.encoder.kernels.packing import pack_weights
from bento.encoder.tower import Tower

logger = logging.getLogger("vision_encoder")

# The lowest allowed cosine between an embedding in this dtype and the same in float32.
FIDELITY: Final = {"float16": 0.9999, "bfloat16": 0.999}
_GAIN: Final = 1.2  # the speedup that a lower precision needs; less may be noise
_TRIES: Final = 2  # a dtype that does not seem faster is measured once more


def settle_dtype(
    tower: Tower,
    wanted: str,
    device: str,
    *,
    pack: bool = False,
    clock: Callable[[], float] = perf_counter,
    candidates: Sequence[str] | None = None,
) -> None:
    """Convert a float32 tower to a dtype. `auto` chooses a faster one that is faithful enough.

    A dtype is faithful if every embedding of the probe passes `FIDELITY`. If several dtypes are
    faithful and faster, `auto` chooses the most exact one, because timing noise must not make two
    workers differ.

    Args:
        tower: the tower to convert.
        wanted: a dtype, or `auto`.
        device: the device of the tower.
        pack: pack the weights for the 16-bit instructions of a CPU.
        clock: returns seconds, to measure the dtypes.
        candidates: the dtypes that `auto` tries; by default those that are fast on the device.
    """
    if wanted != "auto":
        tower.use(_converted(tower.module, wanted, pack), wanted)
        return
    exact_module, items = tower.module, tower.probe()
    for dtype in _fast_dtypes(device) if candidates is None else candidates:
        module = _converted(copy.deepcopy(exact_module), dtype, pack)
        exact_seconds = seconds = math.inf
        for _ in range(_TRIES):
            exact, took = _timed(tower, items, clock)
            exact_seconds = min(exact_seconds, took)
            tower.use(module, dtype)
            embeddings, took = _timed(tower, items, clock)
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


def _converted(module: Any, dtype: str, pack: bool) -> Any:
    """Return the module, whose weights are converted in place."""
    module.to(getattr(torch, dtype))
    if pack:
        pack_weights(module)
    return module


def _fast_dtypes(device: str) -> list[str]:
    """Return the dtypes for which the device has fast instructions, the most exact one first."""
    if device != "cpu":
        return ["float16", "bfloat16"]
    if hasattr(torch.cpu, "get_capabilities"):
        has = torch.cpu.get_capabilities()
        fast = has.get("avx512_bf16") or has.get("amx_bf16") or has.get("bf16")
    else:  # torch 2.10; CPUs with AMX have its bfloat16 instructions
        fast = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return ["bfloat16"] if fast else []


def _timed(
    tower: Tower, items: list[torch.Tensor], clock: Callable[[], float]
) -> tuple[Embeddings, float]:
    """Return the embeddings of items, and the shortest time of a run in seconds.

    The tower runs at least twice, and for at least 0.1 s.
    """
    times: list[float] = []
    while len(times) < 2 or sum(times) < 0.1:
        started = clock()
        embeddings = tower.embed(items)
        times.append(clock() - started)
    return embeddings, min(times)
