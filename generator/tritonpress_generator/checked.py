"""Holds what a file says to its settings, and says in one line what of it is wrong."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ValidationError

from tritonpress_generator.errors import InputError

_UNION_BRANCHES = {"str", "list[int]", "dict[str,any]", "literal['point']", "constrained-float"}


def checked(model: type[Any], data: Any, *, where: str, key: str = "") -> Any:
    """Returns `data`, which stands at `key`, as `model`, or says in one line what is wrong, where, what is allowed."""
    try:
        return model.model_validate(data)
    except ValidationError as exc:
        error = exc.errors()[0]
        # pydantic puts the union's branch (`str`, `dict[str,any]`) into the location: the user wrote no such key.
        location = key + ".".join(str(part) for part in error["loc"] if str(part) not in _UNION_BRANCHES)
        location = location.removesuffix(".")
        if error["type"] == "extra_forbidden":
            owner = _model_at(model, error["loc"][:-1])
            rule = f"unknown key; allowed: {', '.join(owner.model_fields)}"
        elif error["type"] == "missing":
            rule = "is missing; add it"
        elif error["type"] == "value_error" and isinstance(error["input"], dict):
            # Several keys that do not go together: the rule, which is ours, names them, and all the others are no help.
            rule = str(error["ctx"]["error"])
        else:
            rule = f"{error['msg'][0].lower()}{error['msg'][1:]}, got {error['input']!r}"
        raise InputError(": ".join(filter(None, (where, location, rule)))) from exc


def _model_at(model: type[Any], location: tuple[int | str, ...]) -> type[Any]:
    """Returns the settings class at `location` inside `model`."""
    for part in location:
        field = model.model_fields.get(str(part))
        if field is not None and isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            model = field.annotation
    return model
