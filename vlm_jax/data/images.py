"""Images: encoded bytes to uint8 arrays of the size a model wants, at random for training, fixed for evaluation."""

import dataclasses
import math
from typing import Literal

import numpy as np
from PIL import Image

from vlm_jax import errors
from vlm_jax.data import colours, decoding, records

MAX_PIXELS = decoding.MAX_PIXELS
_RESAMPLING = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}
_DRAFT_MARGIN = 2
"""JPEGs may be decoded at 1/2, 1/4 or 1/8 while this many times the wanted side remains for the antialiased resize."""


@dataclasses.dataclass(frozen=True)
class Transform:
    """Decode, resize with antialiasing, crop or pad, flip, change colours: encoded bytes to uint8[size, size, 3].

    `Transform(size=64, resize_to=72, crop="random")` takes random crops of 64 from images whose shorter side is resized to 72.
    """

    size: int = 224
    """Side of the image that the model sees, in pixels."""
    resize: Literal["shortest", "squash", "longest"] = "shortest"
    """shortest, longest: that side becomes `resize_to`, the aspect ratio stays; squash: both sides become `resize_to`."""
    resize_to: int = 0
    """Side after resizing and before cropping, in pixels; 0: the same as `size`."""
    fill: tuple[int, int, int] = (0, 0, 0)
    """Red, green and blue (0 to 255) around an image that longest leaves smaller than `size`."""
    crop: Literal["center", "random", "random_resized"] = "center"
    """Place of the crop, or of the image in its padding, in training; random_resized: a random part of the original becomes `size`."""
    min_scale: float = 0.9
    """Smallest share of the original's area that random_resized takes."""
    aspect: tuple[float, float] = (3 / 4, 4 / 3)
    """Smallest and largest width over height of the part that random_resized takes."""
    flip: float = 0.0
    """Probability of a left-right flip in training."""
    jitter: colours.Jitter = colours.Jitter()
    """Random colours in training."""
    grayscale: float = 0.0
    """Probability that an image loses its colours in training."""
    interpolation: Literal["bicubic", "bilinear"] = "bicubic"
    """Kernel of the resize, widened when shrinking (antialiased)."""
    max_pixels: int = MAX_PIXELS
    """Width times height above which an image is refused before decoding."""
    decoder: Literal["pillow", "simplejpeg", "auto"] = "pillow"
    """What decodes JPEGs in training; auto: simplejpeg where it is installed. A run goes on with the one it began with."""

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
        if not 0 <= self.grayscale <= 1:
            raise errors.InputError(f"image.grayscale {self.grayscale}: a probability, from 0 to 1")
        if not 0 < self.aspect[0] <= self.aspect[1] < math.inf:
            raise errors.InputError(f"image.aspect {self.aspect}: the smaller ratio first, both above 0, such as 0.75 1.33")
        if not all(0 <= value <= 255 for value in self.fill):
            raise errors.InputError(f"image.fill {self.fill}: red, green and blue from 0 to 255")
        if self.max_pixels < 1:
            raise errors.InputError(f"image.max_pixels {self.max_pixels}: must be at least 1")

    def prepared(self) -> "Transform":
        """The same with the decoder that this machine uses.

        Raises:
          InputError: it is not installed.
        """
        return dataclasses.replace(self, decoder=decoding.chosen(self.decoder))

    @property
    def fingerprint(self) -> str:
        """What decodes, to be added to the fingerprint of the data; empty for Pillow."""
        decoder = decoding.chosen(self.decoder)
        return "" if decoder == "pillow" else f", decoded by {decoder}"

    def evaluation(self) -> "Transform":
        """The same resize with the center crop, the colours as they are, and Pillow, which is everywhere."""
        return dataclasses.replace(self, crop="center", flip=0.0, jitter=colours.Jitter(), grayscale=0.0, decoder="pillow")

    def __call__(self, data: bytes, rng: np.random.Generator | None = None) -> np.ndarray:
        """Returns uint8[size, size, 3]; without `rng` the form of `evaluation()`.

        Drawn from `rng`, in this order: the crop, the flip, the jitter, the loss of colours; nothing for what has probability 0.

        Raises:
          RecordError: the bytes are no image, or one that is too large.
        """
        if self.crop == "random_resized" and rng is not None:
            narrowest = min(self.aspect[0], 1 / self.aspect[1])
            smallest = math.ceil(self.size / math.sqrt(self.min_scale * narrowest))
            image = self._resized_crop(self._load(data, smallest, rng), rng)
        else:
            side = self.resize_to or self.size
            image = self._crop(self._resize(self._load(data, side, rng), side), rng)
        if rng is None:
            return np.asarray(image)
        flipped = self.flip and rng.random() < self.flip
        if self.jitter.changes:
            image = self.jitter(image, rng)
        if self.grayscale and rng.random() < self.grayscale:
            image = colours.to_grey(image)
        pixels = np.asarray(image)
        return np.ascontiguousarray(pixels[:, ::-1]) if flipped else pixels

    def _load(self, data: bytes, side: int, rng: np.random.Generator | None) -> Image.Image:
        decoder = "pillow" if rng is None else decoding.chosen(self.decoder)
        return decoding.load(data, self.max_pixels, side * _DRAFT_MARGIN, decoder)

    def _resize(self, image: Image.Image, side: int) -> Image.Image:
        width, height = image.size
        if self.resize == "squash":
            size = (side, side)
        elif self.resize == "longest":  # rounded, as open_clip does; the shortest of a strip keeps a pixel
            size = (max(1, round(width * side / max(width, height))), max(1, round(height * side / max(width, height))))
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
        left, top = (_place(side - self.size, self.crop, rng) for side in image.size)
        if left >= 0 and top >= 0:
            return image.crop((left, top, left + self.size, top + self.size))
        page = Image.new("RGB", (self.size, self.size), self.fill)
        page.paste(image, (-left, -top))
        return page

    def _resized_crop(self, image: Image.Image, rng: np.random.Generator) -> Image.Image:
        """A box of random area and aspect ratio; after ten that do not fit, the largest box in the middle."""
        width, height = image.size
        for _ in range(10):
            area = width * height * rng.uniform(self.min_scale, 1.0)
            ratio = math.exp(rng.uniform(math.log(self.aspect[0]), math.log(self.aspect[1])))
            w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
            if 0 < w <= width and 0 < h <= height:
                left, top = int(rng.integers(width - w + 1)), int(rng.integers(height - h + 1))
                break
        else:
            narrow, wide = self.aspect
            w, h = min(width, max(1, round(height * wide))), min(height, max(1, round(width / narrow)))
            left, top = (width - w) // 2, (height - h) // 2
        box = (left, top, left + w, top + h)
        return image.resize((self.size, self.size), _RESAMPLING[self.interpolation], box=box)


def _place(room: int, crop: str, rng: np.random.Generator | None) -> int:
    """Where a crop begins in an image that is `room` pixels longer; negative: the padding before a shorter one."""
    if crop == "random" and rng is not None:
        return int(rng.integers(room + 1)) if room >= 0 else -int(rng.integers(1 - room))
    return room // 2 if room >= 0 else -(-room // 2)


def decode(data: bytes, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """Decodes an image to uint8[h, w, 3]: upright, transparency on white, 16 bits reduced to 8.

    Raises:
      RecordError: the bytes are no image, or one of more than `max_pixels`.
    """
    return np.asarray(decoding.load(data, max_pixels))
