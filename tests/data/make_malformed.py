"""Write the corpus of malformed pictures: `python -m tests.data.make_malformed`.

The bytes do not depend on the version of zlib, because `zeros` compresses by hand.
"""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path
from typing import Any, Final

from PIL import Image

FOLDER: Final = Path(__file__).parent / "malformed"
SIDE: Final = 5744  # a square just below the limit of 33 million pixels
PNG: Final = b"\x89PNG\r\n\x1a\n"


def zeros(count: int) -> bytes:
    """Return a zlib stream of `count` zeros, which has a thousandth of their length.

    It is one block with its own Huffman code: a zero, then copies of 258 bytes with two bits each.
    """
    copies, rest = divmod(count - 1, 258)
    bits = at = 0

    def put(value: int, width: int) -> None:
        nonlocal bits, at
        bits |= value << at
        at += width

    put(0b101, 3)  # the last block, with its own code
    put(286 - 257, 5)
    put(1 - 1, 5)
    put(18 - 4, 4)
    lengths = {18: 1, 1: 2, 2: 2}  # of the code that encodes the code lengths
    for symbol in (16, 17, 18, 0, 8, 7, 9, 6, 10, 5, 11, 4, 12, 3, 13, 2, 14, 1):
        put(lengths.get(symbol, 0), 3)
    # the codes of the lengths 2 and 1, in the bit order of the stream; symbol 18, a run of zero
    # lengths, has the code 0
    two, one = 0b11, 0b01
    put(two, 2)  # the literal 0
    for run in (138, 117):
        put((run - 11) << 1, 8)
    put(two, 2)  # the end of the block
    put((28 - 11) << 1, 8)
    put(one, 2)  # a copy of 258 bytes
    put(one, 2)  # a distance of 1
    put(0b01, 2)
    at += 2 * copies  # a copy and its distance have the codes 0 and 0
    for _ in range(rest):
        put(0b01, 2)
    put(0b11, 2)
    return b"\x78\xda" + bits.to_bytes(at // 8 + 1, "little") + struct.pack(">HH", count % 65521, 1)


def chunk(kind: bytes, data: bytes = b"") -> bytes:
    checksum = zlib.crc32(kind + data)
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", checksum)


def png(width: int, height: int, *more: bytes, bits: int = 8, colour: int = 0) -> bytes:
    """Return a black picture, with `more` chunks before its data."""
    channels = {0: 1, 2: 3, 6: 4}[colour]
    row = 1 + (width * channels * bits + 7) // 8
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0))
    data = chunk(b"IDAT", zeros(row * height))
    return PNG + head + b"".join(more) + data + chunk(b"IEND")


def exif(entries: int, count: int) -> bytes:
    """Return EXIF data with this many tags, each of which claims `count` bytes."""
    tags = [struct.pack(">HHII", i, 2, count, 8) for i in range(entries)]
    return b"MM\0*" + struct.pack(">IH", 8, entries) + b"".join(tags) + bytes(4)


def tiff(tags: dict[int, Any], data: bytes) -> bytes:
    """Return a TIFF whose tags have integers or lists of them. `None` is the offset of `data`."""
    at = 8 + 2 + 12 * len(tags) + 4
    entries, behind = b"", data + bytes(len(data) % 2)
    for tag, value in sorted(tags.items()):
        if isinstance(value, list):
            entries += struct.pack("<HHII", tag, 3, len(value), at + len(behind))
            behind += struct.pack(f"<{len(value)}H", *value)
        else:
            entries += struct.pack("<HHII", tag, 4, 1, at if value is None else value)
    return b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + bytes(4) + behind


def tiff_strip(side: int, bits: list[int], photometric: int = 2, **other: int) -> bytes:
    data = zeros(side * side * sum(bits) // 8)
    depth = bits if len(bits) > 1 else bits[0]
    tags = {256: side, 257: side, 258: depth, 259: 8, 262: photometric, 273: None}
    tags |= {277: len(bits), 278: other.get("rows", side), 279: len(data)}
    if len(bits) == 4:
        tags[338] = 2
    return tiff(tags, data)


def tiff_tile(side: int, tile: int, data: bytes) -> bytes:
    tags = {256: side, 257: side, 258: [8, 8, 8], 259: 8, 262: 2, 277: 3}
    return tiff({**tags, 322: tile, 323: tile, 324: None, 325: len(data)}, data)


def saved(image: Image.Image, format: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def webp(width: int, height: int) -> bytes:
    """Return a picture of one colour, in 34 bytes for any size."""
    data = saved(Image.new("RGBA", (8, 8)), "WEBP", lossless=True)
    size = int.from_bytes(data[21:25], "little") & ~0xFFFFFFF | (height - 1) << 14 | width - 1
    return data[:21] + size.to_bytes(4, "little") + data[25:]


def gif(frames: int, width: int = 1, height: int = 1, screen: int = 1) -> bytes:
    frame = b"," + struct.pack("<HHHH", 0, 0, width, height) + b"\0\2\2L\1\0"
    head = b"GIF89a" + struct.pack("<HH", screen, screen) + b"\x80\0\0" + bytes(6)
    return head + frame * frames + b";"


def segment(marker: int, data: bytes) -> bytes:
    return b"\xff" + bytes([marker]) + struct.pack(">H", len(data) + 2) + data


def corpus() -> dict[str, tuple[bytes, int]]:
    """Return each file with the status of the service's answer."""
    small = Image.linear_gradient("L").resize((16, 16)).convert("RGB")
    small_png, small_jpeg = saved(small, "PNG"), saved(small, "JPEG")
    small_gif, small_tiff = saved(small, "GIF"), saved(small, "TIFF")
    progressive = saved(Image.new("L", (2000, 2000)), "JPEG", progressive=True)
    scan = progressive[progressive.rindex(b"\xff\xda") : -2]
    sof = small_jpeg.index(b"\xff\xc0")
    million = zeros(1_000_000)
    return {
        # bombs that are pictures
        "bomb_1_bit.png": (png(SIDE, SIDE, bits=1), 200),
        "bomb_grey.png": (png(SIDE, SIDE), 200),
        "bomb_16_bit_grey.png": (png(SIDE, SIDE, bits=16), 200),
        "bomb_rgba.png": (png(SIDE, SIDE, colour=6), 200),
        "bomb.webp": (webp(4060, 4060), 200),
        "bomb.gif": (saved(Image.new("P", (SIDE, SIDE)), "GIF"), 200),
        "bomb_one_strip.tiff": (tiff_strip(4690, [8] * 3), 200),
        "bomb_16_bit.tiff": (tiff_strip(2000, [16] * 4), 200),
        # above the limits
        "over_the_limit.png": (png(10_000, 10_000, bits=1), 413),
        "over_the_limit.webp": (webp(16_383, 16_383), 413),
        "above_half_of_it.webp": (webp(4100, 4100), 413),
        "over_the_limit.tiff": (tiff_strip(4700, [1], 1), 413),
        "65535_square.png": (png(65_535, 65_535, bits=1)[:60], 413),
        "65535_square.jpeg": (
            small_jpeg[: sof + 5] + b"\xff\xff\xff\xff" + small_jpeg[sof + 9 :],
            413,
        ),
        "65535_square.gif": (gif(1, 65_535, 65_535), 413),
        "65535_wide.png": (png(65_535, 1), 400),
        "65535_high.png": (png(1, 65_535), 400),
        "1000000000_wide.png": (png(1_000_000_000, 1)[:80], 413),
        "tile_of_gigabytes.tiff": (tiff_tile(64, 20_000, zeros(1000)), 413),
        "tile_beyond_all.tiff": (tiff_tile(64, 4_000_000_000, zeros(1000)), 413),
        "60_scans.jpeg": (progressive[:-2] + 60 * scan + progressive[-2:], 413),
        # much data that is no picture
        "10000_frames.gif": (gif(10_000), 200),
        "text_bomb.png": (png(8, 8, chunk(b"zTXt", b"k\0\0" + zeros(10_000_000))), 400),
        "international_text_bomb.png": (
            png(8, 8, chunk(b"iTXt", b"k\0\1\0\0\0" + zeros(10_000_000))),
            400,
        ),
        "profile_bomb.png": (png(8, 8, chunk(b"iCCP", b"k\0\0" + zeros(10_000_000))), 400),
        "many_profiles.png": (png(8, 8, 30 * chunk(b"iCCP", b"k\0\0" + million)), 200),
        "many_texts.png": (png(8, 8, 70 * chunk(b"zTXt", b"k\0\0" + million)), 400),
        "many_chunks.png": (png(8, 8, 1000 * chunk(b"abCd")), 200),
        "huge_exif.png": (png(8, 8, chunk(b"eXIf", exif(1000, 30_000))), 200),
        "exif_of_gigabytes.png": (png(8, 8, chunk(b"eXIf", exif(20, 2**32 - 1))), 200),
        "huge_exif.jpeg": (
            small_jpeg[:2] + segment(0xE1, b"Exif\0\0" + exif(1000, 30_000)) + small_jpeg[2:],
            200,
        ),
        "huge_profile.jpeg": (
            small_jpeg[:2] + segment(0xE2, b"ICC_PROFILE\0\1\1" + bytes(30_000)) + small_jpeg[2:],
            200,
        ),
        "comments.gif": (small_gif[:-1] + 50 * (b"!\xfe\xff" + bytes(255) + b"\0") + b";", 200),
        # files inside other files
        "picture_in_zip.png": (b"PK\3\4" + small_png, 415),
        "gzip.png": (b"\x1f\x8b\x08\0\0\0\0\0\0\xff" + small_png, 415),
        "zip_behind.png": (small_png + b"PK\3\4" + bytes(100), 200),
        "script.svg": (b"<svg><image href='file:///etc/passwd'/></svg>", 415),
        "postscript.eps": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", 415),
        # broken
        "empty_data.png": (PNG + small_png[8:33] + chunk(b"IDAT") + chunk(b"IEND"), 400),
        "no_data.png": (small_png[:33] + chunk(b"IEND"), 400),
        "chunk_of_gigabytes.png": (small_png[:33] + b"\xff\xff\xff\xffIDAT", 400),
        "no_size.png": (png(1, 1)[:16] + bytes(8) + png(1, 1)[24:], 415),
        "wrong_checksum.png": (small_png[:30] + b"\0\0" + small_png[32:], 415),
        "no_tables.jpeg": (small_jpeg[:2] + small_jpeg[sof:], 400),
        "no_end.jpeg": (small_jpeg[:-2], 400),
        "no_frames.gif": (small_gif[:13] + b";", 415),
        "loop_of_directories.tiff": (small_tiff[:4] + struct.pack("<I", 8) + bytes(4), 415),
        "rows_beyond_all.tiff": (tiff_strip(64, [8] * 3, rows=2**32 - 1), 200),
        "lab.tiff": (tiff_strip(64, [8] * 3, 8), 200),
        "many_samples.tiff": (tiff_strip(8, [8] * 60), 415),
        "no_canvas.webp": (b"RIFF\x16\0\0\0WEBPVP8X\x0a\0\0\0" + bytes(4) + b"\xff" * 6, 400),
        "colours_beyond_all.bmp": (
            b"BM" + struct.pack("<IHHI", 54, 0, 0, 54)
            + struct.pack("<IiiHHIIiiII", 40, 8, 8, 1, 8, 0, 0, 0, 0, 2**31, 0),
            400,
        ),
        "endless_run.bmp": (
            b"BM" + struct.pack("<IHHI", 2000, 0, 0, 1078)
            + struct.pack("<IiiHHIIiiII", 40, 1000, 1000, 1, 8, 1, 9, 0, 0, 256, 0)
            + bytes(1024) + b"\0\2\xff\xff" * 200,
            200,
        ),
    }  # fmt: skip


def main() -> None:
    FOLDER.mkdir(exist_ok=True)
    for name, (data, _) in corpus().items():
        (FOLDER / name).write_bytes(data)


if __name__ == "__main__":
    main()
