"""Raw samples as frames."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from edge_agent.features.raw import build


def test_the_whole_window_is_one_frame_by_default():
    """Without parameters the features are the samples, s0 first."""
    x = np.arange(5, dtype=np.float32)
    extractor = build(1.0, 5)
    assert extractor.names == ("s0", "s1", "s2", "s3", "s4")
    assert_array_equal(extractor(x), [[0, 1, 2, 3, 4]])


def test_frames_follow_each_other_and_the_rest_is_left_out():
    """Frames lie end to end; samples that fill no frame are left out."""
    assert_array_equal(build(1.0, 8, frame=3)(np.arange(8, dtype=np.float32)), [[0, 1, 2], [3, 4, 5]])


def test_decimation_averages_neighbours():
    """Decimated samples are means, so that what lies at the old Nyquist frequency vanishes, not folds."""
    assert_allclose(build(1.0, 8, decimate=4)(np.float32([1, 2, 3, 4, 0, 0, 0, 0])), [[2.5, 0.0]])
    assert_allclose(build(1.0, 64, decimate=2)(np.tile(np.float32([1, -1]), 32)), np.zeros((1, 32)))


def test_a_frame_longer_than_the_window_is_refused():
    """A frame that the (decimated) window cannot fill is refused with the bound."""
    with pytest.raises(ValueError, match="frame is 5; it must be from 1 to 4"):
        build(1.0, 8, frame=5, decimate=2)
