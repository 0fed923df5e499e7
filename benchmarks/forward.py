"""Measure the model alone, without a service around it.

    python -m benchmarks.forward

It measures each tower by dtype and batch size. Texts are padded to the context, or trimmed to the
longest text of their batch. Texts of similar length share a batch, as in the best possible service.
"""

from __future__ import annotations

import time
from argparse import Namespace
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from functools import cache
from multiprocessing import get_context
from typing import TYPE_CHECKING, Any, Final

from benchmarks.support.command import parse, parser, report, say
from benchmarks.support.inputs import TEXTS, checkpoint
from benchmarks.support.machine import gpu_name
from benchmarks.support.record import Table, table, table_of
from loadtests.samples import percentile

if TYPE_CHECKING:
    import torch

Measure = Callable[[str, str, float], dict[str, Any]]
"""Measures a tower by kind (`image` or `text`), dtype and seconds; see `alone`."""

_DTYPES: Final = ("float32", "bfloat16", "float16")
_SIZES: Final = (1, 2, 4, 8, 16, 32)
_GPU_SIZES: Final = (*_SIZES, 64, 128)
_QUICK_SIZES: Final = (1, 8)
_LIMIT_SIZES: Final = (1, 8, 16, 32)
_QUICK_LIMIT_SIZES: Final = (1, 32)
# Dense 16-bit tensor operations per second, from NVIDIA's data sheets.
_PEAK_FLOPS: Final = {"H200": 989e12, "H100": 989e12, "A100": 312e12, "L40S": 362e12, "L4": 121e12}


class Forward:
    """A model as OpenCLIP loads it, in one dtype on one device."""

    def __init__(self, model: str, dtype: str, device: str) -> None:
        import open_clip
        import torch

        name = checkpoint(model)
        self.device = resolved(device)
        self.dtype = getattr(torch, dtype)
        loaded = open_clip.create_model_from_pretrained(name, return_transform=False)
        self._model: Any = loaded.to(self.device, self.dtype).eval().requires_grad_(False)
        self._tokenizer = open_clip.get_tokenizer(name)
        self.towers: dict[str, Callable[[Any], Any]] = {
            "image": self._model.encode_image,
            "text, padded": self._model.encode_text,
        }
        if isinstance(loaded, open_clip.CLIP):
            self.towers["text, trimmed"] = self._encode_trimmed
        self.best_text = list(self.towers)[-1]

    def batches(self, tower: str, size: int) -> list[torch.Tensor]:
        """Return inputs of a tower: one batch of pixels, or all `TEXTS` by length."""
        import torch

        if tower == "image":
            side = self._model.visual.image_size
            shape = (size, 3, *(side if isinstance(side, tuple) else (side, side)))
            return [torch.randn(shape, device=self.device, dtype=self.dtype)]
        tokens = self._tokenizer(list(TEXTS))
        lengths = tokens.argmax(-1) + 1  # the end-of-text token has the largest id
        order = lengths.argsort(stable=True).repeat_interleave(-(-size // len(TEXTS)))
        trimmed = tower == "text, trimmed"
        return [
            tokens[rows, : int(lengths[rows].max()) if trimmed else None].to(self.device)
            for rows in order.split(size)
        ]

    def _encode_trimmed(self, tokens: torch.Tensor) -> torch.Tensor:
        """Encode (n, length) tokens; exact, because CLIP's text attention is causal."""
        import torch

        model, length = self._model, tokens.shape[1]
        x = model.token_embedding(tokens) + model.positional_embedding[:length]
        x = model.ln_final(model.transformer(x, attn_mask=model.attn_mask[:length, :length]))
        ends = x[torch.arange(len(x), device=x.device), tokens.argmax(-1)]
        embeddings: torch.Tensor = ends @ model.text_projection
        return embeddings

    def measure(
        self, tower: Callable[[Any], Any], batches: Sequence[torch.Tensor], seconds: float
    ) -> tuple[float, float]:
        """Return the items/s and the p50 of a batch in ms, over whole rounds of `batches`."""
        import torch

        # Launching several batches ahead keeps a GPU busy. For batches of one, measure the latency.
        ahead = 8 if self.device == "cuda" and len(batches[0]) > 1 else 1
        took, items = [], 0
        with torch.inference_mode():
            for batch in batches[:2]:
                tower(batch)
            self._synchronize()
            started = time.perf_counter()
            while time.perf_counter() - started < seconds:
                for batch in batches:
                    began = time.perf_counter()
                    for _ in range(ahead):
                        tower(batch)
                    self._synchronize()
                    took.append((time.perf_counter() - began) / ahead * 1000)
                    items += len(batch) * ahead
            elapsed = time.perf_counter() - started
        return items / elapsed, percentile(took, 50)

    def flops(self, tower: str) -> float:
        """Return the mean number of floating-point operations per item."""
        import torch
        from torch.utils.flop_counter import FlopCounterMode

        batches = self.batches(tower, 1)[::8]  # texts of all lengths
        torch.backends.mha.set_fastpath_enabled(False)  # the fused layer is not counted
        try:
            with torch.inference_mode(), FlopCounterMode(display=False) as counter:
                for batch in batches:
                    self.towers[tower](batch)
        finally:
            torch.backends.mha.set_fastpath_enabled(True)
        return int(counter.get_total_flops()) / len(batches)

    def _synchronize(self) -> None:
        import torch

        if self.device == "cuda":
            torch.cuda.synchronize()


def resolved(device: str) -> str:
    import torch

    return device if device != "auto" else "cuda" if torch.cuda.is_available() else "cpu"


@contextmanager
def alone(options: Namespace) -> Iterator[Measure]:
    """Yield a function that measures a tower alone.

    It runs in a process of its own, which loads the model once and idles in between. The function
    returns the items/s by batch size (`rates`), the best of them (`rate`), and the p50 of a batch
    of one in ms (`single_ms`).
    """
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        yield lambda *arguments: pool.submit(_alone, options, *arguments).result()


def limit(measure: Measure, dtypes: dict[str, str], seconds: float) -> dict[str, Any]:
    """Measure the towers alone. `dtypes` has the dtype of `image` and of `text`."""
    return {
        kind: {"dtype": dtype, **measure(kind, dtype, 2 * seconds)}
        for kind, dtype in dtypes.items()
    }


def best_rates(limits: Sequence[dict[str, Any]]) -> list[float]:
    """Return the rates of repeated measurements at the batch size that is best in total.

    Taking the best size of each measurement instead would favour chance.
    """
    best = max(limits[0]["rates"], key=lambda size: sum(each["rates"][size] for each in limits))
    return [each["rates"][best] for each in limits]


_loaded = cache(Forward)


def _alone(options: Namespace, kind: str, dtype: str, seconds: float) -> dict[str, Any]:
    sizes = _QUICK_LIMIT_SIZES if options.quick else _LIMIT_SIZES
    forward = _loaded(options.model, dtype, options.device)
    name = "image" if kind == "image" else forward.best_text
    tower = forward.towers[name]
    figures = {
        size: forward.measure(tower, forward.batches(name, size), seconds / len(sizes))
        for size in sizes
    }
    rates = {str(size): rate for size, (rate, _) in figures.items()}
    return {"rate": max(rates.values()), "single_ms": figures[1][1], "rates": rates}


def peak_flops(gpu: str | None) -> float | None:
    """Return the peak of a GPU in 16 bits, in operations/s; None if it is not known."""
    words = (gpu or "").replace("-", " ").split()
    return next((peak for name, peak in _PEAK_FLOPS.items() if name in words), None)


def measured(options: Namespace, dtype: str, device: str) -> Iterator[dict[str, Any]]:
    """Yield a row for each tower and batch size."""
    import torch

    forward = Forward(options.model, dtype, device)
    cuda = device == "cuda"
    peak = peak_flops(gpu_name()) if cuda and dtype != "float32" else None
    for name, tower in forward.towers.items():
        flops = forward.flops(name)
        for size in _QUICK_SIZES if options.quick else _GPU_SIZES if cuda else _SIZES:
            if cuda:
                torch.cuda.reset_peak_memory_stats()
            batches = forward.batches(name, size)
            rate, batch_ms = forward.measure(tower, batches, options.seconds)
            row = {
                "tower": name,
                "dtype": dtype,
                "batch": size,
                "rate": rate,
                "batch_ms": batch_ms,
                "gflops": flops * rate / 1e9,
                "of_peak": flops * rate / peak if peak else None,
                "memory_mb": torch.cuda.max_memory_allocated() / 1e6 if cuda else None,
            }
            if options.compile and name == "image":
                compiled = torch.compile(tower, dynamic=False)
                began = time.perf_counter()
                with torch.inference_mode():
                    compiled(batches[0])
                row["compile_seconds"] = time.perf_counter() - began
                row["compiled_rate"] = forward.measure(compiled, batches, options.seconds)[0]
            say(f"{name}, {dtype}, batches of {size}: {rate:.1f} items/s")
            yield row


def by_batch(rows: Sequence[dict[str, Any]]) -> Table:
    """Return the items/s as a table with a column for each batch size."""
    sizes = sorted({row["batch"] for row in rows})
    rates: dict[tuple[str, str], dict[int, float]] = {}
    for row in rows:
        rates.setdefault((row["tower"], row["dtype"]), {})[row["batch"]] = row["rate"]
    return table(
        ("items/s of the tower", "dtype", *(f"batch {size}" for size in sizes)),
        [(*key, *(found.get(size) for size in sizes)) for key, found in rates.items()],
    )


def main(argv: Sequence[str] | None = None) -> None:
    made = parser(__doc__, seconds=(3.0, 0.3))
    made.add_argument(
        "--dtypes",
        nargs="+",
        choices=_DTYPES,
        help="default: float32 and bfloat16; on a GPU also float16",
    )
    made.add_argument(
        "--compile", action="store_true", help="also measure the image tower with torch.compile"
    )
    options = parse(made, argv)
    device = resolved(options.device)
    dtypes = options.dtypes or (_DTYPES if device == "cuda" else _DTYPES[:2])
    rows = [row for dtype in dtypes for row in measured(options, dtype, device)]
    columns = {
        "tower": "tower",
        "dtype": "dtype",
        "batch": "batch",
        "rate": "items/s",
        "batch_ms": "ms a batch (p50)",
        "gflops": "GFLOP/s",
        "of_peak": "of the peak",
        "memory_mb": "device MB",
        "compiled_rate": "compiled, items/s",
        "compile_seconds": "compiling, s",
    }
    measured_all = table_of(columns, rows, title="Every measurement", detail=True)
    report("forward", options, [by_batch(rows), measured_all], {"device": device, "rows": rows})


if __name__ == "__main__":
    main()
