"""Random bytes and bodies: they are accepted, or rejected with an error of this project."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pydantic import BaseModel, ValidationError

from bento.contract.embedding import (
    ImageRequest,
    RankRequest,
    TextRequest,
    TextsRequest,
    base64_bytes,
)
from bento.contract.errors import EncoderError, InvalidRequest, describe, describe_details
from bento.contract.images import IndexRequest, UpdateRequest
from bento.contract.openai import OpenAIEmbeddingsRequest, input_items
from bento.contract.search import ManySearchesRequest, SearchRequest
from bento.encoder.images import decode_image
from tests.support.pictures import file_bytes, scene_image

_PALETTE = scene_image(2, side=24).convert("P")
FILES = {
    "PNG": file_bytes(scene_image(1, side=24)),
    "PNG with a palette": file_bytes(_PALETTE, transparency=1),
    "16-bit PNG": file_bytes(Image.linear_gradient("L").resize((24, 24)).convert("I;16")),
    "JPEG": file_bytes(scene_image(1, side=24), "JPEG"),
    "progressive JPEG": file_bytes(scene_image(1, side=24), "JPEG", progressive=True),
    "MPO": file_bytes(
        scene_image(1, side=24), "MPO", save_all=True, append_images=[scene_image(2, side=24)]
    ),
    "WEBP": file_bytes(scene_image(1, side=24), "WEBP"),
    "lossless WEBP": file_bytes(scene_image(1, side=24).convert("RGBA"), "WEBP", lossless=True),
    "GIF": file_bytes(_PALETTE, "GIF", transparency=1),
    "animated GIF": file_bytes(_PALETTE, "GIF", save_all=True, append_images=[scene_image(3)]),
    "BMP": file_bytes(scene_image(1, side=12), "BMP"),
    "TIFF": file_bytes(scene_image(1, side=12), "TIFF"),
    "TIFF of LZW": file_bytes(scene_image(1, side=24), "TIFF", compression="tiff_lzw"),
    "TIFF of JPEG": file_bytes(scene_image(1, side=24), "TIFF", compression="jpeg"),
}

# few in each run, many in the nightly run
EXAMPLES = pytest.mark.parametrize(
    "examples", [20, pytest.param(200, marks=pytest.mark.slow)], ids=["few", "many"]
)

# position, new bytes, and the number of bytes that they replace
changes = st.lists(
    st.tuples(
        st.integers(0, 4095),
        st.one_of(
            st.binary(min_size=1, max_size=4),
            st.sampled_from([b"\xff\xff\xff\xff", b"\0\0\0\0", b"\x7f\xff\xff\xff", b"\xff\xda"]),
        ),
        st.integers(0, 8),
    ),
    min_size=1,
    max_size=6,
)


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
@EXAMPLES
@pytest.mark.parametrize("name", FILES)
def test_a_changed_picture_file_is_decoded_or_rejected(name: str, examples: int) -> None:
    @settings(max_examples=examples, derandomize=True)
    @given(given_changes=changes, keep=st.integers(1, 4096))
    def check(given_changes: list[tuple[int, bytes, int]], keep: int) -> None:
        data = bytearray(FILES[name])
        for at, new, room in given_changes:
            at %= len(data) + 1
            at = at if room % 3 else at % 200  # a third of the changes: the headers
            data[at : at + room] = new
        if keep % 4 == 0:
            del data[keep % len(data) :]
        try:
            image = decode_image(bytes(data), max_bytes=100_000, max_pixels=1_000_000)
        except EncoderError as error:
            status, message = error.status, str(error)
        else:
            assert image.mode == "RGB"
            assert image.getpixel((0, 0)) is not None
            return
        assert status in (400, 413, 415)
        assert len(message) > 20

    check()


@given(st.text() | st.text().map(lambda text: f"data:{text}") | st.text("ABCab+/= \n", max_size=40))
def test_invalid_base64_is_rejected(value: str) -> None:
    try:
        base64_bytes(value)
    except EncoderError as error:
        status = error.status
    else:
        return
    assert status == 400


scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20)
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=8,
)


def bodies(model: type[BaseModel]) -> st.SearchStrategy[Any]:
    """Draw objects with some of a model's fields, of the right or the wrong type."""
    names = st.sampled_from([*model.model_fields, "unknown"])
    inner = st.fixed_dictionaries({}, optional={"text": values, "image": values, "id": values})
    return values | st.dictionaries(names, values | inner | st.lists(inner, max_size=3))


MANY = 10_000
WRONG = {"ones": [1] * MANY, "objects": [{}] * MANY, "mixed": [{}, "a", None, 1.5] * MANY}


@pytest.mark.parametrize("wrong", WRONG.values(), ids=WRONG)
@pytest.mark.parametrize(
    ("model", "fields"),
    [
        (TextsRequest, ("texts",)),
        (RankRequest, ("texts",)),
        (IndexRequest, ("duplicates",)),
        (UpdateRequest, ("paths",)),
        (SearchRequest, ("text", "image", "weights")),
        (ManySearchesRequest, ("searches",)),
    ],
)
def test_validation_of_a_list_stops_at_the_first_bad_item(
    model: type[BaseModel], fields: tuple[str, ...], wrong: list[Any]
) -> None:
    with pytest.raises(ValidationError) as caught:
        model.model_validate_json(json.dumps(dict.fromkeys(fields, wrong)))
    assert len(caught.value.errors()) <= len(model.model_fields)


@pytest.mark.parametrize("wrong", WRONG.values(), ids=WRONG)
def test_validation_of_openai_inputs_stops_at_the_first_bad_item(wrong: list[Any]) -> None:
    with pytest.raises(InvalidRequest, match=r"^input\b.{1,200}$"):
        input_items(wrong)


@pytest.mark.parametrize("model", [TextRequest, OpenAIEmbeddingsRequest, SearchRequest])
def test_many_unknown_fields_are_one_error(model: type[BaseModel]) -> None:
    with pytest.raises(ValidationError) as caught:
        model.model_validate_json(json.dumps(dict.fromkeys(map(str, range(MANY)))))
    (error,) = caught.value.errors()
    assert "10,000 fields are too many; allowed fields:" in error["msg"]
    assert all(name in error["msg"] for name in model.model_fields)


def test_only_the_first_ten_errors_are_described() -> None:
    message = describe_details([{"loc": (f"a{i}",), "msg": "is wrong"} for i in range(MANY)])
    assert message.startswith("a0: is wrong; a1: is wrong; ")
    assert message.endswith("; a9: is wrong; and 9,990 more")


@EXAMPLES
@pytest.mark.parametrize(
    "model",
    [
        *(TextRequest, TextsRequest, ImageRequest, RankRequest, OpenAIEmbeddingsRequest),
        *(IndexRequest, UpdateRequest, SearchRequest, ManySearchesRequest),
    ],
)
def test_a_random_body_is_accepted_or_its_errors_are_described(
    model: type[BaseModel], examples: int
) -> None:
    @settings(max_examples=examples, derandomize=True)
    @given(drawn=bodies(model))
    def check(drawn: Any) -> None:
        try:
            valid = model.model_validate_json(json.dumps(drawn))
        except ValidationError as error:
            descriptions = describe(error), describe_details(error.errors())
        else:
            descriptions = ("valid", "valid")
            assert model.model_validate_json(valid.model_dump_json(exclude_unset=True))
        assert all(descriptions)

    check()
