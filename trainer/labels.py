"""What is known of the recordings to judge: labels, the time a fault began, and the row of the table they belong to.

DCASE 2021   fan/source_test/section_00_source_test_anomaly_0001.wav   machine type, section, domain
DCASE 2020   fan/test/anomaly_id_00_00000000.wav                       machine type, section
else         load_1/anomaly/run.npy                                    condition load_1
or           the column `group` of the labels' CSV                     condition
"""

from __future__ import annotations

import csv
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from edge_agent.errors import RecordingError
from edge_agent.signals import parse_time
from trainer.data import Clip

_PART = re.compile(r"(?:(?P<domain>source|target)_)?(?P<part>train|test)", re.IGNORECASE)
_SECTION = re.compile(r"(?:^|_)((?:id|section)_\d+)", re.IGNORECASE)
_DOMAIN = re.compile(r"(?:^|_)(source|target)(?:_|$)", re.IGNORECASE)
_NOT_A_CONDITION = {"normal", "anomaly", "abnormal", "train", "test"}

#: Name of a group -> its value: {"machine_type": "fan", "section": "section_00", "domain": "source"}.
Place = Mapping[str, str]


@dataclass(frozen=True)
class Truth:
    """What is known of one recording: its label, the time (s) from which it is anomalous, if it turns, and its group."""

    label: str | None
    onset: float | None = None
    group: str | None = None

    @property
    def known(self) -> bool:
        """Whether it says which windows are anomalous."""
        return self.label is not None or self.onset is not None


Labels = Mapping[str, Truth]


def read_labels(path: Path) -> dict[str, Truth]:
    """A CSV with the columns `file` and `label` (normal, anomaly) and, optionally, `onset` and `group`.

    `onset` is the time from which the recording is anomalous: RFC 3339, or seconds. `group` is a word for the
    conditions it was made under, such as a load or a speed. `file` is the recording's name, with or without folders; of
    one in a file of several, the array's or record's name does.
    Raises RecordingError with the line.
    """
    truths = {}
    with path.open(newline="", encoding="utf-8") as file:
        for number, row in enumerate(csv.DictReader(file), 2):
            where = f"{path}:{number}"
            name, label = (row.get("file") or "").strip(), (row.get("label") or "").strip() or None
            if not name or label not in (None, "normal", "anomaly"):
                raise RecordingError(
                    f"{where}: file {name!r}, label {label!r}; expected columns file,label[,onset][,group] with label "
                    "normal or anomaly"
                )
            onset, group = (row.get("onset") or "").strip(), (row.get("group") or "").strip() or None
            try:
                seconds = None if not onset else float(onset) if _is_number(onset) else parse_time(onset)
            except ValueError as error:
                raise RecordingError(f"{where}: onset: {error}") from error
            truths[Path(name).name] = Truth(label, seconds, group)
    return truths


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def said(clip: Clip, labels: Labels | None) -> Truth | None:
    """What the CSV says of a recording; None where it does not name it."""
    # A file of several recordings: run.npz:load_1/a is known as a, or as run.npz:a where it has no folder.
    named = (Path(name).name for name in (clip.name, clip.name.rpartition(":")[2]))
    return next((labels[name] for name in named if name in labels), None) if labels else None


def truth(clip: Clip, labels: Labels | None) -> Truth:
    """The CSV's word on a recording where it has one, else that of its name."""
    found = said(clip, labels)
    if found is None:
        return Truth(clip.label)
    return found if found.known else Truth(clip.label, None, found.group)


def is_training(path: Path) -> bool:
    """Whether the file lies in a folder `train`: DCASE's recordings to learn from, and most people's."""
    return any(
        (m := _PART.fullmatch(p)) is not None and m["part"].lower() == "train"
        for p in path.absolute().parts[:-1]
    )


def places(paths: Sequence[Path], truths: Sequence[Truth]) -> list[Place]:
    """The group of each recording; empty where nothing tells them apart."""
    folders = [path.absolute().parent for path in paths]
    root = Path(os.path.commonpath(folders)) if folders else Path()
    return [
        {"condition": known.group} if known.group else _dcase(path) or _condition(folder.relative_to(root))
        for path, folder, known in zip(paths, folders, truths, strict=True)
    ]


def _dcase(path: Path) -> dict[str, str]:
    """Machine type, section and domain of a file in DCASE's layout; empty for any other."""
    section = _SECTION.search(path.stem)
    parts = path.absolute().parts[:-1]
    found = [(i, m) for i, part in enumerate(parts) if (m := _PART.fullmatch(part)) is not None]
    if section is None or not found:
        return {}
    i, folder = found[-1]
    place = {"machine_type": parts[i - 1], "section": section.group(1).lower()}
    named = _DOMAIN.search(path.stem)
    if domain := folder["domain"] or (named.group(1) if named else None):
        place["domain"] = domain.lower()
    return place


def _condition(below: Path) -> dict[str, str]:
    parts = [part for part in below.parts if part.lower() not in _NOT_A_CONDITION]
    return {"condition": "/".join(parts)} if parts else {}
