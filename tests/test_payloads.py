"""Payload formats: what was encoded comes back, and whatever else comes is a PayloadError."""

import base64
import io
import json
import struct
from dataclasses import replace

import numpy as np
import pytest
import soundfile
from hypothesis import given
from hypothesis import strategies as st

from edge_agent import payloads
from edge_agent.errors import PayloadError
from edge_agent.payloads import PayloadLayout
from edge_agent.signals import Chunk

T = 1763776990.125
#: Every registered format in every shape it has.
LAYOUTS = [
    PayloadLayout("f32le"),
    PayloadLayout("f32le", n_channels=3, header="ts_seq"),
    PayloadLayout("i16le"),
    PayloadLayout("i16le", n_channels=2, header="ts_seq"),
    PayloadLayout("i16le", scale=0.001),
    PayloadLayout("json"),
    PayloadLayout("json", n_channels=2),
    PayloadLayout("record_json"),
    PayloadLayout("wav"),
    PayloadLayout("wav", n_channels=2),
]


def ids(layout):
    """f32le-3-ts_seq"""
    return f"{layout.format}-{layout.n_channels}-{layout.header}"


def example(layout, n=6):
    """A chunk with everything a message can state, and its bytes."""
    x = np.linspace(-0.9, 0.9, n * layout.n_channels, dtype=np.float32).reshape(layout.n_channels, n)
    chunk = Chunk(x, t=T, fs_hz=16000.0, seq=41, sensor="pump-1-de")
    return chunk, payloads.encode(chunk, layout)


def decode(payload, layout):
    """Decode; whatever it gives must be finite, non-empty and of the layout's channels."""
    chunk = payloads.decode(payload, layout)
    assert chunk.samples.dtype == np.float32
    assert chunk.samples.shape[0] == layout.n_channels
    assert chunk.samples.shape[1] >= 1
    assert np.isfinite(chunk.samples).all()
    assert chunk.t is None or np.isfinite(chunk.t)
    assert chunk.seq is None or 0 <= chunk.seq < 2**32
    return chunk


def refused(payload, layout):
    """The PayloadError of a message; fails where it is taken."""
    with pytest.raises(PayloadError) as caught:
        payloads.decode(payload, layout)
    return caught.value


def test_every_format_is_tried_here():
    """The list of layouts above covers every format of the folder."""
    assert {layout.format for layout in LAYOUTS} == set(payloads.formats())


def test_an_unknown_format_names_the_known_ones():
    """Asking for a format that is not there names those that are."""
    with pytest.raises(ValueError, match="'f64be' is unknown; known: f32le, i16le, json"):
        payloads.decode(b"", PayloadLayout("f64be"))


@pytest.mark.parametrize("layout", LAYOUTS, ids=ids)
def test_every_truncation_decodes_or_is_a_payload_error(layout):
    """A valid message cut off at any byte either decodes or raises PayloadError, nothing else."""
    _, payload = example(layout)
    for length in range(len(payload)):
        try:
            decode(payload[:length], layout)
        except PayloadError as error:
            assert str(error)


@pytest.mark.parametrize("layout", LAYOUTS, ids=ids)
def test_an_empty_message_is_undecodable(layout):
    """No bytes at all are undecodable in every format."""
    assert refused(b"", layout).reason == "undecodable"


@pytest.mark.parametrize("layout", LAYOUTS, ids=ids)
@given(payload=st.binary(max_size=200))
def test_random_bytes_decode_or_are_a_payload_error(layout, payload):
    """Random bytes never raise anything but PayloadError."""
    try:
        decode(payload, layout)
    except PayloadError as error:
        assert str(error)


@pytest.mark.parametrize("layout", LAYOUTS, ids=ids)
@given(data=st.data())
def test_damaged_messages_decode_or_are_a_payload_error(layout, data):
    """Bytes changed, doubled or taken out of a valid message never raise anything but PayloadError."""
    payload = bytearray(example(layout)[1])
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(payload) - 1))
        end = min(len(payload), at + data.draw(st.integers(0, 8)))
        payload[at:end] = data.draw(st.binary(max_size=8)) + payload[at:end] * data.draw(st.integers(0, 2))
        if not payload:
            break
    try:
        decode(bytes(payload), layout)
    except PayloadError as error:
        assert str(error)


@pytest.mark.parametrize("layout", LAYOUTS, ids=ids)
@given(data=st.data())
def test_what_was_encoded_comes_back(layout, data):
    """float32 formats give back every bit, i16le the nearest count; time and number come back too."""
    n = data.draw(st.integers(1, 20))
    kind = st.floats(-1, 0.9990234375, width=32) if layout.format == "i16le" else st.floats(width=32, allow_nan=False)
    x = data.draw(st.lists(kind.filter(np.isfinite), min_size=n * layout.n_channels, max_size=n * layout.n_channels))
    chunk = Chunk(
        np.array(x, np.float32).reshape(layout.n_channels, n),
        t=data.draw(st.integers(-(10**9), 4 * 10**9)) + data.draw(st.integers(0, 999)) / 1000.0,
        fs_hz=float(data.draw(st.integers(1, 200_000))),
        seq=data.draw(st.integers(0, 2**32 - 1)),
        sensor="pump-1-de",
    )
    back = decode(payloads.encode(chunk, layout), layout)
    if layout.format == "i16le":
        scale = layout.scale or 1 / 32768
        expected = np.clip(np.rint(chunk.samples.astype(float) / scale), -32768, 32767) * scale
        np.testing.assert_allclose(back.samples, expected, rtol=1e-6)
    else:
        np.testing.assert_array_equal(back.samples, chunk.samples)
    if layout.header == "ts_seq" or layout.format == "json":
        assert back.seq == chunk.seq
    if layout.header == "ts_seq" or layout.format in ("json", "record_json"):
        assert back.t == pytest.approx(chunk.t, abs=0.0005)
    if layout.format in ("json", "wav"):
        assert back.fs_hz == chunk.fs_hz
    if layout.format == "record_json":
        assert back.sensor == "pump-1-de"


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("layout", [la for la in LAYOUTS if la.format in ("f32le", "wav")], ids=ids)
def test_nan_and_infinity_are_not_finite(layout, bad):
    """One NaN or infinity among the samples drops the whole message."""
    chunk, _ = example(layout)
    x = chunk.samples.copy()
    x[0, 3] = bad
    error = refused(payloads.encode(replace(chunk, samples=x), layout), layout)
    assert error.reason == "not_finite"
    assert f"1 of {x.size} samples" in str(error)


@pytest.mark.parametrize("layout", [la for la in LAYOUTS if la.format not in ("f32le", "wav")], ids=ids)
def test_formats_without_nan_refuse_to_write_one(layout):
    """JSON and integers cannot carry NaN, and encoding one says so."""
    chunk, _ = example(layout)
    with pytest.raises(PayloadError, match="cannot carry"):
        payloads.encode(replace(chunk, samples=chunk.samples * np.float32(np.nan)), layout)


@pytest.mark.parametrize("number", ["1e39", "-1e300", "1e999"])
@pytest.mark.parametrize(
    ("layout", "text"),
    [
        (PayloadLayout("json"), '{"v":[0,%s]}'),
        (PayloadLayout("json", n_channels=2), '{"v":[[0,1],[2,%s]]}'),
        (PayloadLayout("record_json"), '{"signal_value":[0,%s]}'),
        (PayloadLayout("record_json"), '{"signal_value":"0,%s"}'),
    ],
)
def test_a_number_beyond_float32_is_not_finite(layout, text, number):
    """A number that overflows float32 is not finite, however it is written."""
    assert refused((text % number).encode(), layout).reason == "not_finite"


def test_a_scale_that_overflows_is_not_finite():
    """A scale that carries a sample beyond float32 drops the message."""
    layout = PayloadLayout("f32le", scale=1e10)
    assert refused(np.array([1e30], "<f4").tobytes(), layout).reason == "not_finite"


@pytest.mark.parametrize("name", ["json", "record_json"])
@pytest.mark.parametrize(
    "payload",
    [
        b"[" * 200_000,
        b'{"a":' * 200_000,
        b'{"x":' + b"[" * 200_000 + b"]" * 200_000 + b',"v":[1],"signal_value":[1]}',
        b'{"v":%s,"signal_value":%s}' % ((b"[" * 100_000 + b"]" * 100_000,) * 2),
        b"\xff\xfe{",
        b'{"v":[1],"signal_value":"\xff"}\xff',
        b"null",
        b"[]",
        b"{}",
        b'"text"',
        b'{"v":{},"signal_value":{}}',
        b'{"v":null,"signal_value":null}',
        b'{"v":3,"signal_value":3}',
        b'{"v":[],"signal_value":[]}',
        b'{"v":[[]],"signal_value":[[]]}',
        b'{"v":"","signal_value":""}',
        b'{"v":[true],"signal_value":[true]}',
        b'{"v":["1"],"signal_value":["1"]}',
        b'{"v":[NaN],"signal_value":[NaN]}',
        b'{"v":[1],"ts":"yesterday","signal_value":[1],"data_time":"yesterday"}',
        b'{"v":[1],"ts":1e30,"signal_value":[1],"data_time":1e30}',
        b'{"v":[1],"ts":[1],"signal_value":[1],"data_time":[1]}',
        b'{"v":[1],"fs":0,"signal_value":"1,,2"}',
        b'{"v":[1],"fs":"fast","signal_value":"1,x"}',
        b'{"v":[1],"seq":-1,"signal_value":"1_000"}',
        b'{"v":[1],"enc":"f4","signal_value":[1],"sensor_id":[1]}',
    ],
    ids=lambda p: p[:24].decode("ascii", "replace"),
)
def test_wrong_json_is_undecodable(name, payload):
    """Deep nesting, other text and other schemas are undecodable, with a message."""
    error = refused(payload, PayloadLayout(name))
    assert error.reason == "undecodable"
    assert str(error)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("0.12662,0.10868,-3", [0.12662, 0.10868, -3]),
        (" 1 , 2 ,3 ", [1, 2, 3]),
        ("1.,+2,.5,-.25", [1, 2, 0.5, -0.25]),
        ("1,2,\n", [1, 2]),
        ("7", [7]),
        ("1e-3,2E2", [0.001, 200]),
    ],
)
def test_record_text_in_every_spelling(text, expected):
    """Comma-separated samples are read with blanks, signs, bare dots and a comma at the end."""
    payload = json.dumps({"data_time": "2023-12-04T15:09:34.000Z", "signal_value": text, "sensor_id": 7}).encode()
    chunk = decode(payload, PayloadLayout("record_json"))
    np.testing.assert_array_equal(chunk.samples, np.array([expected], np.float32))
    assert chunk.t == 1701702574.0
    assert chunk.sensor == "7"


def test_a_wrong_number_in_record_text_is_named():
    """The message on a bad number says which one it is and what stands there."""
    error = refused(b'{"signal_value":"1,2,abc"}', PayloadLayout("record_json"))
    assert "number 2 is 'abc'" in str(error)


@pytest.mark.parametrize("ts", ["2025-11-22T02:03:10.125Z", "2025-11-22T02:03:10.125", 1763776990.125, 1763776990125])
def test_json_time_in_every_form(ts):
    """RFC 3339 with and without a zone, epoch seconds and epoch milliseconds are the same moment."""
    payload = json.dumps({"ts": ts, "v": [1, 2]}).encode()
    assert decode(payload, PayloadLayout("json")).t == pytest.approx(1763776990.125, abs=1e-6)


def test_json_ignores_unknown_fields_and_blanks():
    """Unknown fields, blanks and integers among the numbers are fine."""
    payload = b' { "unit" : {"a": [1]}, "v" : [ [ 1 , 2.5 ] ] , "fs": 100 } '
    chunk = decode(payload, PayloadLayout("json"))
    np.testing.assert_array_equal(chunk.samples, [[1, 2.5]])
    assert (chunk.t, chunk.fs_hz, chunk.seq) == (None, 100.0, None)


def test_json_base64_is_interleaved_and_scaled():
    """"f4" carries units, "i2" counts of 1/32768 or of the layout's scale; frames hold all channels."""
    floats = base64.b64encode(np.array([1, 10, 2, 20], "<f4").tobytes()).decode()
    counts = base64.b64encode(np.array([16384, -32768], "<i2").tobytes()).decode()
    two, one = PayloadLayout("json", n_channels=2), PayloadLayout("json")
    np.testing.assert_array_equal(
        decode(json.dumps({"enc": "f4", "v": floats}).encode(), two).samples, [[1, 2], [10, 20]]
    )
    message = json.dumps({"enc": "i2", "v": counts}).encode()
    np.testing.assert_array_equal(decode(message, one).samples, [[0.5, -1.0]])
    np.testing.assert_array_equal(decode(message, replace(one, scale=0.5)).samples, [[8192, -16384]])


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"enc": "f8", "v": ""}, 'enc is \'f8\'; expected "f4" or "i2"'),
        ({"enc": "f4", "v": "AAA"}, "no base64"),
        ({"enc": "f4", "v": "AA=="}, "1 bytes, not a multiple of 4"),
        ({"enc": "f4", "v": "äöü"}, "no base64"),
        ({"enc": "i2", "v": ""}, "no samples"),
        ({"enc": "i2", "v": [1]}, "Expected `str`"),
    ],
)
def test_wrong_base64_says_what_is_wrong(fields, words):
    """An unknown encoding, broken base64 and incomplete frames are undecodable with the reason."""
    error = refused(json.dumps(fields).encode(), PayloadLayout("json"))
    assert error.reason == "undecodable"
    assert words in str(error)


@pytest.mark.parametrize(
    ("payload", "layout", "reason", "words"),
    [
        (b'{"v":[[1,2],[3]]}', PayloadLayout("json", n_channels=2), "undecodable", "channel 1 has 1 samples"),
        (b'{"v":[[1],[2],[3]]}', PayloadLayout("json", n_channels=2), "wrong_channels", "3 channels"),
        (b'{"v":[1,2]}', PayloadLayout("json", n_channels=2), "wrong_channels", "1 channel;"),
        (b'{"signal_value":"1"}', PayloadLayout("record_json", n_channels=2), "wrong_channels", "1 channel;"),
    ],
)
def test_wrong_channels_are_told(payload, layout, reason, words):
    """Ragged and missing channels are told with their numbers."""
    error = refused(payload, layout)
    assert error.reason == reason
    assert words in str(error)


def test_packed_samples_are_interleaved_little_endian():
    """The bytes of f32le with header are int64 ns, uint32 number, then frame by frame all channels."""
    payload = struct.pack("<qI4f", 1_763_776_990_125_000_000, 7, 1.0, 10.0, 2.0, 20.0)
    layout = PayloadLayout("f32le", n_channels=2, header="ts_seq")
    chunk = decode(payload, layout)
    np.testing.assert_array_equal(chunk.samples, [[1, 2], [10, 20]])
    assert chunk.t == pytest.approx(T, abs=1e-6)
    assert chunk.seq == 7
    assert payloads.encode(chunk, layout)[8:] == payload[8:]


@pytest.mark.parametrize(
    ("layout", "size", "words"),
    [
        (PayloadLayout("f32le"), 6, "6 bytes, not a multiple of 4 (1 channel × 4 bytes)"),
        (PayloadLayout("i16le", n_channels=3), 8, "8 bytes, not a multiple of 6 (3 channels × 2 bytes)"),
        (PayloadLayout("f32le", header="ts_seq"), 11, "11 bytes, shorter than its header of 12"),
        (PayloadLayout("f32le", header="ts_seq"), 12, "no samples"),
        (PayloadLayout("f32le", header="ts_seq"), 14, "2 bytes, not a multiple of 4"),
    ],
)
def test_incomplete_frames_are_told_with_their_numbers(layout, size, words):
    """A packed message that is no whole number of frames says how many bytes came and how many fit."""
    error = refused(bytes(size), layout)
    assert error.reason == "undecodable"
    assert words in str(error)


def test_full_scale_of_i16le_is_one():
    """-32768 counts are -1.0 by default and -32.768 at a scale of 0.001."""
    payload = struct.pack("<2h", -32768, 16384)
    np.testing.assert_array_equal(decode(payload, PayloadLayout("i16le")).samples, [[-1.0, 0.5]])
    np.testing.assert_allclose(
        decode(payload, PayloadLayout("i16le", scale=0.001)).samples, [[-32.768, 16.384]], rtol=1e-6
    )


def test_too_loud_samples_clip_in_i16le():
    """Samples beyond full scale are clipped, not wrapped around."""
    layout = PayloadLayout("i16le")
    payload = payloads.encode(Chunk(np.array([[2.0, -2.0]], np.float32)), layout)
    assert struct.unpack("<2h", payload) == (32767, -32768)


@pytest.mark.parametrize("missing", [{"t": None}, {"seq": None}])
def test_a_header_needs_time_and_number(missing):
    """Encoding a ts_seq header without a time or a number is an error of the caller."""
    layout = PayloadLayout("f32le", header="ts_seq")
    chunk = Chunk(np.zeros((1, 2), np.float32), t=T, seq=1)
    with pytest.raises(ValueError, match="needs a time and a number"):
        payloads.encode(replace(chunk, **missing), layout)


@pytest.mark.parametrize("subtype", ["PCM_U8", "PCM_16", "PCM_24", "PCM_32", "FLOAT", "DOUBLE"])
@pytest.mark.parametrize("container", ["WAV", "WAVEX"])
@pytest.mark.parametrize("n_channels", [1, 2])
def test_wav_files_of_another_writer(subtype, container, n_channels):
    """WAV files that libsndfile writes, plain and extensible, read as libsndfile reads them."""
    rng = np.random.default_rng(5)
    buffer = io.BytesIO()
    x = rng.uniform(-1, 0.99, (333, n_channels))
    soundfile.write(buffer, x, 22050, format=container, subtype=subtype)
    chunk = decode(buffer.getvalue(), PayloadLayout("wav", n_channels=n_channels))
    expected, fs = soundfile.read(io.BytesIO(buffer.getvalue()), dtype="float32", always_2d=True)
    assert chunk.fs_hz == fs == 22050
    np.testing.assert_allclose(chunk.samples, expected.T, atol=2**-31)


def test_our_wav_reads_elsewhere():
    """A WAV message we encode is read by libsndfile, bit for bit."""
    chunk, payload = example(PayloadLayout("wav", n_channels=2))
    x, fs = soundfile.read(io.BytesIO(payload), dtype="float32", always_2d=True)
    assert fs == 16000
    np.testing.assert_array_equal(x.T, chunk.samples)


def test_a_wav_of_unknown_length_is_taken_to_its_end():
    """A recorder that writes to a pipe states 0xFFFFFFFF or 0 bytes; the samples that came are taken."""
    chunk, payload = example(PayloadLayout("wav"))
    at = payload.index(b"data") + 4
    for stated in (0xFFFFFFFF, 0):
        piped = payload[:at] + struct.pack("<I", stated) + payload[at + 4 :]
        np.testing.assert_array_equal(decode(piped, PayloadLayout("wav")).samples, chunk.samples)


def test_a_wav_cut_off_says_so():
    """A WAV message with fewer samples than its header states is refused with both numbers."""
    _, payload = example(PayloadLayout("wav"))
    assert "states 24 bytes of samples, 20 came" in str(refused(payload[:-4], PayloadLayout("wav")))
