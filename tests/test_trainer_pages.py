"""What people read of a run: plots that hide no score, a card and a page in words."""

from __future__ import annotations

import base64
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from bundles import golden_noise, make_indicator_bundle
from hypothesis import given
from hypothesis import strategies as st
from test_trainer_run import recordings, small

from edge_agent import bundle, thresholds
from edge_agent.recordings import Recording
from edge_agent.scoring import ScoreRule
from edge_agent.signals import Chunk
from trainer import card, plots, report
from trainer import data as trainer_data
from trainer.data import Clip
from trainer.evaluate import score_labelled, summary
from trainer.run import run
from trainer.words import counted, shown

ROOT = Path(__file__).parents[1]
MODELS = sorted(p.parent for p in (ROOT / "models").glob("*/bundle.json"))


@given(st.lists(st.floats(1e-3, 1e6), min_size=1, max_size=40), st.floats(0.1, 10.0))
def test_every_score_lies_within_the_bins(scores, limit):
    """However far beyond the limit a score lies, the histogram's bins reach it, and the limit too."""
    every = np.array([*scores, limit])
    edges, far = plots.bins(every, limit, 20)
    assert far == (max(scores) > 3.0 * limit)
    assert edges[-1] >= every.max() * (1.0 - 1e-9)
    assert edges[0] <= max(every.min(), 1e-6 * every.max()) * (1.0 + 1e-9)


@pytest.mark.parametrize("far", [1.5, 1000.0])
def test_the_distribution_is_drawn_near_and_far(far):
    """Anomalous scores near the limit, far beyond it and at zero all give a picture."""
    rng = np.random.default_rng(0)
    scores = rng.gamma(20.0, 0.05, 40)
    limit = thresholds.fit(scores, "gamma", 1e-2)
    png = plots.distribution(scores, limit, np.array([0.0, 1.0, far]))
    assert png[:4] == b"\x89PNG"
    assert png != plots.distribution(scores, limit)


@pytest.mark.parametrize("path", MODELS, ids=lambda p: p.name)
def test_cards_hold_words_and_no_code(path):
    """The card of every committed bundle has no Python literal, no code mark and no "(s)"."""
    manifest = bundle.read_manifest(path)
    written = card.text(manifest, np.ones(20), 1000, [])
    assert not re.search(r"[{}`\[\]]|'|None|\(s\)", written.split("| | |")[1].split("The limit")[0])


def test_the_page_shows_figures_as_a_table():
    """Evaluation figures stand in table cells, missing ones as "-", and no JSON or code mark is left."""
    figures = {
        "auc": None,
        "false_alarms": 0,
        "detections": [{"found": True, "onset": None, "delay_s": 30.0, "event": "1970-01-01T00:00:30.000Z"}],
        "machines": [{"machine": "id_00", "auc": 0.75, "detections": []}],
    }
    page = report.page(ROOT / "models" / "sound-weak-ae", figures=figures)
    text = re.sub(r"base64,[^\"]*", "", page)
    assert "<td>auc</td><td>-</td>" in text
    assert "<td>detection</td><td>event 30 s after the first anomalous window</td>" in text
    assert "<tr><td>id_00</td><td>0.75</td></tr>" in text
    assert not re.search(r"`|&#x27;|None", text)
    assert "<pre>" not in text


def test_figures_are_written_as_words():
    """Counts agree with their noun; lists, mappings and missing values are no Python literals."""
    assert (counted(1, "channel"), counted(2, "channel")) == ("1 channel", "2 channels")
    assert (
        shown({"fs_hz": 16000.0, "channels": (0, 2), "machine": None})
        == "fs_hz 16000, channels 0 and 2, machine -"
    )
    assert shown([[1], True]) == "1 and yes"


def test_an_indicators_card_names_its_feature():
    """The score of an indicator is told by the feature's name, not by its number."""
    manifest = bundle.read_manifest(MODELS[0])
    told = card.text(replace(manifest, score=ScoreRule("indicator", {"index": 0})), np.ones(20), None, [])
    assert "| score | the feature rms |" in told


class Tags(HTMLParser):
    """What a page opens and does not close, what it refers to, and its words."""

    def __init__(self, text):
        super().__init__()
        self.open, self.refers, self.words = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        if tag not in ("img", "meta", "br"):
            self.open.append(tag)
        self.refers += [v for k, v in attributes if k in ("src", "href", "srcset", "action")]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "style" not in self.open:
            self.words.append(data)


def noise_like(path, n, label, gain):
    """Recordings of a bundle's own golden noise, so loud, each said to be of its first machine."""
    manifest = bundle.read_manifest(path)
    spec = manifest.features
    x = golden_noise(path, spec.context.width if spec.context.over == "windows" else 1)
    machine = manifest.classes[0] if manifest.classes else None
    out = []
    for k in range(n):
        chunk = Chunk(np.ascontiguousarray((gain + 0.05 * k) * x.T), fs_hz=spec.fs_hz)
        name = f"{label}_{k}"
        out.append(
            (
                Recording(name, Path(name), spec.fs_hz, label, lambda c=chunk: iter([c])),
                Clip(name, label, machine),
            )
        )
    return out


def check_page(path, explained=2):
    """A page with data: nothing from outside, every picture a PNG, two windows told in a sentence. Returns its words."""
    judged = score_labelled(path, noise_like(path, 4, "normal", 1.0) + noise_like(path, 2, "anomaly", 4.0))
    text = report.page(path, judged.every, summary(path, judged))
    page = Tags(text)
    assert page.open == []
    trained = bool(bundle.read_manifest(path).training.get("history"))
    assert len(page.refers) == explained + 3 + trained
    for source in page.refers:
        assert source.startswith("data:image/png;base64,")
        assert base64.b64decode(source.partition(",")[2])[:4] == b"\x89PNG"
    assert not re.search(r"url\(|@import|<script|<link|http", re.sub(r"base64,[^\"]*", "", text))
    words = " ".join(page.words)
    assert len(re.findall("of the excess|nothing exceeds", words)) == explained
    assert not re.search(r"[{}`]|\bNone\b|\bnan\b", words)
    return words


@pytest.mark.parametrize("path", MODELS, ids=lambda p: p.name)
def test_the_page_of_every_committed_bundle_stands_alone(path):
    """Card, plots, figures and two explained windows in one file that refers to nothing else."""
    assert bundle.read_manifest(path).name in check_page(path)


@pytest.mark.parametrize(
    ("model", "score", "network", "train", "says"),
    [
        ("vae", "vae", {"encoder": "dense", "units": 8, "latent": 2}, {}, "vae (beta 0.1"),
        ("deep_svdd", "distance", {"base": 2, "units": 8, "embedding": 4}, {"pretrain": 0}, "distance"),
        ("svdd_vae", "ensemble", {"base": 2, "units": 8, "embedding": 4, "latent": 2}, {"pretrain": 0}, "distance mean"),
        ("mobilenet_v2", "knn", {"alpha": 0.35, "head": 16}, {}, "knn"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)  # fmt: skip
def test_every_score_kind_has_a_page(tmp_path, model, score, network, train, says):
    """A bundle of each rule, trained for one epoch, equals Keras; its page says the rule and explains two windows."""
    chosen = small(
        tmp_path, model=model, score={"kind": score}, network=network, quantize="float32",
        context={"over": "frames", "width": 16, "hop": 8}, train={"epochs": 1, **train},
    )  # fmt: skip
    found = recordings(30, machine="id_00")
    if model == "mobilenet_v2":
        found += recordings(30, machine="id_01", tone=900.0, seed=5)
    made = run(chosen, tmp_path / "b", table=trainer_data.table(chosen, found))
    assert made.manifest.quantization.parity["keras_float32_max_abs"] < 1e-3
    assert says in check_page(tmp_path / "b").replace("_", " ")


def test_an_indicators_page_needs_no_explanation(tmp_path):
    """Where one feature is the score, the page says which and explains nothing more."""
    make_indicator_bundle(tmp_path / "rms")
    manifest = bundle.read_manifest(tmp_path / "rms")
    assert manifest.score.kind == "indicator"
    judged = score_labelled(tmp_path / "rms", noise_like(tmp_path / "rms", 3, "normal", 1.0))
    assert report.explained(tmp_path / "rms", judged.every) == ""


def test_groups_means_and_baselines_are_tables_of_the_page():
    """A row a section and domain, the means, the baselines' AUC and pAUC beside, and a run in words."""
    areas = {"auc": 0.75, "pauc": 0.5}
    beside = {"mean_spectrum_knn": {"auc": 0.6, "pauc": None}}
    mean = {key: {"arithmetic": 0.75, "harmonic": 0.7} for key in ("auc", "pauc")}
    place = {"machine_type": "fan", "section": "section_00", "domain": "source"}
    run_ = {
        "recording": "b1",
        "windows": 20,
        "first_event_window": 12,
        "before_end_s": 30.0,
        "false_events": 1,
        "first_event": "x",
    }
    figures = {
        **areas, "detections": [], "baselines": beside, "groups": [{**place, "recordings": 3, **areas, "baselines": beside}],
        "means": {**mean, "baselines": {"mean_spectrum_knn": mean}}, "runs": [run_],
    }  # fmt: skip
    page = report.page(ROOT / "models" / "demo-lstm-ae", figures=figures)
    assert (
        "<tr><td>fan section_00 source</td><td>3</td><td>0.75</td><td>0.5</td><td>0.6 / -</td></tr>" in page
    )
    assert "<td>harmonic mean of the groups</td><td>AUC 0.7  pAUC 0.7  mean spectrum knn 0.7 0.7</td>" in page
    assert "b1: first event at window 12 of 20, 30 s before the end; 1 false event before the fault" in page
