"""The folder of the repository, and the MODEL_NAME of the bundled model."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).parents[2]
BUNDLED = f"local-dir:{ROOT / 'models' / 'shapes'}"
