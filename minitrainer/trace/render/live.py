"""Shows how far a run is while it is recorded, by reading the recording from another process.

The training is not asked and not slowed: its recording grows in a file, and this process looks at the file twice a
second. On a terminal one line is kept up to date; in a pipe there is a line for each log, evaluation and checkpoint.

    python -m minitrainer.trace.render.live FOLDER
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
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
    """Show the progress of the recordings in `folder` until all are complete.

    Args:
        folder: of a run; it may still be empty.
        output: where to; standard error by default, so that a pipe gets the result alone.
        parent: process whose end ends this one as well.
    """
    from rich.console import Console
    from rich.live import Live
    from rich.text import Text

    console = Console(file=output or sys.stderr, highlight=False, markup=False, emoji=False)
    tails: dict[Path, tuple[Follower, Progress]] = {}
    with Live(console=console, auto_refresh=False, transient=True) if console.is_terminal else _nothing() as live:
        while parent is None or os.getppid() == parent:
            _find_new(folder, tails)
            for tail, progress in tails.values():
                for record in tail.look():
                    progress.add(record)
                for news in progress.news:
                    # With several ranks the first speaks for all: they log the same values.
                    if progress is next(iter(tails.values()))[1]:
                        console.print(Text(printable(news)), soft_wrap=True)
                progress.news.clear()
            if live is not None:
                live.update(Text("\n".join(progress.line() for _, progress in tails.values())), refresh=True)
            if tails and all(tail.is_over for tail, _ in tails.values()):
                break
            time.sleep(SECONDS_BETWEEN_LOOKS)
    for tail, _ in tails.values():
        tail.close()


@contextmanager
def _nothing() -> Iterator[None]:
    yield None


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
            process.wait(timeout=4 * SECONDS_BETWEEN_LOOKS)
        except subprocess.TimeoutExpired:
            pass
        finally:
            process.terminate()


if __name__ == "__main__":
    try:
        follow(Path(sys.argv[1]), parent=int(sys.argv[2]) if len(sys.argv) > 2 else None)
    except KeyboardInterrupt:
        sys.exit(130)

# Read next: commands.py, which offers all of this on the command line.
