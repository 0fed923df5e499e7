"""Measure the memory of one worker's model: python -m benchmarks.memory.

A fresh process loads each model in float32 with random weights on the CPU, and embeds one text and
one image. The result is the peak of its resident memory. A model whose tokenizer is on a hub uses
OpenCLIP's own, so the memory of that tokenizer (SigLIP's, for example) is not included.
"""

from __future__ import annotations

import json
import math
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from benchmarks.support.command import parse, parser, report, say
from benchmarks.support.inputs import ROOT, checkpoint
from benchmarks.support.record import table_of

_MODELS: Final = ("ViT-B-32", "ViT-L-14", "ViT-B-16-SigLIP2")
_QUICK_MODELS: Final = ("shapes",)
_COLUMNS: Final = {"model": "model", "parameters": "M parameters", "peak": "GB"}
_LOAD: Final = """
import sys
from pathlib import Path
from PIL import Image
from bento import Encoder, Settings

encoder = Encoder.load(Settings(model_name=sys.argv[1], device="cpu", dtype="float32"))
encoder.encode_texts(["a red circle"])
encoder.encode_images([Image.new("RGB", (320, 240))])
print(Path("/proc/self/status").read_text().partition("VmHWM:")[2].split()[0])
"""


def measure(model: str) -> dict[str, Any]:
    """Return the peak resident memory of a fresh process in GB, and the model's parameters."""
    folder = Path(checkpoint(model).removeprefix("local-dir:"))
    _use_own_tokenizer(folder / "open_clip_config.json")
    say(model)
    command = [sys.executable, "-c", _LOAD, f"local-dir:{folder}"]
    done = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
    return {
        "model": model,
        "parameters": _parameters(folder / "open_clip_model.safetensors") / 1e6,
        "peak": int(done.stdout) * 1024 / 1e9,
    }


def _use_own_tokenizer(file: Path) -> None:
    config = json.loads(file.read_text())
    text = config["model_cfg"]["text_cfg"]
    if text.pop("hf_tokenizer_name", None):
        text.pop("tokenizer_kwargs", None)
        file.write_text(json.dumps(config))


def _parameters(file: Path) -> int:
    from safetensors import safe_open

    with safe_open(file, "numpy") as weights:
        names = weights.keys()
        shapes = [weights.get_slice(name).get_shape() for name in names]
    return sum(math.prod(shape) for shape in shapes)


def main(argv: Sequence[str] | None = None) -> None:
    """Measure the models that the README recommends."""
    made = parser(__doc__, model=False)
    options = parse(made, argv)
    models = _QUICK_MODELS if options.quick else _MODELS
    rows = [measure(model) for model in models]
    report("memory", options, [table_of(_COLUMNS, rows)], rows)


if __name__ == "__main__":
    main()
