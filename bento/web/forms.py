"""Multipart forms: pictures that are uploaded, and the fields beside them."""

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
    """The pictures of a form, an error in place of one of another type, and its text fields."""

    pictures: Sequence[bytes | EncoderError]
    fields: Mapping[str, str]

    @property
    def picture(self) -> bytes:
        """The only picture. Raises its error."""
        (picture,) = self.pictures
        if isinstance(picture, EncoderError):
            raise picture
        return picture

    @property
    def normalize(self) -> bool | None:
        """The field `normalize`, None without it. Raises `InvalidRequest`."""
        given = self.fields.get("normalize")
        if given not in (None, "true", "false"):
            raise InvalidRequest(f"normalize must be true or false, not {given!r}")
        return None if given is None else given == "true"


async def read_form(request: Request, name: str, field: str, *, max_files: int = 1) -> Form:
    """Read the pictures in the fields called `name`, and the text in `field` if there is one.

    The names of files are ignored. Raises `InvalidRequest` when there is no picture, or any other
    field, and `TooLarge`.
    """
    try:
        async with request.form(max_files=max_files, max_fields=2) as form:
            if unknown := form.keys() - {name, field}:
                raise InvalidRequest(f"{', '.join(sorted(unknown))}: not a field of this request")
            given, text = form.getlist(name), form.get(field)
            files = [file for file in given if isinstance(file, UploadFile)]
            if not files or len(files) < len(given) or isinstance(text, UploadFile):
                raise InvalidRequest(
                    f"send multipart/form-data: each picture in a field named {name}, and "
                    f"{field}, if you need it, as text"
                )
            pictures = [await _read(file) for file in files]
            return Form(pictures, {} if text is None else {field: text})
    except HTTPException as error:
        if "Too many files" in error.detail and max_files > 1:
            raise TooLarge(f"at most {max_files:,} images are allowed in one request") from None
        raise


async def _read(file: UploadFile) -> bytes | EncoderError:
    media_type = (file.content_type or "").partition(";")[0].strip().lower()
    if media_type.startswith("image/") or media_type in ("", "application/octet-stream"):
        return await file.read()
    return UnsupportedMediaType(
        f"a picture is sent as image/… or application/octet-stream, not {media_type[:80]}"
    )
