"""A recipe: one YAML file that says everything about a training run, so that it can be run again.

Every mistake is found in one pass and reported with its key, its value and what was expected
(`ConfigError`, exit code 78). Relative paths resolve from the recipe's folder.
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from edge_agent import features, scoring, thresholds
from edge_agent.errors import ConfigError, Problem
from edge_agent.features import Context, Family
from edge_agent.recordings import open_recordings
from edge_agent.scoring import ScoreRule
from trainer import architectures

QUANTIZE = ("int8", "float16", "float32")
SIMULATORS = ("demo", "fan", "machines")
INPUTS = ("standard", "range")
SPLIT_BY = ("auto", "time", "recording", "machine")
#: Numbers that one run such as "0-299" may stand for.
MOST_IDS = 10_000
#: The parts of the data that train and calibrate where a recipe gives one of the two only.
TRAIN, CALIBRATE = (0.0, 0.7), (0.7, 1.0)
RECIPES = Path(__file__).parent / "recipes"


@dataclass(frozen=True)
class Source:
    """Where recordings come from: a path, or a simulator.

    path     : file or folder of recordings; None for a simulator
    fs_hz    : for formats that state none
    channels : 0-based indexes to keep; None keeps all
    machine  : machine id of everything here; None reads it from the file names or sub-folders
    labels   : False: a label in a name is not read, every recording counts as healthy
    verdicts : labels by time, as `edge-agent export --labels` writes them: they cut the recordings
    simulate : "demo" (the demo's machine, `seconds` of it), "fan" (`clips` clips of `seconds` for each
               number in `ids`, and `anomalies` faulty clips each) or "machines" (`clips` healthy snapshots of
               `seconds` at `fs_hz` (25600) of each of the random machines `ids`)
    """

    path: Path | None = None
    fs_hz: float | None = None
    channels: tuple[int, ...] | None = None
    machine: str | None = None
    labels: bool = True
    simulate: str | None = None
    seconds: float = 10.0
    ids: tuple[int, ...] = (0,)
    clips: int = 40
    anomalies: int = 0
    seed: int = 0
    verdicts: Path | None = None


@dataclass(frozen=True)
class Cut:
    """Window length and hop, in samples or in seconds; the hop is the length where it is not given."""

    n_samples: int | None = None
    hop_samples: int | None = None
    duration_s: float | None = None
    hop_s: float | None = None

    def samples(self, fs_hz: float) -> tuple[int, int]:
        """(n_samples, hop_samples) at a sampling rate: (Cut(duration_s=10)).samples(16000) = 160000 twice."""
        n = self.n_samples if self.n_samples is not None else round((self.duration_s or 0.0) * fs_hz)
        if self.hop_samples is not None:
            return n, self.hop_samples
        return n, n if self.hop_s is None else round(self.hop_s * fs_hz)


@dataclass(frozen=True)
class Split:
    """Which healthy data trains, which calibrates; never by window.

    by        : "time" cuts once through time; "recording" and "machine" deal out whole recordings or
                machines; "auto" is "recording" where there are at least ten healthy ones, else "time"
    train, calibrate : two numbers [from, to) each: whole numbers are counts (windows in time order,
                recordings), numbers up to 1 with a decimal point are shares; for "machine" also lists of ids.
                Where neither is given 0.7 of the data train and the rest calibrates, or up to 2/3 of them
                where the limit needs as many; one alone leaves the other at 0.0 to 0.7 or 0.7 to 1.0
    anomalies : labelled anomalous recordings that `weak_ae` may learn from
    """

    by: str = "auto"
    train: tuple[float, float] | tuple[str, ...] | None = None
    calibrate: tuple[float, float] | tuple[str, ...] | None = None
    anomalies: int = 0


@dataclass(frozen=True)
class Training:
    """epochs: at most; patience: epochs without a better validation loss before stopping, 0 never stops.

    validation : share of the training part that is held out for early stopping
    overlap    : training patches are cut this many times as densely as in scoring, and every epoch sees as many
                 as without, drawn at random: a small set of clips is then never seen twice alike
    options    : those of the architecture's own training, such as stage2 of weak_ae
    """

    epochs: int = 100
    batch: int = 32
    learning_rate: float = 1e-3
    weight_decay: float = 0.0
    patience: int = 10
    validation: float = 0.15
    seed: int = 0
    overlap: int = 1
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Limit:
    """How the threshold is fitted to the calibration scores."""

    method: str = "gamma"
    false_alarm_rate: float = 1e-3


@dataclass(frozen=True)
class Recipe:
    """One training run.

    input  : "standard" (every feature has mean 0 and deviation 1 on the training part) or "range" (all values
             stretched alike into [0, 1], for networks that give pictures)
    about  : for the card: whose data, under which licence, what to expect
    origin : the file it came from, for messages and the bundle's provenance
    """

    name: str
    model: str
    data: tuple[Source, ...]
    window: Cut
    features: tuple[Family, ...]
    context: Context
    score: ScoreRule
    split: Split = Split()
    train: Training = Training()
    threshold: Limit = Limit()
    quantize: str = "int8"
    network: Mapping[str, Any] = field(default_factory=dict)
    input: str = "standard"
    unit: str | None = None
    about: str = ""
    origin: str = "command line"


# ------------------------------------------------------------------------------------------ defaults

#: Networks of convolutions, which see pictures: time along one side, frequency along the other.
PICTURES = ("deep_svdd", "vae", "svdd_vae", "wgan_gp", "classifier")
#: Sampling rates from here on, with WAV or FLAC files, are taken for sound.
_AUDIO_SUFFIXES = (".wav", ".flac")


def is_sound(model: str, path: Path | None) -> bool:
    """Whether defaults for sound apply: a sound model, or a path that holds WAV or FLAC files."""
    if model in ("mobilenet_v2", "weak_ae"):
        return True
    if path is None:
        return False
    if path.is_file():
        return path.suffix.lower() in _AUDIO_SUFFIXES
    return any(p.suffix.lower() in _AUDIO_SUFFIXES for p in path.rglob("*"))


def frame_length(fs_hz: float) -> int:
    """Samples of 64 ms, at least 512, rounded up to a power of two: 1024 at 16 kHz, 4096 at 44.1 kHz."""
    return 1 << math.ceil(math.log2(max(512.0, 0.064 * fs_hz)) - 1e-9)


def default_mapping(name: str, model: str, path: Path, fs_hz: float | None) -> dict[str, Any]:
    """The recipe of `fit --model NAME --data PATH --fs HZ`, as the mapping that a YAML file would give.
    Where `fs_hz` is not given, the rate of the first recording is taken; RecordingError where there is none.

    vibration : windows of 8192 points without overlap; six statistics and eight band powers that share
                the spectrum up to fs/2 (all logarithmic); `lstm_ae` sees the last 8 windows;
                `indicator` is the RMS; networks of pictures (`deep_svdd`, `vae`, `svdd_vae`, `wgan_gp`,
                `classifier`) see a scalogram of 64 × 64
    sound     : windows of 10 s in frames of 64 ms or a little more (a power of two: 1024 points at 16 kHz,
                4096 at 44.1 and 48 kHz) every half; `weak_ae` 128 mels × 32 frames of twice the length;
                `mobilenet_v2` 128 mels × 64 frames; `dense_ae` 128 mels × 5 frames (the DCASE baseline's);
                `lstm_ae` 32 mels × 32 frames; networks of pictures 64 mels × 64 frames
    split     : 0.7 train, of which 0.15 stop the training early, 0.3 calibrate; more, up to 2/3, where
                0.3 are less than the limit needs (10 windows)
    """
    recipe: dict[str, Any] = {"name": name, "model": model, "data": {"path": str(path)}}
    if fs_hz is not None:
        recipe["data"]["fs_hz"] = fs_hz
    sound = is_sound(model, path)
    if model == "indicator":
        recipe["window"] = {"duration_s": 10.0} if sound else {"n_samples": 8192}
        recipe["features"] = [{"kind": "time_domain", "names": ["rms"]}]
        recipe["score"] = {"kind": "indicator", "feature": "rms"}
    elif sound:
        recipe["window"] = {"duration_s": 10.0}
        # As log_mel's own defaults, written out: the recipe says what was trained.
        n_fft = frame_length(fs_hz or next(open_recordings(path)).fs_hz)
        mel = {"kind": "log_mel", "n_fft": n_fft, "hop": n_fft // 2, "n_mels": 128}
        context = {"over": "frames", "width": 5, "hop": 5}
        if model == "weak_ae":
            mel["n_fft"], context = 2 * n_fft, {"over": "frames", "width": 32, "hop": 32}
        elif model == "mobilenet_v2":
            context = {"over": "frames", "width": 64, "hop": 32}
        elif model == "lstm_ae":
            mel["n_mels"], context = 32, {"over": "frames", "width": 32, "hop": 32}
        elif model in PICTURES:
            mel["n_mels"], context = 64, {"over": "frames", "width": 64, "hop": 32}
        recipe["features"], recipe["context"] = [mel], context
    elif model in PICTURES:
        recipe["window"] = {"n_samples": 8192}
        recipe["features"] = [{"kind": "scalogram", "size": 64}]
        recipe["context"] = {"over": "frames", "width": 64, "hop": 64}
    else:
        recipe["window"] = {"n_samples": 8192}
        bands = {"kind": "spectral", "mode": "bands", "n_bands": 8, "log": True}
        statistics = ["rms", "kurtosis", "crest_factor", "shape_factor", "impulse_factor", "peak_to_peak"]
        recipe["features"] = [{"kind": "time_domain", "names": statistics, "log": True}, bands]
        if model == "lstm_ae":
            recipe["context"] = {"over": "windows", "width": 8}
    return recipe


# ------------------------------------------------------------------------------------------- parsing


def load(path: Path) -> Recipe:
    """Read a recipe file; raises ConfigError with every mistake."""
    try:
        raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(
            str(path), [Problem("recipe", error.strerror or str(error), "a readable YAML file")]
        ) from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(
            str(path), [Problem("recipe", " ".join(str(error).split()), "valid YAML in UTF-8")]
        ) from error
    return parse(raw, origin=str(path), folder=path.parent)


def parse(raw: Any, *, origin: str = "command line", folder: Path = Path()) -> Recipe:
    """A mapping, as YAML gives it, into a Recipe; pure but for looking whether data paths exist."""
    problems: list[Problem] = []
    top = _Reader("", raw, problems)
    name = top.text(
        "name", check=lambda s: re.fullmatch(r"[a-z0-9_-]+", s) is not None, expected="an id [a-z0-9_-]+"
    )
    known = (*architectures.names(), "indicator")
    model = top.text("model", check=lambda s: s in known, expected=f"one of {', '.join(known)}")
    sources = tuple(_source(reader, folder) for reader in top.sections("data"))
    window = _cut(top.section("window"))
    families = tuple(_family(reader) for reader in top.sections("features"))
    known_model = model in architectures.names()
    defaults = architectures.defaults(model) if known_model else architectures.INDICATOR
    context = _context(top.section("context", default=dict(defaults.context)))
    score = _score(top.section("score", default=dict(defaults.score)), defaults.rules, model)
    split = _split(top.section("split", default={}))
    train = _training(top.section("train", default={}), model)
    if train.overlap > (context.hop if context.over == "frames" else 1):
        problems.append(
            Problem(
                "train.overlap",
                str(train.overlap),
                "at most context.hop, and 1 where the context is over windows",
            )
        )
    threshold = _limit(top.section("threshold", default={}))
    quantize = top.text(
        "quantize", default="int8", check=lambda s: s in QUANTIZE, expected=f"one of {', '.join(QUANTIZE)}"
    )
    given_input = top.text(
        "input", default=defaults.input, check=INPUTS.__contains__, expected=f"one of {', '.join(INPUTS)}"
    )
    network = top.mapping("network")
    if known_model:
        parameters = architectures.parameters(model)
        for key in sorted(set(network) - set(parameters)):
            problems.append(_unknown(f"network.{key}", network[key], parameters))
    unit = top.text("unit", default="") or None
    about = " ".join(top.text("about", default="").split())
    top.finish()
    if problems:
        raise ConfigError(origin, problems)
    return Recipe(
        name,
        model,
        sources,
        window,
        families,
        context,
        score,
        split,
        train,
        threshold,
        quantize,
        network,
        given_input,
        unit,
        about,
        origin,
    )


class _Reader:
    """Takes typed values out of one mapping and notes every mistake instead of stopping at the first."""

    def __init__(self, where: str, raw: Any, problems: list[Problem]) -> None:
        self.where, self.problems, self.asked = where, problems, set[str]()
        self.raw: Mapping[str, Any] = {}
        if isinstance(raw, Mapping):
            self.raw = {str(k): v for k, v in raw.items()}
        else:
            self.bad(where or "recipe", raw, "a mapping of keys to values")

    def bad(self, where: str, value: Any, expected: str) -> None:
        self.problems.append(Problem(where, repr(value)[:80], expected))

    def key(self, key: str) -> str:
        return f"{self.where}.{key}" if self.where else key

    def get(self, key: str) -> Any:
        self.asked.add(key)
        return self.raw.get(key)

    def text(
        self,
        key: str,
        *,
        default: str | None = None,
        check: Callable[[str], bool] | None = None,
        expected: str = "text",
    ) -> str:
        value = self.get(key)
        if value is None and default is not None:
            return default
        if not isinstance(value, str) or (check is not None and not check(value)):
            self.bad(self.key(key), "nothing" if value is None else value, expected)
            return default or ""
        return value

    def number(self, key: str, default: float | None, low: float, high: float, *, whole: bool = False) -> Any:
        value = self.get(key)
        if value is None:
            return default
        expected = f"a {'whole ' if whole else ''}number from {low:g} to {high:g}"
        if isinstance(value, str):  # YAML 1.1 reads 1e-4 as text
            try:
                value = float(value)
            except ValueError:
                self.bad(self.key(key), value, expected)
                return default
        ok = isinstance(value, int if whole else (int, float)) and not isinstance(value, bool)
        if not (ok and low <= value <= high):
            self.bad(self.key(key), value, expected)
            return default
        return value if whole else float(value)

    def flag(self, key: str, default: bool) -> bool:
        value = self.get(key)
        if value is not None and not isinstance(value, bool):
            self.bad(self.key(key), value, "true or false")
        return default if not isinstance(value, bool) else value

    def indexes(self, key: str) -> tuple[int, ...] | None:
        value = self.get(key)
        if value is None:
            return None
        found: list[int] = []
        for item in value if isinstance(value, list) else ():
            run = re.fullmatch(r"(\d{1,6})-(\d{1,6})", item) if isinstance(item, str) else None
            if run is not None and int(run[1]) <= int(run[2]) < int(run[1]) + MOST_IDS:
                found += range(int(run[1]), int(run[2]) + 1)
            elif type(item) is int and item >= 0:
                found.append(item)
            else:
                found = []
                break
        if not found:
            self.bad(self.key(key), value, "a list of 0-based numbers and runs of them such as [0, 4-7]")
            return None
        return tuple(found)

    def mapping(self, key: str) -> dict[str, Any]:
        value = self.get(key)
        if value is not None and not isinstance(value, Mapping):
            self.bad(self.key(key), value, "a mapping of keys to values")
        return {str(k): v for k, v in value.items()} if isinstance(value, Mapping) else {}

    def section(self, key: str, default: Mapping[str, Any] | None = None) -> _Reader:
        value = self.get(key)
        if value is None:
            if default is None:
                self.bad(self.key(key), "nothing", "this section")
            value = default or {}
        return _Reader(self.key(key), value, self.problems)

    def sections(self, key: str) -> list[_Reader]:
        value = self.get(key)
        if value is None or value == []:
            self.bad(self.key(key), "nothing", "a mapping, or a list of mappings")
            return []
        if not isinstance(value, list):
            return [_Reader(self.key(key), value, self.problems)]
        return [_Reader(f"{self.key(key)}[{i}]", one, self.problems) for i, one in enumerate(value)]

    def finish(self) -> None:
        for key in sorted(set(self.raw) - self.asked):
            self.problems.append(_unknown(self.key(key), self.raw[key], self.asked))


def _unknown(where: str, value: Any, known: Any) -> Problem:
    near = difflib.get_close_matches(where.rsplit(".", 1)[-1], list(known), 1, 0.5)
    hint = f"; did you mean {near[0]}?" if near else ""
    return Problem(
        where, f"an unknown key (value {repr(value)[:60]})", f"one of {', '.join(sorted(known))}{hint}"
    )


def _source(r: _Reader, folder: Path) -> Source:
    simulate = r.text(
        "simulate", default="", check=lambda s: s in SIMULATORS, expected=f"one of {', '.join(SIMULATORS)}"
    )
    given = r.text("path", default="")
    path = (folder / given) if given else None
    if bool(path) == bool(simulate) and "simulate" not in {p.where.rsplit(".", 1)[-1] for p in r.problems}:
        r.bad(r.where, dict(r.raw), "either `path` (a file or folder of recordings) or `simulate`")
    if path is not None and not path.exists():
        r.bad(r.key("path"), str(path), "an existing file or folder")
    judged = r.text("verdicts", default="")
    verdicts = (folder / judged) if judged else None
    if verdicts is not None and (path is None or not verdicts.is_file()):
        r.bad(r.key("verdicts"), judged, "the CSV of `edge-agent export --labels`, beside a `path`")
    source = Source(
        path,
        r.number("fs_hz", None, 1e-3, 1e7),
        r.indexes("channels"),
        r.text(
            "machine",
            default="",
            check=lambda s: re.fullmatch(r"[a-z0-9_-]+", s) is not None,
            expected="an id",
        )
        or None,
        r.flag("labels", True),
        simulate or None,
        r.number("seconds", 10.0, 0.1, 1e6),
        r.indexes("ids") or (0,),
        r.number("clips", 40, 1, 10_000, whole=True),
        r.number("anomalies", 0, 0, 10_000, whole=True),
        r.number("seed", 0, 0, 2**31 - 1, whole=True),
        verdicts,
    )
    r.finish()
    return source


def _cut(r: _Reader) -> Cut:
    cut = Cut(
        r.number("n_samples", None, 16, 1e8, whole=True),
        r.number("hop_samples", None, 1, 1e8, whole=True),
        r.number("duration_s", None, 1e-3, 3600),
        r.number("hop_s", None, 1e-3, 3600),
    )
    samples = cut.n_samples is not None or cut.hop_samples is not None
    seconds = cut.duration_s is not None or cut.hop_s is not None
    if samples == seconds or (cut.n_samples is None and cut.duration_s is None):
        r.bad(r.where, dict(r.raw), "{n_samples, hop_samples} or {duration_s, hop_s}")
    r.finish()
    return cut


def _family(r: _Reader) -> Family:
    known = features.kinds()
    kind = r.text("kind", check=lambda s: s in known, expected=f"one of {', '.join(known)}")
    params = {k: v for k, v in r.raw.items() if k != "kind"}
    if kind in known:
        parameters = features.parameters(kind)
        r.problems += [
            _unknown(r.key(key), params[key], parameters) for key in sorted(set(params) - set(parameters))
        ]
    return Family(kind, params)


def _context(r: _Reader) -> Context:
    context = Context(
        r.text(
            "over", default="frames", check=lambda s: s in ("frames", "windows"), expected="frames or windows"
        )
        or "frames",
        r.number("width", 1, 1, 10_000, whole=True),
        r.number("hop", 1, 1, 10_000, whole=True),
        r.number("max_gap_s", None, 0, 1e9),
    )
    r.finish()
    return context


def _score(r: _Reader, rules: tuple[str, ...], model: str) -> ScoreRule:
    kind = r.text(
        "kind", default=rules[0], check=lambda s: s in rules, expected=f"{' or '.join(rules)}, for {model}"
    )
    params: dict[str, Any] = {}
    if kind == "indicator":
        params["feature"] = r.text("feature", expected="the name of one feature, such as rms")
    for key, known in scoring.SETTINGS.get(kind, {}).items():
        if isinstance(known[0], str):
            expected = f"one of {', '.join(known)}"
            params[key] = r.text(key, default=known[0], check=known.__contains__, expected=expected)
        else:
            low, high, default = known
            params[key] = r.number(key, default, low, high, whole=isinstance(default, int))
    r.finish()
    return ScoreRule(kind, params)


def _split(r: _Reader) -> Split:
    by = r.text("by", default="auto", check=lambda s: s in SPLIT_BY, expected=f"one of {', '.join(SPLIT_BY)}")
    train, calibrate = _range(r, "train", by), _range(r, "calibrate", by)
    if train is not None or calibrate is not None:
        train, calibrate = train or TRAIN, calibrate or CALIBRATE
        parts = (train, calibrate)
        if all(not isinstance(p[0], str) for p in parts) and max(train[0], calibrate[0]) < min(
            train[1], calibrate[1]
        ):
            r.bad(r.key("calibrate"), list(calibrate), f"no overlap with train {list(train)}")
        if all(isinstance(p[0], str) for p in parts) and set(train) & set(calibrate):
            r.bad(r.key("calibrate"), list(calibrate), f"no machine of train {list(train)}")
    split = Split(by or "auto", train, calibrate, r.number("anomalies", 0, 0, 100_000, whole=True))
    r.finish()
    return split


def _range(r: _Reader, key: str, by: str) -> Any:
    value = r.get(key)
    if value is None:
        return None
    if by == "machine" and isinstance(value, list) and value and all(isinstance(v, str) for v in value):
        return tuple(value)
    if (
        isinstance(value, list)
        and len(value) == 2
        and all(isinstance(v, (int, float)) and not isinstance(v, bool) for v in value)
        and 0 <= value[0] < value[1]
        and (all(type(v) is int for v in value) or value[1] <= 1.0)
    ):
        return tuple(value)
    r.bad(r.key(key), value, "[from, to): two counts such as [0, 150] or two shares such as [0.0, 0.7]")
    return None


def _training(r: _Reader, model: str) -> Training:
    d = Training()
    training = Training(
        r.number("epochs", d.epochs, 1, 100_000, whole=True),
        r.number("batch", d.batch, 1, 65536, whole=True),
        r.number("learning_rate", d.learning_rate, 1e-8, 1.0),
        r.number("weight_decay", d.weight_decay, 0.0, 1.0),
        r.number("patience", d.patience, 0, 100_000, whole=True),
        r.number("validation", d.validation, 0.0, 0.5),
        r.number("seed", d.seed, 0, 2**31 - 1, whole=True),
        r.number("overlap", d.overlap, 1, 64, whole=True),
        _options(r, architectures.options(model) if model in architectures.names() else {}),
    )
    r.finish()
    return training


def _options(r: _Reader, known: Mapping[str, Any]) -> dict[str, Any]:
    """Those of the architecture's `train` that are given, each of the type of its default."""
    given: dict[str, Any] = {}
    for key, default in known.items():
        value: Any
        if isinstance(default, bool):
            value = r.flag(key, default)
        elif isinstance(default, str):
            value = r.text(key, default=default)
        else:
            value = r.number(key, default, 0, 1e6, whole=isinstance(default, int))
        if key in r.raw:
            given[key] = value
    return given


def _limit(r: _Reader) -> Limit:
    methods = thresholds.METHODS
    limit = Limit(
        r.text(
            "method", default="gamma", check=lambda s: s in methods, expected=f"one of {', '.join(methods)}"
        ),
        r.number("false_alarm_rate", 1e-3, 1e-6, 0.5),
    )
    r.finish()
    return limit
