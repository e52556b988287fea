"""The sound benchmark's own arithmetic: folds, distances, intervals and the verdict."""

import math

import numpy as np
import pytest

from benchmarks import sound


def test_no_fold_judges_a_clip_it_has_learned_from() -> None:
    """Training, labelled and judged clips of a fold are disjoint, in every repetition."""
    for repetition in range(3):
        for fold in sound.folds(range(20), range(20, 40), repetition):
            assert not set(fold.train) & set(fold.test)
            assert not set(fold.labelled) & set(fold.test)
            assert len(fold.train) == 16
            assert len(fold.test) == 4 + 15


def test_a_repetition_judges_every_healthy_clip_once() -> None:
    """The healthy clips judged in the folds of one repetition are all of them, each once."""
    judged = [i for fold in sound.folds(range(20), range(20, 40), 1) for i in fold.test if i < 20]
    assert sorted(judged) == list(range(20))


def test_a_repetition_has_one_draw_of_labelled_anomalies_and_the_next_another() -> None:
    """The same five anomalies are labelled in all folds of a repetition, others in another repetition."""
    one, two = ({fold.labelled for fold in sound.folds(range(20), range(20, 40), r)} for r in (0, 1))
    assert len(one) == len(two) == 1
    assert one != two
    assert all(len(labelled) == sound.LABELLED and min(labelled) >= 20 for labelled in one | two)


def test_every_fold_has_its_own_seed() -> None:
    """No two folds train from the same random weights."""
    seeds = [fold.seed for r in range(5) for fold in sound.folds(range(20), range(20, 40), r)]
    assert len(set(seeds)) == 25


def test_nearest_is_the_distance_of_mean_spectra() -> None:
    """A clip whose mean spectrum is (3, 4) from its nearest healthy one has the distance 5."""
    vectors = np.zeros((3, 2, 2), np.float32)
    vectors[1] = [[100.0, 0.0], [100.0, 0.0]]
    vectors[2] = [[2.0, 4.0], [4.0, 4.0]]
    assert sound.nearest(vectors, [0, 1], [2]) == pytest.approx([5.0])


def test_the_interval_is_students() -> None:
    """Mean 2 and half-width t(0.975, 2) / sqrt(3) = 2.484 for the values 1, 2, 3; none from one value."""
    mean, half = sound.interval([1.0, 2.0, 3.0])
    assert mean == pytest.approx(2.0)
    assert half == pytest.approx(4.302653 / math.sqrt(3.0), rel=1e-6)
    assert sound.interval([0.7])[1] == 0.0


def test_the_gain_is_paired_and_decides() -> None:
    """Stage 2 − control is taken fold by fold, and a judged set without a gain makes the verdict false."""

    def fold(stage2: float, control: float) -> dict[str, tuple[float, float]]:
        return dict.fromkeys(sound.ARMS, (0.5, 0.1)) | {"stage 2": (stage2, 0.2), "control": (control, 0.1)}

    better = sound.summary([fold(0.8, 0.7), fold(0.6, 0.5)])
    worse = sound.summary([fold(0.8, 0.9), fold(0.6, 0.5)])
    assert better["auc"]["gain"] == pytest.approx((0.1, 0.0), abs=1e-4)
    assert better["better_folds"] == 2
    assert sound.judge({sound.REAL: better, sound.ONE_KIND: better, sound.MIXED: worse})
    assert not sound.judge({sound.REAL: better, sound.ONE_KIND: worse, sound.MIXED: better})
