"""From a score's map to a mask: where in time and frequency (or in a picture) a window is not healthy.

    |x - G(ẑ)|  ─►  z-score by feature ─►  above the low limit, joined to something above the high one ─►  median 3 × 3

Both limits come from healthy maps alone: the low one leaves one pixel in a hundred of them over it, the high one every
tenth map with a single pixel. So a fault is found by its strongest pixel and outlined by its weak ones (hysteresis:
Canny, IEEE PAMI 8, 1986). Smoothing the map itself would smear a strong fault over its edges; smoothing the mask
does not. These shares were chosen on a simulated fan, on faults that nothing here is judged by.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import ndimage

from edge_agent.signals import F32, F64

#: Share of healthy pixels below the low limit, and of healthy maps whose greatest pixel is below the high one.
PIXELS, MAPS = 0.99, 0.9
#: The deviation of a pixel that hardly ever changes counts as this share of the average one.
FLOOR = 0.1


@dataclass(frozen=True)
class Normal:
    """What healthy maps look like.

    mean, std : (F,) by feature, or (width, F) by pixel
    low, high : limits of the z-score
    """

    mean: F64
    std: F64
    low: float
    high: float


def learn(maps: F32, by_pixel: bool = False) -> Normal:
    """What is normal of healthy maps (n, width, F), 20 or more of them, that were not trained on.

    by_pixel : pictures whose pixels differ by place, as handwriting; else time along the first axis has no memory and
               every frame of a feature counts alike
    """
    if maps.ndim != 3 or len(maps) < 2:
        raise ValueError(f"maps are {maps.shape}; expected (n, width, F) of at least 2 healthy windows")
    over = 0 if by_pixel else (0, 1)
    mean, std = maps.mean(over, dtype=np.float64), maps.std(over, dtype=np.float64)
    std = np.maximum(std, FLOOR * float(std.mean()))
    std = np.where(std > 0.0, std, 1.0)
    z = (maps - mean) / std
    low = float(np.quantile(z, PIXELS))
    return Normal(mean, std, low, max(low, float(np.quantile(z.max((1, 2)), MAPS))))


def mask(excess: F32, normal: Normal) -> Any:
    """(width, F) map -> (width, F) bool; all False where nothing is above the high limit.

    One pixel more or less than its neighbours is taken from them: of 3 × 3 pixels the majority decides, and beyond
    the edge counts as the edge.
    """
    z = (excess - normal.mean) / normal.std
    joined, _ = ndimage.label(z > normal.low)
    kept = np.unique(joined[(z > normal.high) & (joined > 0)])
    found = np.isin(joined, kept) & (joined > 0)
    return ndimage.median_filter(found.astype(np.uint8), 3, mode="nearest") > 0


def overlap(found: Any, truth: Any) -> float:
    """Intersection over union of two masks; 1 where both are empty, 1/3 where two of equal size share half."""
    union = int((found | truth).sum())
    return float((found & truth).sum() / union) if union else 1.0
