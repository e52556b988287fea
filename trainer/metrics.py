"""Figures of a score on labelled windows: AUC, pAUC, precision, recall, F1, and the means over machines."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
from scipy.stats import hmean, rankdata

from edge_agent.signals import F64

#: Upper end of the false-positive rates that pAUC looks at (DCASE).
PAUC_LIMIT = 0.1


def auc(scores: F64, anomalous: Any) -> float:
    """Probability that an anomalous score exceeds a normal one, ties counting one half; NaN without both.

    The Mann-Whitney statistic: [1, 2, 3] with the 3 anomalous gives 1.0.
    """
    anomalous = np.asarray(anomalous, bool)
    n1, n0 = int(anomalous.sum()), int((~anomalous).sum())
    if not n1 or not n0:
        return float("nan")
    return float((rankdata(scores)[anomalous].sum() - n1 * (n1 + 1) / 2) / (n1 * n0))


def pauc(scores: F64, anomalous: Any, limit: float = PAUC_LIMIT) -> float:
    """Area under the ROC curve over false-positive rates [0, limit], divided by `limit` (DCASE).

    0.05 for a score that knows nothing at limit 0.1 (not 0.5: this is not McClish's standardisation), 1 for
    a perfect one; NaN without both kinds. The curve is linear between its points, as in `auc`.
    """
    anomalous = np.asarray(anomalous, bool)
    n1, n0 = int(anomalous.sum()), int((~anomalous).sum())
    if not n1 or not n0:
        return float("nan")
    order = np.argsort(-np.asarray(scores, np.float64), kind="stable")
    ordered, hits = np.asarray(scores, np.float64)[order], anomalous[order]
    last = np.append(np.flatnonzero(np.diff(ordered)), len(ordered) - 1)
    tpr = np.append(0.0, np.cumsum(hits)[last] / n1)
    fpr = np.append(0.0, np.cumsum(~hits)[last] / n0)
    # The lower end of a vertical step that stands exactly on the limit.
    i = int(np.searchsorted(fpr, limit))
    slope = (tpr[i] - tpr[i - 1]) / (fpr[i] - fpr[i - 1])
    x = np.append(fpr[:i], limit)
    y = np.append(tpr[:i], tpr[i - 1] + slope * (limit - fpr[i - 1]))
    return float((np.diff(x) * (y[1:] + y[:-1]) / 2).sum() / limit)


def precision_recall_f1(called: Any, truth: Any) -> tuple[float, float, float]:
    """Of windows called anomalous, (n,) bool, against the truth, (n,) bool; the anomaly is the positive class.

    0 where nothing is called or nothing is anomalous. Three called, two of them rightly, of four: 2/3, 1/2, 4/7.
    """
    hits, n_called, n_true = int((called & truth).sum()), int(called.sum()), int(truth.sum())
    return hits / max(n_called, 1), hits / max(n_true, 1), 2.0 * hits / max(n_called + n_true, 1)


def means(values: Iterable[float | None]) -> dict[str, float | None]:
    """Arithmetic and harmonic mean of the figures that are known; None without any.

    The harmonic mean (DCASE) punishes one bad machine: 0.9 and 0.3 have 0.6 and 0.45; with a 0 among them it is 0.
    """
    known = [v for v in values if v is not None]
    if not known:
        return {"arithmetic": None, "harmonic": None}
    return {"arithmetic": rounded(float(np.mean(known))), "harmonic": rounded(float(hmean(known)))}


def rounded(value: float) -> float | None:
    """To four decimals; None for NaN, which JSON does not know."""
    return None if np.isnan(value) else round(value, 4)
