"""RIFF/WAVE: where the samples stand and how they are written.

PCM of 8 (unsigned), 16, 24 and 32 bits and IEEE float of 32 and 64 bits, plain or WAVE_FORMAT_EXTENSIBLE;
integers are scaled to ±1. Source: Microsoft "Multiple channel audio data and WAVE files", RIFF 1991.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import BinaryIO

import numpy as np

from edge_agent.signals import F32

_PCM, _FLOAT, _EXTENSIBLE = 1, 3, 0xFFFE
_GUID_TAIL = bytes.fromhex("000000001000800000aa00389b71")
#: Recorders that write to a pipe do not know the length and put a number near 2^31 or 2^32 there.
_UNKNOWN_SIZE = 0x7FFF0000


@dataclass(frozen=True)
class Wave:
    """One WAV file's layout.

    stated : bytes of samples as the header says; None where the recorder did not know
    held   : bytes of samples that are there, at most `stated`
    """

    fs_hz: float
    n_channels: int
    bits: int
    is_float: bool
    offset: int
    stated: int | None
    held: int

    @property
    def frame(self) -> int:
        """Bytes of one sample of all channels."""
        return self.n_channels * self.bits // 8


def parse(file: BinaryIO, size: int) -> Wave:
    """Read the header of a WAV of `size` bytes. Raises ValueError with what came and what was expected."""
    head = file.read(12)
    if len(head) < 12 or head[:4] != b"RIFF" or head[8:] != b"WAVE":
        raise ValueError(f"is no RIFF/WAVE file: it begins with {head!r} ({size} bytes)")
    fmt: bytes | None = None
    position = 12
    while True:
        file.seek(position)
        header = file.read(8)
        if len(header) < 8:
            missing = "no fmt chunk" if fmt is None else "no data chunk"
            raise ValueError(f"ends after {size} bytes with {missing}; it is cut off")
        name, length = header[:4], int(struct.unpack("<I", header[4:])[0])
        if name == b"fmt ":
            fmt = file.read(min(length, 40))
        elif name == b"data":
            if fmt is None:
                raise ValueError("has its data chunk before its fmt chunk; expected fmt first")
            return _layout(fmt, position + 8, length, size)
        position += 8 + length + (length & 1)


def _layout(fmt: bytes, offset: int, length: int, size: int) -> Wave:
    if len(fmt) < 16:
        raise ValueError(f"fmt chunk is {len(fmt)} bytes; expected at least 16")
    tag, n_channels, fs, _, align, bits = struct.unpack("<HHIIHH", fmt[:16])
    if tag == _EXTENSIBLE:
        if len(fmt) < 40 or fmt[26:40] != _GUID_TAIL:
            raise ValueError("is WAVE_FORMAT_EXTENSIBLE of a kind other than PCM or IEEE float")
        tag = struct.unpack("<H", fmt[24:26])[0]
    if (tag, bits) not in {(_PCM, 8), (_PCM, 16), (_PCM, 24), (_PCM, 32), (_FLOAT, 32), (_FLOAT, 64)}:
        raise ValueError(f"format tag {tag} with {bits} bits; expected PCM 8 to 32 or float 32, 64")
    if n_channels < 1 or fs < 1 or align != n_channels * bits // 8:
        raise ValueError(
            f"fmt chunk contradicts: {n_channels} channels, {fs} Hz, {bits} bits, {align} bytes a frame"
        )
    stated = None if length >= _UNKNOWN_SIZE or (length == 0 and size > offset) else length
    held = max(0, size - offset) if stated is None else min(stated, max(0, size - offset))
    return Wave(float(fs), n_channels, bits, tag == _FLOAT, offset, stated, held)


def samples(wave: Wave, data: bytes | memoryview) -> F32:
    """Whole frames of sample bytes -> (n_channels, n) float32; integers scaled to ±1."""
    if wave.is_float:
        flat = np.frombuffer(data, "<f4" if wave.bits == 32 else "<f8")
        with np.errstate(over="ignore", invalid="ignore"):
            return np.ascontiguousarray(flat.reshape(-1, wave.n_channels).T, dtype=np.float32)
    if wave.bits == 24:
        wide = np.zeros((len(data) // 3, 4), np.uint8)
        wide[:, 1:] = np.frombuffer(data, np.uint8).reshape(-1, 3)
        flat, full_scale = wide.view("<i4")[:, 0], 2.0**31
    else:
        flat, full_scale = np.frombuffer(data, f"<{'u' if wave.bits == 8 else 'i'}{wave.bits // 8}"), 2.0 ** (
            wave.bits - 1
        )
    out = np.ascontiguousarray(flat.reshape(-1, wave.n_channels).T, dtype=np.float32)
    if wave.bits == 8:
        out -= 128.0
    out *= 1.0 / full_scale
    return out


def build(x: F32, fs_hz: float) -> bytes:
    """(n_channels, n) -> a float32 WAV file, which keeps every bit. fs must be a whole number of Hz."""
    if fs_hz != int(fs_hz) or not 1 <= fs_hz < 2**32:
        raise ValueError(f"fs is {fs_hz} Hz; a WAV file carries whole numbers of Hz only")
    n_channels, n = x.shape
    if fs_hz * 4 * n_channels >= 2**32:
        raise ValueError(f"{n_channels} channels at {fs_hz:g} Hz are more bytes a second than a WAV file can state (2^32)")
    data = np.ascontiguousarray(x.T, dtype="<f4").tobytes()
    fs, align = int(fs_hz), 4 * n_channels
    fmt = struct.pack("<HHIIHHH", _FLOAT, n_channels, fs, fs * align, align, 32, 0)
    body = b"WAVE" + b"".join(
        name + struct.pack("<I", len(part)) + part
        for name, part in ((b"fmt ", fmt), (b"fact", struct.pack("<I", n)), (b"data", data))
    )
    return b"RIFF" + struct.pack("<I", len(body)) + body
