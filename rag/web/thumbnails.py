"""Thumbnails of indexed pictures, made once and kept in a folder.

If the service can read the file of a picture, it makes the thumbnail from that file. The content
hash must match the indexed picture: otherwise a client could index a path and see a file that it
never had. If the service has no such file, the thumbnail is made when the picture is indexed.
"""

from __future__ import annotations

import io
import logging
import os
from collections.abc import Callable, Sequence
from hashlib import sha256
from pathlib import Path
from stat import S_ISREG
from typing import Final
from uuid import uuid4

from PIL import Image

from bento.contract.errors import ImageNotFound
from rag.pictures.index import Picture, point_id
from rag.store.interface import Record

SIDE: Final = 384  # pixels, the longer side

logger = logging.getLogger("vision_encoder")


class Thumbnails:
    """Make and keep a JPEG of at most 384 x 384 pixels for each picture.

    The methods block and are thread-safe. `decode` turns the bytes of a picture file into an
    upright RGB image. Files of more than `max_bytes` are not read.
    """

    def __init__(
        self, folder: Path, decode: Callable[[bytes], Image.Image], *, max_bytes: int
    ) -> None:
        self._folder = folder
        self._decode = decode
        self._max_bytes = max_bytes

    def keep(self, picture: Picture, collection: str) -> None:
        """Make the thumbnail of an indexed picture, unless it or the picture's file exists."""
        point = point_id(picture.dao_id, picture.image_id)
        file = self._file(collection, point, picture.content_hash)
        if file.exists():
            return
        self.forget(collection, point)
        size = len(picture.data)
        if any(_size(path) == size for path in (picture.image_path, *picture.duplicates)):
            return
        try:
            self._make(file, picture.data)
        except OSError as error:
            logger.warning("a thumbnail could not be saved: %s", error)  # the picture is indexed

    def of(self, collection: str, record: Record) -> bytes:
        """Return the thumbnail of an indexed picture. Raises `ImageNotFound` if it has none."""
        content_hash = str(record.payload.get("content_hash", ""))
        file = self._file(collection, record.id, content_hash)
        try:
            return file.read_bytes()
        except FileNotFoundError:
            pass
        paths = [record.payload.get("image_path"), *(record.payload.get("duplicates") or ())]
        data = self._source(paths, content_hash)
        if data is None:
            raise ImageNotFound(
                "this picture has no thumbnail: the indexed file is missing or has changed"
            )
        return self._make(file, data)

    def forget(self, collection: str, point: str) -> None:
        """Delete the thumbnails of a point, including those of earlier contents."""
        for file in self._subfolder(collection, point).glob(f"{point}-*"):
            file.unlink(missing_ok=True)

    def _source(self, paths: Sequence[object], content_hash: str) -> bytes | None:
        for path in paths:
            size = _size(path)
            if size is None or size > self._max_bytes:
                continue
            try:
                data = Path(str(path)).read_bytes()
            except OSError:
                continue
            if sha256(data).hexdigest() == content_hash:
                return data
        return None

    def _make(self, file: Path, data: bytes) -> bytes:
        image = self._decode(data)
        image.thumbnail((SIDE, SIDE))
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", quality=82)
        file.parent.mkdir(parents=True, exist_ok=True)
        temporary = file.with_name(f".{uuid4().hex}")
        temporary.write_bytes(buffer.getvalue())
        os.replace(temporary, file)
        return buffer.getvalue()

    def _file(self, collection: str, point: str, content_hash: str) -> Path:
        return self._subfolder(collection, point) / f"{point}-{content_hash[:16]}.jpg"

    def _subfolder(self, collection: str, point: str) -> Path:
        return self._folder / collection / point[:2]


def _size(path: object) -> int | None:
    """Return the size of a regular file in bytes; None if the path does not name one."""
    if not isinstance(path, str) or not os.path.isabs(path):
        return None
    try:
        status = os.stat(path)
    except (OSError, ValueError):
        return None
    return status.st_size if S_ISREG(status.st_mode) else None
