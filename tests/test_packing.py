"""A state takes little room in the database and can be read whatever version wrote it."""

from __future__ import annotations

import zlib

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_agent import packing


@given(st.binary(max_size=3000))
def test_unpacking_undoes_packing(raw: bytes) -> None:
    """Any bytes come back as they were."""
    assert packing.unpack(packing.pack(raw)) == raw


def test_the_dictionaries_are_those_of_the_states_on_disk() -> None:
    """A change of one would make stored states unreadable: they are those that were first shipped, and each can be read."""
    assert list(packing._DICTIONARIES) == [0x7F8B76A5, 0x63C9B758]
    for zdict in packing._DICTIONARIES.values():
        deflate = zlib.compressobj(6, zdict=zdict)
        assert packing.unpack(deflate.compress(b"state" * 9) + deflate.flush()) == b"state" * 9


def test_a_state_of_before_is_read_as_it_is() -> None:
    """MessagePack that was not deflated, as earlier versions wrote it, comes back unchanged."""
    raw = msgspec.msgpack.encode({"version": 1, "state": {"alarm": {}}})
    assert packing.unpack(raw) == raw


@pytest.mark.parametrize("blob", [b"x", b"x\x9c", b"x\xbb\x00\x00\x00\x00", b"x" * 100])
def test_a_damaged_state_is_a_value_error(blob: bytes) -> None:
    """What looks deflated and is not raises ValueError, or is empty where it ends before its first byte."""
    try:
        assert packing.unpack(blob) == b""
    except ValueError as error:
        assert "cannot be inflated" in str(error)
