"""The sink: every row that was completed can be read, whatever happened to the process; and any other file is refused
with one line."""

from __future__ import annotations

import mmap
import os
import random
import signal
import struct
import subprocess
import sys
import time
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minitrainer.trace import events
from minitrainer.trace.errors import UsageError
from minitrainer.trace.recorder import FIRST_SEGMENT_BYTES, Recorder, plain
from minitrainer.trace.rows import (
    CALLBACK,
    CELL_NAMED,
    CELL_NUMBERS,
    CELL_RETURN,
    CODES,
    NEW_TIME,
    ORIGIN,
    TICKS_A_SECOND,
    Follower,
    RowSplitter,
    cell_head,
    filled_up,
    read,
    sample_trace,
    write_rows,
)

KILL_POINTS = int(os.environ.get("MINITRAINER_KILL_POINTS", "20"))

LOG = CODES[events.Log]

GRAD_NORM = CODES[events.GradNorm]

HEAD = filled_up(b'{"kind":"head","schema":1,"form":"recording"}')


def head() -> events.Head:
    return events.Head(schema=events.SCHEMA, form="recording", versions={"python": "3"})


# -- what is written can be read -------------------------------------------------------------------


def test_rows_can_be_read_while_the_recorder_still_writes(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path / "a.rows", head())
    recorder.put(LOG, (1, {"loss": 0.5}))
    assert recorder.pen.floats(GRAD_NORM, 2.0, 1.0)
    recorder.pen.floats(CODES[events.OptimizerStep] | 2 << 8 | True << 16, 0.1, 0.2)
    recorder.put(CODES[events.SchedulerStep], ([0.1],))
    recorder.state(recorder.name("global_step"), recorder.name(("Trainer.train", "a.py", 3)), 0, 1)
    reading = read(tmp_path / "a.rows")
    log, norm, step, scheduler, state = list(reading)[1:]
    assert (log.step, log.logs) == (1, {"loss": 0.5})
    assert (norm.norm, norm.max_norm, norm.clipped) == (2.0, 1.0, True)
    assert (step.lr, step.skipped) == ([0.1, 0.2], True)
    assert (scheduler.lr, scheduler.skipped if hasattr(scheduler, "skipped") else False) == ([0.1], False)
    assert (state.field, state.old, state.new, state.by, state.line) == ("global_step", 0, 1, "Trainer.train", 3)
    assert not reading.complete and reading.torn_bytes == 0
    recorder.close()
    assert list(reading)[-1].rows == 6 and reading.complete


def test_numbers_that_are_not_finite_survive(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path / "a.rows", head())
    assert recorder.pen.floats(GRAD_NORM, float("nan"), float("inf"))
    recorder.state(recorder.name("best_metric"), recorder.name(("x", "", 0)), 1.0, float("-inf"))
    recorder.put(LOG, (1, {"loss": plain(float("nan"))}))
    recorder.close()
    norm, state, log = list(read(tmp_path / "a.rows"))[1:-1]
    assert (norm.norm, norm.max_norm, state.new, log.logs["loss"]) == ("nan", "inf", "-inf", "nan")
    assert events.as_float(norm.max_norm) == float("inf")


def test_the_file_grows_over_segments_and_is_cut_to_its_length(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path / "a.rows", head())
    text = "x" * 1000
    count = 3 * FIRST_SEGMENT_BYTES // 1000
    for step in range(count):
        recorder.put(LOG, (step, {"text": text}))
    written = 8 * recorder.pen.position
    recorder.close()
    recorder.close()
    assert [record.step for record in read(tmp_path / "a.rows") if type(record) is events.Log] == list(range(count))
    assert written < (tmp_path / "a.rows").stat().st_size < written + 200


def test_a_row_larger_than_a_segment_fits(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path / "a.rows", head())
    recorder.put(LOG, (1, {"text": "y" * (2 * FIRST_SEGMENT_BYTES)}))
    recorder.put(LOG, (2, {}))
    recorder.close()
    assert [record.step for record in read(tmp_path / "a.rows") if type(record) is events.Log] == [1, 2]


def test_names_beyond_sixteen_bits_are_written_as_arrays(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path / "a.rows", head())
    for i in range(70_000):
        recorder.names.ids[f"name {i}"] = i + 1
    site = recorder.name(("author", "", 0))
    recorder.state(recorder.name("field"), site, 1, 2)
    recorder.close()
    assert site > 65_535
    (state,) = [record for record in read(tmp_path / "a.rows") if type(record) is events.State]
    assert (state.field, state.by, state.new) == ("field", "author", 2)


def test_times_go_on_when_they_are_counted_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Six days in a twentieth of a second: cells, packed rows and arrays go on where they were."""
    monkeypatch.setattr("minitrainer.trace.recorder.LONGEST_TIME_TICKS", TICKS_A_SECOND // 100)
    recorder = Recorder(tmp_path / "a.rows", head())
    method = recorder.name(("train", "Trainer", "", False))
    began, moments = time.perf_counter(), []
    while not moments or moments[-1] < 0.05:
        for cell in (CELL_NAMED + 2 * method, CELL_RETURN):
            assert recorder.pen.cell(cell)
            moments.append(time.perf_counter() - began)
        assert recorder.pen.floats(GRAD_NORM, 1.0, 1.0)
        recorder.put(LOG, (1, {}))
        moments += [time.perf_counter() - began] * 2
        time.sleep(0.001)
    recorder.close()
    content = (tmp_path / "a.rows").read_bytes()
    assert content.count(b"[%d," % NEW_TIME) >= 4
    records = list(read(tmp_path / "a.rows"))[1:-1]
    assert {type(record) for record in records} == {events.Call, events.Return, events.GradNorm, events.Log}
    times = [record.at for record in records]
    assert times == sorted(times) and len(times) == len(moments)
    begin = times[0] - 1e6 * moments[0]
    assert max(abs(at - begin - 1e6 * moment) for at, moment in zip(times, moments, strict=True)) < 5_000


def test_a_cell_is_one_tick_exact_and_the_highest_number_fits() -> None:
    zero = ORIGIN - 1234.5
    highest = cell_head(CELL_NUMBERS - 1, zero)
    assert highest is not None and cell_head(CELL_NUMBERS, zero) is None
    for elapsed in (0.0, 2.0**-20, 1.0, 2.0**20 - 2.0**-20):
        cell = struct.pack("<d", 1234.5 + elapsed + highest)
        ((kind, at, name),) = RowSplitter().feed(cell)
        assert (kind, name) == (CALLBACK, (CELL_NUMBERS - 1 - CELL_NAMED) // 2)
        assert at == int(1e6 * elapsed)


def test_a_recording_in_use_is_not_cut_short_by_another(tmp_path: Path) -> None:
    first = Recorder(tmp_path / "a.rows", head())
    second = Recorder(tmp_path / "a.rows", head())
    first.put(LOG, (1, {}))  # with one file for both this would be the end of the process (SIGBUS)
    second.put(LOG, (2, {}))
    first.close()
    second.close()
    assert [record.step for record in read(tmp_path / "a.rows") if type(record) is events.Log] == [2]


def test_a_forked_child_does_not_write(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path / "a.rows", head())
    child = os.fork()
    if not child:
        recorder.put(LOG, (99, {}))
        os._exit(0)
    os.waitpid(child, 0)
    recorder.put(LOG, (1, {}))
    recorder.close()
    assert [record.step for record in read(tmp_path / "a.rows") if type(record) is events.Log] == [1]


def test_the_follower_sees_rows_as_they_come(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path / "a.rows", head())
    follower = Follower(tmp_path / "a.rows")
    assert not list(follower.look())
    for step in range(5):
        recorder.put(LOG, (step, {}))
        assert recorder.pen.floats(GRAD_NORM, 1.0, 1.0)
        seen = list(follower.look())
        assert [type(record) for record in seen] == [events.Log, events.GradNorm] and seen[0].step == step
    recorder.close()
    assert [type(record) for record in follower.look()] == [events.End] and follower.is_over
    follower.close()


@given(st.integers(1, 12), st.integers(1, 3), st.integers(1, 4), st.data())
def test_rows_are_the_inverse_of_records_however_they_are_cut_up(steps, accumulation, every, data) -> None:
    import tempfile

    records = sample_trace(steps, accumulation, every)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.rows"
        write_rows(records, path)
        assert list(read(path)) == records
        content = path.read_bytes()
    cuts = sorted(data.draw(st.lists(st.integers(0, len(content)), max_size=8)))
    whole, pieces = RowSplitter().feed(content), []
    splitter = RowSplitter()
    for begin, end in zip([0, *cuts], [*cuts, len(content)], strict=True):
        pieces += splitter.feed(content[begin:end])
    assert pieces == whole


# -- what was cut short -----------------------------------------------------------------------------


def recorded(tmp_path: Path, rows: int = 40) -> bytes:
    recorder = Recorder(tmp_path / "whole.rows", head())
    for step in range(rows):
        recorder.put(LOG, (step, {"loss": step / 8}))
        assert recorder.pen.floats(GRAD_NORM, step / 4, 1.0)
    recorder.close()
    return (tmp_path / "whole.rows").read_bytes()


def test_a_file_cut_at_any_byte_gives_every_whole_row(tmp_path: Path) -> None:
    content = recorded(tmp_path)
    whole = list(read(tmp_path / "whole.rows"))
    first_line = content.index(b"\n") + 1
    for length in range(first_line, len(content)):
        for tail in (b"", b"\0" * 100):
            (tmp_path / "cut.rows").write_bytes(content[:length] + tail)
            reading = read(tmp_path / "cut.rows")
            records = list(reading)
            assert records == whole[: len(records)] and not reading.complete
            assert (reading.torn_bytes == 0) == (
                reading.rows == len(records) and _ends_a_row(content[:length], records)
            )


def _ends_a_row(content: bytes, records: list[events.Record]) -> bool:
    splitter = RowSplitter()
    splitter.feed(content)
    return splitter.close() == 0


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", "not a trace"),
        (b"\x7fELF\x02\x01\x01\x00" + bytes(64), "not a trace"),
        (b"PK\x03\x04 a zip file", "not a trace"),
        (b"step,loss\n1,0.5\n", "not a trace"),
        (b'{"kind":"call","method":"train"}\n', "not a trace"),
        (b'[{"name":"x","ph":"X"}]\n', "not a trace"),
        (b"[" * 100_000, "not a trace"),
        (b'{"kind":"head","schema":"1","form":"recording"}\n', "not a trace"),
        (b'{"kind":"head","schema":99,"form":"recording"}\n', "schema 99, newer than"),
        (b'{"kind":"head","schema":1,"form":7}\n', "malformed"),
        (b'{"kind":"head","schema":1,"form":"rows"}\n[21,5,"x"]\n', "recorded by an earlier minitrainer"),
        (b'{"kind":"head","schema":1,"form":"film"}\n[21,5,"x"]\n', "has the form 'film'"),
        (b'{"kind":"head","schema":1,"form":"recording"}\n[21,5,"x"]\n', "is not a row"),  # not filled up to a word
        (HEAD + filled_up(b"[1,5,77]"), "not a row of this schema"),
        (HEAD + filled_up(b"[2,5]"), "not a row of this schema"),
        (HEAD + filled_up(b'["x",5]'), "not a row of this schema"),
        (HEAD + filled_up(b"nonsense") + filled_up(b'[21,5,"x"]'), "is not a row"),
        (HEAD + filled_up(b'[18,5,"x",3]'), "not a row of this schema"),
        (b'{"kind":"head","schema":1,"form":"canonical"}\n{"kind":"call"}\n', "not a trace record"),
        (
            b'{"kind":"head","schema":1,"form":"canonical"}\nnonsense\n{"kind":"note","text":""}\n',
            "not a trace record",
        ),
    ],
)
def test_other_files_get_one_clear_line(tmp_path: Path, content: bytes, expected: str) -> None:
    (tmp_path / "a").write_bytes(content)
    with pytest.raises(UsageError) as refusal:
        list(read(tmp_path / "a"))
    assert expected in str(refusal.value) and "\n" not in str(refusal.value)


def test_missing_files_and_folders_get_one_clear_line(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "missing"):
        with pytest.raises(UsageError):
            read(path)


def test_kinds_that_a_later_version_added_are_skipped(tmp_path: Path) -> None:
    line = filled_up(msgspec.json.encode(head()))
    new_cell = struct.pack("<d", ORIGIN + (3 << 20))
    (tmp_path / "a").write_bytes(line + filled_up(b'[200,5,"new"]') + new_cell + filled_up(b'[21,6,"known"]'))
    assert [type(record) for record in read(tmp_path / "a")] == [events.Head, events.Note]
    (tmp_path / "b").write_bytes(
        line.replace(b"recording", b"canonical") + b'{"kind":"new","x":1}\n{"kind":"note","text":"k"}\n'
    )
    assert [type(record) for record in read(tmp_path / "b")] == [events.Head, events.Note]


@given(st.binary(max_size=300))
def test_no_bytes_after_a_head_make_the_reader_fail_otherwise(noise: bytes) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a"
        path.write_bytes(filled_up(msgspec.json.encode(head())) + noise)
        try:
            list(read(path))
        except UsageError as refusal:
            assert "\n" not in str(refusal)


# -- kills ---------------------------------------------------------------------------------------------

WRITER = """
import mmap, os, sys
sys.path[:0] = {path!r}
from minitrainer.trace import events
from minitrainer.trace.recorder import Recorder
counter = mmap.mmap(os.open(sys.argv[2], os.O_RDWR), 8)
recorder = Recorder(sys.argv[1], events.Head(schema=events.SCHEMA, form="recording"))
print("ready", flush=True)
step = 0
while True:
    if step % 3:
        recorder.pen.floats(11, float(step), 1.0) or recorder.put(11, (float(step), 1.0, step > 1))
    else:
        recorder.put(18, (step, {{"loss": step / 8, "text": "z" * (step % 50)}}))
    step += 1
    counter[:8] = step.to_bytes(8, "little")  # one copy of eight bytes: never half done
"""


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_killed_at_random_points_nothing_completed_is_lost(tmp_path: Path, how: signal.Signals) -> None:
    random.seed(3)
    lost = torn = rows_in_all = 0
    for attempt in range(KILL_POINTS if how == signal.SIGKILL else 3):
        path, counter = tmp_path / f"{attempt}.rows", tmp_path / f"{attempt}.count"
        counter.write_bytes(bytes(8))
        child = subprocess.Popen(
            [sys.executable, "-c", WRITER.format(path=[p for p in sys.path if p]), str(path), str(counter)],
            stdout=subprocess.PIPE,
        )
        assert child.stdout is not None and child.stdout.readline() == b"ready\n"
        time.sleep(random.uniform(0, 0.15))
        child.send_signal(how)
        child.wait()
        with open(counter, "rb") as file, mmap.mmap(file.fileno(), 8, prot=mmap.PROT_READ) as seen:
            completed = struct.unpack("<q", seen[:8])[0]
        reading = read(path)
        records = list(reading)[1:]
        assert not reading.complete
        lost += max(0, completed - len(records))
        torn += sum(
            record.step != i if type(record) is events.Log else record.norm != float(i)  # type: ignore[union-attr]
            for i, record in enumerate(records)
        )
        assert len(records) <= completed + 1
        rows_in_all += completed
    assert (lost, torn) == (0, 0) and rows_in_all > 1000


# -- a full disk ---------------------------------------------------------------------------------------

FULL_DISK = """
import resource, signal, sys, warnings
sys.path[:0] = {path!r}
warnings.simplefilter("always")
from minitrainer.trace import events
from minitrainer.trace.recorder import Recorder
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, resource.RLIM_INFINITY))
recorder = Recorder(sys.argv[1], events.Head(schema=events.SCHEMA, form="recording"))
for step in range(60_000):
    recorder.put(18, (step, {{"text": "w" * 40}}))
    recorder.pen.floats(11, 1.0, 1.0) or recorder.put(11, (1.0, 1.0, False))
print(recorder.dropped)
recorder.close()
"""


@pytest.mark.parametrize("limit", [3 * FIRST_SEGMENT_BYTES // 2, FIRST_SEGMENT_BYTES // 2])
def test_no_room_stops_the_recording_with_one_warning_and_nothing_else(tmp_path: Path, limit: int) -> None:
    path = tmp_path / "a.rows"
    done = subprocess.run(
        [sys.executable, "-c", FULL_DISK.format(path=[p for p in sys.path if p], limit=limit), str(path)],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("stops here") == 1
    dropped = int(done.stdout)
    assert dropped > 0
    if limit < FIRST_SEGMENT_BYTES:
        with pytest.raises(UsageError, match="not a trace"):
            read(path)
        return
    reading = read(path)
    assert len(list(reading)) - 2 + dropped == 120_000
    assert reading.complete and reading.end is not None and reading.end.dropped == dropped


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small disk takes root")
def test_a_disk_that_is_really_full(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1200k", "tmpfs", str(disk)], capture_output=True
    ).returncode:
        pytest.skip("this machine does not let us mount a disk")
    try:
        recorder = Recorder(disk / "a.rows", head())
        with pytest.warns(RuntimeWarning, match="No space left"):
            for step in range(60_000):
                recorder.put(LOG, (step, {"text": "w" * 40}))
        recorder.close()
        reading = read(disk / "a.rows")
        records = list(reading)
        assert reading.complete and reading.end is not None
        assert reading.end.dropped == 60_000 - (len(records) - 2) > 0
    finally:
        subprocess.run(["umount", str(disk)], check=False)


def test_turning_warnings_into_errors_does_not_reach_the_caller(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    import warnings

    recorder = Recorder(tmp_path / "a.rows", head())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        recorder._give_up(OSError(28, "No space left on device"))
    recorder.put(LOG, (1, {}))
    recorder.close()
    assert "No space left" in capfd.readouterr().err


# Read next: test_probes.py
