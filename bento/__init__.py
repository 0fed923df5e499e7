"""The encoder: texts and images to CLIP embeddings.

    from bento import Encoder, Settings

    encoder = Encoder.load(Settings(model_name="local-dir:models/shapes"))
    encoder.encode_texts(["a red circle"])  # float32 (1, dim)

Nothing heavy is imported until a model is loaded.
"""

from bento.errors import EncoderError
from bento.model import Encoder
from bento.settings import Settings

__all__ = ["Encoder", "EncoderError", "Settings"]
