"""From a score's map to a mask: where in time and frequency (or in a picture) a window is not healthy.

    |x - G(ẑ)|  ─►  z-score by feature ─►  above the low limit, joined to something above the high one ─►  median 3 × 3

Both limits come from healthy maps alone: the low one leaves one pixel in a hundred of them over it, the high one every
tenth map with a single pixel. So a fault is found by its strongest pixel and outlined by its weak ones (hysteresis:
Canny, IEEE PAMI 8, 1986). Smoothing the map of a spectrogram would smear a strong fault over its edges; smoothing the
mask does not. In drawings, where every healthy edge is a pixel off, only what several neighbours say together counts:
there the map is smoothed first. All this was chosen on a simulated fan and on drawings of the digit 3 as the healthy
one, on faults that nothing here is judged by.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import ndimage

from edge_agent.signals import F32, F64

#: Share of healthy pixels below the low limit, and of healthy maps whose greatest pixel is below the high one.
PIXELS, MAPS = 0.99, 0.9
#: The deviation of what hardly ever changes counts as this share of the average one, by feature and by pixel.
FLOOR, PIXEL_FLOOR = 0.1, 1.0


@dataclass(frozen=True)
class Normal:
    """What healthy maps look like.

    mean, std : (F,) by feature, or (width, F) by pixel
    low, high : limits of the z-score
    smooth    : maps are averaged over so many pixels squared first; 1 leaves them as they are
    """

    mean: F64
    std: F64
    low: float
    high: float
    smooth: int = 1


def learn(maps: F32, by_pixel: bool = False) -> Normal:
    """What is normal of healthy maps (n, width, F), 20 or more of them, that were not trained on.

    by_pixel : pictures whose pixels differ by place, as handwriting; else time along the first axis has no memory and
               every frame of a feature counts alike
    """
    if maps.ndim != 3 or len(maps) < 2:
        raise ValueError(f"maps are {maps.shape}; expected (n, width, F) of at least 2 healthy windows")
    over, smooth = (0, 3) if by_pixel else ((0, 1), 1)
    maps = _smooth(maps, smooth)
    mean, std = maps.mean(over, dtype=np.float64), maps.std(over, dtype=np.float64)
    std = np.maximum(std, (PIXEL_FLOOR if by_pixel else FLOOR) * float(std.mean()))
    std = np.where(std > 0.0, std, 1.0)
    z = (maps - mean) / std
    low = float(np.quantile(z, PIXELS))
    return Normal(mean, std, low, max(low, float(np.quantile(z.max((1, 2)), MAPS))), smooth)


def mask(excess: F32, normal: Normal) -> Any:
    """(width, F) map -> (width, F) bool; all False where nothing is above the high limit.

    One pixel more or less than its neighbours is taken from them: of 3 × 3 pixels the majority decides, and beyond
    the edge counts as the edge.
    """
    z = (_smooth(excess, normal.smooth) - normal.mean) / normal.std
    joined, _ = ndimage.label(z > normal.low)
    kept = np.unique(joined[(z > normal.high) & (joined > 0)])
    found = np.isin(joined, kept) & (joined > 0)
    return ndimage.median_filter(found.astype(np.uint8), 3, mode="nearest") > 0


def _smooth(maps: F32, size: int) -> F32:
    """The mean over size × size pixels of the last two axes; beyond the edge counts as the edge."""
    if size == 1:
        return maps
    return np.asarray(ndimage.uniform_filter(maps, (1, size, size)[-maps.ndim :], mode="nearest"), np.float32)


def overlap(found: Any, truth: Any) -> float:
    """Intersection over union of two masks; 1 where both are empty, 1/3 where two of equal size share half."""
    union = int((found | truth).sum())
    return float((found & truth).sum() / union) if union else 1.0
