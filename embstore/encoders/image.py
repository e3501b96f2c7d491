"""Convert an image file, or pixels in memory, to upright RGB of eight bits. The bits are always the same."""

from __future__ import annotations

import contextlib
import io
import struct
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from embstore._engine.lazy import imported
from embstore.encoders.content import file_bytes
from embstore.errors import DecodeError, ShapeError

if TYPE_CHECKING:
    from PIL.Image import Image

_ESCAPING: Final = (OSError, SyntaxError, ValueError, EOFError, TypeError, RuntimeError, LookupError, struct.error)
"""A bad EXIF rational raises TypeError, a broken AVIF file RuntimeError. Only calls of Pillow catch these."""


def describe() -> dict[str, Any]:
    """Return the part of an encoder's config for decoding images. Versions of the libraries are provenance."""
    return {"mode": "RGB", "orientation": "exif", "alpha": "over white"}


def decode_image(content: Any) -> Image:
    """Decode an image, turned by its EXIF orientation, with transparency composited over white.

    Palettes and CMYK are converted by Pillow's own rules. 16-bit grey is scaled to eight bits. The first frame of an
    animation is used. Colour profiles are ignored, as in the models' own preprocessing.

    Parameters
    ----------
    content : bytes, PIL.Image.Image, ndarray or mapping
        One of four forms. The bytes of a file. An image of Pillow, which is not changed. An array of uint8:
        ``(height, width)``, ``(height, width, 3)`` or ``(height, width, 4)``. A sample of Hugging Face `datasets`:
        ``"bytes"`` and ``"path"``.

    Returns
    -------
    PIL.Image.Image
        In the mode RGB.

    Raises
    ------
    DecodeError
        The content is empty, no image, cut short, or larger than Pillow's limit (`PIL.Image.MAX_IMAGE_PIXELS`).
    SampleError
        The file at the path of a mapping without bytes can't be read.
    ShapeError
        The array has another shape.
    TypeError
        The content is of another kind, or an array that is not uint8.
    ImportError
        Pillow is not installed.
    """
    imported("PIL", "image", "to decode images")
    from PIL import Image

    if isinstance(content, Mapping):
        content = file_bytes(content)
    if isinstance(content, np.ndarray):
        content = Image.fromarray(_pixels(content))
    if isinstance(content, bytes | bytearray | memoryview):
        return _from_file(bytes(content))
    if isinstance(content, Image.Image):
        return _decoded(content)
    raise TypeError(
        f"expected the bytes of a file, an image of Pillow's, a uint8 array, or a mapping with "
        f'"bytes" or "path", found {type(content).__name__}'
    )


def _pixels(array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    if array.dtype != np.uint8:
        raise TypeError(f"expected pixels as uint8, found {array.dtype}")
    if not (array.ndim == 2 or (array.ndim == 3 and array.shape[2] in (3, 4))):
        raise ShapeError("image", expected="(height, width), (height, width, 3) or (…, 4)", found=array.shape)
    if not array.size:
        raise DecodeError("an image without pixels")
    return np.ascontiguousarray(array)


def _from_file(data: bytes) -> Image:
    from PIL import Image

    if not data:
        raise DecodeError("the file is empty")
    Image.init()  # otherwise Pillow knows only the five commonest formats
    formats = [name for name in Image.ID if name != "EPS"]  # EPS is a program, and Pillow would let Ghostscript run it
    with _broken_files(), Image.open(io.BytesIO(data), formats=formats) as image:
        return _decoded(image)


def _decoded(image: Image) -> Image:
    """Load an image's pixels, and convert them."""
    from PIL import ImageOps

    with _broken_files():
        image.load()
        return _rgb(ImageOps.exif_transpose(image))


@contextlib.contextmanager
def _broken_files() -> Iterator[None]:
    """Turn errors of Pillow's readers into `DecodeError`. The list was found by breaking files of each format."""
    from PIL import Image, UnidentifiedImageError

    try:
        yield
    except DecodeError:  # a ValueError
        raise
    except UnidentifiedImageError as error:
        raise DecodeError("not an image that Pillow reads") from error
    except (*_ESCAPING, Image.DecompressionBombError) as error:
        raise DecodeError(f"not decodable: {error}") from error


def _rgb(image: Image) -> Image:
    from PIL import Image

    if image.mode == "F":
        raise DecodeError("an image of floating-point numbers, whose range is not known")
    if image.mode.startswith("I"):  # Pillow's convert would clip these at 255
        grey = np.asarray(image).astype(np.int64).clip(0, 65535)
        return Image.fromarray(((grey + 128) // 257).astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")
