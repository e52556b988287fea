"""Times as people and sensors write them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_agent.signals import parse_time, rfc3339


@pytest.mark.parametrize(
    ("written", "t"),
    [
        ("1970-01-01T00:00:00Z", 0.0),
        ("2023-12-04T15:09:34.000Z", 1701702574.0),
        ("2023-12-04T15:09:34.5z", 1701702574.5),
        ("2023-12-04T15:09:34.123456789Z", 1701702574.123456),
        ("2023-12-04 16:09:34+01:00", 1701702574.0),
        ("2023-12-04T15:09:34", 1701702574.0),
        (1701702574, 1701702574.0),
        (1701702574.25, 1701702574.25),
        (1701702574250, 1701702574.25),
    ],
)
def test_times_of_the_contract_are_read(written, t):
    """RFC 3339 with any fraction and zone (none is UTC), epoch seconds, and milliseconds above 1e11."""
    assert parse_time(written) == pytest.approx(t, abs=1e-6)


@pytest.mark.parametrize(
    "bad", ["yesterday", "", None, True, [], float("nan"), float("inf"), 10**400, 1e300, "2023-13-01"]
)
def test_what_is_no_time_says_what_was_expected(bad):
    """Anything else is a ValueError that shows the value and an example."""
    with pytest.raises(ValueError, match="expected RFC 3339"):
        parse_time(bad)


@given(st.integers(-62_000_000_000_000, 250_000_000_000_000))
def test_written_times_come_back_to_the_millisecond(ms):
    """rfc3339 writes 24 characters that parse_time reads back, over the years 5 to 9892."""
    text = rfc3339(ms / 1000.0)
    assert len(text) == 24
    assert parse_time(text) == pytest.approx(ms / 1000.0, abs=6e-4)
