"""Download the weights of MODEL_NAME into the cache: `python -m bento.fetch_weights`.

Loading the model once, as the service does, ensures that the cache has every file it needs.
"""

from __future__ import annotations

import sys

from pydantic import ValidationError

from bento.contract.errors import ModelLoadError, describe
from bento.encoder.model import Encoder
from bento.settings import Settings


def main() -> int:
    """Download the weights, load the model on the CPU and return the exit status."""
    try:
        settings = Settings(device="cpu", dtype="float32", compile=False)
        print(f"loading {settings.model_name} {settings.model_pretrained}", flush=True)
        encoder = Encoder.load(settings)
    except ValidationError as error:
        print(f"error: invalid setting: {describe(error)}", file=sys.stderr)
        return 1
    except ModelLoadError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"loaded {encoder.model}: {encoder.embedding_dim} dimensions")
    return 0


if __name__ == "__main__":
    sys.exit(main())
