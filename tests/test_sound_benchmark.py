"""The sound benchmark's own arithmetic: folds, distances, intervals and the verdict."""

import math
from dataclasses import replace

import numpy as np
import pytest
from test_trainer_run import recordings, small

from benchmarks import sound
from edge_agent import bundle as bundles
from trainer import data
from trainer.evaluate import auc, pauc, score_table
from trainer.recipe import Source
from trainer.run import run


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


def test_each_clip_is_compared_with_its_own_machine() -> None:
    """A clip of machine 1 that sounds like machine 0 is 10 away, though the other's clip is the same; whitening by a
    ridge of 1 where the training clips of a machine differ in the first band only shortens that band most."""
    vectors = np.zeros((5, 2, 2), np.float32)
    vectors[1, :, 0], vectors[2, :, 1], vectors[3] = 2.0, 10.0, [[2.0, 10.0], [2.0, 10.0]]
    train, of = [0, 1, 2, 3], [0, 0, 1, 1]
    assert sound.nearest_of(vectors, train, of, [4, 4], [0, 1]) == pytest.approx([0.0, 10.0])
    # Within: variance 1 and 0, mean 0.5; ridge 1 adds 0.5 to both: the second band counts 1 / sqrt(0.5).
    assert sound.nearest_of(vectors, train, of, [4], [1], 1.0) == pytest.approx([10.0 / math.sqrt(0.5)])


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """A small bundle that tells two machines apart, its faults known, and what `by_machine` says of it."""
    root = tmp_path_factory.mktemp("ids")
    how = small(
        root,
        model="mobilenet_v2",
        context={"over": "frames", "width": 16, "hop": 8},
        network={"head": 32, "level": "remove"},
        train={"epochs": 30, "batch": 8, "learning_rate": 3e-3, "patience": 0, "head_loss": "adacos"},
        score={"kind": "knn", "spectrum": 4, "whiten": 0.1},
    )
    found = []
    for name, tone, seed in (("id_00", 200.0, 0), ("id_01", 900.0, 5), ("id_02", 400.0, 9)):
        found += recordings(24, machine=name, tone=tone, seed=seed)
        if name != "id_02":
            found += recordings(8, machine=name, tone=tone, seed=seed + 50, label="anomaly", burst=0.3)
    made = run(how, root / "b", table=data.table(how, found))
    return made, how, sound.by_machine(made, how)


def test_the_column_of_what_ships_is_the_bundles_own_score(measured) -> None:
    """AUC and pAUC "as shipped" are those of the bundle's scores on every clip that it did not train on."""
    made, _, figures = measured
    table = made.table
    assert sorted(figures["machines"]) == ["id_00", "id_01"]
    for name, cells in figures["machines"].items():
        mine = [i for i, c in enumerate(table.clips) if c.machine == name and i not in set(made.parts.train)]
        own = data.subset(table, mine)
        scores = score_table(bundles.load(made.bundle.path, name, golden=False), own)
        anomalous = ~own.healthy()
        assert cells["shipped"][sound.OURS] == pytest.approx((auc(scores, anomalous), pauc(scores, anomalous)))


def test_every_score_stands_there_for_both_files(measured) -> None:
    """Shipped and float32 have a figure for each score, and the two of the mean spectrum do not depend on the file."""
    _, _, figures = measured
    for cells in figures["machines"].values():
        assert set(cells["shipped"]) == set(cells["float32"]) == set(sound.SCORES)
        for score in (sound.SPECTRUM, sound.WHITENED):
            assert cells["shipped"][score] == cells["float32"][score]
    assert 0.9 < figures["accuracy"] <= 1.0


def test_the_summary_is_the_mean_and_the_table_shows_it(measured) -> None:
    """Two trainings are averaged machine by machine; the table has a line a machine and the means of both files."""
    made, how, figures = measured
    assert made.manifest.classes == ("id_00", "id_01", "id_02")
    other = {**figures, "machines": {
        name: {f: dict.fromkeys(sound.SCORES, (0.0, 0.0)) for f in cells} for name, cells in figures["machines"].items()
    }}  # fmt: skip
    ids = sound.ids_summary([figures, other])
    for name, cells in figures["machines"].items():
        assert ids["machines"][name]["shipped"][sound.ODDS] == pytest.approx(
            [v / 2 for v in cells["shipped"][sound.ODDS]], abs=1e-4
        )
    lines = sound.ids_markdown(ids, how).splitlines()
    assert sum(line.startswith(("| id_00 |", "| id_01 |", "| mean |", "| mean, float32 |")) for line in lines) == 4


def test_only_judged_machines_get_faults(measured, tmp_path) -> None:
    """The fans 0 to 3 are given as many faulty clips as healthy ones, those that are only learnt from none."""
    judged, real, others = Source(simulate="fan", ids=(0, 1), clips=7), Source(tmp_path / "x"), Source(simulate="fan", ids=(300, 301))
    how = sound.with_faults(replace(measured[1], data=(judged, real, others)), tmp_path, 5)
    assert [source.anomalies for source in how.data] == [7, 0, 0]
    assert [source.seed for source in how.data if source.simulate] == [5, 5]
    assert how.data[1].path == tmp_path


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
