"""Twenty files that are no pictures to restore, each wrong in a way of its own."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
from PIL import Image

from helpers.pictures import make_image

PNG_START = b"\x89PNG\r\n\x1a\n"


def encode(image: Image.Image, kind: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, format=kind, **options)
    return file.getvalue()


def chunk(name: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


def png_header(width: int, height: int) -> bytes:
    """The beginning of an 8-bit RGB PNG of these sides."""
    return PNG_START + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))


def make_bomb(side: int) -> bytes:
    """A whole PNG of black pixels: a few hundred kilobytes that are gigabytes when decoded."""
    squeeze, lines = zlib.compressobj(9), bytes(1 + 3 * side)
    body = b"".join(squeeze.compress(lines) for _ in range(side)) + squeeze.flush()
    return png_header(side, side) + chunk(b"IDAT", body) + chunk(b"IEND", b"")


def make_wrong() -> dict[str, bytes]:
    """Return them by the names they are uploaded under; a server takes up to a megapixel and 2 megabytes."""
    picture = make_image(0, 24, 20)
    png, jpeg = encode(picture, "PNG"), encode(picture, "JPEG")
    animation = encode(picture, "GIF", save_all=True, append_images=[make_image(1, 24, 20)])
    moving = encode(picture, "WEBP", save_all=True, append_images=[make_image(1, 24, 20)])
    array = io.BytesIO()
    np.save(array, np.zeros((8, 8, 3), np.uint8))
    svg = b'<svg xmlns="http://www.w3.org/2000/svg"><script>alert(1)</script></svg>'
    return {
        "text.png": b"this is no picture, but text\n",
        "empty.png": b"",
        "bomb.png": make_bomb(12_000),
        "huge-header.png": png_header(2**31 - 1, 2**31 - 1),
        "no-pixels.png": png_header(20, 24),
        "cut.png": png[: len(png) // 2],
        "cut.jpg": jpeg[: len(jpeg) // 2],
        "flipped.png": png[:60] + bytes(b ^ 255 for b in png[60:90]) + png[90:],
        "script.svg": svg,
        "drawing.png": b'<?xml version="1.0"?>' + svg,
        "page.html.png": b"<!doctype html><script>alert(1)</script>",
        "animation.gif": animation,
        "moving.webp": moving,
        "inks.jpg": encode(picture.convert("CMYK"), "JPEG"),
        "array.png": array.getvalue(),
        "archive.jpg": b"PK\x03\x04" + bytes(60),
        "scan.tif": encode(picture, "TIFF"),
        "postscript.png": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n",
        "..%2f..%2fetc%2fpasswd": b"root:x:0:0:root:/root:/bin/sh\n",
        "large.png": encode(Image.new("RGB", (1200, 1000)), "PNG"),
    }
