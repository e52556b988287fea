"""Recipes: every mistake at once, and every committed recipe is valid."""

from __future__ import annotations

import argparse
import inspect
import re
from pathlib import Path

import numpy as np
import pytest

from edge_agent import scoring
from edge_agent.errors import ConfigError
from edge_agent.features import FeatureSet, FeatureSpec, log_mel
from edge_agent.recordings import Recording, formats
from edge_agent.signals import Chunk
from trainer import architectures, cli, recipe

RECIPES = sorted(recipe.RECIPES.glob("*.yaml"))


def good(tmp_path: Path) -> dict[str, object]:
    data = tmp_path / "x.npy"
    np.save(data, np.zeros(64, np.float32))
    return {
        "name": "a-model",
        "model": "dense_ae",
        "data": {"path": str(data), "fs_hz": 1000},
        "window": {"n_samples": 64},
        "features": [{"kind": "time_domain"}],
    }


def test_a_minimal_recipe_takes_the_architectures_defaults(tmp_path):
    """What a recipe leaves out comes from its architecture."""
    parsed = recipe.parse(good(tmp_path) | {"model": "lstm_ae"})
    assert (parsed.context.over, parsed.context.width) == ("windows", 8)
    assert parsed.score.params["steps"] == "newest"
    assert parsed.quantize == "int8"


def test_all_mistakes_are_reported_at_once_with_key_value_and_expectation(tmp_path):
    """Nine mistakes in nine places give nine problems, each with its key and the nearest known one."""
    raw = good(tmp_path) | {
        "name": "Bad Name",
        "data": {"path": str(tmp_path / "absent"), "fs": 1000},
        "window": {"n_samples": 64, "duration_s": 1.0},
        "features": [{"kind": "time_domian"}, {"kind": "time_domain", "nmaes": ["rms"]}],
        "split": {"by": "window"},
        "train": {"epochs": 0, "batchsize": 3},
        "threshold": {"method": "gamma", "false_alarm_rate": 2},
    }
    with pytest.raises(ConfigError) as caught:
        recipe.parse(raw, origin="r.yaml")
    problems = {p.where: p for p in caught.value.problems}
    assert set(problems) >= {
        "name", "data.path", "data.fs", "window", "features[0].kind", "features[1].nmaes", "split.by",
        "train.epochs", "train.batchsize", "threshold.false_alarm_rate",
    }  # fmt: skip
    assert "did you mean names?" in problems["features[1].nmaes"].expected
    assert "2" in problems["threshold.false_alarm_rate"].value


@pytest.mark.parametrize(
    ("change", "where"),
    [
        ({"split": {"by": "time", "train": [0, 100], "calibrate": [50, 150]}}, "split.calibrate"),
        ({"train": {"stage2": 10}}, "train.stage2"),
        ({"train": {"overlap": 2}}, "train.overlap"),
        ({"network": {"latnet": 4}}, "network.latnet"),
        ({"data": {"simulate": "pump"}}, "data.simulate"),
        ({"score": {"kind": "log_odds"}}, "score.kind"),
        ({"features": []}, "features"),
        ({"network": 3}, "network"),
    ],
)
def test_each_contradiction_is_named_by_its_key(tmp_path, change, where):
    """A recipe that contradicts itself is refused at the key that must change."""
    with pytest.raises(ConfigError) as caught:
        recipe.parse(good(tmp_path) | change)
    assert where in [p.where for p in caught.value.problems]


@pytest.mark.parametrize("raw", [None, 3, [], "text"])
def test_a_recipe_that_is_no_mapping_is_refused(raw):
    """An empty or wrongly shaped file gives a ConfigError, not a crash."""
    with pytest.raises(ConfigError):
        recipe.parse(raw)


@pytest.mark.parametrize("path", RECIPES, ids=lambda p: p.stem)
def test_every_committed_recipe_is_valid_but_for_absent_data(path):
    """The only thing a committed recipe may lack is the data outside the repository."""
    try:
        parsed = recipe.load(path)
    except ConfigError as error:
        assert [p for p in error.problems if not p.where.endswith(".path")] == []
    else:
        assert parsed.name == path.stem


def test_a_bad_recipe_ends_the_command_with_78(tmp_path, capsys):
    """`edge-trainer fit` says what is wrong on stderr and exits 78 before it touches anything."""
    path = tmp_path / "r.yaml"
    path.write_text("name: x\nmodel: dense\n")
    assert cli.main(["fit", str(path)]) == 78
    assert "model" in capsys.readouterr().err
    assert cli.main(["fit", str(tmp_path / "absent.yaml")]) == 78


def test_a_missing_source_of_recordings_is_a_usage_error():
    """`fit` without recipe and model is refused with exit code 2."""
    with pytest.raises(SystemExit) as caught:
        cli.main(["fit"])
    assert caught.value.code == 2


@pytest.mark.parametrize("model", ["dense_ae", "weak_ae", "mobilenet_v2", "lstm_ae", "indicator"])
@pytest.mark.parametrize("fs", [8000.0, 16000.0, 22050.0, 44100.0, 48000.0])
def test_the_defaults_for_sound_follow_the_sampling_rate(tmp_path, model, fs):
    """At every usual rate the default features of every sound model can be built, in frames of 64 to 128 ms."""
    path = tmp_path / "a.wav"
    path.touch()
    chosen = recipe.parse(recipe.default_mapping("x", model, path, fs))
    n, hop = chosen.window.samples(fs)
    made = FeatureSet(FeatureSpec(fs, n, hop, 1, chosen.features, chosen.context))
    assert made.n_patches >= 1
    if model != "indicator":
        assert (made.n_frames - 1) * chosen.features[0].params["hop"] <= n


def test_the_defaults_at_16_khz_are_those_of_the_committed_recipes(tmp_path):
    """Frames of 1024 points every 512, of 2048 for weak_ae; the frame is log_mel's own default at each rate."""
    path = tmp_path / "a.wav"
    path.touch()
    mel = recipe.default_mapping("x", "dense_ae", path, 16000.0)["features"][0]
    assert (mel["n_fft"], mel["hop"], mel["n_mels"]) == (1024, 512, 128)
    mel = recipe.default_mapping("x", "weak_ae", path, 16000.0)["features"][0]
    assert (mel["n_fft"], mel["hop"]) == (2048, 512)
    for fs in (8000.0, 16000.0, 22050.0, 44100.0, 48000.0):
        own = log_mel.build(fs, round(10 * fs)).n_frames
        length = recipe.frame_length(fs)
        assert own == 1 + (round(10 * fs) - length) // (length // 2)


def test_the_reference_lists_every_key_and_no_other(tmp_path, monkeypatch):
    """docs/recipes.md has a row for each key that a recipe may hold."""
    asked = set()
    get = recipe._Reader.get

    def listen(self, key):
        asked.add(re.sub(r"\[\d+\]", "", self.key(key)))
        return get(self, key)

    monkeypatch.setattr(recipe._Reader, "get", listen)
    for model in architectures.names():
        for kind in architectures.defaults(model).rules:
            recipe.parse(good(tmp_path) | {"model": model, "score": {"kind": kind}})
    recipe.parse(good(tmp_path) | {"model": "indicator", "score": {"kind": "indicator", "feature": "rms"}})
    page = (Path(__file__).parents[1] / "docs" / "recipes.md").read_text()
    rows = set(re.findall(r"^\| `([a-z0-9_.]+)` \|", page.partition("## Models")[0], re.M))
    asked |= {f"score.{key}" for settings in scoring.SETTINGS.values() for key in settings}
    options = {f"train.{key}" for model in architectures.names() for key in architectures.options(model)}
    assert rows == asked - options - {"context", "score", "split", "train", "threshold"}


def test_the_reference_has_a_row_for_each_model():
    """docs/recipes.md names each model's score rules, parameters and training options with their defaults."""
    page = (Path(__file__).parents[1] / "docs" / "recipes.md").read_text().partition("## Models")[2]
    rows = {cells[1].strip(" `"): cells for line in page.splitlines() if len(cells := line.split("|")) == 6}
    assert set(rows) - {"model", "---"} == set(architectures.names())
    for model in architectures.names():
        _, _, score, network, train, _ = rows[model]
        assert tuple(re.findall(r"`(\w+)`", score)) == architectures.defaults(model).rules
        given = inspect.signature(architectures.module(model).build).parameters.values()
        defaults = {p.name: p.default for p in given if p.name not in ("shape", "n_classes")}
        for text, known in ((network, defaults), (train, architectures.options(model))):
            assert dict(re.findall(r"`(\w+)` ([\w.]+)", text)) == {
                k: str(v).lower() for k, v in known.items()
            }, model


def test_the_reference_lists_every_recording_format():
    """docs/recordings.md has a row for each suffix that a format claims, and for NASA's folders."""
    page = (Path(__file__).parents[1] / "docs" / "recordings.md").read_text()
    claimed = " ".join(row.split("|")[2] for row in page.splitlines() if row.count("|") == 6)
    for word in (
        ".wav",
        ".flac",
        ".csv",
        ".npz",
        ".npy",
        ".mat",
        ".jsonl",
        ".json",
        ".capture",
        "2004.02.12",
    ):
        assert word in claimed
    assert set(formats()) == {"wav", "csv", "npz", "nasa", "mat", "jsonl", "capture"}


def test_every_option_has_a_help_text():
    """No option or argument of any command stands in its help without words."""
    (commands,) = (a for a in cli._parser()._actions if isinstance(a, argparse._SubParsersAction))
    actions = [(name, a) for name, parser in commands.choices.items() for a in parser._actions]
    assert {name for name, _ in actions} == {"fit", "evaluate", "report", "staged", "keygen", "sign"}
    assert [(name, a.dest) for name, a in actions if not a.help] == []


@pytest.mark.parametrize("rate", ["0", "0.9", "-1"])
def test_a_false_alarm_rate_out_of_bounds_is_a_usage_error(tmp_path, rate):
    """--false-alarm-rate takes 1e-6 to 0.5 only."""
    data = tmp_path / "x.npy"
    np.save(data, np.zeros(64, np.float32))
    with pytest.raises(SystemExit) as caught:
        cli.main(
            ["fit", "--model", "indicator", "--data", str(data), "--fs", "1000", "--false-alarm-rate", rate]
        )
    assert caught.value.code == 2


def test_numbers_may_be_given_as_runs(tmp_path):
    """`ids: [0-2, 7]` is 0, 1, 2 and 7; a run backwards, or of millions, is refused and says what was expected."""
    source = {"simulate": "machines", "ids": ["0-2", 7]}
    assert recipe.parse(good(tmp_path) | {"data": source}).data[0].ids == (0, 1, 2, 7)
    for wrong in ("7-3", "0-999999", "1-", "-1"):
        with pytest.raises(ConfigError, match=r"such as \[0, 4-7\]"):
            recipe.parse(good(tmp_path) | {"data": source | {"ids": [wrong]}})


def of_levels(tmp_path, *levels):
    """The profile of a machine a level, one window each."""
    from trainer import data

    found = []
    for k, level in enumerate(levels):
        x = np.random.default_rng(k).standard_normal((1, 1280)).astype(np.float32) * np.float32(level)
        chunk = Chunk(x, t=600.0 * k, fs_hz=12800.0)
        found.append((Recording(f"m{k}", tmp_path, 12800.0, None, lambda c=chunk: iter([c])), data.Clip(f"m{k}", None, f"id_{k}")))
    return data.table(recipe.parse(good(tmp_path) | {"window": {"n_samples": 1280}}), found).profile


def test_the_profile_knows_the_level_of_every_machine(tmp_path):
    """The quietest of 70 machines sets `quiet`, though it comes after the first 64 recordings."""
    assert of_levels(tmp_path, *[1.0] * 69, 0.2).quiet == pytest.approx([0.2], rel=0.1)


def test_where_machines_differ_by_more_than_20_db_no_level_means_off(tmp_path):
    """Machines of 1 and 0.05: `quiet` is 0, and a window 60 dB down is scored; zeros are still no signal."""
    from edge_agent import quality

    known = of_levels(tmp_path, 1.0, 0.05)
    assert known.quiet == (0.0,)
    x = np.float32(1e-3) * np.random.default_rng(9).standard_normal((1, 1280)).astype(np.float32)
    assert quality.inspect(x, 12800.0, known).quality == "good"
    assert quality.inspect(x, 12800.0, of_levels(tmp_path, 1.0, 0.5)).reasons == ("signal_lost",)
    assert quality.inspect(0.0 * x, 12800.0, known).reasons == ("signal_lost",)


def test_simulated_machines_are_recordings_of_their_own_without_a_fault(tmp_path):
    """Each number is one machine, its snapshots ten minutes apart; seeds of the source give others."""
    from trainer import data

    source = {"simulate": "machines", "seconds": 0.1, "clips": 5, "ids": [3, 4], "fs_hz": 12800, "seed": 2}
    raw = good(tmp_path) | {"data": source, "window": {"n_samples": 1280}}
    table = data.table(recipe.parse(raw))
    assert table.spec.fs_hz == 12800
    assert [c.machine for c in table.clips] == ["id_003", "id_004"]
    assert all(c.healthy for c in table.clips)
    assert np.bincount(table.recording).tolist() == [5, 5]
    assert np.diff(table.start)[:4] == pytest.approx(600.0)
    other = data.table(recipe.parse(raw | {"data": {**source, "seed": 3}}))
    assert not np.allclose(table.vectors, other.vectors)
