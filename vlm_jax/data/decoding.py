"""Decoding: encoded bytes to upright RGB images, by Pillow, or for JPEGs by simplejpeg."""

import io
import warnings
from typing import Any, Literal

import numpy as np
from PIL import Image, UnidentifiedImageError

from vlm_jax import errors
from vlm_jax.data import records

try:
    import simplejpeg  # pyright: ignore[reportMissingImports]
except ImportError:  # the extra "fast"
    simplejpeg: Any = None

Decoder = Literal["pillow", "simplejpeg"]
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")
"""What is decoded; other formats that Pillow knows start programs (EPS) or are not images of the web."""
MAX_PIXELS = 2**26
"""Width times height above which an image is refused before it is decoded: a small file can hold gigabytes."""
_ORIENTATION = 0x0112
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What undoes an orientation of the EXIF standard."""

Image.init()  # else the first image of a format loads its decoder, and two threads may race for it
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)  # size is checked below, and refused


def chosen(decoder: Literal["pillow", "simplejpeg", "auto"]) -> Decoder:
    """The decoder that is used on this machine; auto: simplejpeg where it is installed.

    Raises:
      InputError: simplejpeg is asked for and not installed.
    """
    if decoder == "auto":
        return "pillow" if simplejpeg is None else "simplejpeg"
    if decoder == "simplejpeg" and simplejpeg is None:
        raise errors.InputError("image.decoder simplejpeg: not installed; pip install 'vlm_jax[fast]', or choose pillow")
    return decoder


def load(data: bytes, max_pixels: int = MAX_PIXELS, draft: int = 0, decoder: Decoder = "pillow") -> Image.Image:
    """An RGB image: upright, transparency on white, 16 bits reduced to 8.

    Args:
      max_pixels: width times height above which it is refused, from the header.
      draft: a JPEG may come at 1/2, 1/4 or 1/8 with both sides still at least so long; 0: never.
      decoder: of JPEGs. Pillow reads the header in any case, and decodes what simplejpeg is not made for: CMYK and damaged ones.

    Raises:
      RecordError: the bytes are no image, or one of more than `max_pixels`.
    """
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
        width, height = image.size
        if width * height > max_pixels:
            raise records.RecordError(f"image of {width} x {height} pixels, more than the limit of {max_pixels}")
        decoded = None
        if image.format == "JPEG":
            if decoder == "simplejpeg" and image.mode in ("RGB", "L"):
                decoded = _by_simplejpeg(data, width, height, draft)
            elif draft:
                image.draft(None, (draft, draft))
        if decoded is None:
            image.load()
        if "exif" in image.info or image.format == "TIFF":
            turn = _UPRIGHT.get(image.getexif().get(_ORIENTATION, 1))
            if turn is not None:
                return (_to_rgb(image) if decoded is None else decoded).transpose(turn)
        return _to_rgb(image) if decoded is None else decoded
    except (records.RecordError, MemoryError):
        raise
    except Exception as error:  # Pillow raises nearly every type, from SyntaxError to struct.error
        why = "none of the known formats" if isinstance(error, UnidentifiedImageError) else error
        raise records.RecordError(f"image of {len(data)} bytes cannot be decoded: {why}") from error


def _by_simplejpeg(data: bytes, width: int, height: int, draft: int) -> Image.Image | None:
    """None for a file of which it complains. The exact transforms, and Pillow's choice of scale: the same library, the same pixels."""
    scale = min(width // draft, height // draft) if draft else 1
    scale = next(s for s in (8, 4, 2, 1) if s <= max(scale, 1))
    try:
        pixels = simplejpeg.decode_jpeg(
            data, "RGB", fastdct=False, fastupsample=False, min_height=-(-height // scale), min_width=-(-width // scale)
        )
    except ValueError:
        return None
    return Image.fromarray(pixels)


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode.startswith("I"):  # 16 bits a pixel, in two or four bytes
        values = np.asarray(image)
        return Image.fromarray((np.clip(values, 0, 65535) >> 8).astype(np.uint8)).convert("RGB")
    if image.mode == "F":
        raise records.RecordError("image of floating point values; store it as 8 or 16 bit integers")
    if "transparency" in image.info or image.mode in ("RGBA", "LA", "PA", "RGBa", "La"):
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, image).convert("RGB")
    return image.convert("RGB")
