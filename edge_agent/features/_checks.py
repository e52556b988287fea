"""Checks of family parameters: every refusal gives name, relation, bound and value."""

from __future__ import annotations

import math
from collections.abc import Sequence


def number(
    name: str,
    value: object,
    *,
    at_least: float | None = None,
    above: float | None = None,
    at_most: float | None = None,
    below: float | None = None,
) -> float:
    """`value` as a float inside its bounds; ValueError otherwise. True and NaN are not numbers here."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise ValueError(f"{name} is {value!r}; expected a finite number")
    for holds, relation, bound in (
        (at_least is None or value >= at_least, "at least", at_least),
        (above is None or value > above, "above", above),
        (at_most is None or value <= at_most, "at most", at_most),
        (below is None or value < below, "below", below),
    ):
        if not holds:
            raise ValueError(f"{name} is {value:g}; it must be {relation} {bound:g}")
    return float(value)


def integer(name: str, value: object, *, at_least: int = 1, at_most: int | None = None) -> int:
    """`value` as an int inside its bounds; ValueError otherwise. 2.0 is taken as 2, since JSON may write it so."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int):
        raise ValueError(f"{name} is {value!r}; expected a whole number")
    if value < at_least or (at_most is not None and value > at_most):
        bounds = f"at least {at_least}" if at_most is None else f"from {at_least} to {at_most}"
        raise ValueError(f"{name} is {value}; it must be {bounds}")
    return value


def flag(name: str, value: object) -> bool:
    """`value` if it is true or false; ValueError otherwise."""
    if not isinstance(value, bool):
        raise ValueError(f"{name} is {value!r}; expected true or false")
    return value


def choice(name: str, value: object, known: Sequence[str]) -> str:
    """`value` if it is one of the `known` words; ValueError otherwise."""
    if not isinstance(value, str) or value not in known:
        raise ValueError(f"{name} is {value!r}; expected one of {', '.join(known)}")
    return value


def interval(name: str, value: object, *, at_least: float, at_most: float) -> tuple[float, float]:
    """[lo, hi] with at_least <= lo < hi <= at_most; ValueError otherwise."""
    if isinstance(value, str) or not isinstance(value, Sequence) or len(value) != 2:
        raise ValueError(f"{name} is {value!r}; expected two numbers [lo, hi]")
    lo = number(f"{name}[0]", value[0], at_least=at_least)
    hi = number(f"{name}[1]", value[1], at_most=at_most)
    if lo >= hi:
        raise ValueError(f"{name} is [{lo:g}, {hi:g}]; lo must be below hi")
    return lo, hi
