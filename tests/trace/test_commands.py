"""The commands that read a trace: light to import, one line for wrong use, exit statuses that scripts can rely on."""

from __future__ import annotations

import io
import json
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from minitrainer.trace import cli, events
from minitrainer.trace.render import live
from minitrainer.trace.rows import Follower, Reading, read, sample_trace

from . import made


def run(*words: str) -> tuple[int, str, str]:
    """Run a command line in this process: status, output, errors."""
    out, err = io.StringIO(), io.StringIO()
    stdout, stderr = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = out, err
    try:
        status = cli.main(list(words))
    finally:
        sys.stdout, sys.stderr = stdout, stderr
    return status, out.getvalue(), err.getvalue()


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    return made.write(sample_trace(steps=6, logging_steps=2), tmp_path / "run").parent


def test_importing_the_commands_is_light() -> None:
    heavy = ("torch", "transformers", "numpy", "rich", "msgspec")
    code = f"import sys, minitrainer.trace.commands; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_reading_executes_nothing_of_the_trainer(trace: Path) -> None:
    code = (
        "import sys; from minitrainer.trace import commands as c\n"
        f"c.show({str(trace)!r}); c.stats({str(trace)!r}); c.export({str(trace)!r}, 'markdown')\n"
        "print([name for name in ('torch', 'transformers', 'accelerate') if name in sys.modules], file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr.strip() == "[]"


@pytest.mark.parametrize("command", ["show", "verify", "stats"])
def test_commands_take_a_folder_or_a_file(trace: Path, command: str) -> None:
    for path in (trace, trace / "rank0.rows"):
        status, out, err = run(command, str(path))
        assert status == 0 and out and not err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            ["show", "{trace}", "--only", "everything"],
            "--only takes callbacks, flags, loss, calls, files, collectives",
        ),
        (["show", "{trace}", "--step", "5..3"], "the last step stands before the first"),
        (["show", "{trace}", "--step", "x"], "--step takes a step or a range of them"),
        (["show", "{trace}", "--rank", "4"], "holds no rank 4"),
        (["show", "{trace}", "--explain-loss", "3"], "there are logs at 2, 4, 6"),
        (["show", "{trace}/missing"], "missing"),
        (["verify", "{trace}/missing"], "missing"),
        (["stats"], "TRACE"),
        (["export", "{trace}"], "--to"),
        (["export", "{trace}", "--to", "pdf"], "pdf"),
        (["export", "{trace}", "--to", "json", "--out", "/proc/none/x"], "can't be written"),
        (["export", "{trace}", "--to", "canonical", "--out", "{trace}/rank0.rows"], "the trace itself"),
    ],
)
def test_wrong_use_gets_one_line_and_status_2(trace: Path, words: list[str], said: str) -> None:
    status, _, err = run(*(word.format(trace=trace) for word in words))
    assert status == 2
    assert err.startswith("minitrainer.trace: ") and err.count("\n") == 1 and said in err


@pytest.mark.parametrize("command", ["show", "verify", "stats", "export"])
@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"hello\n",
        b'{"kind": "head"}\n',
        b'{"kind": "head", "schema": "1", "form": "rows"}\n',
        b'{"kind": "head", "schema": 99, "form": "rows"}\n[1]\n',
        b'{"kind": "head", "schema": 1, "form": "rows"}\n[1,2,3]\n[2,2]\n',
        b'{"kind": "head", "schema": 1, "form": "rows"}\n[2,5]\n[2,5]\n',
        b'{"kind": "head", "schema": 1, "form": "canonical"}\n{"kind": "call"}\n{"kind": "call"}\n',
        b"[" * 100_000 + b"\n",
        b'{"kind": "head", "schema": 1, "form": "rows"}\n' + b"[" * 100_000 + b"\n[2,5]\n",
        b"\x80\x81\x82\n",
        b"\x89PNG\r\n\x1a\n" + bytes(range(256)) * 10,
    ],
    ids=range(12),
)
def test_files_that_are_no_trace_get_one_line_and_status_2(tmp_path: Path, command: str, content: bytes) -> None:
    path = tmp_path / "some.rows"
    path.write_bytes(content)
    words = ["--to", "json", "--out", str(tmp_path / "o.json")] if command == "export" else []
    status, _, err = run(command, str(path), *words)
    assert status == 2, err
    assert err.count("\n") == 1 and "some.rows" in err and "Traceback" not in err


def test_verify_exit_statuses(tmp_path: Path) -> None:
    good = made.write(sample_trace(), tmp_path / "good")
    bad = made.write(made.replaced(sample_trace(), events.Loss, logged=0.5), tmp_path / "bad")
    empty = made.write(made.without_end(sample_trace(), 5), tmp_path / "empty")
    status, out, _ = run("verify", str(good))
    assert status == 0 and "3 logged values derived again (2 loss, 1 train_loss)" in out and "all follow" in out
    status, out, _ = run("verify", str(bad))
    assert (
        status == 1
        and "does not follow: rank 0, step 2: loss 0.5, because logged is recorded as 0.5" in out.replace("\n ", "")
    )
    status, out, _ = run("verify", str(empty))
    assert status == 1 and "nothing verified" in out


# -- export ----------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["markdown", "json", "perfetto", "canonical", "portable"])
def test_export_writes_beside_the_trace_or_where_it_is_told(trace: Path, tmp_path: Path, form: str) -> None:
    status, out, _ = run("export", str(trace), "--to", form)
    assert status == 0
    beside = Path(out.split()[1])
    assert beside.parent == trace and beside.stat().st_size > 100
    status, _, _ = run("export", str(trace), "--to", form, "--out", str(tmp_path / "there"))
    assert (tmp_path / "there").read_bytes() == beside.read_bytes()
    status, printed, _ = run("export", str(trace), "--to", form, "--out", "-")
    assert printed.encode() == beside.read_bytes()


def test_canonical_export_reads_back(trace: Path) -> None:
    run("export", str(trace), "--to", "canonical")
    again = read(trace / "rank0.jsonl")
    assert len(list(again)) == len(sample_trace(steps=6, logging_steps=2)) and again.complete


def test_canonical_export_of_ranks_goes_into_a_folder(tmp_path: Path) -> None:
    for rank, records in enumerate(made.two_ranks()):
        made.write(records, tmp_path / "run", f"rank{rank}.rows")
    status, _, _ = run("export", str(tmp_path / "run"), "--to", "portable", "--out", str(tmp_path / "to"))
    assert status == 0 and sorted(path.name for path in (tmp_path / "to").iterdir()) == ["rank0.jsonl", "rank1.jsonl"]
    status, _, err = run("export", str(tmp_path / "run"), "--to", "portable", "--out", "-")
    assert status == 2 and "several ranks" in err


def test_stats_counts_what_is_there(trace: Path) -> None:
    status, out, _ = run("stats", str(trace))
    assert status == 0
    rows = {line.split()[0]: line.split()[1] for line in out.splitlines() if len(line.split()) >= 2}
    assert rows["training_step"] == "12" and rows["on_step_end"] == "6" and rows["loss"] == "3"
    assert "should_log raised" in out and "DefaultFlowCallback.on_step_end" in out


# -- while it is recorded ---------------------------------------------------------------


def test_tail_hands_out_only_whole_rows(tmp_path: Path) -> None:
    """Whatever the recorder has written so far, the tail gives the records that are whole, each exactly once."""
    whole = made.write(sample_trace(), tmp_path / "whole").read_bytes()
    expected = list(Reading(tmp_path / "whole" / "rank0.rows"))[1:]
    path = tmp_path / "growing.rows"
    first = whole.index(b"\n") + 1
    path.write_bytes(whole[:first])
    tail = Follower(path)
    seen = []
    with open(path, "r+b") as file:
        for stop in range(first, len(whole) + 1, 7):
            file.seek(0)
            file.write(whole[:stop] + b"\0" * 64)  # the recorder's file is longer than what it holds
            file.flush()
            seen += list(tail.look())
        file.seek(0)
        file.write(whole)
        file.truncate(len(whole))
    seen += list(tail.look())
    tail.close()
    assert seen == expected and tail.is_over


def test_following_a_growing_recording_tells_the_logs(tmp_path: Path) -> None:
    whole = (
        made.write(sample_trace(steps=6, logging_steps=2), tmp_path / "whole").read_bytes().splitlines(keepends=True)
    )
    folder = tmp_path / "run"
    folder.mkdir()

    def record() -> None:
        with open(folder / "rank0.rows", "wb", buffering=0) as file:
            for line in whole:
                file.write(line)
                time.sleep(0.001)

    writer = threading.Thread(target=record)
    output = io.StringIO()
    writer.start()
    live.follow(folder, output)
    writer.join()
    told = output.getvalue().splitlines()
    assert [line.split(":")[0] for line in told] == ["step 2", "step 4", "step 6"]
    assert all("loss=" in line for line in told)


def test_following_ends_when_the_recording_process_is_gone(tmp_path: Path) -> None:
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    process = {"pid": gone.pid, "host": socket.gethostname()}
    records = made.replaced(made.without_end(sample_trace(), 40), events.Head, process=process)
    made.write(records, tmp_path)
    output = io.StringIO()
    live.follow(tmp_path, output)  # returns, though there is no End
    assert "step" not in output.getvalue() or "loss=" in output.getvalue()


def test_watching_ends_with_the_block(tmp_path: Path) -> None:
    made.write(sample_trace(), tmp_path)
    began = time.perf_counter()
    with live.watching(tmp_path):
        pass
    assert time.perf_counter() - began < 20


def test_progress_line() -> None:
    progress = live.Progress(0)
    for record in sample_trace(steps=4)[:-8]:
        progress.add(record)
    assert "step 4" in progress.line() and "loss 0.3125" in progress.line()


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_status_line_is_rewritten_in_place_on_a_terminal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "50")
    made.write(sample_trace(steps=6, logging_steps=2), tmp_path)
    output = Terminal()
    live.follow(tmp_path, output)
    *_, last = output.getvalue().split("\r\x1b[K")
    shown = output.getvalue().split("\r\x1b[K")[-2]
    assert shown.startswith("rank 0 · step 6 · epoch 1.00 · loss 0.3125 · done")
    assert shown.endswith("\r") and len(shown) <= 50 and last == ""


def test_every_command_has_help() -> None:
    for command in ("show", "verify", "stats", "export"):
        done = subprocess.run(
            [sys.executable, "-m", "minitrainer.trace", command, "--help"], capture_output=True, text=True, check=True
        )
        assert "TRACE" in done.stdout


def test_json_export_is_json(trace: Path) -> None:
    status, printed, _ = run("export", str(trace), "--to", "json", "--out", "-")
    assert status == 0 and json.loads(printed)["ranks"][0]["complete"] is True


# Read next: test_reading_real.py.
