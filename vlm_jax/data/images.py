"""Images: encoded bytes to uint8 arrays of the size a model wants, at random for training, fixed for evaluation."""

import dataclasses
import io
import math
import warnings
from typing import Literal

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from vlm_jax import errors
from vlm_jax.data import records

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")
"""What is decoded; other formats that Pillow knows start programs (EPS) or are not images of the web."""
MAX_PIXELS = 2**26
"""Width times height above which an image is refused before it is decoded: a small file can hold gigabytes."""
_RESAMPLING = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}
_ORIENTATION = 0x0112
_DRAFT_MARGIN = 2
"""JPEGs may be decoded at 1/2, 1/4 or 1/8 while this many times the wanted side remains for the antialiased resize."""

Image.init()  # else the first image of a format loads its decoder, and two threads may race for it
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)  # size is checked below, and refused


@dataclasses.dataclass(frozen=True)
class Transform:
    """Decode, resize with antialiasing, crop, flip: encoded bytes to uint8[size, size, 3].

    `Transform(size=64, resize_to=72, crop="random")` takes random crops of 64 from images whose shorter side is resized to 72.
    """

    size: int = 224
    """Side of the image that the model sees, in pixels."""
    resize: Literal["shortest", "squash"] = "shortest"
    """shortest: the shorter side becomes `resize_to`, the aspect ratio stays; squash: both sides become `resize_to`."""
    resize_to: int = 0
    """Side after resizing and before cropping, in pixels; 0: the same as `size`."""
    crop: Literal["center", "random", "random_resized"] = "center"
    """Place of the crop in training; random_resized: a random part of the original is resized to `size`."""
    min_scale: float = 0.9
    """Smallest share of the original's area that random_resized takes (aspect ratios 3/4 to 4/3)."""
    flip: float = 0.0
    """Probability of a left-right flip in training."""
    interpolation: Literal["bicubic", "bilinear"] = "bicubic"
    """Kernel of the resize, widened when shrinking (antialiased)."""
    max_pixels: int = MAX_PIXELS
    """Width times height above which an image is refused before decoding."""

    def __post_init__(self):
        if self.size < 1:
            raise errors.InputError(f"image.size {self.size}: must be at least 1 pixel")
        if self.resize_to and self.resize_to < self.size:
            raise errors.InputError(
                f"image.resize_to {self.resize_to} is below image.size {self.size}: no crop fits; raise it, or 0 for the size"
            )
        if not 0 < self.min_scale <= 1:
            raise errors.InputError(f"image.min_scale {self.min_scale}: a share of the area, above 0 and at most 1")
        if not 0 <= self.flip <= 1:
            raise errors.InputError(f"image.flip {self.flip}: a probability, from 0 to 1")
        if self.max_pixels < 1:
            raise errors.InputError(f"image.max_pixels {self.max_pixels}: must be at least 1")

    def evaluation(self) -> "Transform":
        """The same resize with the center crop and no flip."""
        return dataclasses.replace(self, crop="center", flip=0.0)

    def __call__(self, data: bytes, rng: np.random.Generator | None = None) -> np.ndarray:
        """Returns uint8[size, size, 3]; without `rng` the form of `evaluation()`.

        Raises:
          RecordError: the bytes are no image, or one that is too large.
        """
        if self.crop == "random_resized" and rng is not None:
            smallest = math.ceil(self.size / math.sqrt(self.min_scale * 3 / 4))
            image = self._resized_crop(_load(data, self.max_pixels, smallest * _DRAFT_MARGIN), rng)
        else:
            side = self.resize_to or self.size
            image = self._crop(self._resize(_load(data, self.max_pixels, side * _DRAFT_MARGIN), side), rng)
        pixels = np.asarray(image)
        if rng is not None and self.flip and rng.random() < self.flip:
            pixels = np.ascontiguousarray(pixels[:, ::-1])
        return pixels

    def _resize(self, image: Image.Image, side: int) -> Image.Image:
        width, height = image.size
        if self.resize == "squash":
            size = (side, side)
        else:
            size = (side * width // min(width, height), side * height // min(width, height))  # rounded down, as torchvision does
        if size == image.size:
            return image
        if size[0] * size[1] > self.max_pixels:
            raise records.RecordError(f"image of {width} x {height} becomes {size[0]} x {size[1]}: too long for its width")
        return image.resize(size, _RESAMPLING[self.interpolation])

    def _crop(self, image: Image.Image, rng: np.random.Generator | None) -> Image.Image:
        if image.size == (self.size, self.size):
            return image
        right, down = image.width - self.size, image.height - self.size
        if self.crop == "random" and rng is not None:
            left, top = int(rng.integers(right + 1)), int(rng.integers(down + 1))
        else:
            left, top = right // 2, down // 2
        return image.crop((left, top, left + self.size, top + self.size))

    def _resized_crop(self, image: Image.Image, rng: np.random.Generator) -> Image.Image:
        """A box of random area and aspect ratio; after ten that do not fit, the largest box in the middle."""
        width, height = image.size
        for _ in range(10):
            area = width * height * rng.uniform(self.min_scale, 1.0)
            ratio = math.exp(rng.uniform(math.log(3 / 4), math.log(4 / 3)))
            w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
            if 0 < w <= width and 0 < h <= height:
                left, top = int(rng.integers(width - w + 1)), int(rng.integers(height - h + 1))
                break
        else:
            w, h = min(width, max(1, round(height * 4 / 3))), min(height, max(1, round(width * 4 / 3)))
            left, top = (width - w) // 2, (height - h) // 2
        box = (left, top, left + w, top + h)
        return image.resize((self.size, self.size), _RESAMPLING[self.interpolation], box=box)


def decode(data: bytes, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """Decodes an image to uint8[h, w, 3]: upright, transparency on white, 16 bits reduced to 8.

    Raises:
      RecordError: the bytes are no image, or one of more than `max_pixels`.
    """
    return np.asarray(_load(data, max_pixels, draft=0))


def _load(data: bytes, max_pixels: int, draft: int) -> Image.Image:
    """An RGB image, upright; a JPEG may come at 1/2, 1/4 or 1/8 with both sides still at least `draft` (0: never)."""
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
        width, height = image.size
        if width * height > max_pixels:
            raise records.RecordError(f"image of {width} x {height} pixels, more than the limit of {max_pixels}")
        if draft and image.format == "JPEG":
            image.draft(None, (draft, draft))
        image.load()
        if "exif" in image.info or image.format == "TIFF":
            if image.getexif().get(_ORIENTATION, 1) != 1:
                image = ImageOps.exif_transpose(image)
        return _to_rgb(image)
    except (records.RecordError, MemoryError):
        raise
    except Exception as error:  # Pillow raises nearly every type, from SyntaxError to struct.error
        why = "none of the known formats" if isinstance(error, UnidentifiedImageError) else error
        raise records.RecordError(f"image of {len(data)} bytes cannot be decoded: {why}") from error


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
