"""The demo: start the service, index sample pictures, search them, and show the hits.

It uses the commands that users have: `bentoml serve` and `vision-rag`.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any, Final
from urllib.error import URLError
from urllib.request import ProxyHandler, build_opener

import numpy as np
import psutil  # type: ignore[import-untyped]
from PIL import Image, ImageDraw, ImageFont
from rich.console import Console
from rich.table import Table

from models.shapes.samples import draw_samples
from models.shapes.scenes import Scene, Thing, draw_scene

_ROOT: Final = Path(__file__).resolve().parents[2]
_DATA: Final = Path(".data/demo")
_SHEET: Final = Path("demo.png")
_START_SECONDS: Final = 180
_TOP_K: Final = 5
# The query texts, and the name of the sample picture that must be the first hit.
_TEXTS: Final = (
    ("a large red circle on a yellow background", "large_red_circle_on_yellow_background"),
    ("four small blue squares on black", "four_small_blue_squares_on_black_background"),
    ("маленький червоний хрест на зеленому тлі", "small_red_cross_on_green_background"),
)
_IMAGE: Final = Scene("count", "white", (Thing("heart", "pink", "large"),), count=3)
_IMAGE_SHOWS: Final = "three_large_pink_hearts_on_white_background"

_console = Console()


def run_demo(*, pictures: int, once: bool) -> int:
    """Run the demo, and return its exit status: 1 if a search does not find its picture first.

    The settings of the service come from the environment, as for `make serve`. Only its store is
    another one, so that the samples do not mix with the user's pictures. The service stops after
    the searches if `once` is true, and otherwise at Ctrl-C.
    """
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # handled like Ctrl-C
    url = f"http://127.0.0.1:{os.environ.get('PORT', '8001')}"
    folder = _DATA / "pictures"
    draw_samples(folder, pictures)
    query = _DATA / "query.png"
    draw_scene(_IMAGE, np.random.default_rng(3), side=320).save(query)
    log = _DATA / "service.log"
    own = {"QDRANT_PATH": str(_DATA / "qdrant"), "THUMBNAILS_PATH": str(_DATA / "thumbnails")}
    environment = {**own, **os.environ, "VISION_ENCODER_URL": url}
    with log.open("wb") as output:
        service = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "bentoml",
                "serve",
                "service:VisionEncoder",
                "--working-dir",
                str(_ROOT),
            ],
            env=environment,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # so that Ctrl-C reaches only this process
        )
    workers: list[psutil.Process] = []
    searched = False
    try:
        _wait_until_ready(url, service, log)
        workers = psutil.Process(service.pid).children(recursive=True)
        subprocess.run([*_RAG, "index", str(folder)], env=environment, check=True)
        right = _search_all(environment, query)
        searched = True
        _console.print(f"contact sheet: {_SHEET}    log: {log}")
        if not once:
            where = f"search page: {url}/ui, API: {url}/docs"
            _console.print(f"serving ({where}); press Ctrl-C to stop", soft_wrap=True)
            service.wait()
            _console.print(f"the service ended unexpectedly; see {log}")
            return 1
        return 0 if right else 1
    except KeyboardInterrupt:
        return 0 if searched else 130
    except subprocess.CalledProcessError as error:
        return int(error.returncode)
    finally:
        _stop(service, workers)


_RAG: Final = (sys.executable, "-m", "rag")


def _wait_until_ready(url: str, service: subprocess.Popen[bytes], log: Path) -> None:
    started = time.monotonic()
    deadline = started + _START_SECONDS
    opener = build_opener(ProxyHandler({}))  # a proxy cannot reach the loopback of this machine
    with _console.status("starting the service"):
        while time.monotonic() < deadline:
            if service.poll() is not None:
                raise SystemExit(f"the service did not start:\n{log.read_text()[-2000:]}")
            with suppress(URLError, OSError), opener.open(f"{url}/readyz", timeout=5):
                _console.print(f"the service is ready after {time.monotonic() - started:.1f} s")
                return
            time.sleep(0.2)
    raise SystemExit(f"the service was not ready after {_START_SECONDS} s; see {log}")


def _search_all(environment: dict[str, str], query: Path) -> bool:
    """Run the searches, and print and draw their hits. Returns whether all first hits are right."""
    searches = [(text, [text], shows) for text, shows in _TEXTS]
    searches.append(("(a picture)", ["--image", str(query)], _IMAGE_SHOWS))
    table = Table("search", "score", "picture")
    rows, right = [], True
    for label, arguments, shows in searches:
        hits = _search(environment, arguments)
        right &= Path(hits[0]["path"]).stem == shows
        for place, hit in enumerate(hits):
            name = Path(hit["path"]).stem.replace("_", " ")
            table.add_row(label if place == 0 else "", f"{hit['score']:.3f}", name)
        table.add_section()
        rows.append((label, hits))
    _console.print(table)
    _draw_sheet(rows, query)
    return right


def _search(environment: dict[str, str], arguments: list[str]) -> list[dict[str, Any]]:
    command = [*_RAG, "search", *arguments, "--top-k", str(_TOP_K), "--json"]
    output = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE).stdout
    hits: list[dict[str, Any]] = json.loads(output)
    return hits


def _draw_sheet(rows: list[tuple[str, list[dict[str, Any]]]], query: Path) -> None:
    """Draw the contact sheet: one row per search, with the query, its hits and their scores."""
    side, text = 150, 24
    sheet = Image.new("RGB", ((side + 10) * (_TOP_K + 1) + 10, len(rows) * (side + 40)), "white")
    draw = ImageDraw.Draw(sheet)
    font, small = _font(15), _font(13)
    for row, (label, hits) in enumerate(rows):
        top = row * (side + 40) + 8
        if label.startswith("("):
            sheet.paste(Image.open(query).resize((side, side)), (10, top))
        else:
            draw.multiline_text((10, top + side // 4), _wrapped(label), fill="black", font=font)
        for column, hit in enumerate(hits, 1):
            left = 10 + column * (side + 10)
            sheet.paste(Image.open(hit["path"]).convert("RGB").resize((side, side)), (left, top))
            score = f"{hit['score']:.3f}"
            draw.text((left, top + side + 2), score, fill="black", font=small)
        draw.line((0, top + side + text, sheet.width, top + side + text), fill="lightgray")
    sheet.save(_SHEET)


def _wrapped(text: str) -> str:
    """Break a text into lines of at most 16 letters, except longer words."""
    lines = [""]
    for word in text.split():
        if lines[-1] and len(lines[-1]) + len(word) > 15:
            lines.append("")
        lines[-1] = f"{lines[-1]} {word}".strip()
    return "\n".join(lines)


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """Return a font with Cyrillic letters if the system has one."""
    for name in ("DejaVuSans.ttf", "Arial.ttf", "arial.ttf", "LiberationSans-Regular.ttf"):
        with suppress(OSError):
            return ImageFont.truetype(name, size)
    return ImageFont.load_default(size)


def _stop(service: subprocess.Popen[bytes], workers: list[psutil.Process]) -> None:
    """Stop the service and its workers."""
    if service.poll() is None:
        service.send_signal(signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            service.wait(30)
    with suppress(ProcessLookupError):  # processes that are not in `workers`
        os.killpg(service.pid, signal.SIGKILL)
    for worker in workers:  # they have their own sessions, and may outlive a killed service
        with suppress(psutil.NoSuchProcess):
            worker.kill()
