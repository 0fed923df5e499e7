"""Previews of indexed pictures, made once and kept in a folder.

A preview is made from the upload when a picture is indexed. A picture that has none gets it later
from its file, if that lies below FILES_PATHS. Clients choose the paths of a picture, so the content
hash must match the indexed picture, and the error never tells what lies at a path.
"""

from __future__ import annotations

import io
import logging
import os
from collections.abc import Iterator, Sequence
from hashlib import sha256
from itertools import islice
from pathlib import Path
from typing import Final, Protocol
from uuid import uuid4

from PIL import Image

from bento.contract.errors import EncoderError, ImageNotFound
from rag.pictures.index import Picture, point_id
from rag.search.work import Work
from rag.store.interface import Record
from rag.web.files import read_below, real_path

SIDE: Final = 384  # pixels, the longer side
MAX_PATHS: Final = 8  # of a picture, where its file is looked for

logger = logging.getLogger("vision_encoder")


class Decoder(Protocol):
    """The part of `bento.Encoder` that previews need. The methods raise an `EncoderError`."""

    image_limits: dict[str, int]  # keys: max_bytes and max_pixels

    def is_large(self, data: bytes) -> bool:
        """Return whether a picture file may only be decoded while no other large one is."""

    def preview(self, data: bytes, side: int) -> Image.Image:
        """Return an upright RGB image of a picture file, at most `side` x `side` pixels."""


class Thumbnails:
    """Make and keep a JPEG of at most 384 x 384 pixels for each picture.

    Args:
        folder: where they are kept.
        files: the folders below which pictures' files may be read.
        decoder: decodes picture files.
        work: reads, decodes and writes.
        large: decodes large pictures, one at a time.
    """

    def __init__(
        self, folder: Path, files: Sequence[Path], decoder: Decoder, work: Work, large: Work
    ) -> None:
        self._folder = folder
        self._files = files
        self._decoder = decoder
        self._work = work
        self._large = large

    async def keep(self, picture: Picture, collection: str) -> None:
        """Make the preview of an indexed picture from its upload, unless it exists.

        Raises `Busy`; indexing the picture again makes the preview then.
        """
        if not await self._work(self._keep, picture, collection, large=False):
            await self._large(self._keep, picture, collection, large=True)

    async def of(self, collection: str, record: Record) -> bytes:
        """Return the preview of an indexed picture. Raises `ImageNotFound` or `Busy`."""
        data = await self._work(self._find, collection, record, large=False)
        if data is None:
            # The file is read again, so that pictures that wait for their turn hold no memory.
            data = await self._large(self._find, collection, record, large=True)
        if not data:
            raise ImageNotFound("this picture has no preview: index it again to make one")
        return data

    def forget(self, collection: str, point: str) -> None:
        """Delete the previews of a point, including those of earlier contents. Blocks."""
        for file in self._subfolder(collection, point).glob(f"{point}-*"):
            file.unlink(missing_ok=True)

    def _keep(self, picture: Picture, collection: str, *, large: bool) -> bool:
        """Return False if the picture is large and `large` is not set."""
        point = point_id(picture.dao_id, picture.image_id)
        file = self._file(collection, point, picture.content_hash)
        if not file.exists():
            made = self._make(picture.data, file, large=large)
            if made is None:
                return False
            for other in file.parent.glob(f"{point}-*"):
                if other != file:
                    other.unlink(missing_ok=True)
        return True

    def _find(self, collection: str, record: Record, *, large: bool) -> bytes | None:
        """Return a preview, kept or made; b"" if there is none.

        Returns None if the picture is large and `large` is not set.
        """
        content_hash = str(record.payload.get("content_hash", ""))
        file = self._file(collection, record.id, content_hash)
        try:
            return file.read_bytes()
        except OSError:
            pass
        for data in self._sources(record):
            if sha256(data).hexdigest() == content_hash:
                return self._make(data, file, large=large)
        return b""

    def _sources(self, record: Record) -> Iterator[bytes]:
        """Yield the contents of the files at the first paths of a picture."""
        if not self._files:
            return
        paths = [record.payload.get("image_path"), *(record.payload.get("duplicates") or ())]
        found = (real_path(str(path), self._files) for path in islice(paths, MAX_PATHS))
        for place in dict.fromkeys(place for place in found if place):
            data = read_below(*place, self._decoder.image_limits["max_bytes"])
            if data is not None:
                yield data

    def _make(self, data: bytes, file: Path, *, large: bool) -> bytes | None:
        """Save the preview of a picture file; return it, or b"" if the file cannot be decoded.

        Returns None if the picture is large and `large` is not set.
        """
        buffer = io.BytesIO()
        try:
            if not large and self._decoder.is_large(data):
                return None
            self._decoder.preview(data, SIDE).save(buffer, "JPEG", quality=82)
        except EncoderError as error:  # the limits were higher when the picture was indexed
            logger.warning("a preview could not be made: %s", error)
            return b""
        temporary = file.with_name(f".{uuid4().hex}")
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            temporary.write_bytes(buffer.getvalue())
            os.replace(temporary, file)
        except OSError as error:
            logger.warning("a preview could not be saved: %s", error)
        return buffer.getvalue()

    def _file(self, collection: str, point: str, content_hash: str) -> Path:
        return self._subfolder(collection, point) / f"{point}-{content_hash[:16]}.jpg"

    def _subfolder(self, collection: str, point: str) -> Path:
        return self._folder / collection / point[:2]
