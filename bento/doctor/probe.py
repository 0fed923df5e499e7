"""Examine torch, the model and the GPU in a subprocess, which can be killed if it hangs."""

from __future__ import annotations

import difflib
import json
import subprocess
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Final

from bento.contract.errors import ModelLoadError
from bento.encoder import devices
from bento.encoder.devices import Gpus

LOOK_SECONDS: Final = 60.0  # importing torch from a cold disk is slow
ANSWER_SECONDS: Final = 3.0


@dataclass(frozen=True)
class Seen(Gpus):
    """The results of `probe`. An `…_error` is empty if there was none."""

    torch_error: str = ""
    parameters: int = 0  # 0: unknown
    weights: str = ""
    lacking: str = ""  # names of the parts to download from `source`, since the cache lacks them
    source: str = ""  # empty: offline
    model_error: str = ""
    driver: str = ""
    gpus: Sequence[str] = ()
    driver_error: str = ""
    free: int = 0  # bytes on the GPU that DEVICE names
    product_error: str = ""


def probe(name: str, pretrained: str, device: str) -> None:
    """Print the fields of a `Seen`, one JSON line per part, so that a hang loses only the rest."""
    parts: dict[str, Callable[[], dict[str, Any]]] = {
        "torch": _torch,
        "model": lambda: _model(name, pretrained) if name else {},
        "driver": _driver,
        "devices": lambda: asdict(devices.look()),
        "product": lambda: _product(device),
    }
    for part, look in parts.items():
        try:
            found = {f"{part}_error": "", **look()}
        except Exception as error:  # noqa: BLE001 - whatever a part raises is its result
            found = {f"{part}_error": words(error)}
        print(json.dumps(found), flush=True)


def _torch() -> dict[str, Any]:
    import torch

    return {"torch": str(torch.__version__), "cuda": torch.version.cuda or ""}


def _model(name: str, pretrained: str) -> dict[str, Any]:
    from huggingface_hub import constants
    from huggingface_hub.errors import LocalEntryNotFoundError, OfflineModeIsEnabled

    source = "" if constants.HF_HUB_OFFLINE else constants.ENDPOINT
    constants.HF_HUB_OFFLINE = True  # set before others read it, so that nothing is downloaded

    import open_clip
    import torch

    def parameters() -> int:
        with torch.device("meta"):
            model = open_clip.create_model(
                name, load_weights=False, pretrained_text=False, device="meta"
            )
        return sum(p.numel() for p in model.parameters())

    looks: dict[str, Callable[[], Any]] = {
        "weights": lambda: find_weights(name, pretrained),
        "tokenizer": lambda: open_clip.get_tokenizer(name),
        "configuration": parameters,
    }
    found: dict[str, Any] = {}
    lacking = []
    for what, look in looks.items():
        try:
            found[what] = look()
        except Exception as error:
            cause: BaseException | None = error
            while cause and not isinstance(cause, LocalEntryNotFoundError | OfflineModeIsEnabled):
                cause = cause.__cause__ or cause.__context__
            if cause:
                lacking.append(what)
            elif what != "configuration":  # a model that fails on `meta` may still load
                raise
    weights = found.get("weights", "")
    if weights.startswith("https://"):
        weights, source, lacking = "", weights, ["weights", *lacking]
    return {
        "weights": weights,
        "parameters": found.get("configuration", 0),
        "lacking": ", ".join(lacking),
        "source": source,
    }


def find_weights(name: str, pretrained: str) -> str:
    """Return the path of a model's weights, or their URL if they are not on a model hub.

    Set huggingface_hub offline first: otherwise it downloads weights that its cache lacks. Raises
    `ModelLoadError`, with available names, if OpenCLIP does not know the model or its weights.
    """
    import open_clip
    from open_clip import pretrained as known

    schema, _, rest = name.partition(":")
    if schema == "hf-hub":
        return str(known.download_pretrained_from_hf(rest))
    if schema == "local-dir":
        config = Path(rest) / "open_clip_config.json"
        if not rest or not config.is_file():
            raise ModelLoadError(f"there is no {config}")
        if "model_cfg" not in json.loads(config.read_text("utf-8")):
            raise ModelLoadError(f"{config} has no model_cfg")
        kinds = (".safetensors", ".bin", ".pth")
        files = [f for f in sorted(Path(rest).iterdir()) if f.suffix in kinds]
        if not files:
            raise ModelLoadError(f"{rest} has no weights: no .safetensors, .bin or .pth file")
        return ", ".join(map(str, files))
    name = name.replace("/", "-")
    if name not in open_clip.list_models():
        near = _near(name, open_clip.list_models())
        raise ModelLoadError(f"OpenCLIP has no model {name}{near}")
    tag = known.get_pretrained_cfg(name, pretrained)
    if tag.get("hf_hub"):
        return str(known.download_pretrained(tag))
    if tag.get("url"):
        kept = Path.home() / ".cache" / "clip" / Path(tag["url"]).name
        return str(kept if kept.is_file() else tag["url"])
    if Path(pretrained).is_file():
        return pretrained
    if "/" in pretrained or "." in pretrained:
        raise ModelLoadError(f"there is no checkpoint file {pretrained}")
    near = _near(pretrained, known.list_pretrained_tags_by_model(name))
    raise ModelLoadError(f"OpenCLIP has no weights {pretrained} for {name}{near}")


def _near(wanted: str, known: Iterable[str]) -> str:
    """Return similar known names, or else the first three, as the end of a sentence."""
    by_lower = {name.lower(): name for name in known}
    near = difflib.get_close_matches(wanted.lower(), by_lower) or list(by_lower)[:3]
    return f"; available names include {', '.join(by_lower[name] for name in near)}" if near else ""


def _driver() -> dict[str, Any]:
    import pynvml  # type: ignore[import-untyped]

    pynvml.nvmlInit()
    gpus = range(pynvml.nvmlDeviceGetCount())
    return {
        "driver": pynvml.nvmlSystemGetDriverVersion(),
        "gpus": [pynvml.nvmlDeviceGetName(pynvml.nvmlDeviceGetHandleByIndex(i)) for i in gpus],
    }


def _product(device: str) -> dict[str, Any]:
    """Compute a matrix product on the GPU that DEVICE names, if there is one."""
    import torch

    gpu = devices.index(device)
    if device == "cpu" or not torch.cuda.is_available() or gpu >= torch.cuda.device_count():
        return {}
    free = torch.cuda.mem_get_info(gpu)[0]
    ones = torch.ones(64, 64, device=f"cuda:{gpu}")
    if not bool((ones @ ones == 64).all()):
        raise RuntimeError("a matrix product is wrong")
    return {"free": free}


def run(command: Sequence[str], *, seconds: float = ANSWER_SECONDS) -> tuple[int | None, str, str]:
    """Return a command's exit status, its output, and the last line of its errors.

    The status is None if the command cannot start, or is killed after `seconds`.
    """
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            timeout=seconds,
        )
    except subprocess.TimeoutExpired as late:  # its output is bytes, despite `encoding`
        return (
            None,
            (late.stdout or b"").decode(errors="replace"),
            f"no answer within {seconds:.0f} s",
        )
    except OSError as error:
        return None, "", words(error)
    return done.returncode, done.stdout, (done.stderr.strip().splitlines() or [""])[-1][:300]


def look(
    name: str, pretrained: str, device: str, run: Callable[..., tuple[int | None, str, str]] = run
) -> Seen:
    """Return what `probe` finds in a subprocess within `LOOK_SECONDS`."""
    code = "import sys; from bento.doctor.probe import probe; probe(*sys.argv[1:])"
    command = [sys.executable, "-c", code, name, pretrained, device]
    status, output, said = run(command, seconds=LOOK_SECONDS)
    problem = f"the probing process failed with exit status {status}: {said}" if status else said
    found: dict[str, Any] = {}
    for line in output.splitlines():
        if line.startswith("{"):
            found |= json.loads(line)
    errors = {f.name: problem for f in fields(Seen) if f.name.endswith("_error")}
    return Seen(**{**errors, **found})


def words(error: BaseException) -> str:
    """Return the first line of an error's message, or the name of its class."""
    return next(iter(str(error).strip().splitlines()), "")[:300] or type(error).__name__
