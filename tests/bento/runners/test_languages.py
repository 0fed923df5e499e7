"""Which languages a model knows, and the warning about Cyrillic texts."""

from __future__ import annotations

import logging

import pytest

from bento.runners.languages import LanguageWarning, is_cyrillic, languages_of

CYRILLIC = "червоний круг"


@pytest.mark.parametrize(
    ("model_name", "pretrained"),
    [
        ("ViT-B-32", "openai"),
        ("ViT-B-32", "laion2b_e16"),
        ("ViT-B-32", "laion2b-s34b-b79k"),  # OpenCLIP takes hyphens, too
        ("roberta-ViT-B-32", "laion2b_s12b_b32k"),
        ("ViT-L-14", "datacomp_xl_s13b_b90k"),
        ("ViT-B-16-SigLIP", "webli"),
        ("ViT-H-14", "metaclip_fullcc"),
    ],
)
def test_weights_of_an_english_training_set_know_english_only(
    model_name: str, pretrained: str
) -> None:
    assert languages_of(model_name, pretrained) == "english"


@pytest.mark.parametrize(
    ("model_name", "pretrained"),
    [
        ("xlm-roberta-base-ViT-B-32", "laion5b_s13b_b90k"),
        ("mt5-base-ViT-B-32", "openai"),
        ("nllb-clip-base", "v1"),
        ("ViT-B-16-SigLIP-i18n-256", "webli"),
        ("ViT-B-16-SigLIP2", "webli"),
        ("ViT-H-14-worldwide", "metaclip2_worldwide"),
        ("hf-hub:timm/ViT-B-16-SigLIP2", "hub"),
        ("ViT-B-16-SigLIP2", "/weights/tuned.pt"),
    ],
)
def test_a_multilingual_text_encoder_is_told_by_its_name(model_name: str, pretrained: str) -> None:
    assert languages_of(model_name, pretrained) == "multilingual"


@pytest.mark.parametrize(
    ("model_name", "pretrained"),
    [
        ("local-dir:models/shapes", "local"),
        ("local-dir:models/multilingual", "local"),
        ("hf-hub:apple/DFN2B-CLIP-ViT-B-16", "hub"),
        ("ViT-B-32", "/weights/openai.pt"),
        ("ViT-B-32", "openai.pt"),
        ("PE-Core-B-16", "meta"),
    ],
)
def test_the_languages_of_other_models_are_unknown(model_name: str, pretrained: str) -> None:
    assert languages_of(model_name, pretrained) is None


@pytest.mark.parametrize("text", [CYRILLIC, "Їжак", "3 кола на фоні", "кіт i cat: двоє котів"])
def test_a_text_of_mostly_cyrillic_letters_is_cyrillic(text: str) -> None:
    assert is_cyrillic(text)


@pytest.mark.parametrize("text", ["a red circle", "", "123", "Füße", "猫", "the word круг in it"])
def test_other_texts_are_not_cyrillic(text: str) -> None:
    assert not is_cyrillic(text)


def test_the_warning_is_logged_once_for_an_english_model(caplog: pytest.LogCaptureFixture) -> None:
    warning = LanguageWarning("ViT-B-32", "openai")
    warning.check("a red circle")
    assert caplog.records == []
    for _ in range(3):
        warning.check(CYRILLIC)
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert "ViT-B-32/openai" in record.getMessage()
    assert "MODEL_NAME=ViT-B-16-SigLIP2 MODEL_PRETRAINED=webli" in record.getMessage()


@pytest.mark.parametrize(
    ("model_name", "pretrained"), [("ViT-B-16-SigLIP2", "webli"), ("local-dir:models/a", "local")]
)
def test_other_models_are_given_no_warning(
    caplog: pytest.LogCaptureFixture, model_name: str, pretrained: str
) -> None:
    LanguageWarning(model_name, pretrained).check(CYRILLIC)
    assert caplog.records == []
