"""Write golden.json after a new training of the bundled model: `python -m tests.support.golden`."""

from __future__ import annotations

import json
from pathlib import Path

from bento import Encoder, Settings
from tests.support.paths import BUNDLED
from tests.support.pictures import scene_image

TEXTS = ["a large red circle on a yellow background", "маленька синя зірка"]


def main() -> None:
    encoder = Encoder.load(Settings(model_name=BUNDLED, device="cpu", dtype="float32"))
    golden = {
        "weights_digest": encoder.weights_digest,
        "texts": dict(zip(TEXTS, encoder.encode_texts(TEXTS).tolist(), strict=True)),
        "scene_7": encoder.encode_images([scene_image(7)])[0].tolist(),
    }
    path = Path(__file__).parent / "golden.json"
    path.write_text(json.dumps(golden, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
