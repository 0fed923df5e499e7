"""The languages that a model understands, as far as its name tells."""

from __future__ import annotations

import logging
import re
from typing import Final

from bento.contract.embedding import Languages

# Parts of the names of OpenCLIP's multilingual models.
_MULTILINGUAL: Final = ("xlm", "mt5", "multilingual", "siglip2", "nllb", "i18n", "worldwide")
# OpenCLIP names most weights after their training data. The captions of these sets are English.
_ENGLISH: Final = re.compile(
    r"(openai|yfcc15m|cc12m|laion400m|laion2b|laion_aesthetic|mscoco_finetuned_laion2b|merged2b"
    r"|datacomp|commonpool|metaclip_|dfn|webli)\w*"
)
_CYRILLIC: Final = re.compile(r"[\u0400-\u052f]")

logger = logging.getLogger("vision_encoder")


def languages_of(model_name: str, pretrained: str) -> Languages | None:
    """Return `english` or `multilingual`, or None if the name does not tell.

    A model whose name has a multilingual text encoder or family in it is multilingual, such as
    `xlm-roberta-base-ViT-B-32` or `ViT-B-16-SigLIP2`. A model of OpenCLIP with weights named
    after an English training set knows English only. The languages of other models are unknown:
    local folders, checkpoint files, and most models of the Hugging Face Hub.
    """
    name = model_name.lower()
    if name.startswith("local-dir:"):
        return None
    if any(part in name for part in _MULTILINGUAL):
        return "multilingual"
    tag = pretrained.lower().replace("-", "_")  # as OpenCLIP reads it
    return "english" if ":" not in name and _ENGLISH.fullmatch(tag) else None


def is_cyrillic(text: str) -> bool:
    """Return whether most letters of a text are Cyrillic."""
    if text.isascii():
        return False
    return 2 * len(_CYRILLIC.findall(text)) > sum(map(str.isalpha, text))


class LanguageWarning:
    """Log once that a client sent a text in Cyrillic to a model that knows English only."""

    def __init__(self, model_name: str, pretrained: str) -> None:
        self._model = f"{model_name}/{pretrained}"
        self._pending = languages_of(model_name, pretrained) == "english"

    def check(self, text: str) -> None:
        """Log the warning if `text` is the first text in Cyrillic."""
        if self._pending and is_cyrillic(text):
            self._pending = False
            logger.warning(
                "the model %s knows English only, but a client sent a text in Cyrillic; its "
                "embedding is poor. For Ukrainian, serve a multilingual model, such as "
                "MODEL_NAME=ViT-B-16-SigLIP2 MODEL_PRETRAINED=webli (768 dimensions), and index "
                "the pictures again. This warning is logged once",
                self._model,
            )
