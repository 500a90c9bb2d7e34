"""Colours: random changes of an image's colours in training, with the formulas that torchvision has for PIL images."""

import dataclasses

import numpy as np
from PIL import Image, ImageEnhance

from vlm_jax import errors

_ENHANCE = {"brightness": ImageEnhance.Brightness, "contrast": ImageEnhance.Contrast, "saturation": ImageEnhance.Color}


@dataclasses.dataclass(frozen=True)
class Jitter:
    """Random brightness, contrast, saturation and hue, in a random order; 0 of all of them: none.

    open_clip's `--aug-cfg color_jitter="(0.32,0.32,0.32,0.08)" color_jitter_prob=0.8` has these fields.
    """

    brightness: float = 0.0
    """b: pixels are multiplied by a factor between max(0, 1 - b) and 1 + b."""
    contrast: float = 0.0
    """c: distances from the mean grey of the image are multiplied, as for brightness."""
    saturation: float = 0.0
    """s: distances of each pixel from its own grey are multiplied, as for brightness."""
    hue: float = 0.0
    """h: the hue is turned by -h to h of the circle; at most 0.5."""
    probability: float = 1.0
    """That an image is changed at all."""

    def __post_init__(self):
        for field in ("brightness", "contrast", "saturation"):
            if not 0 <= getattr(self, field) < float("inf"):
                raise errors.InputError(f"image.jitter.{field} {getattr(self, field)}: cannot be negative; 0 for none, such as 0.3")
        if not 0 <= self.hue <= 0.5:
            raise errors.InputError(f"image.jitter.hue {self.hue}: a share of the circle, from 0 to 0.5")
        if not 0 <= self.probability <= 1:
            raise errors.InputError(f"image.jitter.probability {self.probability}: from 0 to 1")

    @property
    def changes(self) -> bool:
        """Whether it changes any image."""
        return self.probability > 0 and any((self.brightness, self.contrast, self.saturation, self.hue))

    def __call__(self, image: Image.Image, rng: np.random.Generator) -> Image.Image:
        """Draws, in this order: whether, the order of the four, then the factor of each that is not 0."""
        if rng.random() >= self.probability:
            return image
        for kind in rng.permutation(4):
            field = ("brightness", "contrast", "saturation", "hue")[kind]
            most = getattr(self, field)
            if not most:
                continue
            if field == "hue":
                image = turn_hue(image, rng.uniform(-most, most))
            else:
                image = _ENHANCE[field](image).enhance(rng.uniform(max(0.0, 1 - most), 1 + most))
        return image


def turn_hue(image: Image.Image, turn: float) -> Image.Image:
    """Adds a share of the circle, -0.5 to 0.5, to the hue, in steps of 1/256."""
    hue, saturation, value = image.convert("HSV").split()
    turned = np.asarray(hue) + np.uint8(int(turn * 255) % 256)  # wraps around
    return Image.merge("HSV", (Image.fromarray(turned), saturation, value)).convert("RGB")


def to_grey(image: Image.Image) -> Image.Image:
    """Three equal channels of luma, 0.299 red + 0.587 green + 0.114 blue."""
    return image.convert("L").convert("RGB")
