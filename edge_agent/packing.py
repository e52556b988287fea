"""A sensor's state as it lies in the database: MessagePack, deflated against what every state has in common.

A commit every 5 s writes the state of every sensor to the card, mostly the same names over and over. Against a dictionary
of those names about 1400 bytes become 400, so that two states share a page of the database.
"""

from __future__ import annotations

import zlib
from typing import Any

import msgspec

#: States on disk can only be read with what they were deflated against: it is never changed. Names that came later cost a few
#: bytes each, until another dictionary is put behind the others.
_FIRST: dict[str, Any] = {
    "version": 1,
    "state": {
        "profiles": {"acting": None, "going": None, "n": 0},
        "last": {
            "seq": 0, "start": 1.8e9, "end": 1.8e9, "score": 0.5, "threshold": 1.0, "ratio": 0.5, "quality": "good", "why": [],
            "reasons": [], "regime": None,
        },
        "windower": {
            "tail": [], "times": [], "skip": 0, "last_t": 1.8e9, "next_t": 1.8e9, "next_seq": 1, "recent": [], "received": 1.8e9,
            "window_seq": 0, "late_run": 0, "late_key": None,
        },
        "history": {"shape": [0, 1], "f4": b""},
        "history_end": None,
        "alarm": {
            "state": "NORM", "severity": None, "alarm_id": None, "since": None, "ratios": [0.5, 0.5, 0.5, 0.5, 0.5],
            "raise_since": None, "return_since": 1.8e9, "condition": False, "shelved_until": None, "acked_by": None,
            "ack_why": None, "n_events": 0,
        },
        "commissioning": {
            "phase": "idle", "percent": 0, "reason": "", "episode": 0, "by": None, "why": None, "asked": None, "going": None,
            "baseline": None, "previous": None,
        },
        "drift": {
            "n": 0, "slow": 0.0, "fast": 0.0, "square": 1.0, "product": 0.0, "last": 0.0, "beyond": 0, "since": None, "told": "",
        },
        "operating": None, "notices": 0, "known": None, "bundle": "0" * 64,
        "trouble": {
            "slots": [[], [], [], [], []], "episode": None, "since": None, "seen": [], "n": 0, "counts": {}, "mean": [],
            "tainted": False, "content": None,
            "pace": {"t": None, "n": 0, "steps": [], "seq": None, "steady": False},
        },
    },
}  # fmt: skip
_TROUBLE: dict[str, Any] = {
    "slots": [[], [], [], [], []], "episode": None, "since": None, "seen": [], "n": 0, "counts": {}, "mean": [0.0], "former": [],
    "stepped": 0, "level": [], "tainted": False, "windows": 0, "empty": 0, "content": None,
    "pace": {"t": 1.8e9, "n": 8192, "steps": [], "seq": 1, "steady": True},
    "receipts": {
        "begun": 0.0, "t": 0.0, "n": 0, "last": 1, "spacings": 0, "longest": 0.0, "seq": None, "before": 0.0, "steady": True,
        "off": 0.0, "behind": 0.0,
    },
}  # fmt: skip
_SECOND: dict[str, Any] = {
    "version": 1,
    "state": {
        **_FIRST["state"],
        "windower": {**_FIRST["state"]["windower"], "stepped": 0.0},
        "trouble": _TROUBLE,
    },
}
#: By their checksum, which stands in what was deflated; the last one is written with.
_DICTIONARIES = {zlib.adler32(zdict): zdict for zdict in map(msgspec.msgpack.encode, (_FIRST, _SECOND))}
_WRITTEN = [*_DICTIONARIES.values()][-1]
#: MessagePack of a state begins with a map (0x8n), a deflated one with this.
_DEFLATED = 0x78


def pack(raw: bytes) -> bytes:
    """MessagePack of a state, for the database."""
    deflate = zlib.compressobj(6, zdict=_WRITTEN)
    return deflate.compress(raw) + deflate.flush()


def unpack(blob: bytes) -> bytes:
    """The inverse of `pack`; what an earlier version wrote without it comes back as it is. Raises ValueError."""
    if blob[:1] != bytes([_DEFLATED]):
        return blob
    zdict = _DICTIONARIES.get(int.from_bytes(blob[2:6], "big"), _WRITTEN)
    inflate = zlib.decompressobj(zdict=zdict)
    try:
        raw = inflate.decompress(blob)
        if not inflate.eof:  # its checksum stands at the end
            raise zlib.error("it is cut off")
    except zlib.error as error:
        raise ValueError(f"a stored state of {len(blob)} bytes cannot be inflated ({error}); expected what `pack` made") from error
    return raw
