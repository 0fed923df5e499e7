"""The bundled model: a small bilingual CLIP for scenes of coloured shapes.

`python -m models.shapes --help` lists what can be done: train, evaluate, draw.
"""

from pathlib import Path

MODEL_DIR = Path(__file__).resolve().parent
