"""Choices by name in a config, checked where the config is made: a recipe is plain Python, nobody else looks at it."""

import typing

from vlm_jax.errors import InputError


def check(config: object) -> None:
    """Every field whose type is a Literal has one of its values.

    Raises:
      InputError: a field has another value.
    """
    for field, kind in typing.get_type_hints(type(config)).items():
        if typing.get_origin(kind) is typing.Literal and getattr(config, field) not in typing.get_args(kind):
            choices = ", ".join(map(str, typing.get_args(kind)))
            raise InputError(f"{field} {getattr(config, field)!r} is unknown: choose one of {choices}")
