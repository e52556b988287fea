"""Three stages without labels: whose names are not read, how limits and groups come about, what is refused."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
from agents import scores_as_offline
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import genpareto, median_abs_deviation

from edge_agent import bundle as bundles
from edge_agent.errors import ConfigError, RecordingError
from trainer import cli, plots, recipe, staged
from trainer.evaluate import Truth, auc, score_table
from trainer.staged import ANOMALOUS, NORMAL, UNCERTAIN

FS, N = 4000.0, 1024
RECORDS = 120


def record(k, faulty, content=None):
    """A line of JSONL: noise, four times as loud and with a tone where faulty."""
    rng = np.random.default_rng(k if content is None else content)
    t = np.arange(N) / FS
    x = (1.0 + 3.0 * faulty) * (rng.standard_normal(N) + faulty * np.sin(2 * np.pi * 1500.0 * t))
    stamp = f"2026-01-01T{k // 60:02d}:{k % 60:02d}:00.000Z"
    return json.dumps({"data_time": stamp, "signal_value": ",".join(f"{v:.4f}" for v in x), "sensor_id": "s"})


def write(folder, names=("normal", "anomaly"), equal=False):
    """12 files of 10 records in two folders; every 24th record is faulty, whatever the folder is called."""
    for i in range(12):
        place = folder / names[i % 2]
        place.mkdir(parents=True, exist_ok=True)
        lines = [
            record(k, not equal and is_faulty(k), 0 if equal else None) for k in range(10 * i, 10 * i + 10)
        ]
        (place / f"{names[i % 2]}_{'ab'[i % 2]}{i:02d}.jsonl").write_text("\n".join(lines) + "\n")
    return folder


def is_faulty(k):
    """Record number k, in order of time."""
    return k % 24 == 7


TRUTH = np.array([is_faulty(k) for k in range(RECORDS)])


def stage1(folder, **changes):
    """A small recipe of stage 1 over a folder of records."""
    raw = {
        "name": "small",
        "model": "deep_svdd",
        "data": {"path": str(folder), "fs_hz": FS},
        "window": {"n_samples": N},
        "features": [{"kind": "log_mel", "n_fft": 128, "hop": 64, "n_mels": 16}],
        "context": {"over": "frames", "width": 15, "hop": 15},
        "network": {"base": 4, "units": 32, "embedding": 32},
        "split": {"by": "time"},
        "train": {"epochs": 1, "pretrain": 20, "batch": 8, "learning_rate": 1e-3},
        "threshold": {"method": "gamma", "false_alarm_rate": 0.01},
        "quantize": "float32",
    }
    return recipe.parse(raw | changes)


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """All three stages on records whose folders lie, written by the command."""
    root = tmp_path_factory.mktemp("staged")
    how = stage1(write(root / "records"))
    return staged.staged(how, root / "b", epochs=20)


def test_the_classifier_runs_on_the_agent(done, tmp_path, broker):
    """Stage 3's bundle and stage 1's score in an agent behind a real broker as they do offline, to the last bit."""
    for result in (done.first, done.last):
        folder = tmp_path / result.manifest.model
        folder.mkdir()
        scores_as_offline(result.bundle.path, folder, broker.port)


def test_the_faults_are_found_without_a_label(done):
    """Most pseudo-anomalies are faulty records, and the shipped classifier ranks the faulty ones first."""
    called = done.groups == ANOMALOUS
    assert called.any()
    assert TRUTH[called].mean() > 0.5
    assert auc(score_table(bundles.load(done.last.bundle.path), done.table), TRUTH) > 0.8


def test_both_bundles_are_like_every_other(done):
    """Stage 1 and the classifier lie side by side, each loads on the device's runtime with its own score rule."""
    first, last = (bundles.load(r.bundle.path) for r in (done.first, done.last))
    assert (first.manifest.model, last.manifest.model) == ("deep_svdd", "classifier")
    assert (first.manifest.score.kind, last.manifest.score.kind) == ("distance", "log_odds")
    assert first.path.name == last.path.name + "-stage1"


def test_pseudo_labels_weigh_half_and_uncertain_ones_nothing(done):
    """What each window counts in stage 3 follows from its group; no anomalous window sets the limit."""
    table, weights = staged.labelled(done.table, done.groups, done.real)
    assert np.array_equal(weights == 0.0, done.groups == UNCERTAIN)
    assert set(weights[done.groups != UNCERTAIN]) == {0.5}
    assert np.array_equal(~table.healthy(), done.groups == ANOMALOUS)
    assert table.healthy()[done.last.parts.calibrate].all()
    assert np.array_equal(table.start, done.table.start)


def test_no_name_is_read(tmp_path):
    """Records whose folders and files swap `normal` and `anomaly` give the same table bit for bit, without labels."""
    a = staged.unlabelled(stage1(write(tmp_path / "a")))
    b = staged.unlabelled(stage1(write(tmp_path / "b", names=("anomaly", "normal"))))
    for name in ("vectors", "start", "recording", "spectrum"):
        assert np.array_equal(getattr(a, name), getattr(b, name)), name
    assert {(c.label, c.machine) for c in (*a.clips, *b.clips)} == {(None, None)}
    assert a.healthy().all()
    assert (np.diff(a.start) > 0).all()


def test_a_real_label_overrules_a_pseudo_label():
    """A window that a person has labelled goes where they say, and counts 1."""
    scores = np.array([0.5, 1.0, 1.0, 9.0])
    limit = staged.Limits(0.8, 5.0, "mad")
    truth = np.array([ANOMALOUS, UNCERTAIN, NORMAL, UNCERTAIN])
    groups, real = staged.deal(scores, limit, truth)
    assert groups.tolist() == [ANOMALOUS, UNCERTAIN, NORMAL, ANOMALOUS]
    assert real.tolist() == [True, False, True, False]


def test_labels_are_of_recordings_and_may_begin_within(tmp_path):
    """A CSV's label holds for all windows of its file, an onset for those that end after it; a strange name is refused."""
    table = staged.unlabelled(stage1(write(tmp_path)))
    names = [c.name for c in table.clips]
    onset = float(table.start[table.recording == 1][4])
    got = staged.known(table, {names[0]: Truth("anomaly"), names[1]: Truth(None, onset)})
    assert (got[table.recording == 0] == ANOMALOUS).all()
    assert got[table.recording == 1].tolist() == [NORMAL] * 4 + [ANOMALOUS] * 6
    assert (got[table.recording > 1] == UNCERTAIN).all()
    with pytest.raises(ValueError, match=r"'other.jsonl', which is not among"):
        staged.known(table, {"other.jsonl": Truth("normal")})


SCORES = st.lists(st.floats(0.01, 1e3), min_size=30, max_size=120, unique=True).map(np.array)


@given(SCORES)
def test_limits_follow_their_formulas(scores):
    """MAD and percentile limits equal scipy's and numpy's own; a MAD limit below nearly all is replaced by the median."""
    p = staged.limits(scores, "percentile")
    assert (p.low, p.high) == pytest.approx((np.quantile(scores, 0.05), np.quantile(scores, 0.99)))
    m = staged.limits(scores, "mad")
    sigma = 1.4826 * median_abs_deviation(scores)
    low = np.median(scores) - 2.0 * sigma
    assert m.high == pytest.approx(np.median(scores) + 4.0 * sigma)
    few = (scores < low).mean() < staged.MIN_NORMAL_SHARE
    assert m.low == pytest.approx(np.median(scores) if few else low)
    assert bool(m.note) == few


def test_pot_is_the_tail_of_a_generalised_pareto():
    """On scores with a Pareto tail the upper POT limit is the level that one in a thousand exceeds."""
    rng = np.random.default_rng(4)
    scores = 1.0 + genpareto.rvs(0.1, scale=1.0, size=20_000, random_state=rng)
    limit = staged.limits(scores, "pot")
    assert limit.high == pytest.approx(1.0 + genpareto.ppf(0.999, 0.1), rel=0.1)
    assert limit.low == np.median(scores)


@given(SCORES, st.sampled_from(staged.METHODS))
def test_every_window_is_in_one_group(scores, method):
    """The groups are a partition, ordered by the score: normal ≤ low ≤ uncertain ≤ high ≤ anomalous."""
    try:
        limit = staged.limits(np.tile(scores, 4), method)
    except ValueError as error:
        assert "excesses" in str(error) or "above" in str(error)
        return
    groups, _ = staged.deal(scores, limit, np.full(len(scores), UNCERTAIN))
    assert np.isin(groups, [NORMAL, UNCERTAIN, ANOMALOUS]).all()
    assert (scores[groups == NORMAL] < limit.low).all()
    assert (scores[groups == ANOMALOUS] > limit.high).all()
    between = scores[groups == UNCERTAIN]
    assert ((between >= limit.low) & (between <= limit.high)).all()


def test_folds_are_stretches_that_share_nothing():
    """Every window lies in one of k folds of equal size, in stretches of neighbours."""
    fold = staged.folds_of(180, 3)
    assert np.bincount(fold).tolist() == [60, 60, 60]
    assert np.count_nonzero(np.diff(fold)) == 3 * staged.STRETCHES - 1


@pytest.mark.parametrize(
    ("scores", "text"),
    [
        (np.ones(50), "all 50 scores"),
        (np.append(np.ones(50), [2.0, 3.0]), "MAD is 0"),
        (np.array([1.0, np.nan]), "finite"),
    ],
)
def test_scores_without_a_spread_carry_no_limit(scores, text):
    """Equal scores, a bulk of equal scores, and NaN are refused in words."""
    with pytest.raises(ValueError, match=text):
        staged.limits(scores, "mad")


def test_without_a_pseudo_anomaly_stage_three_is_refused():
    """Where no score lies above the upper limit, the error has both figures and says what to do."""
    scores = np.linspace(1.0, 2.0, 50)
    limit = staged.limits(scores, "mad")
    groups, _ = staged.deal(scores, limit, np.full(50, UNCERTAIN))
    with pytest.raises(
        ValueError, match=r"highest score 2 is below the mad limit .*use the bundle of stage 1"
    ):
        staged.enough(groups, scores, limit)
    with pytest.raises(ValueError, match="no pseudo-normal window among 50"):
        staged.enough(np.full(50, ANOMALOUS), scores, limit)


def test_equal_recordings_are_refused_before_training(tmp_path):
    """A stuck sensor's records end in an error, and no bundle is written."""
    how = stage1(write(tmp_path / "records", equal=True))
    with pytest.raises(RecordingError, match="120 windows of 12 recordings are equal"):
        staged.staged(how, tmp_path / "b")
    assert not (tmp_path / "b-stage1").exists()


def test_a_recipe_that_is_none_of_stage_one_is_refused(tmp_path):
    """Another model, another encoder, too many folds: all said at once."""
    how = replace(stage1(write(tmp_path)), model="dense_ae", network={"encoder": "plain"})
    with pytest.raises(ConfigError) as caught:
        staged.staged(how, tmp_path / "b", folds=99)
    for text in ("deep_svdd, vae", "residual", "1 to 10"):
        assert text in str(caught.value)


def test_the_command_names_what_it_needs(tmp_path, capsys):
    """Neither a recipe nor data is wrong usage; defaults of --data are pictures of 64 × 64."""
    with pytest.raises(SystemExit) as left:
        cli.main(["staged", "--data", str(tmp_path / "nowhere")])
    assert left.value.code == cli.USAGE
    assert "--data PATH" in capsys.readouterr().err
    how = staged.default_recipe("x", write(tmp_path), FS)
    assert (how.model, how.context.width, how.features[0].kind) == ("deep_svdd", 64, "scalogram")
    assert staged.classifier_recipe(how).train.options == {"pretrain": 0, "one_class": 0}


def test_the_command_says_what_stands_in_the_way(tmp_path, capsys):
    """`edge-trainer staged` on a stuck sensor's records fails with exit code 1 and the reason."""
    write(tmp_path / "records", equal=True)
    shutil.rmtree(tmp_path / "out", ignore_errors=True)
    code = cli.main(
        ["staged", "--data", str(tmp_path / "records"), "--fs", str(FS), "--out", str(tmp_path / "out")]
    )
    assert code == cli.FAILED
    assert "window" in capsys.readouterr().err


def test_the_histogram_is_drawn_for_every_shape_of_scores():
    """The picture is a PNG for scores far apart, near each other, and with the lower limit below all of them."""
    rng = np.random.default_rng(1)
    for scores in (
        rng.gamma(4.0, 1.0, 300),
        np.append(rng.gamma(4.0, 1.0, 300), 1e4),
        rng.normal(50.0, 1.0, 300),
    ):
        limit = staged.limits(scores, "mad")
        groups, _ = staged.deal(scores, limit, np.full(len(scores), UNCERTAIN))
        assert plots.pseudo_labels(scores, groups, limit).startswith(b"\x89PNG")
