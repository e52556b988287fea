"""Recording formats: the samples, rate, times and label of each, and errors that name the file."""

import json
import sys
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import scipy.io
import soundfile
from hypothesis import given
from hypothesis import strategies as st

from edge_agent import payloads, recordings
from edge_agent.errors import RecordingError
from edge_agent.payloads import PayloadLayout
from edge_agent.recordings import Ask, capture, nasa, open_recordings, windows
from edge_agent.signals import Chunk, rfc3339

DATA = Path(__file__).parents[2] / "shared" / "data"
SHARED = pytest.mark.skipif(not DATA.is_dir(), reason="../shared/data is absent")
T = 1763776990.0
FILES = ["a.wav", "b.flac", "c.mat", "d.jsonl", "e.csv", "f.npz", "g.npy", "h.capture"]


def only(path, ask=Ask()):
    """The one recording of a path."""
    (recording,) = open_recordings(path, ask)
    return recording


def whole(recording):
    """All samples (n_channels, n) and the times of the chunks; every chunk is checked on the way."""
    chunks = list(recording.chunks())
    assert all(c.samples.dtype == np.float32 and c.fs_hz == recording.fs_hz for c in chunks)
    return np.concatenate([c.samples for c in chunks], axis=1), [c.t for c in chunks]


def write_nasa(folder, name, frames):
    """One snapshot as NASA writes it: tabs, three decimals, CR LF."""
    folder.mkdir(exist_ok=True)
    (folder / name).write_bytes("".join("\t".join(f"{v:.3f}" for v in row) + "\r\n" for row in frames).encode())


def write_all(folder):
    """One recording of every format, 300 samples of one channel at 100 Hz."""
    x = np.linspace(-0.5, 0.5, 300, dtype=np.float32)
    soundfile.write(folder / "a.wav", x, 100, subtype="PCM_16")
    soundfile.write(folder / "b.flac", x, 100)
    write_nasa(folder / "nasa", "2004.02.12.10.32.39", x[:, None])
    scipy.io.savemat(folder / "c.mat", {"X105_DE_time": x[:, None]})
    record = {"data_time": "2023-12-04T15:09:34.000Z", "signal_value": ",".join(map(str, x.tolist()))}
    (folder / "d.jsonl").write_text(json.dumps(record) + "\n")
    (folder / "e.csv").write_text("\n".join(map(str, x.tolist())))
    np.savez_compressed(folder / "f.npz", x=x)
    np.save(folder / "g.npy", x)
    layout = PayloadLayout("f32le")
    (folder / "h.capture").write_bytes(
        capture.header_line(sensor="p", topic="t", layout=layout, fs_hz=100.0)
        + capture.message_line(T, payloads.encode(Chunk(x[None]), layout))
    )


def test_every_format_in_one_folder(tmp_path):
    """A folder with all formats gives one recording each, all with the same samples, readable twice."""
    write_all(tmp_path)
    (tmp_path / "README.txt").write_text("not a recording")
    (tmp_path / "bundle.json").write_text('{"name": "not a recording"}')
    (tmp_path / "._a.wav").write_text("what another system leaves behind")
    found = list(open_recordings(tmp_path, Ask(fs_hz=100.0)))
    assert [r.name for r in found] == [*FILES, "nasa"]
    for recording in found:
        assert recording.fs_hz == 100.0
        samples, _ = whole(recording)
        np.testing.assert_allclose(samples[0], np.linspace(-0.5, 0.5, 300), atol=6e-4)
        np.testing.assert_array_equal(whole(recording)[0], samples)


def test_every_format_is_tried_here(tmp_path):
    """The folder above holds every registered format."""
    write_all(tmp_path)
    by_format = {path.suffix.lstrip(".") or "nasa" for path in tmp_path.iterdir()}
    assert set(recordings.formats()) <= by_format


def test_no_format_glues_or_loses_a_window(tmp_path):
    """In every format 300 samples give three windows of 100 with the same content."""
    write_all(tmp_path)
    for recording in open_recordings(tmp_path, Ask(fs_hz=100.0)):
        cut = list(windows(recording, 100, 100))
        assert [w.seq for w in cut] == [0, 1, 2]
        np.testing.assert_array_equal(np.concatenate([w.samples for w in cut], axis=1), whole(recording)[0])
        assert np.diff([w.start for w in cut]) == pytest.approx([1.0, 1.0])


@pytest.mark.parametrize("name", ["a.wav", "b.flac", "h.capture"])
def test_a_rate_that_contradicts_names_both(tmp_path, name):
    """Where the file states its rate, another one asked for is an error naming both."""
    write_all(tmp_path)
    with pytest.raises(RecordingError, match=r"100 Hz, 16000 Hz is asked for"):
        only(tmp_path / name, Ask(fs_hz=16000.0))


@pytest.mark.parametrize("name", ["c.mat", "d.jsonl", "e.csv", "f.npz", "g.npy"])
def test_a_missing_rate_says_how_to_give_it(tmp_path, name):
    """Where neither file nor caller knows the rate, the error says --fs."""
    write_all(tmp_path)
    with pytest.raises(RecordingError, match=rf"{name}: states no sampling rate.*--fs"):
        only(tmp_path / name)


@pytest.mark.parametrize("name", [*FILES, "nasa"])
def test_a_channel_that_is_not_there(tmp_path, name):
    """Asking for channel 1 of a single channel is an error naming the file and the range."""
    write_all(tmp_path)
    with pytest.raises(RecordingError, match=rf"{name}: has no channel 1; expected 0 to 0 \(1 channel\)"):
        only(tmp_path / name, Ask(fs_hz=100.0, channels=(1,)))


def test_a_path_without_recordings(tmp_path):
    """A path that holds nothing readable, or does not exist, is an error with the known formats."""
    (tmp_path / "notes.txt").write_text("nothing")
    with pytest.raises(RecordingError, match=r"holds no recording.*capture, csv, jsonl, mat, nasa, npz, wav"):
        list(open_recordings(tmp_path))
    with pytest.raises(RecordingError, match="does not exist"):
        list(open_recordings(tmp_path / "absent"))


@pytest.mark.parametrize("name", FILES)
@given(cut=st.floats(0, 1), junk=st.binary(max_size=20), rest=st.booleans())
def test_damaged_files_raise_recording_errors_only(tmp_path_factory, name, cut, junk, rest):
    """A file cut off or overwritten anywhere is read as far as it goes or is a RecordingError."""
    folder = tmp_path_factory.mktemp("damaged")
    write_all(folder)
    path = folder / name
    data = path.read_bytes()
    at = int(cut * len(data))
    path.write_bytes(data[:at] + junk + (data[at + len(junk) :] if rest else b""))
    try:
        for recording in open_recordings(path, Ask(fs_hz=100.0)):
            for chunk in recording.chunks():
                assert chunk.samples.shape[0] >= 1
    except RecordingError as error:
        assert name in str(error)


@pytest.mark.parametrize("head", ["\t1.5", "a,b", "ts,a,b"])
def test_a_head_with_more_names_than_the_rows_have_columns(tmp_path, head):
    """Names and rows that do not agree are an error that tells both counts."""
    (tmp_path / "e.csv").write_text(f"{head}\n1.0\n2.0\n3.0\n")
    with pytest.raises(RecordingError, match=r"e.csv: .*(names [23] columns .* the rows below have 1|invalid column index)"):
        [list(r.chunks()) for r in open_recordings(tmp_path / "e.csv", Ask(fs_hz=100.0))]


@pytest.mark.parametrize(
    ("name", "label"),
    [
        ("normal_id_00_00000003.wav", "normal"),
        ("section_00_source_test_anomaly_0003.wav", "anomaly"),
        ("section_01_target_train_normal_0003_noAttribute.wav", "normal"),
        ("normal/clip.wav", "normal"),
        ("abnormal/clip.wav", "anomaly"),
        ("Anomaly/clip.wav", "anomaly"),
        ("anomaly/normal_7.wav", "normal"),
        ("normal/deep/clip.wav", None),
        ("normality/paranormal.wav", None),
        ("clip.wav", None),
    ],
)
def test_labels_come_from_names(tmp_path, name, label):
    """A word of the file name decides, else the folder that holds the file; parts of words do not."""
    path = tmp_path / "machine" / name
    path.parent.mkdir(parents=True)
    soundfile.write(path, np.zeros(100), 100)
    assert only(path).label == label


def test_wav_in_seconds_with_channels_chosen(tmp_path):
    """A WAV of 2.5 s gives chunks of 1, 1 and 0.5 s of the channels asked for, in that order."""
    x = np.random.default_rng(1).uniform(-0.9, 0.9, (2500, 3)).astype(np.float32)
    soundfile.write(tmp_path / "x.wav", x, 1000, subtype="FLOAT")
    recording = only(tmp_path / "x.wav", Ask(channels=(2, 0)))
    assert [c.samples.shape for c in recording.chunks()] == [(2, 1000), (2, 1000), (2, 500)]
    np.testing.assert_array_equal(whole(recording)[0], x[:, [2, 0]].T)


def test_a_wav_cut_off_gives_what_it_holds(tmp_path):
    """A WAV that a power cut ended is read to its last whole frame."""
    x = np.arange(200, dtype=np.int16).reshape(100, 2)
    soundfile.write(tmp_path / "x.wav", x, 100, subtype="PCM_16")
    data = (tmp_path / "x.wav").read_bytes()
    (tmp_path / "x.wav").write_bytes(data[:-5])
    samples, _ = whole(only(tmp_path / "x.wav"))
    np.testing.assert_array_equal(samples * 32768, x[:98].T)


def test_flac_without_soundfile_says_what_to_install(tmp_path, monkeypatch):
    """Where soundfile is absent, a FLAC file is an error that says pip install soundfile."""
    (tmp_path / "x.flac").write_bytes(b"fLaC")
    monkeypatch.setitem(sys.modules, "soundfile", None)
    with pytest.raises(RecordingError, match="pip install soundfile"):
        only(tmp_path / "x.flac")


def test_a_nasa_folder_is_one_recording_in_time_order(tmp_path):
    """Files named by time are chunks of one recording at 20 kHz, with the names' times in UTC."""
    folder = tmp_path / "2nd_test"
    for minute in (42, 32):
        write_nasa(folder, f"2004.02.12.10.{minute}.39", np.full((50, 4), minute) + np.arange(4))
    (folder / "readme.txt").write_text("not a snapshot")
    recording = only(tmp_path, Ask(channels=(1,)))
    samples, times = whole(recording)
    assert recording.name == "2nd_test"
    assert recording.fs_hz == 20000.0
    assert times == [1076581959.0, 1076582559.0]
    assert samples[0, [0, 50]].tolist() == [33.0, 43.0]
    cut = list(windows(recording, 40, 40))
    assert [w.start for w in cut] == times


def test_a_single_nasa_file(tmp_path):
    """One snapshot by itself is a recording of one chunk, at the rate asked for."""
    write_nasa(tmp_path, "2004.02.12.10.32.39", np.ones((30, 2)))
    recording = only(tmp_path / "2004.02.12.10.32.39", Ask(fs_hz=20480.0))
    assert recording.fs_hz == 20480.0
    assert whole(recording)[0].shape == (2, 30)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1\t2\n3\t4", [[1, 2], [3, 4]]),
        ("1.\t.5\n-.5\t+2\n", [[1, 0.5], [-0.5, 2]]),
        ("1 2\n3 4\n", [[1, 2], [3, 4]]),
        ("1\t2\r\n3\t4\r\n\r\n", [[1, 2], [3, 4]]),
    ],
)
def test_nasa_text_in_every_spelling(tmp_path, text, expected):
    """Numbers that JSON refuses and other blanks are read as numpy.loadtxt reads them."""
    (tmp_path / "2004.02.12.10.32.39").write_bytes(text.encode())
    np.testing.assert_array_equal(nasa.parse(tmp_path / "2004.02.12.10.32.39"), expected)


@pytest.mark.parametrize("text", ["", "1\t2\n3\n", "1\tx\n", "\n\n"])
def test_broken_nasa_text_names_the_file(tmp_path, text):
    """Ragged, empty and non-numeric snapshots are errors naming the file."""
    (tmp_path / "2004.02.12.10.32.39").write_bytes(text.encode())
    with pytest.raises(RecordingError, match=r"2004\.02\.12\.10\.32\.39: "):
        nasa.parse(tmp_path / "2004.02.12.10.32.39")


def test_mat_channels_in_order(tmp_path):
    """CWRU keys become the channels DE, FE, BA whatever their order in the file."""
    scipy.io.savemat(
        tmp_path / "105.mat",
        {
            "X105_FE_time": np.full((90, 1), 2.0),
            "X105_BA_time": np.full((90, 1), 3.0),
            "X105_DE_time": np.full((90, 1), 1.0),
            "X105RPM": 1797,
        },
    )
    samples, times = whole(only(tmp_path / "105.mat", Ask(fs_hz=12000.0)))
    np.testing.assert_array_equal(samples[:, 0], [1, 2, 3])
    assert times == [None]


def test_two_measurements_in_one_mat(tmp_path):
    """A .mat with two measurements gives two recordings with their own names."""
    scipy.io.savemat(tmp_path / "99.mat", {"X098_DE_time": np.zeros((9, 1)), "X099_DE_time": np.ones((9, 1))})
    found = list(open_recordings(tmp_path / "99.mat", Ask(fs_hz=12000.0)))
    assert [r.name for r in found] == ["99.mat:X098", "99.mat:X099"]
    assert [float(whole(r)[0][0, 0]) for r in found] == [0.0, 1.0]


def test_another_mat_says_what_it_holds(tmp_path):
    """A .mat without the known keys is an error that lists its own."""
    scipy.io.savemat(tmp_path / "x.mat", {"voltage": np.zeros(9)})
    with pytest.raises(RecordingError, match="holds voltage; expected keys such as X105_DE_time"):
        only(tmp_path / "x.mat", Ask(fs_hz=12000.0))


@pytest.mark.parametrize("suffix", ["jsonl", "json"])
def test_records_become_chunks_with_times(tmp_path, suffix):
    """Records, a line each or in a list, are the chunks of one recording; a pause breaks the windows."""
    records = [
        {"data_time": f"2023-12-04T15:0{i}:00.000Z", "signal_value": [float(i)] * 150, "sensor_id": "s"}
        for i in range(3)
    ]
    text = "\n".join(map(json.dumps, records)) if suffix == "jsonl" else json.dumps(records)
    (tmp_path / f"x.{suffix}").write_text(text)
    recording = only(tmp_path, Ask(fs_hz=100.0))
    samples, times = whole(recording)
    assert samples.shape == (1, 450)
    assert np.diff(times).tolist() == [60.0, 60.0]
    assert [w.samples[0, -1] for w in windows(recording, 100, 100)] == [0.0, 1.0, 2.0]


def test_a_broken_record_names_its_line(tmp_path):
    """A record that cannot be read is an error naming the file and the line."""
    (tmp_path / "x.jsonl").write_text('{"signal_value":"1,2"}\n\n{"signal_value":"1,x"}\n')
    with pytest.raises(RecordingError, match=r"x\.jsonl, line 3: signal_value: number 1 is 'x'"):
        whole(only(tmp_path / "x.jsonl", Ask(fs_hz=10.0)))


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
@pytest.mark.parametrize("header", ["", "x{0}y\n"])
def test_csv_columns_are_channels(tmp_path, delimiter, header):
    """Columns separated by comma, semicolon or tab are channels, with and without their names."""
    rows = "\n".join(f"{i}{delimiter}{-i}" for i in range(5))
    (tmp_path / "x.csv").write_text(header.format(delimiter) + rows)
    samples, times = whole(only(tmp_path / "x.csv", Ask(fs_hz=100.0)))
    np.testing.assert_array_equal(samples, [np.arange(5), -np.arange(5)])
    assert times == [None]


@pytest.mark.parametrize("stamp", [lambda t: f"{t:.6f}", lambda t: f"{t * 1000:.3f}", rfc3339])
def test_a_csv_time_column_gives_rate_and_gaps(tmp_path, stamp):
    """A time column in s, in ms or as text gives the rate and the times; a hole of 0.2 s is a gap."""
    t = T + np.arange(1000) / 200.0
    t[500:] += 0.2
    rows = "\n".join(f"{i},{stamp(v)}" for i, v in enumerate(t))
    (tmp_path / "x.csv").write_text("acc,Time\n" + rows)
    recording = only(tmp_path / "x.csv")
    assert recording.fs_hz == pytest.approx(200.0, rel=1e-3)
    samples, times = whole(recording)
    assert samples.shape == (1, 1000)
    assert times[0] == pytest.approx(T, abs=1e-3)
    cut = list(windows(recording, 120, 120))
    assert [float(w.samples[0, 0]) for w in cut] == [0, 120, 240, 360, 500, 620, 740, 860]
    assert cut[4].start == pytest.approx(T + 2.7, abs=2e-3)


def test_a_csv_with_rounded_times_keeps_the_asked_rate(tmp_path):
    """Times rounded to ms at 3.2 kHz still agree with the asked rate, which is then exact."""
    rows = "\n".join(f"{round(i / 3200.0, 3)},{i}" for i in range(6400))
    (tmp_path / "x.csv").write_text("t,x\n" + rows)
    recording = only(tmp_path / "x.csv", Ask(fs_hz=3200.0))
    assert recording.fs_hz == 3200.0
    assert len(list(windows(recording, 1600, 1600))) == 4


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "first line is empty"),
        ("a,b\n", "no rows"),
        ("1,2\n3\n", "expected numbers"),
        ("t\n1\n2\n", "time column only"),
        ("t,x\n2,0\n1,0\n", "time goes back at sample 1"),
        ("t,x\n1,0\n1,0\n", "never rises"),
        ("t,x\nsoon,0\n1,0\n", "expected numbers|time is"),
    ],
)
def test_broken_csv_says_where(tmp_path, text, words):
    """Empty, ragged and backward CSV files are errors naming the file and the trouble."""
    (tmp_path / "x.csv").write_text(text)
    with pytest.raises(RecordingError, match=rf"x\.csv: .*({words})"):
        whole(only(tmp_path / "x.csv", Ask(fs_hz=1.0)))


def test_npz_arrays_by_their_shapes(tmp_path):
    """Flat arrays are recordings of one or more channels; names, small, wide and text arrays are not."""
    np.savez(
        tmp_path / "x.npz",
        one=np.arange(100, dtype=np.int16),
        three=np.asfortranarray(np.arange(300, dtype=np.float64).reshape(100, 3)),
        bearing_milli=np.arange(100, dtype=np.int16),
        fs=50,
        wide=np.zeros((100, 28)),
        few=np.zeros(10),
        names=np.array(["a"] * 100),
        objects=np.array([None] * 100),
    )
    found = {r.name: whole(r)[0] for r in open_recordings(tmp_path / "x.npz")}
    assert list(found) == ["x.npz:bearing_milli", "x.npz:one", "x.npz:three"]
    np.testing.assert_array_equal(found["x.npz:one"], [np.arange(100)])
    np.testing.assert_array_equal(found["x.npz:three"], np.arange(300).reshape(100, 3).T)
    np.testing.assert_allclose(found["x.npz:bearing_milli"], [np.arange(100) / 1000], rtol=1e-6)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_npz_snapshots_are_not_glued(tmp_path, save):
    """(snapshots, n, c) is one recording in which no window crosses from one snapshot to the next."""
    x = np.arange(3 * 150 * 2, dtype=np.float32).reshape(3, 150, 2)
    save(tmp_path / "x.npz", acc=x, fs=100, temperature=np.zeros((500, 5)))
    recording = only(tmp_path / "x.npz")
    assert recording.name == "x.npz"
    np.testing.assert_array_equal(whole(recording)[0], x.reshape(-1, 2).T)
    cut = list(windows(recording, 100, 100))
    assert [float(w.samples[0, 0]) for w in cut] == [0.0, 300.0, 600.0]


def test_npz_snapshot_times(tmp_path):
    """Times of snapshots come from names, or from a clock that runs over midnight and may slip."""
    x = np.zeros((3, 100, 1), np.int16)
    names = np.array(["2004.02.12.10.32.39", "2004.02.12.10.42.39", "2004.02.12.10.52.39"])
    np.savez(tmp_path / "a.npz", x_milli=x, files=names)
    assert whole(only(tmp_path / "a.npz", Ask(fs_hz=10.0)))[1] == [1076581959.0, 1076582559.0, 1076583159.0]
    clock = np.array([[23, 59, 40, 0], [9, 0, 0, 0], [0, 0, 20, 5e5]])
    np.savez(tmp_path / "b.npz", x=x, start_hms_us=clock[[0, 2]][[0, 1, 1]] + [[0] * 4, [0] * 4, [0, 0, 10, 0]])
    assert whole(only(tmp_path / "b.npz", Ask(fs_hz=10.0)))[1] == [86380.0, 86420.5, 86430.5]
    slipped = np.array([[15, 0, 0, 0], [9, 0, 0, 0], [15, 0, 20, 0]])
    np.savez(tmp_path / "c.npz", x=x, start_hms_us=slipped)
    assert whole(only(tmp_path / "c.npz", Ask(fs_hz=10.0)))[1] == [54000.0, 54010.0, 54020.0]


def test_an_npz_without_signals_says_what_it_holds(tmp_path):
    """Images are no recording, and the error lists what was found."""
    np.savez(tmp_path / "x.npz", images=np.zeros((30, 28, 28)))
    with pytest.raises(RecordingError, match=r"holds images \(30, 28, 28\) float64; expected"):
        only(tmp_path / "x.npz", Ask(fs_hz=1.0))


def test_npz_is_never_unpickled(tmp_path):
    """An array of objects, which could run code when read, is passed over."""
    np.savez(tmp_path / "x.npz", x=np.array([{"a": 1}] * 100, dtype=object))
    with pytest.raises(RecordingError, match="expected numbers"):
        only(tmp_path / "x.npz", Ask(fs_hz=1.0))


def write_capture(path, messages, layout, fs_hz=100.0):
    """A capture of (received, payload)."""
    lines = [capture.header_line(sensor="pump-1-de", topic="plant/x", layout=layout, fs_hz=fs_hz)]
    path.write_bytes(b"".join([*lines, *(capture.message_line(t, p) for t, p in messages)]))


def test_a_capture_comes_back_as_it_was(tmp_path):
    """Header and messages of a capture are read back as they were written, and decode to the chunks."""
    layout = PayloadLayout("i16le", n_channels=2, header="ts_seq", scale=0.01)
    sent = [Chunk(np.full((2, 10), i, np.float32), t=T + i * 0.1, seq=i) for i in range(5)]
    messages = [(T + i, payloads.encode(c, layout)) for i, c in enumerate(sent)]
    write_capture(tmp_path / "x.capture", messages, layout)
    header = capture.read_header(tmp_path / "x.capture")
    assert (header.sensor, header.topic, header.fs_hz) == ("pump-1-de", "plant/x", 100.0)
    assert asdict(header.layout) == asdict(layout)
    assert [(m.received, m.payload) for m in capture.messages(tmp_path / "x.capture")] == messages
    chunks = list(only(tmp_path / "x.capture", Ask(channels=(1,))).chunks())
    assert [c.seq for c in chunks] == [0, 1, 2, 3, 4]
    assert [c.t for c in chunks] == pytest.approx([c.t for c in sent], abs=1e-6)
    assert chunks[3].samples.tolist() == [[3.0] * 10]


def test_a_capture_without_times_runs_from_the_first_receipt(tmp_path):
    """Messages without a time run on nominally from the first receipt; a silence breaks the window."""
    layout = PayloadLayout("f32le")
    payload = payloads.encode(Chunk(np.zeros((1, 60), np.float32)), layout)
    write_capture(tmp_path / "x.capture", [(T + s, payload) for s in (0.6, 1.7, 100.6, 101.1)], layout)
    cut = list(windows(only(tmp_path / "x.capture"), 100, 100))
    assert [w.start - T for w in cut] == pytest.approx([0.0, 100.0], abs=1e-6)


def test_a_capture_drops_what_the_agent_drops(tmp_path):
    """A message that does not decode is left out; a last line cut off by a kill ends the capture."""
    layout = PayloadLayout("f32le")
    good = payloads.encode(Chunk(np.ones((1, 10), np.float32)), layout)
    path = tmp_path / "x.capture"
    write_capture(path, [(T, good), (T, b"abc"), (T, good), (T, good)], layout)
    path.write_bytes(path.read_bytes()[:-4])
    assert whole(only(path))[0].shape == (1, 20)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (b"", "line 1"),
        (b'{"capture": 1}\n', "line 1.*sensor"),
        (b'{"capture":2,"sensor":"s","topic":"t","layout":{"format":"f32le"},"fs_hz":1}\n', "version is 2"),
        (b'{"capture":1,"sensor":"s","topic":"t","layout":{"format":"x"},"fs_hz":1}\n', "format is 'x'"),
        (
            b'{"capture":1,"sensor":"s","topic":"t","layout":{"format":"f32le","header":"x"},"fs_hz":1}\n',
            "header is 'x'",
        ),
    ],
)
def test_a_capture_header_that_is_none(tmp_path, line, words):
    """Another first line is an error naming the file and what was expected."""
    (tmp_path / "x.capture").write_bytes(line)
    with pytest.raises(RecordingError, match=words):
        only(tmp_path / "x.capture")


@SHARED
def test_ims_text_equals_the_packed_array():
    """NASA's own text files and the packed array give the same samples at the same times."""
    text = {c.t: c.samples for c in only(DATA / "originals" / "ims_2nd_test").chunks()}
    packed = only(DATA / "ims_set2.npz", Ask(fs_hz=20000.0))
    found = {c.t: c.samples for c in packed.chunks() if c.t in text}
    assert sorted(found) == sorted(text)
    for t, samples in text.items():
        np.testing.assert_allclose(samples, found[t], atol=1e-6)


@SHARED
@pytest.mark.parametrize(
    ("name", "fs_hz", "n_samples", "n_recordings", "n_windows", "n_channels"),
    [
        ("ims_set2.npz", 20000.0, 20480, 1, 984, 4),
        ("cwru.npz", 12000.0, 8192, 45, 757, 1),
        ("hit_sm.npz", None, 8192, 14, 448, 1),
        ("motor3ax.npz", 1000.0, 5000, 120, 120, 3),
        ("femto_bearing1_1.npz", 25600.0, 2560, 1, 2803, 2),
        ("fan_accel.npz", None, 200, 5, 2636, 3),
        ("originals/cwru_12k_de", 12000.0, 4096, 2, 58, 3),
        ("sound", None, 160000, 115, 115, 1),
    ],
)
def test_the_shared_data_reads_whole(name, fs_hz, n_samples, n_recordings, n_windows, n_channels):
    """Every public data set gives the recordings and windows its description states."""
    found = list(open_recordings(DATA / name, Ask(fs_hz=fs_hz)))
    shapes = [w.samples.shape for r in found for w in windows(r, n_samples, n_samples)]
    assert len(found) == n_recordings
    assert len(shapes) == n_windows
    assert set(shapes) == {(n_channels, n_samples)}
