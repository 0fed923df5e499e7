"""The repository's folder, and the bundled model as MODEL_NAME takes it."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).parents[2]
BUNDLED = f"local-dir:{ROOT / 'models' / 'shapes'}"
