"""Masks on maps whose fault is known, and the mask benchmark's own bursts, truth and pictures."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import fft
from scipy.ndimage import binary_dilation

from benchmarks import mask as benchmark
from edge_agent import simulate
from trainer import masks, recipe


def maps(n: int, seed: int, shape: tuple[int, int] = (40, 20)) -> np.ndarray:
    """Healthy maps: absolute Gaussian errors, larger in the upper bands."""
    rng = np.random.default_rng(seed)
    return np.abs(rng.standard_normal((n, *shape)) * np.linspace(0.1, 1.0, shape[1])).astype(np.float32)


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 10**6), top=st.integers(0, 30), left=st.integers(0, 12),
    height=st.integers(5, 10), width=st.integers(5, 8), by_pixel=st.booleans(),
)  # fmt: skip
def test_a_fault_is_outlined_wherever_it_lies(
    seed: int, top: int, left: int, height: int, width: int, by_pixel: bool
) -> None:
    """A rectangle ten deviations over its own bands is found with an overlap above 0.8, at any place, also at edges; by
    pixel, where the map is smoothed over 3 x 3, it is the rectangle grown by one pixel on every side."""
    normal = masks.learn(maps(200, 1), by_pixel)
    excess = maps(1, seed)[0]
    truth = np.zeros(excess.shape, bool)
    truth[top : top + height, left : left + width] = True
    excess += truth * 10.0 * np.linspace(0.1, 1.0, excess.shape[1], dtype=np.float32)
    expected = binary_dilation(truth, np.ones((3, 3), bool)) if by_pixel else truth
    assert masks.overlap(masks.mask(excess, normal), expected) > 0.8


def test_most_healthy_maps_have_no_mask() -> None:
    """Of maps that nothing was learnt from about a tenth have a pixel over the high limit, and hardly any of their
    area is masked."""
    normal = masks.learn(maps(400, 2))
    found = np.array([masks.mask(m, normal) for m in maps(400, 3)])
    assert found.any((1, 2)).mean() < 0.2
    assert found.mean() < 1e-3


def test_the_limits_are_quantiles_of_healthy_maps() -> None:
    """One pixel in a hundred of the healthy maps lies over the low limit, every tenth map has one over the high limit."""
    healthy = maps(300, 4)
    normal = masks.learn(healthy)
    z = (healthy - normal.mean) / normal.std
    assert (z > normal.low).mean() == pytest.approx(0.01, abs=1e-3)
    assert (z.max((1, 2)) > normal.high).mean() == pytest.approx(0.1, abs=0.01)


def test_a_weak_place_counts_only_beside_a_strong_one() -> None:
    """Hysteresis: the same weak rectangle is masked where it touches a strong pixel, and not elsewhere."""
    normal = masks.Normal(np.zeros(20), np.ones(20), 2.0, 6.0)
    excess = np.zeros((40, 20), np.float32)
    excess[5:12, 5:12] = excess[25:32, 5:12] = 3.0
    excess[8, 8] = 7.0
    found = masks.mask(excess, normal)
    assert found[6:11, 6:11].all()
    assert not found[20:].any()


def test_pixels_that_never_change_do_not_shout() -> None:
    """Where healthy pictures are always black, a grain of quantization is no fault; silence everywhere has no mask."""
    healthy = np.zeros((50, 12, 12), np.float32)
    healthy[:, 4:8, 4:8] = np.random.default_rng(0).random((50, 4, 4))
    normal = masks.learn(healthy, by_pixel=True)
    assert not masks.mask(np.full((12, 12), 0.004, np.float32), normal).any()
    silent = masks.learn(np.zeros((5, 12, 12), np.float32))
    assert not masks.mask(np.zeros((12, 12), np.float32), silent).any()


def test_one_map_is_not_enough_to_learn_from() -> None:
    """What is normal of a single map is refused with its shape."""
    with pytest.raises(ValueError, match=r"\(1, 40, 20\); expected \(n, width, F\) of at least 2"):
        masks.learn(maps(1, 0))


def test_overlap_is_intersection_over_union() -> None:
    """Two squares of four that share two pixels: 2 / 6; equal ones 1, disjoint ones 0, two empty ones 1."""
    a, b, none = np.zeros((4, 4), bool), np.zeros((4, 4), bool), np.zeros((4, 4), bool)
    a[:2, :2] = b[1:3, :2] = True
    assert masks.overlap(a, b) == pytest.approx(2 / 6)
    assert masks.overlap(a, a) == masks.overlap(none, none) == 1.0
    assert masks.overlap(a, none) == 0.0


def test_a_burst_raises_its_band_by_its_level_and_nothing_else() -> None:
    """10 dB over what is there make 10 · log10(1 + 10) = 10.4 dB within band and time; outside not one dB in ten."""
    x = simulate.sound(100, seconds=10.0, seed=3)
    burst = benchmark.Burst(1000.0, 2000.0, 3.0, 6.0, 10.0)
    y = benchmark.add(x, burst, np.random.default_rng(0))

    def level(of: np.ndarray, begin: float, end: float, low: float, high: float) -> float:
        part = of[round(begin * 16000) : round(end * 16000)].astype(np.float64)
        f = fft.rfftfreq(len(part), 1 / 16000.0)
        power = np.square(np.abs(fft.rfft(part * np.hanning(len(part)))))
        return float(10 * np.log10(power[(f > low) & (f < high)].sum()))

    def rise(begin: float, end: float, low: float, high: float) -> float:
        return level(y, begin, end, low, high) - level(x, begin, end, low, high)

    assert rise(3.1, 5.9, 1050.0, 1950.0) == pytest.approx(10.4, abs=1.0)
    assert rise(3.1, 5.9, 2100.0, 4000.0) == pytest.approx(0.0, abs=0.1)
    assert rise(3.1, 5.9, 300.0, 950.0) == pytest.approx(0.0, abs=0.1)
    assert np.array_equal(x[: 3 * 16000], y[: 3 * 16000])
    assert np.array_equal(x[6 * 16000 :], y[6 * 16000 :])


def test_drawn_bursts_stay_within_what_is_said() -> None:
    """Band, time and level of a thousand bursts lie in their ranges, and inside the clip."""
    rng = np.random.default_rng(0)
    for burst in (benchmark.draw(rng, 8.2) for _ in range(1000)):
        assert 0.0 <= burst.begin < burst.end <= 8.2
        assert 0.5 <= np.log2(burst.high / burst.low) <= 1.5 + 1e-9
        assert 300.0 <= np.sqrt(burst.low * burst.high) <= 5000.0
        assert 6.0 <= burst.level <= 15.0


def test_the_truth_is_the_rectangle_of_the_pixels() -> None:
    """Pixels whose middle lies in band and time, both limits included."""
    at = benchmark.Grid(np.array([0.1, 0.2, 0.3]), np.array([100.0, 200.0, 400.0, 800.0]))
    truth = at.truth(benchmark.Burst(150.0, 400.0, 0.2, 0.35, 10.0))
    assert truth.tolist() == [[False] * 4, [False, True, True, False], [False, True, True, False]]


def test_the_benchmark_changes_nothing_of_the_recipe_but_the_fan() -> None:
    """Which fan and which clips are drawn at run time; all else is the committed recipe."""
    how, committed = benchmark.plan(4711, 12), recipe.load(recipe.RECIPES / f"{benchmark.RECIPE}.yaml")
    assert (how.data[0].ids, how.data[0].seed) == ((4711,), 12)
    assert how.train == committed.train
    assert how.network == committed.network


def test_the_picture_shows_three_cases() -> None:
    """A PNG with the least, the middling and the best overlap."""
    rng = np.random.default_rng(0)
    at = benchmark.Grid(np.linspace(0.1, 8.0, 32), np.geomspace(100.0, 7000.0, 16))
    burst = benchmark.Burst(1000.0, 2000.0, 2.0, 4.0, 9.0)
    truth = at.truth(burst)
    shown = [
        benchmark.Case(burst, x, x, x, truth, truth, iou, 0.5)
        for iou, x in zip((0.2, 0.9, 0.5), rng.random((3, 32, 16), np.float32), strict=True)
    ]
    assert benchmark.picture(shown, at).startswith(b"\x89PNG")
