"""The Debian package and the completion, as far as they can be held without a fresh system (`make deb-test` has those)."""

from __future__ import annotations

import argparse
import configparser
import itertools
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks import _scores, deb, elsewhere
from deploy.deb import build
from deploy.deb.roots import RELEASES, Target, UnreachableError
from edge_agent import __version__, cli, completion
from edge_agent.config import load

ROOT = Path(__file__).parent.parent


def completed(*words: str) -> set[str]:
    """What bash offers after these words, the last of which is being typed."""
    line = " ".join(f"'{word}'" for word in words)
    script = completion.bash(cli._parser()) + (
        f"COMP_WORDS=({line}); COMP_CWORD={len(words) - 1}; _edge_agent; printf '%s\\n' \"${{COMPREPLY[@]}}\""
    )
    done = subprocess.run(["bash", "-euc", script], capture_output=True, text=True, check=True)
    assert done.stderr == ""
    return set(done.stdout.split())


def test_completion_knows_every_command_and_option() -> None:
    """After `edge-agent` bash offers each subcommand, and after each of them each of its options."""
    (commands,) = (a for a in cli._parser()._actions if isinstance(a, argparse._SubParsersAction))
    assert set(commands.choices) <= completed("edge-agent", "")
    for name in ("check", "export", "commission"):
        options = {s for action in commands.choices[name]._actions for s in action.option_strings}
        assert options == {s for s in completed("edge-agent", name, "-") if s.startswith("-")}


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        (["bundle", "a"], {"activate"}),
        (["bundle", "install", "--js"], {"--json"}),
        (["export", "--format", ""], {"csv", "json"}),
        (["run", "-c", ""], set()),
        (["bundle", "install", "/srv/"], set()),
    ],
)
def test_completion_in_place(words: list[str], offered: set[str]) -> None:
    """Subcommands of subcommands, choices of an option; where a file belongs nothing, so that bash completes names of files."""
    assert completed("edge-agent", *words) == offered


def test_completion_command_prints_the_script(capsys: pytest.CaptureFixture[str]) -> None:
    """`source <(edge-agent completion)` is what the package installs as a file."""
    assert cli.main(["completion"]) == 0
    assert capsys.readouterr().out == completion.bash(cli._parser())


def test_package_has_no_path_of_install_sh(tmp_path: Path) -> None:
    """Unit and sample configuration name the package's own folders, and the sample is sound as it stands."""
    unit, sample = build.installed_text("edge-agent.service"), build.installed_text("edge-agent.example.yaml")
    assert deb.unit_values(unit, "ExecStart") == ["/usr/lib/edge-agent/venv/bin/edge-agent run -c /etc/edge-agent/config.yaml"]
    # It would hide /proc/cpuinfo, without which XNNPACK does not start.
    assert deb.unit_values(unit, "ProcSubset") == []
    path = tmp_path / "config.yaml"
    path.write_text(sample)
    config = load(path)
    assert [str(s.model) for s in config.sensors.values()] == ["/usr/share/edge-agent/models/demo-lstm-ae"]
    assert (ROOT / "models" / "demo-lstm-ae" / "bundle.json").is_file()


def test_package_has_the_version_of_the_program() -> None:
    """setup.cfg, which the package takes its version from, agrees with `edge-agent --version`."""
    assert build.version_of() == __version__


def test_a_later_release_has_the_higher_version() -> None:
    """An upgrade from Debian 12 to 13 takes the package of 13, and a release follows its candidate."""
    order = ["0.1.0~rc1+deb13", "0.1.0+deb12", "0.1.0+deb13", "0.1.1+deb12"]
    for older, newer in itertools.pairwise(order):
        assert subprocess.run(["dpkg", "--compare-versions", older, "lt", newer], check=False).returncode == 0
    assert list(RELEASES) == ["12", "13"]


def test_targets_are_every_release_on_every_architecture() -> None:
    """RELEASES and ARCHES of the Makefile may be separated by spaces or commas."""
    assert build.targets("12 13", "amd64") == [Target("12", "amd64"), Target("13", "amd64")]
    assert [t.foreign for t in build.targets("12", "amd64,arm64")].count(True) == 1


@pytest.mark.parametrize("name", ["postinst", "prerm", "postrm"])
def test_maintainer_scripts_parse_and_end_at_a_failure(name: str) -> None:
    """A plain shell reads each to its end, and each stops where a step fails instead of going on half done."""
    path = ROOT / "deploy" / "deb" / name
    assert subprocess.run(["sh", "-n", path], capture_output=True, text=True, check=False).stderr == ""
    assert "\nset -e\n" in path.read_text()


def test_what_is_left_behind_is_found(tmp_path: Path) -> None:
    """A file that came, one that went, one below /etc that changed and a link that turned are all differences."""
    for name in ("etc", "usr", "run", "var/log"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "etc/passwd").write_text("a")
    (tmp_path / "usr/old").write_text("a")
    (tmp_path / "usr/link").symlink_to("old")
    root = deb.Root(tmp_path, Target("12", "amd64"))
    before = deb.listing(root)
    (tmp_path / "etc/passwd").write_text("b")
    (tmp_path / "usr/old").unlink()
    (tmp_path / "usr/link").unlink()
    (tmp_path / "usr/link").symlink_to("new")
    (tmp_path / "usr/new").write_text("a")
    (tmp_path / "var/log/dpkg.log").write_text("not ours")
    (tmp_path / "run/pid").write_text("not ours")
    assert deb.differences(before, deb.listing(root)) == ["etc/passwd", "usr/link", "usr/new", "usr/old"]


def test_setup_names_what_is_installed() -> None:
    """The package is built with the extra that verifies signed bundles, which setup.cfg has."""
    parser = configparser.ConfigParser()
    parser.read(ROOT / "setup.cfg")
    assert "cryptography" in parser["options.extras_require"]["signing"]


def result_of(**changes: object) -> dict[str, Any]:
    """What `benchmarks.elsewhere` finds where all is well, but for `changes`."""
    well: dict[str, Any] = {
        "tests": {"passed": 3, "exit": 0},
        "scores": {"differs": {"a": 0.01, "b": 0.0}},
        "live": {"rows": 5, "rows_here": 5, "events": ["new"], "events_here": ["new"], "differs": 0.0},
    }
    for key, value in changes.items():
        part, name = key.split("_", 1)
        well[part] = {**well[part], name: value}
    return well


@pytest.mark.parametrize(
    "changes",
    [
        {"tests_exit": 1},
        {"tests_passed": 0},
        {"scores_differs": {"a": 0.06}},
        {"scores_differs": {"a": float("nan")}},
        {"live_differs": 0.06},
        {"live_rows": 4},
        {"live_events": []},
    ],
)
def test_another_machine_is_held_to_this_ones_scores(changes: dict[str, object]) -> None:
    """A failed or empty run of tests, a score that differs or is no number, a missing row or event: each is told."""
    assert elsewhere.missed(result_of()) == []
    assert len(elsewhere.missed(result_of(**changes))) == 1


def test_lowest_python_is_that_of_setup_cfg() -> None:
    """`make oldest` follows python_requires, and says so where there is no such Python."""
    assert elsewhere.lowest_python() == "3.10"
    with pytest.raises(UnreachableError, match=r"no Python 3\.1 here"):
        elsewhere.find_python("3.1")


def test_windows_for_comparing_are_drawn_from_a_seed() -> None:
    """The same seed gives the same windows; they are the golden ones of every bundle and eight more of each."""
    one, again, other = (_scores.windows_of(ROOT / "models", seed) for seed in (1, 1, 2))
    assert set(one) == {p.parent.name for p in (ROOT / "models").glob("*/bundle.json")}
    for name, windows in one.items():
        assert np.array_equal(windows, again[name])
        assert not np.array_equal(windows, other[name])
        with np.load(ROOT / "models" / name / "golden.npz") as data:
            assert len(windows) == len(data["windows"]) + 8


def test_every_core_test_that_is_named_exists() -> None:
    """`make arm64` leaves out no file because its name changed."""
    assert [name for name in elsewhere.CORE_TESTS if not (ROOT / f"tests/test_{name}.py").is_file()] == []
