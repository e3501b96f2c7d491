"""Convert an image file, or pixels in memory, to upright RGB of eight bits. The bits are always the same."""

from __future__ import annotations

import contextlib
import struct
import threading
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, BinaryIO, Final

import numpy as np

from embstore._engine.format.arguments import refuse_hidden
from embstore._engine.lazy import imported
from embstore.encoders.content import is_undecoded, kind_of, opened
from embstore.errors import DecodeError, ShapeError

if TYPE_CHECKING:
    from PIL.Image import Image

_ESCAPING: Final = (OSError, SyntaxError, ValueError, EOFError, TypeError, RuntimeError, LookupError, struct.error)
"""A bad EXIF rational raises TypeError, a broken AVIF file RuntimeError. Only calls of Pillow catch these."""

_ADVICE: Final = {
    "HEIC": "; convert it, or install pillow-heif and call pillow_heif.register_heif_opener()",
    "AVIF": "; convert it, or install Pillow 11.3 or newer",
    "JPEG XL": "; convert it, or install pillow-jxl-plugin and import pillow_jxl",
    "SVG": "; convert it to PNG",
    "raw": "; convert a camera's raw image to TIFF or JPEG",
}
"""What to do about a kind of file that Pillow does not read."""

_BITS_PER_SAMPLE: Final = 258  # tags of TIFF
_PHOTOMETRIC: Final = 262
_SAMPLE_FORMAT: Final = 339
_SIGNED: Final = 2


def describe() -> dict[str, Any]:
    """Return the part of an encoder's config for decoding images. Versions of the libraries are provenance."""
    return {"mode": "RGB", "orientation": "exif", "alpha": "over white"}


def decode_image(content: Any) -> Image:
    """Decode an image, turned by its EXIF orientation, with transparency composited over white.

    Palettes and CMYK are converted by Pillow's own rules. Grey of up to 16 bits is scaled to eight bits, by the number
    of bits that the file states. The first frame of an animation is used, and the first page of a TIFF file. Colour
    profiles are ignored, as in the models' own preprocessing.

    Parameters
    ----------
    content : bytes, binary file, PIL.Image.Image, ndarray or mapping
        One of four forms. A file, open or as its bytes. An image of Pillow, which is not changed. An array of uint8:
        ``(height, width)``, ``(height, width, 3)`` or ``(height, width, 4)``. A sample of Hugging Face `datasets`:
        ``"bytes"`` and ``"path"``.

    Returns
    -------
    PIL.Image.Image
        In the mode RGB.

    Raises
    ------
    DecodeError
        The content is empty, no image, cut short, or larger than Pillow's limit (`PIL.Image.MAX_IMAGE_PIXELS`). Or the
        range of its numbers is not known: floats, signed integers, integers of 32 bits.
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

    if isinstance(content, np.ndarray):
        content = Image.fromarray(_pixels(content))
    if is_undecoded(content):
        with opened(content) as file:
            return _from_file(file)
    if isinstance(content, Image.Image):
        return _decoded(content)
    raise TypeError(
        f"expected the bytes of a file, an image of Pillow's, a uint8 array, or a mapping with "
        f'"bytes" or "path", found {type(content).__name__}'
    )


def _pixels(array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    refuse_hidden("image", array)
    if array.dtype != np.uint8:
        raise TypeError(f"expected pixels as uint8, found {array.dtype}")
    if not (array.ndim == 2 or (array.ndim == 3 and array.shape[2] in (3, 4))):
        raise ShapeError("image", expected="(height, width), (height, width, 3) or (…, 4)", found=array.shape)
    if not array.size:
        raise DecodeError("an image without pixels")
    return np.ascontiguousarray(array)


def _from_file(file: BinaryIO) -> Image:
    from PIL import Image

    start = file.read(512)
    if not start:
        raise DecodeError("the file is empty")
    Image.init()  # otherwise Pillow knows only the five commonest formats
    formats = [name for name in Image.ID if name != "EPS"]  # EPS is a program, and Pillow would let Ghostscript run it
    with _broken_files(start), Image.open(file, formats=formats) as image:
        return _decoded(image)


def _decoded(image: Image) -> Image:
    """Load an image's pixels, and convert them."""
    from PIL import ImageOps

    with _broken_files():
        hidden = _hidden_colour(image)  # before Pillow loads the pixels and forgets their depth
        image.load()
        upright = ImageOps.exif_transpose(image)
        if image.format == "XBM":  # its ones are black, and Pillow makes them white
            upright = ImageOps.invert(upright.convert("L"))
        if hidden is not None:
            upright.info["transparency"] = hidden
        if image.mode.startswith("I") or _SIGNED in getattr(image, "tag_v2", {}).get(_SAMPLE_FORMAT, ()):
            upright = _eight_bits(upright, image)
        return _rgb(upright)


class _Lenient(threading.local):
    """A true value, but false while the present thread decodes an image here.

    Many training scripts set `PIL.ImageFile.LOAD_TRUNCATED_IMAGES`. Pillow then fills the missing part of a cut file
    with grey.
    """

    decoding = False

    def __bool__(self) -> bool:
        return not self.decoding


_LENIENT: Final = _Lenient()


@contextlib.contextmanager
def _broken_files(start: bytes = b"") -> Iterator[None]:
    """Turn errors of Pillow's readers into `DecodeError`. The list was found by breaking files of each format.

    Parameters
    ----------
    start : bytes
        The first bytes of the file. They show the kind of a file that Pillow does not read.
    """
    from PIL import Image, ImageFile, UnidentifiedImageError

    settings: Any = ImageFile
    if settings.LOAD_TRUNCATED_IMAGES:
        settings.LOAD_TRUNCATED_IMAGES = _LENIENT  # still true for other threads, and for this one afterwards
    outer, _LENIENT.decoding = _LENIENT.decoding, True
    try:
        yield
    except DecodeError:  # a ValueError
        raise
    except UnidentifiedImageError as error:
        kind = kind_of(start)
        advice = next((text for name, text in _ADVICE.items() if name in kind), "")
        raise DecodeError(f"not an image that Pillow reads{kind}{advice}") from error
    except (*_ESCAPING, Image.DecompressionBombError) as error:
        raise DecodeError(f"not decodable: {error}") from error
    finally:
        _LENIENT.decoding = outer


# -- conversion -------------------------------------------------------------------------------


def _hidden_colour(image: Image) -> Any:
    """Return the colour that a file states as transparent, in numbers of the loaded image."""
    hidden = image.info.get("transparency")
    tiles = getattr(image, "tile", None)
    if hidden is None or not tiles or image.format != "PNG":
        return hidden
    depth = tiles[0][3]  # Pillow scales grey of 2 and 4 bits, and cuts colours of 16 bits, but not this colour
    if depth == "RGB;16B":
        raise DecodeError("an image of 16-bit colours with a transparent one, of which Pillow keeps 8 bits")
    return hidden * {"L;2": 85, "L;4": 17}.get(depth, 1) if isinstance(hidden, int) else hidden


def _eight_bits(image: Image, like: Image) -> Image:
    """Return grey of eight bits for integers of more bits. Pillow's `convert` would clip them at 255.

    Parameters
    ----------
    image : Image
        Turned upright.
    like : Image
        The image as it was opened, with its format and tags.

    Raises
    ------
    DecodeError
        The range of the integers is not known. Formats such as FITS and McIDAS state none.
    """
    from PIL import Image

    tags: Any = getattr(like, "tag_v2", {})
    # Pillow scales the integers of JPEG 2000 and PPM to 16 bits.
    if like.format in ("PNG", "JPEG2000", "PPM") or (like.format is None and like.mode != "I"):
        white = 0xFFFF
    elif like.format == "TIFF" and _SIGNED not in tags.get(_SAMPLE_FORMAT, ()) and tags[_BITS_PER_SAMPLE][0] <= 16:
        white = (1 << tags[_BITS_PER_SAMPLE][0]) - 1
    else:
        raise DecodeError("an image of integers whose range is not known; convert it to 8 bits")
    values = np.asarray(image).astype(np.int64)
    grey = (values * 255 + white // 2) // white
    if tags.get(_PHOTOMETRIC) == 0:  # white is zero, which Pillow heeds for 8 bits only
        grey = 255 - grey
    found = Image.fromarray(grey.astype(np.uint8))
    if "transparency" in image.info:
        found.putalpha(Image.fromarray(np.where(values == image.info["transparency"], 0, 255).astype(np.uint8)))
    return found


def _rgb(image: Image) -> Image:
    from PIL import Image

    if image.mode == "F":
        raise DecodeError("an image of floating-point numbers, whose range is not known; convert it to 8 bits")
    if image.mode == "La":
        image = image.convert("LA")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")
