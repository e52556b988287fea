"""Rolling bearings: from geometry and shaft speed to the frequencies at which their defects strike.

     contact angle        BPFO  outer race, per ball passing a fixed defect
┌──────╲────────┐         BPFI  inner race, per ball passing a turning defect
│  ball ╲ (d)   │         BSF   spin of a ball about its own axis
│ pitch circle D│         FTF   turn of the cage
└───────────────┘
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields


@dataclass(frozen=True)
class BearingFrequencies:
    """Defect frequencies in Hz of a bearing with a fixed outer race, without slip.

    bpfo, bpfi : ball pass frequency of the outer and inner race
    bsf        : ball spin frequency; a defect on a ball strikes both races in turn, that is at 2 * bsf
    ftf        : fundamental train (cage) frequency
    """

    bpfo: float
    bpfi: float
    bsf: float
    ftf: float


@dataclass(frozen=True)
class Bearing:
    """Geometry of one bearing: number of balls or rollers, their diameter, pitch diameter, contact angle.

    ValueError where no such bearing can exist: 0 < ball_mm < pitch_mm, 0 <= contact_deg < 90, and the
    balls must fit side by side on the pitch circle.
    """

    n_balls: int
    ball_mm: float
    pitch_mm: float
    contact_deg: float = 0.0

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
                raise ValueError(f"bearing {field.name} is {value!r}; expected a finite number")
        if self.n_balls != int(self.n_balls) or self.n_balls < 3:
            raise ValueError(f"bearing n_balls is {self.n_balls}; it must be a whole number, at least 3")
        if not 0.0 < self.ball_mm < self.pitch_mm:
            raise ValueError(
                f"bearing ball_mm is {self.ball_mm:g}; it must be above 0 and below pitch_mm {self.pitch_mm:g}"
            )
        if not 0.0 <= self.contact_deg < 90.0:
            raise ValueError(f"bearing contact_deg is {self.contact_deg:g}; it must be from 0 to below 90")
        room = self.pitch_mm * math.sin(math.pi / self.n_balls)
        if self.ball_mm > room:
            raise ValueError(
                f"bearing n_balls is {self.n_balls}: that many balls of {self.ball_mm:g} mm do not fit on a pitch "
                f"circle of {self.pitch_mm:g} mm; ball_mm must be at most {room:.4g}"
            )

    @classmethod
    def from_mapping(cls, values: object) -> Bearing:
        """{n_balls, ball_mm, pitch_mm[, contact_deg]} -> Bearing; ValueError for missing or unknown keys."""
        known = [field.name for field in fields(cls)]
        if not isinstance(values, Mapping):
            raise ValueError(f"bearing is {values!r}; expected a mapping with {', '.join(known)}")
        if unknown := [key for key in values if key not in known]:
            raise ValueError(f"bearing has the unknown key {unknown[0]!r}; known: {', '.join(known)}")
        if missing := [key for key in known[:3] if key not in values]:
            raise ValueError(f"bearing lacks {missing[0]}; expected {', '.join(known[:3])}")
        return cls(**values)

    def frequencies(self, speed_hz: float) -> BearingFrequencies:
        """Defect frequencies at a shaft speed of `speed_hz` turns a second (rpm / 60).

        bpfo + bpfi = n_balls * speed_hz and bpfo = n_balls * ftf, whatever the geometry.
        Rexnord ZA-2115 (16 rollers of 8.407 mm on 71.501 mm, 15.17 deg) at 2000 rpm:
        BPFO 236.4, BPFI 296.9, BSF 139.9, FTF 14.8 Hz.
        """
        if (
            isinstance(speed_hz, bool)
            or not isinstance(speed_hz, (int, float))
            or not 0.0 < speed_hz < math.inf
        ):
            raise ValueError(
                f"speed_hz is {speed_hz!r}; it must be a number above 0, in turns a second (rpm / 60)"
            )
        ratio = self.ball_mm / self.pitch_mm * math.cos(math.radians(self.contact_deg))
        return BearingFrequencies(
            bpfo=self.n_balls / 2.0 * speed_hz * (1.0 - ratio),
            bpfi=self.n_balls / 2.0 * speed_hz * (1.0 + ratio),
            bsf=self.pitch_mm / (2.0 * self.ball_mm) * speed_hz * (1.0 - ratio * ratio),
            ftf=speed_hz / 2.0 * (1.0 - ratio),
        )
