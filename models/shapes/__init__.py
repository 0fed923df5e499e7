"""The bundled model: a small bilingual CLIP for scenes of coloured shapes.

`python -m models.shapes --help` lists its commands.
"""

from pathlib import Path

MODEL_DIR = Path(__file__).resolve().parent
