"""Shows how far a run is while it is recorded, by reading the recording from another process.

The training is not asked and not slowed: its recording grows in a file, and this process looks at the file twice a
second. On a terminal one line is kept up to date; in a pipe there is a line for each log, evaluation and checkpoint.

    python -m minitrainer.trace.render.live FOLDER
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TextIO

from minitrainer.trace import events
from minitrainer.trace.errors import UsageError
from minitrainer.trace.render import words
from minitrainer.trace.render.escape import printable
from minitrainer.trace.rows import Follower

SECONDS_BETWEEN_LOOKS = 0.5


class Progress:
    """How far one rank is, in a line."""

    def __init__(self, rank: int):
        self.rank = rank
        self.step = 0
        self.max_steps: int | None = None
        self.epoch: float | None = None
        self.loss: object = None
        self.rows = 0
        self.doing = "starting"
        self.news: list[str] = []

    def add(self, record: events.Record) -> None:
        """Take a record; what deserves a line of its own goes to `news`."""
        self.rows += 1
        kind = type(record)
        if kind is events.Event:
            self.step = record.step  # type: ignore[attr-defined]
            self.epoch = record.epoch  # type: ignore[attr-defined]
            name = record.event  # type: ignore[attr-defined]
            if name == "on_step_begin":
                self.doing = "training"
            elif name == "on_prediction_step":
                self.doing = "evaluating"
            elif name == "on_save":
                self.news.append(f"step {self.step}: checkpoint saved")
            elif name == "on_train_end":
                self.doing = "done"
        elif kind is events.State:
            if record.field == "max_steps" and isinstance(record.new, int):  # type: ignore[attr-defined]
                self.max_steps = record.new  # type: ignore[attr-defined]
        elif kind is events.Log:
            logs = record.logs  # type: ignore[attr-defined]
            self.loss = logs.get("loss", self.loss)
            self.news.append(f"step {record.step}: {words.logged(logs)}")  # type: ignore[attr-defined]
        elif kind is events.Raise:
            text = words.text_of(words.describe(record))
            if record.depth == 0:  # type: ignore[attr-defined]
                self.news.append(text)
        elif kind is events.Note:
            self.news.append(words.text_of(words.describe(record)))

    def line(self) -> str:
        of_all = f"/{self.max_steps}" if self.max_steps else ""
        parts = [f"rank {self.rank}", f"step {self.step}{of_all}"]
        if self.epoch is not None:
            parts.append(f"epoch {self.epoch:.2f}")
        if self.loss is not None:
            parts.append(f"loss {words.number(self.loss)}")
        return " · ".join([*parts, self.doing, f"{self.rows:,} rows"])


def follow(folder: Path, output: TextIO | None = None, parent: int | None = None) -> None:
    """Show the progress of the recordings in `folder` until all are complete, or their processes are gone.

    Args:
        folder: of a run; it may still be empty.
        output: where to; standard error by default, so that a pipe gets the result alone.
        parent: process that is recording and writes to the same terminal: the logs that it prints are not told again,
            and its end ends this one as well.
    """
    output = output or sys.stderr
    status = _StatusLine(output)
    tails: dict[Path, tuple[Follower, Progress]] = {}
    try:
        while parent is None or os.getppid() == parent:
            _find_new(folder, tails)
            for tail, progress in tails.values():
                for record in tail.look():
                    progress.add(record)
                # With several ranks the first speaks for all: they log the same values.
                is_first = progress is next(iter(tails.values()))[1]
                if is_first and not (status.is_terminal and parent is not None):
                    status.clear()
                    output.writelines(printable(news) + "\n" for news in progress.news)
                progress.news.clear()
            status.show("   ".join(progress.line() for _, progress in tails.values()))
            if tails and all(tail.is_over or _is_gone(tail.head) for tail, _ in tails.values()):
                break
            time.sleep(SECONDS_BETWEEN_LOOKS)
    finally:
        status.clear()
        for tail, _ in tails.values():
            tail.close()


def _is_gone(head: events.Head) -> bool:
    """Whether the process that recorded is known to have ended: it ran on this machine, and is not there."""
    process = head.process or {}
    pid = process.get("pid")
    if process.get("host") != socket.gethostname() or type(pid) is not int:
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    except (OSError, OverflowError):
        return False
    return False


class _StatusLine:
    """One line at the bottom of a terminal, rewritten in place; nothing at all in a pipe.

    The cursor is left at its beginning, so that what another process prints there replaces it instead of following it.
    """

    def __init__(self, output: TextIO):
        self.output = output
        self.is_terminal = output.isatty() and os.environ.get("TERM") != "dumb"

    def show(self, text: str) -> None:
        if self.is_terminal and text:
            width = shutil.get_terminal_size().columns
            self.output.write("\r\x1b[K" + printable(text)[: width - 1] + "\r")
        self.output.flush()

    def clear(self) -> None:
        if self.is_terminal:
            self.output.write("\r\x1b[K")


def _find_new(folder: Path, tails: dict[Path, tuple[Follower, Progress]]) -> None:
    for path in sorted(folder.glob("*.rows")) if folder.is_dir() else [folder]:
        if path not in tails:
            try:
                tail = Follower(path)
            except UsageError:
                continue  # its first line is not there yet
            tails[path] = tail, Progress(tail.head.rank)


@contextmanager
def watching(folder: str | os.PathLike[str]) -> Iterator[None]:
    """Show the progress of a run in `folder` while the block runs, from a process of its own."""
    command = [sys.executable, "-m", "minitrainer.trace.render.live", str(folder), str(os.getpid())]
    with subprocess.Popen(command, stdin=subprocess.DEVNULL) as process:
        try:
            yield
            # The last rows are in the file by now; the watcher ends by itself when it has seen them.
            with suppress(subprocess.TimeoutExpired):
                process.wait(timeout=4 * SECONDS_BETWEEN_LOOKS)
        finally:
            process.terminate()


if __name__ == "__main__":
    try:
        follow(Path(sys.argv[1]), parent=int(sys.argv[2]) if len(sys.argv) > 2 else None)
    except KeyboardInterrupt:
        sys.exit(130)
    except UsageError as error:
        sys.exit(f"progress: {error}")

# Read next: commands.py, which offers all of this on the command line.
