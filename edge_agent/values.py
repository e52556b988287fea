"""Values that change by being made anew, several times a message."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:  # its arguments are checked as those of the library's
    from dataclasses import replace
else:
    T = TypeVar("T")

    def replace(value: T, /, **changes: Any) -> T:
        """`dataclasses.replace`, for dataclasses without slots in a fraction of its time: the fields are copied, not set one by
        one through `__init__`, and `__post_init__` does not run. TypeError for a name that is no field."""
        fields = getattr(value, "__dict__", None)
        if fields is None:
            return dataclasses.replace(value, **changes)
        if not changes.keys() <= fields.keys():
            unknown = ", ".join(sorted(changes.keys() - fields.keys()))
            raise TypeError(f"{type(value).__name__} has no field {unknown}; it has {', '.join(fields)}")
        new = object.__new__(type(value))
        new.__dict__.update(fields)
        new.__dict__.update(changes)
        return new


__all__ = ["replace"]
