"""A short `make fuzz`, what it has found so far, and that it finds what is planted."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from random import Random

import pytest

from benchmarks import fuzz
from benchmarks.bounds import FUZZ
from edge_agent import bundle, commands, config
from edge_agent.errors import BundleError, ConfigError

ROOT = Path(__file__).parents[1]

FLAT = {"growth_mib": 0.0, "inputs": 1000}
COUNTS = fuzz.shares(3000, 400, 400)


def test_some_thousand_mutants_are_decoded_or_refused_with_a_reason() -> None:
    """A short run over every kind of input: no crash, no hang, at least a tenth of the messages decode."""
    found = fuzz.run(11, fuzz.schedule(COUNTS, 0, 1), fuzz.corpus(), hang_s=FUZZ["hang_s"])
    figures = fuzz.judged([found], {}, 11, FLAT)
    assert figures["missed"] == []
    assert dict(found.inputs) == COUNTS
    assert all(found.well[kind] for kind in COUNTS)
    assert figures["decoded_share"] >= 0.1


def test_what_stands_in_the_corpus_is_what_is_said_of_it() -> None:
    """Each kind of input has an example that is well, each structured one also one that is refused."""
    for kind, seeds in fuzz.corpus().items():
        verdicts = {fuzz.TARGETS[kind](Random(f"{i}"), seed, seed.data) is None for seed in seeds for i in range(9 if kind == "command" else 1)}
        assert True in verdicts, kind
        if kind in ("json", "record_json", "wav", "config"):
            assert False in verdicts, kind


def test_a_mutant_is_made_again_by_its_name() -> None:
    """The same seed, kind and number give the same bytes, in whatever order they are asked for."""
    seeds = fuzz.corpus()
    names = [("json", 7), ("config", 3), ("f32le", 0)]
    once = [fuzz.one(3, kind, number, seeds)[0] for kind, number in names]
    again = [fuzz.one(3, kind, number, seeds)[0] for kind, number in reversed(names)]
    assert once == again[::-1]
    assert once != [fuzz.one(4, kind, number, seeds)[0] for kind, number in names]


def test_two_processes_share_out_every_number_once() -> None:
    """What the processes try together is each (kind, number) exactly once."""
    tried = Counter(item for worker in range(2) for item in fuzz.schedule(COUNTS, worker, 2))
    assert tried == Counter((kind, number) for kind, n in COUNTS.items() for number in range(n))


def crash(*_: object) -> None:
    raise KeyError("planted")


def hang(*_: object) -> None:
    time.sleep(1.0)


@pytest.mark.parametrize(("plant", "where"), [(crash, "crashes"), (hang, "hangs")])
def test_a_planted_fault_is_found(
    plant: Callable[..., None], where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A parser that raises, or that does not come back, is counted with its name, and the run is not well."""
    monkeypatch.setitem(fuzz.TARGETS, "command", plant)
    found = fuzz.run(1, iter([("command", 5)]), fuzz.corpus(), hang_s=0.05)
    assert [name for name in getattr(found, where) if name.startswith("command/5")]
    assert not fuzz.judged([found], {}, 1, FLAT)["ok"]


def test_growth_and_low_coverage_are_not_well() -> None:
    """Memory that rises over the same inputs, blocks or bytes that stay over new ones, or 94.9 % of the branches fail the run."""
    rising = [(i, 400 * i) for i in range(40)]
    assert fuzz.growth(rising) == pytest.approx(400 * 29)
    well = fuzz.Findings(Counter(json=100), Counter(json=50))
    assert fuzz.judged([well], {"config": 95.0}, 1, FLAT)["ok"]
    assert not fuzz.judged([well], {"config": 94.9}, 1, FLAT)["ok"]
    assert not fuzz.judged([well], {"config": 95.0}, 1, {"growth_mib": 0.3, "inputs": 1000})["ok"]
    assert not fuzz.judged([well], {"config": 95.0}, 1, None)["ok"]
    kept = fuzz.Findings(Counter(json=100), Counter(json=50), blocks=rising)
    assert not fuzz.judged([kept], {"config": 95.0}, 1, FLAT)["ok"]
    for mib, well_so in ((0.2, True), (0.3, False)):
        large = [(i, round(mib * 2**20 / 29 * i)) for i in range(40)]
        found = fuzz.Findings(Counter(json=100), Counter(json=50), large=large)
        assert fuzz.judged([found], {"config": 95.0}, 1, FLAT)["ok"] is well_so


#: In a process of its own: in a used one what is kept fills up memory that earlier tests have given back.
LEAKING = """
from benchmarks import fuzz
kept = []
fuzz.corpus = lambda: {"json": [fuzz.Seed("json/x", b"[1, 2, 3]")]}
fuzz.TARGETS["json"] = lambda *_: kept.append(bytearray(1024))
fuzz.main_repeated(1, 100)
"""


def test_a_parser_that_keeps_its_inputs_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """One kilobyte kept of each message shows over the same messages; over new ones one block of each, and one kilobyte of each."""
    done = subprocess.run([sys.executable, "-c", LEAKING], cwd=ROOT, check=True, capture_output=True, text=True, timeout=120)
    assert json.loads(done.stdout)["growth_mib"] > 4 * FUZZ["growth_mib"]
    kept: list[bytearray] = []
    monkeypatch.setattr(fuzz, "corpus", lambda: {"json": [fuzz.Seed("json/x", b"[1, 2, 3]")]})
    monkeypatch.setitem(fuzz.TARGETS, "json", lambda *_: kept.append(bytearray(8)))
    found = fuzz.run(1, (("json", i) for i in range(16_000)), fuzz.corpus(), hang_s=FUZZ["hang_s"])
    assert fuzz.growth(found.blocks) > FUZZ["growth_blocks"]
    assert fuzz.growth(found.large) < 2**20 * FUZZ["growth_mib"]
    monkeypatch.setitem(fuzz.TARGETS, "json", lambda *_: kept.append(bytearray(1024)))
    found = fuzz.run(1, (("json", i) for i in range(16_000)), fuzz.corpus(), hang_s=FUZZ["hang_s"])
    assert fuzz.growth(found.large) > 4 * 2**20 * FUZZ["growth_mib"]


def test_every_refusal_to_encode_has_its_words() -> None:
    """A chunk that a format cannot carry is refused by its encoder with what is wrong, never cut or bent."""
    said = fuzz.unencodable()
    assert len(said) == 10
    assert all(said)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('a: "\\UFFFFFFFF"', "valid YAML"),
        ('"\\ud800"', "file: got 'half a character"),
        ('"\\ud800": 1', "half a character"),
        ('database: "${file:a\\0b}"', "without the character NUL"),
        ('"": 1', "'': got an unknown key"),
        ("l0: &l0 [x]\n" + "".join(f"l{i + 1}: &l{i + 1} [{', '.join([f'*l{i}'] * 9)}]\n" for i in range(8)), "multiply"),
    ],
)  # fmt: skip
def test_a_configuration_that_used_to_end_in_a_python_error_is_refused(text: str, words: str) -> None:
    """What the fuzzer found in the configuration is a ConfigError that says what came."""
    with pytest.raises(ConfigError) as caught:
        config.parse(text, Path("/etc/config.yaml"), {}, fuzz.read_file, "pi")
    assert words in str(caught.value)
    str(caught.value).encode()


def test_the_home_of_somebody_unknown_is_a_plain_path() -> None:
    """`~nobody-at-all/x` used to end the start in a RuntimeError; whoever opens the file names it."""
    made = config.parse(
        "database: ~nobody-at-all/x.db\nsensors: {a: {topic: t, payload: json, fs_hz: 1, model: m}}",
        Path("/etc/config.yaml"), {}, fuzz.read_file, "pi",
    )  # fmt: skip
    assert made.database == Path("/etc/~nobody-at-all/x.db")


def test_a_manifest_nested_beyond_reason_is_refused() -> None:
    """bundle.json with ten thousand brackets used to end in a RecursionError; it is a BundleError that names the file."""
    with pytest.raises(BundleError, match=r"bundle\.json"):
        bundle.parse_manifest(Path("models/x"), b'{"name": ' + b"[" * 10_000)


def test_aliases_that_contain_themselves_are_told_soon() -> None:
    """A list used at 60 000 places that contains itself used to take 17 s, its mistake being told at each; now it is told once."""
    text = "l0: &l0 [x, *l0]\n" + "".join(f"l{i + 1}: &l{i + 1} [{', '.join([f'*l{i}'] * 9)}]\n" for i in range(5))
    began = time.process_time()
    with pytest.raises(ConfigError) as caught:
        config.parse(text, Path("/etc/config.yaml"), {}, fuzz.read_file, "pi")
    assert time.process_time() - began < 5.0
    assert str(caught.value).count("contains it") == 1


@pytest.mark.parametrize("field", ["for_s", "request_id", "windows", "sensor", "since"])
def test_a_number_of_four_hundred_digits_in_a_command_is_refused_with_an_answer(field: str) -> None:
    """It used to end the worker by an OverflowError; the refusal can be told to whoever asked."""
    with pytest.raises(commands.Unusable) as caught:
        commands.parse("shelve", b'{"sensor": "a", "%s": 1%s}' % (field.encode(), b"0" * 400))
    assert len(commands.result(caught.value.request_id, False, str(caught.value))) < 1000


def test_status_reads_a_database_that_the_environment_names_and_no_password() -> None:
    """Without secrets a reference is read where the key must be there, and is absent elsewhere."""
    text = 'database: "${env:DB}"\nmqtt: {username: "${env:U}", password: "${env:P}"}\nsensors: {a: {topic: "${env:T}", payload: json, fs_hz: 1, model: m}}'
    made = config.parse(text, Path("/etc/config.yaml"), {"DB": "/x.db", "T": "t"}, fuzz.read_file, "pi", secrets=False)
    assert (made.database, made.sensors["a"].topic, made.mqtt.password) == (Path("/x.db"), "t", None)
    with pytest.raises(ConfigError, match="environment variable DB, which is not set"):
        config.parse(text, Path("/etc/config.yaml"), {}, fuzz.read_file, "pi", secrets=False)
