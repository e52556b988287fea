"""Explanations name the band that carries a simulated fault: in numbers, in words and as a picture's data."""

from __future__ import annotations

import struct
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_trainer_run import FS, small

from edge_agent import bundle as bundles
from edge_agent import causes, scoring
from edge_agent.causes import Cause, sentence
from edge_agent.recordings import Recording
from edge_agent.signals import Chunk
from trainer import data as trainer_data
from trainer import explain, plots
from trainer.data import Clip
from trainer.evaluate import score_labelled
from trainer.run import run

SPLIT = {"by": "recording", "train": [0.0, 0.6], "calibrate": [0.6, 1.0]}


@pytest.mark.parametrize(
    ("told", "words"),
    [
        ([], "nothing exceeds what is normal"),
        ([Cause("rms", 1.0, 9.0)], "rms carries 100 % of the excess"),
        ([Cause("mel_0_4000hz", 0.5, 8.0)], "0 to 4 kHz carries 50 % of the excess"),
        ([Cause("mel_2400_3600hz", 0.61, 8.0)], "2.4 to 3.6 kHz carries 61 % of the excess"),
        (
            [Cause("mel_2400_3000hz", 0.4, 8.0), Cause("mel_2900_3600hz", 0.21, 8.0), Cause("mel_100_200hz", 0.2, 2.0)],
            "2.4 to 3.6 kHz carries 61 % and 100 to 200 Hz 20 % of the excess",
        ),
        (
            [Cause("band_800_1200hz", 0.5, 8.0), Cause("crest_factor", 0.3, 8.0), Cause("kurtosis", 0.04, 8.0)],
            "800 Hz to 1.2 kHz carries 50 % and crest factor 30 % of the excess",
        ),
        (
            [Cause("ch1.cwt_100_200hz", 0.5, 8.0), Cause("d_mel_100_200hz", 0.3, 8.0), Cause("mel_100_200hz", 0.1, 1.0)],
            "100 to 200 Hz of channel 1 carries 50 %, change in 100 to 200 Hz 30 % and 100 to 200 Hz 10 % of the excess",
        ),
    ],
)  # fmt: skip
def test_causes_are_told_in_one_sentence(told, words):
    """Touching bands of one kind are one place; kinds and channels stay apart; slight shares are not told."""
    assert sentence(told) == words


@given(st.lists(st.tuples(st.integers(0, 30), st.floats(0.0, 0.3)), max_size=8))
def test_joining_bands_neither_loses_nor_adds_share(rows):
    """Whatever bands are given, in whatever order, the shares of the places add up to theirs."""
    given_ = [Cause(f"mel_{100 * i}_{100 * (i + 1)}hz", share, 1.0) for i, share in rows]
    found = causes._joined(given_)
    assert sum(share for _, share in found) == pytest.approx(sum(c.share for c in given_))
    assert len({place for place, _ in found}) == len(found)


@given(st.integers(1, 6), st.integers(1, 5), st.integers(1, 7), st.integers(1, 4))
def test_patches_assemble_to_the_vectors_they_were_cut_from(n, width, hop, n_features):
    """Every vector that lies in a patch comes back as it was, whatever the overlap; between patches there is 0."""
    length = (n - 1) * hop + width
    v = np.random.default_rng(0).standard_normal((length, n_features)).astype(np.float32)
    back = explain.assemble(np.stack([v[i * hop : i * hop + width] for i in range(n)]), hop)
    covered = np.isin(np.arange(length), [i * hop + k for i in range(n) for k in range(width)])
    assert back[covered] == pytest.approx(v[covered], abs=1e-6)
    assert not back[~covered].any()


def test_every_score_rule_has_words_for_its_map():
    """A new rule is not forgotten: all but the indicator say what their picture shows."""
    assert set(explain.MAPS) == set(scoring._RULES) - {"indicator"}
    assert set(explain.ATTENTIVE) <= set(explain.MAPS)


def burst(n, *, label, fault=0.0, seed=0):
    """One-second recordings of noise; the fault is a tone of 1500 Hz from 0.5 s on."""
    out = []
    for k in range(n):
        rng = np.random.default_rng([seed, k])
        t = np.arange(round(FS)) / FS
        x = rng.standard_normal(t.size) + fault * np.sin(2 * np.pi * 1500.0 * t) * (t >= 0.5)
        chunk = Chunk(x.astype(np.float32)[np.newaxis], fs_hz=FS)
        name = f"{label}_{k}"
        out.append(
            (Recording(name, Path(name), FS, label, lambda c=chunk: iter([c])), Clip(name, label, None))
        )
    return out


@pytest.fixture(scope="module")
def autoencoder(tmp_path_factory):
    """A dense autoencoder on healthy noise."""
    root = tmp_path_factory.mktemp("explained")
    chosen = small(root, train={"epochs": 25, "learning_rate": 3e-3})
    run(chosen, root / "ae", table=trainer_data.table(chosen, burst(40, label="normal")))
    return root / "ae"


def test_an_autoencoder_names_the_band_and_the_moment_of_the_fault(autoencoder):
    """A tone at 1500 Hz in the second half: the first cause holds 1500 Hz, and the largest cells lie there and then."""
    found = burst(12, label="normal", seed=1) + burst(4, label="anomaly", fault=1.0, seed=2)
    judged = score_labelled(autoencoder, found)
    faulty, normal = explain.explain(autoencoder, judged.every)
    assert (faulty.anomalous, normal.anomalous) == (True, False)
    assert faulty.ratio > 1.0 > normal.ratio
    low, high = causes.band(faulty.causes[0].feature)
    assert low <= 1500.0 <= high
    assert faulty.causes[0].share > 0.3
    assert "kHz carries" in faulty.sentence
    moment, band = np.unravel_index(np.argmax(faulty.z), faulty.z.shape)
    assert moment >= 0.45 * len(faulty.z)
    low, high = causes.band(faulty.names[band])
    assert low <= 1500.0 <= high
    assert faulty.normal.n == 12
    assert np.abs(np.median(normal.z)) < 1.0
    # The mask lies in the fault's half and, but for a filter beside it, in its band.
    then, there = np.nonzero(faulty.mask)
    assert len(then) > 0.5 * len(faulty.x) / 2
    assert np.mean(then >= 0.4 * len(faulty.x)) > 0.9
    found_in = [causes.band(faulty.names[i]) for i in there]
    assert np.mean([low <= 1650.0 and high >= 1350.0 for low, high in found_in]) > 0.9
    assert normal.mask.mean() < 0.1 < 10.0 * faulty.mask.mean()
    assert faulty.what == "reconstruction error, deviations from normal"


def test_the_agent_gives_the_same_causes_as_the_report(autoencoder):
    """What the page tells of a window is the `why` that the agent's pipeline attaches to it."""
    from edge_agent.offline import score_recording

    pair = burst(1, label="anomaly", fault=1.0, seed=3)
    (faulty,) = explain.explain(autoencoder, score_labelled(autoencoder, pair).every)
    (measured,) = score_recording(bundles.load(autoencoder), pair[0][0])
    assert measured.why == faulty.causes


def pixels(png):
    """(height, width) of a PNG whose data can be unpacked."""
    width, height = struct.unpack(">II", png[16:24])
    data, at = b"", 8
    while at < len(png):
        (n,) = struct.unpack(">I", png[at : at + 4])
        data += png[at + 8 : at + 8 + n] if png[at + 4 : at + 8] == b"IDAT" else b""
        at += 12 + n
    assert len(zlib.decompress(data)) > width * height
    return height, width


def test_the_picture_of_a_fault_differs_from_that_of_a_healthy_window(autoencoder):
    """Both are drawn, with and without healthy windows to compare with."""
    found = burst(6, label="normal", seed=1) + burst(1, label="anomaly", fault=1.0, seed=2)
    faulty, normal = explain.explain(autoencoder, score_labelled(autoencoder, found).every)
    (alone,) = explain.explain(autoencoder, score_labelled(autoencoder, found[-1:]).every)
    assert alone.normal is None
    drawn = [plots.explanation(e) for e in (faulty, normal, alone)]
    assert len(set(drawn)) == 3
    assert all(min(pixels(png)) > 200 for png in drawn)


#: The only thing that tells the two machines apart, Hz.
BAND = (1230.0, 1580.0)


def machines(n, *, seed=0):
    """Noise; id_01 has more of it between 1230 and 1580 Hz."""
    out = []
    for machine, gain in (("id_00", 0.0), ("id_01", 4.0)):
        for k in range(n):
            rng = np.random.default_rng([seed, int(gain), k])
            x = rng.standard_normal(round(2 * FS))
            spectrum = np.fft.rfft(rng.standard_normal(x.size))
            f = np.fft.rfftfreq(x.size, 1.0 / FS)
            spectrum[(f < BAND[0]) | (f > BAND[1])] = 0.0
            chunk = Chunk((x + gain * np.fft.irfft(spectrum)).astype(np.float32)[np.newaxis], fs_hz=FS)
            name = f"normal_{machine}_{k:04d}"
            out.append(
                (Recording(name, Path(name), FS, None, lambda c=chunk: iter([c])), Clip(name, None, machine))
            )
    return out


def overlaps(name):
    """Whether a feature's band and BAND have frequencies in common."""
    low, high = causes.band(name)
    return low < BAND[1] and high > BAND[0]


def in_band(profile, names):
    """How much more of the map lies on a filter within BAND than on one below 700 Hz, which both machines share."""
    low = np.array([causes.band(name)[1] < 700.0 for name in names])
    return profile[[overlaps(name) for name in names]].mean() / max(profile[low].mean(), 1e-12)


def test_grad_cam_points_at_the_band_in_which_two_machines_differ(tmp_path):
    """Clips of one machine under the other's id: map, causes and sentence name the band, for log-odds and k-NN alike."""
    chosen = small(
        tmp_path, model="mobilenet_v2", window={"n_samples": 8000}, split=SPLIT, quantize="float32",
        features=[{"kind": "log_mel", "n_fft": 1024, "hop": 256, "n_mels": 128}],
        context={"over": "frames", "width": 16, "hop": 8}, network={"alpha": 0.35, "head": 32},
        train={"epochs": 20, "batch": 8, "learning_rate": 3e-3, "patience": 0},
    )  # fmt: skip
    run(chosen, tmp_path / "b", table=trainer_data.table(chosen, machines(30)))
    fresh = machines(8, seed=1)
    own = [(r, Clip(c.name, "normal", "id_00")) for r, c in fresh[:8]]
    strange = [(r, Clip(f"anomaly_{c.name}", "anomaly", "id_00")) for r, c in fresh[8:]]
    faulty, _ = explain.explain(tmp_path / "b", score_labelled(tmp_path / "b", own + strange).every)
    assert faulty.anomalous
    assert faulty.what == "Grad-CAM of the log-odds"
    profile = faulty.where.mean(0)
    # The map is eight bands of sixteen filters: its peak is one of them.
    assert any(overlaps(faulty.names[i]) for i in np.flatnonzero(profile > 0.99 * profile.max()))
    assert in_band(profile, faulty.names) > 2.0
    assert any(overlaps(c.feature) for c in faulty.causes)
    assert all(c.z <= causes.MAX_Z for c in faulty.causes)
    assert "kHz carries" in faulty.sentence
    assert min(pixels(plots.explanation(faulty))) > 200

    bundle = bundles.load(tmp_path / "b", "id_00")
    vectors = {id(r): next(explain.histories(bundle, r))[1] for r, _ in own + strange}
    outs = [bundle.judge.model(bundle.judge.features.patches(vectors[id(r)]))[1].copy() for r, _ in own]
    references = {"references": np.stack([scoring.embedding(o) for o in outs]), "group": np.zeros(len(outs))}
    rule = scoring.ScoreRule("knn", {"target": 0, "n_classes": 2})
    judge = replace(bundle.judge, scorer=scoring.build(rule, references))
    seen = explain.maps(judge, vectors[id(strange[0][0])])[1].mean(0)
    # The embedding of a clip far from all references leans on every map a little: the distance sees less sharply.
    assert in_band(seen, faulty.names) > 1.25
