"""What `make results` says of its figures: tables, sentences and bounds."""

from __future__ import annotations

import pytest

from benchmarks import results
from benchmarks._cells import Row
from benchmarks.bounds import RESULTS

PLAIN = Row("fan", "mean_spectrum_knn", 0.9, 0.5)


def network(auc: float, **changes: object) -> Row:
    """A network's row; the float32 file is as good as the shipped one unless a test says otherwise."""
    fields = {"float_auc": auc, "float_pauc": 0.4, "quantization": "int8", "kb": 100.0, "ms": 0.1}
    return Row("fan", "vae", auc, 0.4, **{**fields, **changes})


def test_a_network_behind_a_baseline_is_named():
    """Where the baseline is ahead the text says so with both figures; where none is, it says that."""
    rows = results._mean([PLAIN, network(0.8)])
    assert results.losses(rows) == "- fan: *mean spectrum + k-NN* (0.900) is ahead of `vae` (0.800)."
    assert "no network is behind" in results.losses(results._mean([PLAIN, network(0.95)]))


def test_seeds_become_one_row():
    """Figures are means over the seeds, the parity is the worst of them, and every quantization is named."""
    one, two = network(0.8), network(0.9, float_auc=0.93, quantization="float16")
    (row,) = results._mean([one, two])
    assert row["auc"] == pytest.approx(0.85)
    assert row["parity"] == pytest.approx(0.03)
    assert row["quantization"] == "float16, int8"
    assert row["seeds"] == 2


def test_every_cell_of_a_row_is_in_the_table():
    """A network's line has AUC and pAUC twice, the file's kind, size and time; a baseline's has dashes there."""
    table = results.cells_table(results._mean([network(0.8125), PLAIN])).splitlines()
    assert table[2] == "| fan | `vae` | 0.812 | 0.400 | 0.812 | 0.400 | int8 | 100 | 0.10 |"
    assert table[3] == "| fan | *mean spectrum + k-NN* | 0.900 | 0.500 | – | – | – | – | – |"


@pytest.mark.parametrize(
    ("row", "says"),
    [
        (network(0.8, float_auc=0.8 + 2 * RESULTS["parity"]), "from its float32 one"),
        (network(0.8, kb=2 * RESULTS["kb"]), "kB, at most"),
    ],
)
def test_a_missed_bound_is_told(row, says):
    """A shipped file that is unlike its float32 one, or too large, fails the target in words."""
    problems, _ = results.judge({"sound": {"rows": results._mean([row])}})
    assert len(problems) == 1
    assert says in problems[0]
    assert results.judge({"sound": {"rows": results._mean([network(0.8)])}})[0] == []


def test_mnist_is_judged_by_the_best_networks_mean():
    """The mean over the digits of the best network counts, and a section's own verdict is kept."""
    rows = [
        {"set": f"MNIST {d}", "model": m, "auc": a} for m, a in (("vae", 0.96), ("deep_svdd", 0.8)) for d in (2, 5, 8)
    ]
    assert results.mnist_means(rows) == pytest.approx({"vae": 0.96, "deep_svdd": 0.8})
    assert results.judge({"mnist": {"rows": rows}})[0] == []
    worse = [{**r, "auc": r["auc"] - 0.1} for r in rows]
    assert "MNIST" in results.judge({"mnist": {"rows": worse}, "mask": {"ok": True}})[0][0]
    assert results.judge({"mask": {"ok": False}})[0] == ["mask missed its own bound"]
