"""Where the public recordings lie, and the last line that every verifying target prints."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
MISSING = 77


def data_dir() -> Path:
    """The folder that DATA names, else ../shared/data beside the project."""
    return Path(os.environ.get("DATA") or ROOT.parent / "shared" / "data").resolve()


def finish(name: str, ok: bool, **figures: Any) -> int:
    """Print the target's JSON object as the last line of stdout; the exit code that goes with it."""
    print(json.dumps({"name": name, "ok": ok, **figures}, allow_nan=False), flush=True)
    return 0 if ok else 1


def skip(name: str, why: str) -> int:
    """The target cannot run without data: say which, exit 77."""
    print(json.dumps({"name": name, "ok": False, "skipped": why}), flush=True)
    return MISSING
