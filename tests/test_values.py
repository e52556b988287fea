"""The quick `replace` of states."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_agent.signals import Chunk
from edge_agent.trouble import Pace
from edge_agent.values import replace


@dataclass(frozen=True)
class State:
    """A value with a default of each kind."""

    a: int = 0
    b: tuple[float, ...] = ()
    c: dict[str, int] = field(default_factory=dict)


@given(a=st.integers(-(2**63), 2**63), b=st.lists(st.floats(allow_nan=False)).map(tuple), c=st.dictionaries(st.text(), st.integers(0, 9)))
def test_it_equals_the_librarys(a: int, b: tuple[float, ...], c: dict[str, int]) -> None:
    """The same value, hash of its type, stored form; the old one is as it was."""
    old = State(1, (2.0,), {"x": 3})
    for changes in ({"a": a}, {"b": b, "c": c}, {}):
        new = replace(old, **changes)
        assert new == dataclasses.replace(old, **changes)
        assert type(new) is State
        assert msgspec.msgpack.encode(new) == msgspec.msgpack.encode(dataclasses.replace(old, **changes))
    assert old == State(1, (2.0,), {"x": 3})
    with pytest.raises(dataclasses.FrozenInstanceError):
        replace(old, a=a).a = 5  # type: ignore[misc]


def test_a_value_with_slots_is_left_to_the_library() -> None:
    """A chunk has slots and no dictionary of its fields; it is replaced all the same."""
    chunk = Chunk(np.zeros((1, 4), np.float32), t=1.0, seq=3)
    assert (replace(chunk, t=2.0).t, replace(chunk, t=2.0).seq) == (2.0, 3)


def test_an_unknown_field_is_an_error() -> None:
    """A name that is no field is told of, with those that are."""
    with pytest.raises(TypeError, match="Pace has no field stedy; it has t, n, steps, seq, steady"):
        replace(Pace(), stedy=True)  # type: ignore[call-arg]
