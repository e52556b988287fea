"""A folder under models/: read, verified, ready to judge windows.

    models/NAME/  bundle.json       what follows, typed as `Manifest`
                  model.tflite      absent for `indicator`
                  calibration.npz   scores (n,) of healthy windows in time order; group (n,) class of each; start (n,)
                                    time of each window's first sample, s, where the recordings tell
                  score.npz         arrays of the score rule, where it has some: a centre, references, the
                                    dense layers that Grad-CAM goes back through
                  golden.npz        windows (k, C, n) int16 and window_scale; features (m, v, F), k <= m;
                                    scores (m,): re-scored at start-up on the device's own runtime
                  CARD.md           for people

The sha256 of every file is checked before a byte of it is interpreted; where a key is given, the signature of
bundle.json (`bundle.sig`, see `signing`) before that.
"""

from __future__ import annotations

import hashlib
import io
import math
import zipfile
import zlib
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import msgspec
import numpy as np

from edge_agent import scoring
from edge_agent.causes import Arrays
from edge_agent.errors import BundleError
from edge_agent.features import FeatureSet, FeatureSpec
from edge_agent.inference import TFLiteModel
from edge_agent.pipeline import Judge, no_model
from edge_agent.quality import Profile
from edge_agent.scoring import ScoreRule
from edge_agent.signals import F32, F64
from edge_agent.signing import Verifier
from edge_agent.thresholds import Threshold

SCHEMA = 1
MODEL, SCORE, CALIBRATION, GOLDEN, CARD = "model.tflite", "score.npz", "calibration.npz", "golden.npz", "CARD.md"
#: Largest |difference of score / threshold| at which a golden window is accepted.
GOLDEN_TOLERANCE = {"int8": 0.05, "float16": 0.02, "float32": 0.02, "none": 0.02}


@dataclass(frozen=True)
class Quantization:
    """type: int8, float16, float32, or none (no network); parity: the figures of the export."""

    type: str
    parity: dict[str, float] = field(default_factory=dict)
    note: str = ""


@dataclass(frozen=True)
class Residual:
    """Mean and standard deviation (F,) of the score's residual on healthy windows."""

    mean: tuple[float, ...]
    std: tuple[float, ...]


@dataclass(frozen=True)
class Manifest:
    """bundle.json. `classes` are the machine ids that a log_odds or knn bundle tells apart, in the order of its
    logits; `limits` the threshold of each, of which `threshold` is that of the rule's own target. `profile`: of healthy
    samples, for data quality; None in bundles of before, whose golden windows stand in."""

    schema: int
    name: str
    version: str
    model: str
    features: FeatureSpec
    score: ScoreRule
    threshold: Threshold
    residual: Residual
    quantization: Quantization
    files: dict[str, str]
    classes: tuple[str, ...] = ()
    limits: dict[str, Threshold] = field(default_factory=dict)
    unit: str | None = None
    training: dict[str, Any] = field(default_factory=dict)
    profile: Profile | None = None


@dataclass(frozen=True)
class Bundle:
    """A verified bundle. sha256 is that of bundle.json, which holds those of all other files.

    interval_s : from one calibration window to the next; None where the recordings did not tell
    """

    path: Path
    manifest: Manifest
    sha256: str
    judge: Judge
    threshold: Threshold
    calibration: F64
    interval_s: float | None = None


def sha256(data: bytes) -> str:
    """Hex digest."""
    return hashlib.sha256(data).hexdigest()


def read_manifest(path: Path, verifier: Verifier | None = None) -> Manifest:
    """Parse bundle.json of the folder; raises BundleError naming the field."""
    return parse_manifest(path, _trusted(path, verifier))


def load(
    path: Path, machine: str | None = None, *, golden: bool = True, verifier: Verifier | None = None
) -> Bundle:
    """Read a bundle and verify it: signature, hashes, operators, shapes, golden windows.

    verifier : a public key, without whose signature nothing of the bundle is interpreted
    machine  : where it is one of the bundle's classes, the score is that machine's log-odds and the
               limit is that machine's.
    Raises BundleError with the path, what is wrong and how to mend it.
    """
    text = _trusted(path, verifier)
    manifest = parse_manifest(path, text)
    files = _verified_files(path, manifest)
    try:
        features = FeatureSet(manifest.features)
        rule, threshold, calibration, interval_s = _for_machine(manifest, files, machine)
        scorer = scoring.build(rule, _arrays(files))
        model = _model(manifest, features, files)
    except (ValueError, TypeError, KeyError) as error:
        raise BundleError(f"{path}: bundle.json: {error}; train the bundle again") from error
    except BundleError as error:
        raise BundleError(f"{path}: {error}") from error
    n = len(features.names)
    mean, std = (np.asarray(v, np.float64) for v in (manifest.residual.mean, manifest.residual.std))
    if mean.shape != (n,) or std.shape != (n,):
        raise BundleError(
            f"{path}: bundle.json: residual has {mean.size} means and {std.size} stds for {n} features"
        )
    if rule.kind == "indicator" and rule.params["index"] >= n:
        raise BundleError(f"{path}: bundle.json: indicator index {rule.params['index']} for {n} features")
    spec, told = manifest.features, manifest.profile
    if told is not None and not told.fits(spec.fs_hz, spec.n_channels, spec.n_samples):
        raise BundleError(
            f"{path}: bundle.json: profile is not one of {spec.n_channels} channels of {spec.n_samples} samples at "
            f"{spec.fs_hz:g} Hz; train the bundle again"
        )
    bundle = Bundle(
        path, manifest, sha256(text), Judge(features, model, scorer, mean, std), threshold, calibration, interval_s
    )
    if golden:
        verify_golden(bundle, files, manifest)
    return replace(bundle, judge=replace(bundle.judge, profile=_profile(files, manifest)))


def same_rate(a_hz: float, b_hz: float) -> bool:
    """Whether two sampling rates differ by a clock's error at most (one in a thousand)."""
    return math.isclose(a_hz, b_hz, rel_tol=1e-3)


def check_sensor(bundle: Bundle, fs_hz: float, n_channels: int) -> None:
    """Raise BundleError where a sensor cannot use this bundle."""
    spec = bundle.manifest.features
    if not same_rate(spec.fs_hz, fs_hz):
        raise BundleError(
            f"{bundle.path}: trained for {spec.fs_hz:g} Hz, the sensor has fs_hz {fs_hz:g}: "
            "train a bundle for this rate"
        )
    if spec.n_channels != n_channels:
        raise BundleError(
            f"{bundle.path}: trained for {spec.n_channels} channel(s), the sensor lists {n_channels}: "
            "correct `channels` or train a bundle for them"
        )


def verify_golden(bundle: Bundle, files: dict[str, bytes], manifest: Manifest) -> float:
    """Re-score the golden windows on this machine; returns the largest |difference of ratios|.

    A float reference is compared under the bundle's own target class and threshold. Raises BundleError
    where a feature or a ratio differs by more than the tolerance of the quantization.
    """
    try:
        data = _npz_arrays(files, GOLDEN)
        windows, scale = data["windows"], float(data["window_scale"])
        features, scores = data["features"].astype(np.float32), data["scores"].astype(np.float64)
    except (ValueError, TypeError, KeyError) as error:
        raise BundleError(f"{bundle.path / GOLDEN}: {error}; export the bundle again") from error
    judge = replace(bundle.judge, scorer=scoring.build(manifest.score, _arrays(files)))
    n_frames = judge.features.n_frames
    for i, window in enumerate(windows):
        again = judge.vectors(window.astype(np.float32) * np.float32(scale))
        worst = float(np.abs(again - features[i][-n_frames:]).max())
        if not worst <= 0.01:
            raise BundleError(
                f"{bundle.path}: golden window {i}: a feature differs by {worst:.3g} standard deviations from "
                "the trained one; the bundle was made by another version: train it again"
            )
    worst = 0.0
    for vectors, expected in zip(features, scores, strict=True):
        try:
            value = judge.score(vectors).value
        except (ValueError, IndexError) as error:
            raise BundleError(
                f"{bundle.path}: score {manifest.score.kind} does not fit the model's outputs: {error}; model, score.npz "
                "and bundle.json do not belong together: export the bundle again"
            ) from error
        worst = max(worst, abs(value - expected) / manifest.threshold.value)
    tolerance = GOLDEN_TOLERANCE[manifest.quantization.type]
    if not worst <= tolerance:
        raise BundleError(
            f"{bundle.path}: golden windows score differently on this machine (ratio off by {worst:.3g}, "
            f"accepted {tolerance}): use another runtime version or export the bundle again"
        )
    return worst


def _profile(files: dict[str, bytes], manifest: Manifest) -> Profile:
    """What healthy samples are like before any feature; by the golden windows where the manifest does not say."""
    if manifest.profile is not None:
        return manifest.profile
    with np.load(io.BytesIO(files[GOLDEN]), allow_pickle=False) as data:
        windows = data["windows"].astype(np.float32) * np.float32(data["window_scale"])
    return Profile.of(windows, manifest.features.fs_hz)


def write(
    path: Path,
    manifest: Manifest,
    *,
    model: bytes | None,
    calibration: F64,
    groups: Any | None,
    starts: Any | None = None,
    golden_windows: F32,
    golden_features: F32,
    card: str,
    arrays: Arrays = MappingProxyType({}),
) -> Bundle:
    """Write a bundle and load it again, so that nothing is shipped that a device would refuse.

    golden_windows  : (k, C, n) float; stored as int16, which makes them the golden windows
    golden_features : (m, v, F) standardised, m >= k; the first k are replaced by those of the stored
                      windows; v is the number of vectors a score needs
    arrays          : those of the score rule
    manifest.files is filled in here. The folder is written beside and then renamed into place.
    Raises BundleError, and writes nothing, where a number is NaN or infinite.
    """
    import shutil

    _check_finite(
        **{f"{SCORE} {name}": a for name, a in arrays.items()},
        residual=(manifest.residual.mean, manifest.residual.std),
        standardisation=(manifest.features.offset, manifest.features.scale),
        threshold=[limit.value for limit in (manifest.threshold, *manifest.limits.values())],
        calibration=calibration,
        golden_windows=golden_windows,
        golden_features=golden_features,
    )
    files: dict[str, bytes] = {}
    if model is not None:
        files[MODEL] = model
    if arrays:
        files[SCORE] = _npz(**{name: np.asarray(a, np.float32) for name, a in arrays.items()})
    judge = _judge_for_writing(manifest, files)
    peak = float(np.abs(golden_windows).max()) or 1.0
    scale = peak / 32767.0
    windows = np.round(golden_windows / scale).astype(np.int16)
    features = np.array(golden_features, np.float32)
    for i, window in enumerate(windows):
        features[i][-judge.features.n_frames :] = judge.vectors(window.astype(np.float32) * np.float32(scale))
    scores = np.array([judge.score(v).value for v in features])
    healthy: dict[str, Any] = {"scores": np.asarray(calibration, np.float64)}
    if groups is not None:
        healthy["group"] = np.asarray(groups, np.int16)
    if starts is not None:
        healthy["start"] = np.asarray(starts, np.float64)
    files[CALIBRATION] = _npz(**healthy)
    files[GOLDEN] = _npz(windows=windows, window_scale=np.float64(scale), features=features, scores=scores)
    files[CARD] = card.encode()
    manifest = replace(manifest, files={name: sha256(data) for name, data in files.items()})
    files["bundle.json"] = msgspec.json.format(msgspec.json.encode(manifest), indent=1) + b"\n"
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_name(path.name + ".new")
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir()
    for name, data in files.items():
        (fresh / name).write_bytes(data)
    bundle = load(fresh)
    shutil.rmtree(path, ignore_errors=True)
    fresh.rename(path)
    return replace(bundle, path=path)


def _check_finite(**arrays: Any) -> None:
    for name, a in arrays.items():
        bad = int((~np.isfinite(np.asarray(a, np.float64))).sum())
        if bad:
            raise BundleError(
                f"{name.replace('_', ' ')}: {bad} of {np.size(a)} numbers are NaN or infinite; expected finite ones: look for "
                "damaged recordings, or lower train.learning_rate"
            )


def _judge_for_writing(manifest: Manifest, files: dict[str, bytes]) -> Judge:
    features = FeatureSet(manifest.features)
    mean, std = (np.asarray(v, np.float64) for v in (manifest.residual.mean, manifest.residual.std))
    return Judge(features, _model(manifest, features, files), scoring.build(manifest.score, _arrays(files)), mean, std)


def _model(manifest: Manifest, features: FeatureSet, files: dict[str, bytes]) -> Any:
    if MODEL not in files:
        if manifest.score.kind != "indicator":
            raise BundleError(
                f"{MODEL} is missing, and score {manifest.score.kind} needs it: copy the whole folder"
            )
        return no_model
    return TFLiteModel(
        files[MODEL], features.n_patches, (manifest.features.context.width, len(features.names))
    )


def _arrays(files: dict[str, bytes]) -> Arrays:
    """The score rule's arrays; empty where the bundle has none."""
    if SCORE not in files:
        return {}
    return {name: a.astype(np.float32) for name, a in _npz_arrays(files, SCORE).items()}


def _npz_arrays(files: dict[str, bytes], name: str) -> dict[str, Any]:
    """The arrays of one file, numbers only; ValueError names the file where it is damaged or would have to be unpickled."""
    try:
        with np.load(io.BytesIO(files[name]), allow_pickle=False) as data:
            return {key: data[key] for key in data.files}
    except (ValueError, TypeError, SyntaxError, OSError, EOFError, RuntimeError, AttributeError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(f"{name} cannot be read ({error})") from error


def _for_machine(
    manifest: Manifest, files: dict[str, bytes], machine: str | None
) -> tuple[ScoreRule, Threshold, F64, float | None]:
    data = _npz_arrays(files, CALIBRATION)
    scores: F64 = data["scores"].astype(np.float64)
    groups = data.get("group")
    rule, threshold = manifest.score, manifest.threshold
    if groups is None or not manifest.classes:
        return rule, threshold, scores, _interval(data.get("start"))
    target = manifest.classes.index(machine) if machine in manifest.classes else int(rule.params["target"])
    if target != rule.params["target"]:
        rule = replace(rule, params={**rule.params, "target": target})
        threshold = manifest.limits[manifest.classes[target]]
    own = groups == target
    return rule, threshold, scores[own], _interval(None if "start" not in data else data["start"][own])


def _interval(start: Any | None) -> float | None:
    """Seconds from one calibration window to the next, usually; None where most of them do not tell."""
    if start is None or len(start) < 3:
        return None
    step = np.diff(start.astype(np.float64))
    usual = float(np.median(step))
    return usual if usual > 0.0 and math.isfinite(usual) else None


def parse_manifest(path: Path, text: bytes) -> Manifest:
    try:
        manifest = msgspec.json.decode(text, type=Manifest)
    except (msgspec.DecodeError, msgspec.ValidationError, ValueError, RecursionError) as error:
        raise BundleError(f"{path / 'bundle.json'}: {error}; train the bundle again") from error
    if manifest.schema != SCHEMA:
        raise BundleError(
            f"{path / 'bundle.json'}: schema {manifest.schema}, this version reads {SCHEMA}: "
            "update the agent or train the bundle again"
        )
    if manifest.quantization.type not in GOLDEN_TOLERANCE:
        raise BundleError(
            f"{path / 'bundle.json'}: quantization type {manifest.quantization.type!r}; expected one of "
            f"{', '.join(GOLDEN_TOLERANCE)}"
        )
    return manifest


def _trusted(path: Path, verifier: Verifier | None) -> bytes:
    """The bytes of bundle.json, read once; with a key only where it has signed them."""
    text = _read(path, "bundle.json")
    if verifier is not None:
        verifier.verify(path, text)
    return text


def _verified_files(path: Path, manifest: Manifest) -> dict[str, bytes]:
    for name in (CALIBRATION, GOLDEN):
        if name not in manifest.files:
            raise BundleError(f"{path}: bundle.json lists no {name}: train the bundle again")
    files = {}
    for name, expected in manifest.files.items():
        if Path(name).name != name:
            raise BundleError(f"{path}: bundle.json lists {name!r}; expected plain file names")
        data = _read(path, name)
        if (got := sha256(data)) != expected:
            raise BundleError(
                f"{path / name}: sha256 is {got[:16]}…, bundle.json says {expected[:16]}…: the file was "
                "changed or cut off; copy the bundle again"
            )
        files[name] = data
    return files


def _read(path: Path, name: str) -> bytes:
    try:
        return (path / name).read_bytes()
    except OSError as error:
        raise BundleError(
            f"{path / name}: {error.strerror or error}; expected a bundle folder with bundle.json, "
            f"{MODEL}, {CALIBRATION} and {GOLDEN}"
        ) from error


def _npz(**arrays: Any) -> bytes:
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    return buffer.getvalue()
