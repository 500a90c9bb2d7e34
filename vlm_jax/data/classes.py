"""Class names and prompt templates: what is read of the files in which the field keeps them.

`read` takes parts joined by `::`, each a file or folder that gives names, templates, or prompts of each class:

- `x.json` with `{"names": ["cat", ["dog", "hound"]], "templates": ["a photo of a {}."]}` (several names of a class are synonyms), or
  with `prompts`, `{"names": [...], "prompts": {"cat": ["a cat purrs", ...], ...}}`, sentences of each class in place of templates;
- open_clip's form, `{"classnames": [...], "templates": [...]}`;
- `x.json#mnist`, one entry of a JSON map: a list of names, a list of templates, or a map from name to prompts (CuPL). Beside
  CLIP_benchmark's `en_classnames.json` its `en_zeroshot_classification_templates.json` gives the templates of the same entry;
- `x.txt`, one name or one template a line;
- a folder in CLIP_benchmark's `wds_*` layout, with `classnames.txt` and `zeroshot_classification_templates.txt`.

A template has `{}` or `{c}` in the place of the name. In a list without any names, all lines are.
"""

import collections
import dataclasses
import difflib
import functools
import json
import os
import re
from collections.abc import Mapping
from typing import Any

from vlm_jax.data import places
from vlm_jax.errors import InputError

NAMES = "classnames.txt"
TEMPLATES = "zeroshot_classification_templates.txt"
"""Files of a folder in CLIP_benchmark's layout."""
_FORM = '{"names": ["cat", ["dog", "hound"]], "templates": ["a photo of a {}."]}'
_LARGEST = 2**26
"""Bytes of a file above which it is refused; the names and prompts of 20,000 classes take a twentieth of it."""


@dataclasses.dataclass(frozen=True)
class Classes:
    """Names and prompts of the classes, in the order of their labels."""

    names: tuple[tuple[str, ...], ...]
    """For each class its name, then further names (synonyms)."""
    templates: tuple[str, ...] = ("{}",)
    """Sentences in which `{}` (or `{c}`) stands for the name."""
    sentences: tuple[tuple[str, ...], ...] = ()
    """For each class prompts of its own, in place of the templates (CuPL, Pratt et al. 2023); empty: the templates."""

    @functools.cached_property
    def titles(self) -> tuple[str, ...]:
        """The first name of each class, with the index where several classes have the same."""
        first = [names[0] for names in self.names]
        counts = collections.Counter(first)
        return tuple(name if counts[name] == 1 else f"{name} ({i})" for i, name in enumerate(first))

    @functools.cached_property
    def indices(self) -> Mapping[str, list[int]]:
        """For each name the classes that have it."""
        found = collections.defaultdict(list)
        for i, names in enumerate(self.names):
            for name in dict.fromkeys(names):
                found[name].append(i)
        return found

    def prompts(self) -> list[list[str]]:
        """For each class its own sentences, or those of all its names in all templates."""
        if self.sentences:
            return [list(group) for group in self.sentences]
        return [
            [template.replace("{}" if "{}" in template else "{c}", name) for name in names for template in self.templates]
            for names in self.names
        ]


def read(path: str, default: Classes | None = None, field: str = "classes") -> Classes:
    """Reads classes from files and folders, see the module.

    Args:
      path: parts joined by `::`. Empty: `default`.
      default: what the data bring themselves (`source.classes`). It gives the names, or the templates, that no part gives.
      field: for messages.

    Raises:
      InputError: no path and no default, a file that is missing or of another form, the same thing given twice, or no names.
    """
    if not path:
        if default is None:
            raise InputError(f"{field} '': the data bring no class names; name a JSON file such as {_FORM}")
        return default
    found: dict[str, Any] = {}
    beside: dict[str, Any] = {}
    for part in path.split("::"):
        for what, values in _part(part.strip(), field, beside).items():
            if what in found:
                raise InputError(f"{field} {path!r}: {what} are given twice; one part is enough")
            found[what] = values
    if "prompts" not in found:
        found = beside | found
    if "names" not in found and "prompts" in found and default is None:
        found["names"] = list(found["prompts"])
    if "names" not in found and default is None:
        raise InputError(f"{field} {path!r}: only templates, and the data bring no names; add a file of names, 'names.txt::{path}'")
    names = _groups(found["names"], path, field) if "names" in found or default is None else default.names
    if default is not None and names != default.names and sorted(names) == sorted(default.names):
        first = default.titles[0]
        raise InputError(f"{field} {path!r}: has the names of the data in another order than their labels; {first!r} is 0 there")
    sentences = _sentences(found["prompts"], names, path, field) if "prompts" in found else ()
    if not sentences and "templates" not in found and default is not None:
        return dataclasses.replace(default, names=names, sentences=() if "names" in found else default.sentences)
    return Classes(names, tuple(found.get("templates", ("{}",))), sentences)


def _part(part: str, field: str, others: dict[str, Any]) -> dict[str, Any]:
    """`names`, `templates` and `prompts`, those that a part gives; into `others` go templates that lie beside its names."""
    located = places.locate(part, field)
    file, mark, entry = (located, "", "") if os.path.exists(located) else located.rpartition("#")
    if not mark:
        file = located
    if os.path.isdir(file):
        return _folder(file, part, field)
    if file.endswith(".txt"):
        return _listed([line.strip() for line in _text(file, part, field).splitlines() if line.strip()], part, field)
    try:
        content = json.loads(_text(file, part, field))
    except (ValueError, RecursionError) as error:
        raise InputError(f"{field} {part!r} is not JSON ({error}): it looks like {_FORM}") from error
    if not mark:
        return _form(content, part, field)
    if not isinstance(content, dict) or entry not in content:
        known = sorted(content) if isinstance(content, dict) else []
        near = difflib.get_close_matches(entry, known, 1)
        hint = f"did you mean {near[0]!r}?" if near else f"it has {', '.join(known)[:200] or 'no entries'}"
        raise InputError(f"{field} {part!r}: {file} has no entry {entry!r}; {hint}")
    found = _entry(content[entry], part, field)
    folder, name = os.path.split(file)
    beside = os.path.join(folder, re.sub(r"classnames(?=\.json$)", "zeroshot_classification_templates", name))
    if beside != file and "names" in found and os.path.isfile(beside):
        try:
            templates = json.loads(_text(beside, part, field))
        except (ValueError, RecursionError) as error:
            raise InputError(f"{field} {part!r}: {beside} is not JSON ({error}); mend or remove it") from error
        if isinstance(templates, dict) and entry in templates:
            others["templates"] = _templates(templates[entry], f"{beside}#{entry}", field)
    return found


def _entry(value: Any, part: str, field: str) -> dict[str, Any]:
    if isinstance(value, list):
        return _listed(value, part, field)
    if isinstance(value, dict) and not {"names", "classnames"} & value.keys():
        return {"prompts": value}
    return _form(value, part, field)


def _form(content: Any, part: str, field: str) -> dict[str, Any]:
    content = content if isinstance(content, dict) else {}
    names = content.get("names", content.get("classnames"))
    found: dict[str, Any] = {}
    if "prompts" in content:
        found["prompts"] = content["prompts"]
    if "templates" in content:
        found["templates"] = _templates(content["templates"], part, field)
    if names is not None or not found:
        if names is None and content and all(isinstance(value, list | dict) for value in content.values()):
            first = next(iter(content))
            raise InputError(
                f"{field} {part!r}: names must be a list, and this is a map of {len(content)} entries; name one of them, "
                f"{part + '#' + first!r}, or write prompts by class as {{\"prompts\": {{...}}}}"
            )
        if not isinstance(names, list) or not names:
            raise InputError(f"{field} {part!r}: names must be a list with at least one class, as in {_FORM}")
        found["names"] = names
    return found


def _folder(folder: str, part: str, field: str) -> dict[str, Any]:
    names = os.path.join(folder, NAMES)
    if not os.path.isfile(names):
        raise InputError(f"{field} {part!r}: the folder has no {NAMES}; name a JSON file such as {_FORM}")
    found: dict[str, Any] = {"names": lines(names, field)}
    templates = os.path.join(folder, TEMPLATES)
    if os.path.isfile(templates):
        found["templates"] = _templates(lines(templates, field), templates, field)
    return found


def folder(path: str, field: str = "data") -> Classes | None:
    """The classes of a folder in CLIP_benchmark's layout; None where it has no `classnames.txt`.

    Raises:
      InputError: a file that is empty or holds something else.
    """
    return read(path, field=field) if os.path.isfile(os.path.join(path, NAMES)) else None


def lines(path: str, field: str) -> list[str]:
    """The lines of a text file, stripped; empty ones in the middle stay, since the place of a name is its label."""
    return [line.strip() for line in _text(path, path, field).rstrip().splitlines()]


def _listed(values: list[Any], part: str, field: str) -> dict[str, Any]:
    """A list of templates, if one has a place for a name, or of names."""
    if any(isinstance(value, str) and ("{}" in value or "{c}" in value) for value in values):
        return {"templates": _templates(values, part, field)}
    if not values or not all(isinstance(value, str) for value in values):
        raise InputError(f"{field} {part!r}: must be a list of names or of templates with {{}} in the place of the name")
    return {"names": values}


def _templates(values: Any, part: str, field: str) -> tuple[str, ...]:
    if not isinstance(values, list) or not values:
        raise InputError(f"{field} {part!r}: templates must be a list with at least one sentence, as in {_FORM}")
    for template in values:
        if not isinstance(template, str) or not ("{}" in template or "{c}" in template):
            raise InputError(f"{field} {part!r}: template {template!r} must be a sentence with {{}} in the place of the name")
    return tuple(values)


def _groups(names: list[Any], path: str, field: str) -> tuple[tuple[str, ...], ...]:
    groups = [[name] if isinstance(name, str) else name for name in names]
    blank = "#" in path  # CLIP_benchmark's clevr_closest_object_distance has an empty name: " shapes."
    for i, group in enumerate(groups):
        if not isinstance(group, list) or not group or not all(isinstance(n, str) and (n.strip() or blank) for n in group):
            raise InputError(f"{field} {path!r}: names[{i}] {group!r} must be a name or a list of names, none of them empty")
    return tuple(tuple(group) for group in groups)


def _sentences(prompts: Any, names: tuple[tuple[str, ...], ...], path: str, field: str) -> tuple[tuple[str, ...], ...]:
    """Prompts of each class, found by any of its names, or by its place in a list."""
    if isinstance(prompts, dict):
        missing = [group[0] for group in names if not any(name in prompts for name in group)]
        if missing:
            raise InputError(f"{field} {path!r}: prompts of {missing[0]!r} are missing ({len(missing)} of {len(names)} classes)")
        prompts = [next(prompts[name] for name in group if name in prompts) for group in names]
    if not isinstance(prompts, list) or len(prompts) != len(names):
        raise InputError(f"{field} {path!r}: prompts must be a map from name to sentences, or a list for each of {len(names)} classes")
    for group, own in zip(names, prompts, strict=True):
        if not isinstance(own, list) or not own or not all(isinstance(sentence, str) and sentence.strip() for sentence in own):
            raise InputError(f"{field} {path!r}: prompts of {group[0]!r} must be a list of sentences, none of them empty")
    return tuple(tuple(own) for own in prompts)


def _text(file: str, part: str, field: str) -> str:
    try:
        if os.path.isfile(file) and os.path.getsize(file) > _LARGEST:
            raise InputError(f"{field} {part!r}: {os.path.getsize(file)} bytes, more than {_LARGEST}: not a file of class names")
        with open(file, encoding="utf-8-sig") as opened:
            return opened.read()
    except OSError as error:
        raise InputError(f"{field} {part!r} cannot be read ({error.strerror}): name a JSON file such as {_FORM}") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{field} {part!r} is not text in UTF-8 ({error.reason}): save it as UTF-8") from error
