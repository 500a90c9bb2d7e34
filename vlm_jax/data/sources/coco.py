"""COCO's JSON: captions, boxes and masks of images in a folder.

    annotations/captions_val2017.json                                captions
    annotations/instances_val2017.json                               boxes, classes and masks
    captions_val2017.json#with=instances_val2017.json                both; a file beside the first
    instances_val2017.json#root=/data/coco/val2017                   where the images are

Without a root the images are looked for in the folder of the file and the one above it, and there in `val2017` and `images`.

An image is an example, in the order of `images`. Where a file has captions, images without one are left out, with a warning; without
captions all images are kept, those without objects too, since a detector is judged by them. The fields of an example:

    key         name of the file                       image_id, width, height      as in the file
    captions    all of them, as they are, stripped
    boxes       float32 [n, 4], left, top, right, bottom in pixels; COCO's own are left, top, width, height
    labels      list of n indices into the names of `categories`, sorted by their id
    crowd       bool [n], a group of objects that is no single one (`iscrowd`)
    masks       bool [n, height, width], see `masks`; only where every object has one
"""

import collections
import json
import logging
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from vlm_jax import errors
from vlm_jax.data import classes as class_names
from vlm_jax.data import masks, places
from vlm_jax.data.sources import base, columns

LARGEST = 2**31
"""Bytes of a file above which it is not read; that of COCO's training set has 450 million."""
OPTIONS = ("root", "with")


class Coco:
    """The images of one file; see the module."""

    def __init__(self, paths: Sequence[str], options: Mapping[str, str], field: str = "data"):
        """Raises InputError for several files, another form, no images, or images that are not found."""
        if len(paths) > 1:
            raise errors.InputError(f"{field} {paths[1]}: one COCO file is one source; '{paths[0]}#with={paths[1]}' joins what they say")
        files = [paths[0]]
        if "with" in options:
            files.append(os.path.join(os.path.dirname(paths[0]), options["with"]))
        contents = [_content(path, field) for path in files]
        self.paths = files
        try:
            self._images = _images(contents[0], files[0])
            self._captions, self._objects, names = _annotations(contents)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            missing = f"an entry without {error}" if isinstance(error, KeyError) else error
            raise errors.InputError(f"{field} {' and '.join(files)}: not COCO's form ({missing})") from error
        self.classes = class_names.Classes(tuple((name,) for name in names)) if names else None
        if self._captions is not None:
            captions = self._captions
            kept = [image for image in self._images if captions.get(image["id"])]
            if len(kept) < len(self._images):
                logging.getLogger(__name__).warning("%s: %d of %d images have no caption and are left out",
                                                    files[0], len(self._images) - len(kept), len(self._images))  # fmt: skip
            self._images = kept
        if not self._images:
            raise errors.InputError(f"{field} {files[0]}: has no images{' with captions' if self._captions is not None else ''}")
        self._below = columns.Below(_root(files[0], self._images, options, field))
        self.fingerprint = base.fingerprint(files, [len(self._images)] + [0] * (len(files) - 1))

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: int) -> base.Example:
        """Raises RecordError for an image that cannot be read or an object of another form, InfrastructureError where the disk fails."""
        if not 0 <= index < len(self):
            raise IndexError(f"example {index} of {len(self)}")
        image = self._images[index]
        found: base.Example = {"key": image["file_name"], "image_id": image["id"], "width": image["width"], "height": image["height"]}
        found["captions"] = (self._captions or {}).get(image["id"], [])
        try:
            if self._objects is not None:
                found |= _objects(self._objects.get(image["id"], []), image["height"], image["width"])
            found["image"] = self._below.read(image["file_name"])
        except (ValueError, KeyError, TypeError, OSError) as error:
            raise base.unusable(self.where(index), error) from error
        return found

    def where(self, index: int) -> str:
        """File and image, for messages."""
        return f"{self.paths[0]}: {base.printable(self._images[index]['file_name'])}"


def _content(path: str, field: str) -> dict[str, Any]:
    try:
        if places.size(path) > LARGEST:
            raise ValueError(f"{places.size(path)} bytes, more than {LARGEST}")
        with places.opened(path) as file:
            content = json.loads(file.read())
    except OSError as error:
        raise errors.InputError(f"{field} {path}: cannot be read ({error.strerror or error}); check its permissions") from error
    except (ValueError, RecursionError) as error:
        raise errors.InputError(f"{field} {path}: not JSON ({error}); copy it again") from error
    if not isinstance(content, dict) or not isinstance(content.get("images"), list):
        raise errors.InputError(f"{field} {path}: not COCO's form, a map with `images` and `annotations`")
    return content


def _images(content: Mapping[str, Any], path: str) -> list[dict[str, Any]]:
    found = [{name: image[name] for name in ("id", "file_name", "width", "height")} for image in content["images"]]
    for image in found:
        sides = image["width"], image["height"]
        if not isinstance(image["file_name"], str) or not all(isinstance(side, int) and side > 0 for side in sides):
            raise ValueError(f"image {image['id']!r:.50}: a file_name, width and height are needed")
    if len({image["id"] for image in found}) < len(found):
        raise ValueError(f"{path} has two images of one id")
    return found


def _annotations(
    contents: Sequence[Mapping[str, Any]],
) -> tuple[dict[Any, list[str]] | None, dict[Any, list[dict[str, Any]]] | None, list[str]]:
    """Captions, and objects with the index of their class, by image; None where no file has any. And the names of the classes."""
    categories = sorted((category for content in contents for category in content.get("categories", ())), key=lambda c: c["id"])
    places_of = {category["id"]: i for i, category in enumerate(categories)}
    if len(places_of) < len(categories):
        raise ValueError("two categories of one id")
    captions, objects = collections.defaultdict(list), collections.defaultdict(list)
    of_captions = of_objects = False
    for annotation in (annotation for content in contents for annotation in content.get("annotations", ())):
        if "caption" in annotation:
            of_captions = True
            if annotation["caption"].strip():
                captions[annotation["image_id"]].append(annotation["caption"].strip())
        elif "bbox" in annotation:
            of_objects = True
            told = {name: annotation.get(name) for name in ("bbox", "segmentation", "iscrowd")}
            objects[annotation["image_id"]].append(told | {"label": places_of[annotation["category_id"]]})
    found = dict(captions) if of_captions else None
    return found, dict(objects) if of_objects or not of_captions else None, [str(category["name"]) for category in categories]


def _objects(found: Sequence[Mapping[str, Any]], height: int, width: int) -> dict[str, Any]:
    boxes = np.array([each["bbox"] for each in found], np.float32).reshape(-1, 4)
    boxes[:, 2:] += boxes[:, :2]
    fields: dict[str, Any] = {
        "boxes": boxes,
        "labels": [each["label"] for each in found],
        "crowd": np.array([bool(each["iscrowd"]) for each in found], bool),
    }
    if all(each["segmentation"] for each in found):
        decoded = [masks.decode(each["segmentation"], height, width) for each in found]
        fields["masks"] = np.stack(decoded) if decoded else np.zeros((0, height, width), bool)
    return fields


def _root(path: str, images: Sequence[Mapping[str, Any]], options: Mapping[str, str], field: str) -> str:
    """The folder that has the first image."""
    if "root" in options:
        candidates = [options["root"]]
    else:
        folder, name = os.path.split(path if places.is_remote(path) else os.path.abspath(path))
        above, split = os.path.dirname(folder), os.path.splitext(name)[0].rpartition("_")[2]
        candidates = [os.path.join(start, *more) for start in (folder, above) for more in ((), (split,), ("images",), ("images", split))]
    try:
        for candidate in candidates:
            below = columns.Below(candidate)
            if any(places.is_file(below.path(image["file_name"])) for image in images[: columns.FIRST]):
                return candidate
    except (OSError, ValueError) as error:
        raise errors.InputError(f"{field} {path}: {error}") from error
    first = base.printable(images[0]["file_name"])
    raise errors.InputError(f"{field} {path}: {first} is in none of {', '.join(candidates)}; say where images are, '{path}#root=FOLDER'")
