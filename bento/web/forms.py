"""Read multipart forms: uploaded pictures, and the fields beside them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import Request

from bento.contract.errors import (
    EncoderError,
    InvalidRequest,
    TooLarge,
    UnsupportedMediaType,
)


class Form(NamedTuple):
    """The text fields of a form, and its pictures; a file of another type becomes an error."""

    pictures: Sequence[bytes | EncoderError]
    fields: Mapping[str, str]

    @property
    def picture(self) -> bytes:
        """The only picture of the form. Raises its error if the file has another type."""
        (picture,) = self.pictures
        if isinstance(picture, EncoderError):
            raise picture
        return picture

    @property
    def normalize(self) -> bool | None:
        """The field `normalize`, or None if it is not set. Raises `InvalidRequest`."""
        given = self.fields.get("normalize")
        if given not in (None, "true", "false"):
            raise InvalidRequest(f"normalize must be true or false, not {given[:80]!r}")
        return None if given is None else given == "true"


async def read_form(request: Request, name: str, field: str, *, max_files: int = 1) -> Form:
    """Read the pictures in the fields called `name`, and the text in `field` if there is one.

    Ignores file names. Raises `InvalidRequest` if there is no picture or an unknown field, and
    `TooLarge` if there are more than `max_files` pictures.
    """
    try:
        async with request.form(max_files=max_files, max_fields=2) as form:
            if unknown := form.keys() - {name, field}:
                names = ", ".join(sorted(unknown))[:200]
                raise InvalidRequest(f"unknown fields: {names}; allowed: {name}, {field}")
            given, text = form.getlist(name), form.get(field)
            files = [file for file in given if isinstance(file, UploadFile)]
            if not files or len(files) < len(given) or isinstance(text, UploadFile):
                raise InvalidRequest(
                    f"send each picture as a file in a form field named {name}, and the optional "
                    f"field {field} as text"
                )
            pictures = [await _read(file) for file in files]
            return Form(pictures, {} if text is None else {field: text})
    except HTTPException as error:
        if "Too many files" in error.detail and max_files > 1:
            raise TooLarge(
                f"the request has too many images: at most {max_files:,} are allowed"
            ) from None
        raise


async def _read(file: UploadFile) -> bytes | EncoderError:
    media_type = (file.content_type or "").partition(";")[0].strip().lower()
    if media_type.startswith("image/") or media_type in ("", "application/octet-stream"):
        return await file.read()
    return UnsupportedMediaType(
        f"the file has the content type {media_type[:80]}: send image/… or application/octet-stream"
    )
