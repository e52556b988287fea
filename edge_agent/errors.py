"""The exception tree, by who has to act.

EdgeAgentError
├── ConfigError      who wrote the YAML
├── PayloadError     who programmed the sensor
├── RecordingError   who chose the file
├── BundleError      who trained the model
├── StoreError       who looks after the disk
└── TransportError   who looks after the broker
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


class EdgeAgentError(Exception):
    """Base of every error this package raises on purpose; its text is ready for a person."""


@dataclass(frozen=True)
class Problem:
    """One configuration mistake: where it stands, what stands there, what was expected."""

    where: str
    value: str
    expected: str

    def __str__(self) -> str:
        return f"{self.where}: got {self.value}; expected {self.expected}"


class ConfigError(EdgeAgentError):
    """Every mistake of a configuration or recipe, found in one pass (exit code 78).

    readable : the sections that could be read all the same, so that their contents can be checked too
    """

    def __init__(self, path: str, problems: Sequence[Problem], readable: Sequence[object] = ()) -> None:
        self.path = path
        self.problems = tuple(problems)
        self.readable = tuple(readable)
        n = len(self.problems)
        lines = [f"{path}: {n} mistake{'s' if n != 1 else ''}"]
        lines += [f"  {path}: {problem}" for problem in self.problems]
        super().__init__("\n".join(lines))


#: Why a message was dropped; counted per sensor in the health topic.
DROP_REASONS = (
    "undecodable",
    "too_large",
    "not_finite",
    "wrong_sensor",
    "wrong_rate",
    "wrong_channels",
    "retained",
    "duplicate",
    "late",
    "overflow",
    "rate_limited",
)


class PayloadError(EdgeAgentError):
    """A message that cannot be used; `reason` is one of `DROP_REASONS`."""

    def __init__(self, reason: str, message: str) -> None:
        if reason not in DROP_REASONS:
            raise ValueError(f"reason {reason!r} is not one of {', '.join(DROP_REASONS)}")
        self.reason = reason
        super().__init__(message)


class RecordingError(EdgeAgentError):
    """A recording that cannot be read: the path, what was found there, what was expected."""


class BundleError(EdgeAgentError):
    """A bundle that must not be used: what is wrong with it and how to mend it."""


class StoreError(EdgeAgentError):
    """The database cannot be opened, read or written."""


class DamagedStoreError(StoreError):
    """The database is damaged, or was deleted or replaced under the agent: it is set aside and a new one begun."""


class UnwritableStoreError(StoreError):
    """The disk may only be read, or fails: it is tried again, and what cannot be written waits in memory."""


class FullStoreError(UnwritableStoreError):
    """No room is left on the disk: the oldest scores go first."""


class TransportError(EdgeAgentError):
    """The broker cannot be reached or refuses us."""
