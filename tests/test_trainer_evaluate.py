"""Figures of `evaluate`: against scikit-learn, numeric integration and hand-made cases."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from bundles import healthy as healthy_noise
from bundles import make_indicator_bundle
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import hmean
from sklearn.metrics import roc_auc_score, roc_curve

from edge_agent.alarms import AlarmPolicy
from trainer import cli
from trainer.data import Clip
from trainer.evaluate import Scored, auc, events, figures, pauc
from trainer.labels import Truth, places, read_labels, truth
from trainer.metrics import means, precision_recall_f1
from trainer.words import detection

cases = st.lists(st.tuples(st.integers(0, 12), st.booleans()), min_size=4, max_size=60).filter(
    lambda rows: len({flag for _, flag in rows}) == 2
)


@given(cases)
def test_auc_equals_scikit_learns(rows):
    """AUC with ties is scikit-learn's to rounding."""
    scores, flags = np.array([r[0] for r in rows], float), np.array([r[1] for r in rows])
    assert auc(scores, flags) == pytest.approx(roc_auc_score(flags, scores), abs=1e-12)


@given(cases)
def test_pauc_is_the_integral_of_the_roc_curve_up_to_the_limit(rows):
    """pAUC equals numeric integration of scikit-learn's curve over [0, 0.1], divided by 0.1."""
    scores, flags = np.array([r[0] for r in rows], float), np.array([r[1] for r in rows])
    fpr, tpr, _ = roc_curve(flags, scores, drop_intermediate=False)
    # The middles of a fine grid never lie on a vertical step.
    grid = (np.arange(200_000) + 0.5) / 200_000 * 0.1
    expected = np.interp(grid, fpr, tpr).mean()
    assert pauc(scores, flags) == pytest.approx(expected, abs=1e-4)


def test_pauc_knows_chance_and_perfection():
    """A score that knows nothing has 0.05 at limit 0.1, a perfect one 1; this is not McClish's scale."""
    flags = np.arange(2000) % 2 == 1
    assert pauc(flags.astype(float), flags) == 1.0
    assert pauc(np.zeros(2000), flags) == pytest.approx(0.05)
    assert np.isnan(pauc(np.zeros(3), np.zeros(3, bool)))
    assert np.isnan(auc(np.zeros(3), np.ones(3, bool)))


def test_events_are_those_of_the_alarm_engine():
    """Three crossings of five raise one event at the third; two do not."""
    policy = AlarmPolicy(vote=(3, 5))
    assert events([0, 2, 2, 0, 0, 0, 0], range(7), policy) == []
    assert events([0, 2, 0, 2, 2, 2, 2], range(7), policy) == [4]


def scored(name, ratios, label=None, start=0.0, step=10.0):
    ratios = np.asarray(ratios, float)
    return Scored(Clip(name, label, None), ratios, ratios, start + step * (1 + np.arange(len(ratios))))


def test_a_snapshot_every_ten_minutes_stands_for_ten_minutes():
    """144 one-second snapshots at 10 min are a day, not two minutes, of normal data."""
    ratios = np.zeros(144)
    ratios[50:55] = 2.0
    result = figures([scored("a", ratios, "normal", step=600.0)], 1.024, None, AlarmPolicy())
    assert (result["crossings_per_day"], result["false_alarms_per_day"]) == (5.0, 1.0)


def test_false_alarms_are_counted_per_day_of_normal_data():
    """8640 normal windows of 10 s are one day; its crossings and its one voted event are the day's figures."""
    ratios = np.zeros(8640)
    ratios[[10, 100, 200, 201, 202]] = 2.0
    result = figures([scored("a", ratios, "normal")], 10.0, None, AlarmPolicy())
    assert (result["crossings_per_day"], result["false_alarms_per_day"]) == (5.0, 1.0)
    assert result["auc"] is None


def test_detection_delay_counts_from_the_onset_to_the_event():
    """A recording that turns at 50 s and crosses from 70 s on is detected 40 s after its onset."""
    truth = {"a": Truth(None, 50.0)}
    result = figures([scored("a", [0] * 6 + [2] * 6)], 10.0, truth, AlarmPolicy())
    assert result["detections"] == [
        {
            "found": True,
            "onset": "1970-01-01T00:00:50.000Z",
            "delay_s": 40.0,
            "event": "1970-01-01T00:01:30.000Z",
        }
    ]
    assert result["false_alarms"] == 0
    missed = figures([scored("a", [0] * 12)], 10.0, truth, AlarmPolicy())
    assert missed["detections"][0]["found"] is False


def test_labels_come_from_a_csv_and_mistakes_name_the_line(tmp_path):
    """file, label and onset are read; a wrong label is refused with its line."""
    from edge_agent.errors import RecordingError

    path = tmp_path / "labels.csv"
    path.write_text("file,label,onset\nx/a.wav,anomaly,\nb.wav,,1970-01-01T00:00:10Z\n")
    assert read_labels(path) == {"a.wav": Truth("anomaly"), "b.wav": Truth(None, 10.0)}
    path.write_text("file,label\na.wav,broken\n")
    with pytest.raises(RecordingError, match=r"labels.csv:2.*broken"):
        read_labels(path)


def test_recordings_without_a_label_are_counted_nowhere_else():
    """An unlabelled recording is neither normal nor anomalous: it changes no figure but `windows`."""
    named = [scored("a", [0, 2, 2, 2], "normal")]
    with_unknown = figures([*named, scored("b", [3, 3, 3, 3])], 10.0, None, AlarmPolicy())
    alone = figures(named, 10.0, None, AlarmPolicy())
    assert with_unknown.pop("windows") == 8
    assert alone.pop("windows") == 4
    assert with_unknown == alone


def test_a_detection_without_an_onset_counts_from_the_first_anomalous_window():
    """Only where the labels give an onset is it said that a fault began then."""
    rows = [scored("a", [0] * 6, "normal"), scored("b", [2] * 6, "anomaly")]
    found = figures(rows, 10.0, None, AlarmPolicy())["detections"][0]
    assert detection(found) == "event 30 s after the first anomalous window"
    turned = figures([scored("a", [0] * 6 + [2] * 6)], 10.0, {"a": Truth(None, 60.0)}, AlarmPolicy())
    assert detection(turned["detections"][0]) == "event 30 s after the fault began"


@pytest.mark.parametrize(
    ("path", "place"),
    [
        (
            "dev/fan/source_test/section_00_source_test_anomaly_0001.wav",
            {"machine_type": "fan", "section": "section_00", "domain": "source"},
        ),
        (
            "dev/valve/target_test/section_02_target_test_normal_0001.wav",
            {"machine_type": "valve", "section": "section_02", "domain": "target"},
        ),
        (
            "dev/valve/test/section_01_target_test_normal_0001_vel_6.wav",
            {"machine_type": "valve", "section": "section_01", "domain": "target"},
        ),
        ("dev/ToyCar/test/anomaly_id_03_00000007.wav", {"machine_type": "ToyCar", "section": "id_03"}),
        ("dev/load_1/anomaly/a.wav", {"condition": "load_1"}),
        ("dev/900rpm/OR5/normal/a.wav", {"condition": "900rpm/OR5"}),
        ("dev/anomaly/a.wav", {}),
    ],
)
def test_the_group_is_read_from_the_layout(path, place):
    """DCASE 2020, 2021 and later say machine type, section and domain by their names; other folders a condition."""
    found = places([Path(path), Path("dev/normal/b.wav")], [Truth("anomaly"), Truth("normal")])
    assert found == [place, {}]


def test_a_group_column_goes_before_the_folder(tmp_path):
    """What the labels' CSV calls the group is the condition, and its label may still come from the name."""
    (tmp_path / "l.csv").write_text("file,label,group\na.wav,,0.5 kN\nb.wav,anomaly,1 kN\n")
    labels = read_labels(tmp_path / "l.csv")
    assert labels == {"a.wav": Truth(None, None, "0.5 kN"), "b.wav": Truth("anomaly", None, "1 kN")}
    assert (
        truth(Clip("run.npz:b.wav", None, None), labels)
        == truth(Clip("k/b.wav", None, None), labels)
        == labels["b.wav"]
    )
    assert truth(Clip("normal_c.wav", "normal", None), labels) == Truth("normal")
    found = places([Path("x/normal/a.wav"), Path("x/z/b.wav")], list(labels.values()))
    assert found == [{"condition": "0.5 kN"}, {"condition": "1 kN"}]


@given(st.lists(st.floats(0.01, 1.0), min_size=1, max_size=20))
def test_the_means_are_those_of_numpy_and_scipy(values):
    """Unknown figures count in neither mean; the harmonic one is at most the arithmetic."""
    found = means([None, *values])
    assert found["arithmetic"] == pytest.approx(np.mean(values), abs=1e-4)
    assert found["harmonic"] == pytest.approx(hmean(values), abs=1e-4)
    assert found["harmonic"] <= found["arithmetic"] + 1e-4
    assert means([None]) == {"arithmetic": None, "harmonic": None}


def save(path, level=1.0, seed=0, windows=4):
    """Windows of healthy noise at 1 kHz, `level` times as loud."""
    path.parent.mkdir(parents=True, exist_ok=True)
    np.save(path, healthy_noise(256 * windows, seed=seed, level=level)[0])


def evaluated(capsys, bundle, *options):
    """What the command prints as JSON."""
    capsys.readouterr()
    assert cli.main(["evaluate", "--bundle", str(bundle), "--fs", "1000", "--json", *map(str, options)]) == 0
    return json.loads(capsys.readouterr().out)


def test_a_dcase_folder_gives_a_row_a_section_and_domain_with_baselines(tmp_path, capsys):
    """Two machine types, two domains: four rows, their means, baselines beside, and no clip of `train` is judged."""
    bundle = make_indicator_bundle(tmp_path / "rms").path
    seed = 0
    for kind, level in (("fan", 1.5), ("pump", 1.05)):
        for k in range(6):
            save(
                tmp_path / "dev" / kind / "train" / f"section_00_source_train_normal_{k:04d}.npy",
                seed=(seed := seed + 1),
            )
        for domain in ("source", "target"):
            for label in ("normal", "anomaly"):
                for k in range(3):
                    name = f"section_00_{domain}_test_{label}_{k:04d}.npy"
                    loud = level if label == "anomaly" else 1.0
                    save(tmp_path / "dev" / kind / f"{domain}_test" / name, loud, seed=(seed := seed + 1))
    result = evaluated(capsys, bundle, "--data", tmp_path / "dev", "--baselines", tmp_path / "dev")
    assert (result["recordings"], result["left_out"]) == (24, 12)
    rows = {(r["machine_type"], r["section"], r["domain"]): r for r in result["groups"]}
    assert len(rows) == len(result["groups"]) == 4
    for (kind, *_), row in rows.items():
        assert (row["normal_windows"], row["anomalous_windows"]) == (12, 12)
        assert (row["auc"] > 0.99) == (kind == "fan")
        assert row["baselines"]["statistics_mahalanobis"]["auc"] > 0.99 or kind == "pump"
    found = [row["auc"] for row in result["groups"]]
    assert result["means"]["auc"] == {
        "arithmetic": pytest.approx(np.mean(found), abs=1e-4),
        "harmonic": pytest.approx(hmean(found), abs=1e-4),
    }
    assert set(result["means"]["machine_types"]) == {"fan", "pump"}
    assert (
        result["means"]["machine_types"]["pump"]["auc"]["arithmetic"] < result["means"]["auc"]["arithmetic"]
    )
    assert set(result["baselines"]) == {"mean_spectrum_knn", "statistics_mahalanobis"}
    assert (
        cli.main(["evaluate", "--bundle", str(bundle), "--fs", "1000", "--data", str(tmp_path / "dev")]) == 0
    )
    told = capsys.readouterr().out
    assert "fan section_00 source" in told
    assert "harmonic mean pump" in told


def test_loads_are_rows_and_a_row_of_one_kind_has_no_auc(tmp_path, capsys):
    """Sub-folders are conditions; where only normal recordings are, AUC is null and no mean counts it."""
    bundle = make_indicator_bundle(tmp_path / "rms").path
    for load, kinds in (("load_0", ("normal", "anomaly")), ("load_1", ("normal",))):
        for label in kinds:
            save(
                tmp_path / "d" / load / label / "a.npy",
                3.0 if label == "anomaly" else 1.0,
                seed=len(load + label),
            )
    result = evaluated(capsys, bundle, "--data", tmp_path / "d")
    assert [(r["condition"], r["auc"]) for r in result["groups"]] == [("load_0", 1.0), ("load_1", None)]
    assert result["means"]["rows"] == 1
    assert "baselines" not in result
    alone = ["evaluate", "--bundle", str(bundle), "--fs", "1000", "--data"]
    assert cli.main([*alone, str(tmp_path / "d")]) == 0
    assert "load_0 " in capsys.readouterr().out
    assert cli.main([*alone, str(tmp_path / "d" / "load_0")]) == 0
    told = capsys.readouterr().out
    assert "load_0 " not in told
    assert "left_out" not in told


def test_what_the_baselines_learn_from_is_not_judged(tmp_path, capsys):
    """A healthy recording given for both is left out of the judged ones; with nothing left it is an error."""
    bundle = make_indicator_bundle(tmp_path / "rms").path
    for k in range(4):
        save(tmp_path / "d" / "normal" / f"{k}.npy", seed=k)
    save(tmp_path / "d" / "anomaly" / "x.npy", 3.0, seed=9)
    healthy = tmp_path / "d" / "normal"
    result = evaluated(capsys, bundle, "--data", tmp_path / "d", "--baselines", healthy)
    assert (result["recordings"], result["left_out"], result["auc"]) == (1, 4, None)
    args = [
        "evaluate",
        "--bundle",
        str(bundle),
        "--fs",
        "1000",
        "--data",
        str(healthy),
        "--baselines",
        str(healthy),
    ]
    assert cli.main(args) == 1
    assert "all 4 recordings" in capsys.readouterr().err


def test_a_run_to_failure_tells_its_first_event_and_the_false_ones(tmp_path, capsys):
    """Twenty windows, loud for five at the start and from window 12 on, onset at window 10: one false event, then the hit."""
    bundle = make_indicator_bundle(tmp_path / "rms").path
    level = np.ones(20)
    level[:5] = level[12:] = 3.0
    x = healthy_noise(256 * 20, seed=1)[0] * np.repeat(level, 256)
    (tmp_path / "run").mkdir()
    np.save(tmp_path / "run" / "b1.npy", x.astype(np.float32))
    (tmp_path / "l.csv").write_text("file,label,onset\nb1.npy,,2.56\n")
    result = evaluated(capsys, bundle, "--data", tmp_path / "run", "--labels", tmp_path / "l.csv")
    (run,) = result["runs"]
    assert (run["windows"], run["first_event_window"], run["false_events"]) == (20, 2, 1)
    assert run["before_end_s"] == pytest.approx(17 * 0.256)
    assert result["detections"][0]["delay_s"] == pytest.approx(15 * 0.256 - 2.56)
    assert result["false_alarms"] == 1
    assert "groups" not in result
    (tmp_path / "l.csv").write_text("file,label\nb2.npy,anomaly\n")
    args = ["--data", str(tmp_path / "run"), "--labels", str(tmp_path / "l.csv")]
    assert cli.main(["evaluate", "--bundle", str(bundle), "--fs", "1000", *args]) == 1
    assert "expected in the column `file` names such as 'b1.npy'" in capsys.readouterr().err


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=30))
def test_precision_recall_and_f1_are_the_oracles(rows):
    """As scikit-learn gives them, 0 where nothing is called or nothing is anomalous."""
    from sklearn.metrics import precision_recall_fscore_support

    called, truth = (np.array(column, bool) for column in zip(*rows, strict=True))
    oracle = precision_recall_fscore_support(truth, called, average="binary", zero_division=0.0)[:3]
    assert precision_recall_f1(called, truth) == pytest.approx(oracle)
