"""Tables into docs/results.md or another page, each between its own markers."""

from __future__ import annotations

import re
import sys
from pathlib import Path

from benchmarks._data import ROOT

RESULTS = ROOT / "docs" / "results.md"


def write_section(name: str, text: str, where: Path | None = None) -> None:
    """Replace what stands between `<!-- name:begin -->` and `<!-- name:end -->`."""
    where = where or RESULTS
    page = where.read_text()
    begin, end = f"<!-- {name}:begin -->", f"<!-- {name}:end -->"
    pattern = re.compile(re.escape(begin) + ".*?" + re.escape(end), re.DOTALL)
    if not pattern.search(page):
        raise ValueError(f"{where}: no section {begin} … {end}; add the two markers where the table belongs")
    where.write_text(pattern.sub(lambda _: f"{begin}\n{text}\n{end}", page))


def say(text: str) -> None:
    """Progress, for people."""
    print(text, file=sys.stderr, flush=True)
