"""What people read of a run: plots that hide no score, a card and a page in words."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_agent import bundle, thresholds
from edge_agent.scoring import ScoreRule
from trainer import card, plots, report
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
