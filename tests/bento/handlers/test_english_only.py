"""A service whose model knows English only: its /info and its log."""

from __future__ import annotations

import asyncio

import pytest

from bento import Encoder, Settings
from bento.contract.embedding import TextRequest
from bento.handlers.embedding import EmbeddingHandler
from bento.handlers.state import StateHandler
from bento.runners.admission import ByteBudget
from bento.runners.runners import Runners
from bento.web.metrics import Metrics

pytestmark = pytest.mark.service


def test_info_names_the_languages_and_cyrillic_texts_are_logged_once(
    encoder: Encoder, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(encoder, "model_name", "ViT-B-32")
    monkeypatch.setattr(encoder, "pretrained", "openai")
    settings = Settings()
    runners = Runners(
        encoder,
        settings,
        budget=ByteBudget(10**6, lambda: None),
        metrics=Metrics(workers=1),
        on_death=pytest.fail,
    )
    state = StateHandler(encoder, runners, settings, collection=None)
    assert state.info.languages == "english"
    handler = EmbeddingHandler(encoder, runners, settings)

    async def embed() -> None:
        await handler.text(TextRequest(text="a red circle"))
        assert "knows English only" not in caplog.text
        await handler.text(TextRequest(text="червоний круг"))
        await runners.embed_text("синій квадрат", normalize=True)  # as a search does

    asyncio.run(embed())
    runners.close()
    assert caplog.text.count("knows English only") == 1
