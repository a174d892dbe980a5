"""The commands that read a trace: show, verify, stats and export.

Importing this file imports nothing heavier than argparse; what a command needs is imported when it runs.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from minitrainer.trace.errors import UsageError

if TYPE_CHECKING:
    from minitrainer.trace.ranks import Run
    from minitrainer.trace.render.terminal import Screen
    from minitrainer.trace.rows import Reading

ONLY = ("callbacks", "flags", "loss", "calls", "files", "collectives")

EXPORTS = {
    "markdown": ("trace.md", "one page: what ran, what happened, flags with their authors, derivations, files"),
    "json": ("trace.json", "every record of every rank as one JSON document"),
    "perfetto": ("trace.perfetto.json", "Chrome trace events, for ui.perfetto.dev: one process a rank"),
    "canonical": ("rank{rank}.jsonl", "the canonical form, one file a rank: all that two equal runs share"),
    "portable": (
        "rank{rank}.jsonl",
        "the same without what belongs to one implementation (files, lines, private calls)",
    ),
}


def add_arguments(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the four commands to a command line."""
    where = {"metavar": "TRACE", "type": Path, "help": "a run's folder, or one file of it"}

    show_parser = commands.add_parser("show", help="print a recorded trace as a tree")
    show_parser.add_argument("trace", **where)  # type: ignore[arg-type]
    show_parser.add_argument("--only", metavar="WHAT", help=f"one or more of {', '.join(ONLY)}, with commas between")
    show_parser.add_argument("--step", metavar="FIRST..LAST", help="only these steps, for example 3..5 or 7")
    show_parser.add_argument("--rank", type=int, metavar="R", help="the tree of this rank (default: the lowest)")
    show_parser.add_argument(
        "--explain-loss", type=int, metavar="STEP", help="tell how the loss that was logged at STEP came about"
    )
    show_parser.add_argument("--follow", action="store_true", help="first watch it grow, until it is complete")

    verify_parser = commands.add_parser(
        "verify",
        help="derive every logged loss again and report any that does not follow",
        description="Exit status: 0 all follow, 1 some do not (or there is none), 2 the trace can't be read.",
    )
    verify_parser.add_argument("trace", **where)  # type: ignore[arg-type]

    stats_parser = commands.add_parser("stats", help="count what a trace holds, and what recording it cost")
    stats_parser.add_argument("trace", **where)  # type: ignore[arg-type]
    stats_parser.add_argument("--rank", type=int, metavar="R", help="only this rank (default: each of them)")

    formats = "\n".join(f"  {name:<10} {what}" for name, (_, what) in EXPORTS.items())
    export_parser = commands.add_parser(
        "export",
        help="write a trace as canonical lines, Markdown, JSON or for Perfetto",
        description=f"formats:\n{formats}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    export_parser.add_argument("trace", **where)  # type: ignore[arg-type]
    export_parser.add_argument("--to", choices=list(EXPORTS), required=True, metavar="FORMAT", help=", ".join(EXPORTS))
    export_parser.add_argument(
        "--out", metavar="PATH", help="file, or folder for one file a rank; - prints (default: beside the trace)"
    )


def main(options: argparse.Namespace) -> int:
    """Run the command that was parsed and return its exit status."""
    if options.command == "show":
        if options.explain_loss is not None:
            return explain_loss(options.trace, options.explain_loss, options.rank)
        if options.follow:
            _follow(options.trace)
        return show(options.trace, options.only, options.step, options.rank)
    if options.command == "verify":
        return verify(options.trace)
    if options.command == "stats":
        return stats(options.trace, options.rank)
    return export(options.trace, options.to, options.out)


# -- show --------------------------------------------------------------------------


def show(
    trace: str | os.PathLike[str], only: str | None = None, step: str | None = None, rank: int | None = None
) -> int:
    """Print a trace: what ran, its ranks, the tree of one of them, and what is missing.

    Args:
        trace: a run's folder or one file of it.
        only: names from `ONLY`, with commas between; None for everything.
        step: "3..5" or "7"; None for all.
        rank: whose tree to print; None for the lowest rank that is here.
    """
    from minitrainer.trace.ranks import joined_losses, open_run
    from minitrainer.trace.render.side_by_side import loss_table
    from minitrainer.trace.render.terminal import Screen

    names = _only(only)
    steps = _steps(step)
    run = open_run(trace)
    shown = _reading(run, rank)
    screen = Screen()
    several = run.world_size > 1 and rank is None
    _print_head(screen, run, shown)
    seen = _print_tree(screen, run, shown, names, steps, several)
    if not seen:
        what = "of that kind" if names else "here"
        within = f" in step {step}" if steps else ""
        screen.text(f"nothing {what}{within}")
    if several and len(run.readings) > 1 and not steps and (not names or "loss" in names):
        lines = loss_table(run, joined_losses(run), screen.width)
        if lines:
            screen.text("")
            screen.text("losses, rank by rank", "head")
        for line in lines:
            screen.text(line)
    _print_endings(screen, run)
    return 0


def _print_head(screen: Screen, run: Run, shown: Reading) -> None:
    from minitrainer.trace.render import words
    from minitrainer.trace.render.escape import printable

    screen.text(words.heading(shown.head), "head")
    for line in words.unhooked(shown.head):
        screen.text(line, "note")
    for finding in run.findings:
        screen.text(f"note: {printable(finding)}", "note")


def _print_tree(
    screen: Screen, run: Run, shown: Reading, names: list[str], steps: tuple[int, int] | None, several: bool
) -> bool:
    """Print the tree of one rank, and a table of all ranks above it; return whether the tree holds anything."""
    from minitrainer.trace.render.escape import printable
    from minitrainer.trace.render.side_by_side import RankSummary, flow_differences, rank_rows, table
    from minitrainer.trace.render.tree import TreeBuilder

    builder = TreeBuilder(names, steps, shown.head.rank, run.world_size)
    summaries = []
    for number, reading in run.readings.items():
        if reading is not shown and not several:
            for _ in reading:  # read to its end only to know how it ends
                pass
            continue
        summary = RankSummary(number)
        for record in reading:
            if several:
                summary.add(record)
            if reading is shown:
                builder.add(record)
        summaries.append(summary)
    root = builder.finish()
    if several:
        screen.text("")
        for line in table(rank_rows(run, summaries), screen.width):
            screen.text(line)
        for sentence in flow_differences(summaries):
            screen.text(printable(sentence))
        screen.text("")
        screen.text(f"rank {shown.head.rank}", "head")
    screen.tree(root, explain="loss" in names, show_times=not names)
    return bool(root.children)


def _print_endings(screen: Screen, run: Run) -> None:
    from minitrainer.trace.ranks import ending
    from minitrainer.trace.render.escape import printable

    for reading in run.readings.values():
        for sentence in ending(reading):
            screen.text(printable(sentence, longest=2000), "bad")


def _follow(trace: Path) -> None:
    from minitrainer.trace.render.live import follow

    if not trace.exists():
        raise UsageError(f"{trace} does not exist")
    follow(trace)


def _only(only: str | None) -> list[str]:
    names = [name.strip() for name in (only or "").split(",") if name.strip()]
    for name in names:
        if name not in ONLY:
            raise UsageError(f"--only takes {', '.join(ONLY)} (with commas between), not {name!r}")
    return names


def _steps(step: str | None) -> tuple[int, int] | None:
    if step is None:
        return None
    match = re.fullmatch(r"\s*(\d{1,12})\s*(?:\.\.\s*(\d{1,12})\s*)?", step)
    if not match:
        raise UsageError(f"--step takes a step or a range of them, 7 or 3..5, not {step!r}")
    first = int(match[1])
    last = int(match[2]) if match[2] else first
    if last < first:
        raise UsageError(f"--step {step}: the last step stands before the first")
    return first, last


def _reading(run: Run, rank: int | None) -> Reading:
    """The file of `rank`, or of the lowest rank there is."""
    if rank is None:
        return run.first
    if rank not in run.readings:
        here = ", ".join(map(str, run.readings))
        raise UsageError(f"{run.path} holds no rank {rank}; of {run.world_size} it holds {here}")
    return run.readings[rank]


# -- explain, verify, stats ------------------------------------------------------------


def explain_loss(trace: str | os.PathLike[str], step: int, rank: int | None = None) -> int:
    """Print how the loss that was logged at `step` came about; return 1 if it does not follow."""
    from minitrainer.trace import events
    from minitrainer.trace.ranks import joined_losses, open_run
    from minitrainer.trace.render.explain import explain_loss as sentences
    from minitrainer.trace.render.terminal import Screen

    run = open_run(trace)
    first = _reading(run, rank).head.rank
    screen = Screen()
    logged: list[int] = []
    for joined in joined_losses(run):
        one = next(iter(joined.values()))
        if not isinstance(one.record, events.Loss):
            continue
        logged.append(one.step)
        if one.step == step and first in joined:
            ordered = {first: joined[first], **joined}
            explained, follows = sentences(ordered, run.world_size)
            for line in explained:
                screen.line([(line, "")], "", "     " if line.startswith(" ") else "")
            return 0 if follows else 1
    if not logged:
        raise UsageError(f"{run.path} holds no logged training loss")
    shown = ", ".join(map(str, logged[:12])) + (f", … {logged[-1]}" if len(logged) > 12 else "")
    raise UsageError(f"no training loss was logged at step {step}; there are logs at {shown}")


def verify(trace: str | os.PathLike[str]) -> int:
    """Print whether every logged loss follows from its recorded numbers; return 0 if all do, else 1."""
    from minitrainer.trace.ranks import open_run
    from minitrainer.trace.render.terminal import Screen
    from minitrainer.trace.render.verdict import verify as judge

    verdict = judge(open_run(trace))
    screen = Screen()
    for line in verdict.lines():
        screen.text(line, "bad" if line.startswith("does not follow") else "")
    return 0 if verdict.passed else 1


def stats(trace: str | os.PathLike[str], rank: int | None = None) -> int:
    """Print what a trace holds, rank by rank."""
    from minitrainer.trace.ranks import open_run
    from minitrainer.trace.render import words
    from minitrainer.trace.render.escape import printable
    from minitrainer.trace.render.statistics import Statistics
    from minitrainer.trace.render.terminal import Screen

    run = open_run(trace)
    readings = [_reading(run, rank)] if rank is not None else list(run.readings.values())
    screen = Screen()
    for finding in run.findings:
        screen.text(f"note: {printable(finding)}", "note")
    for n, reading in enumerate(readings):
        statistics = Statistics()
        for record in reading:
            statistics.add(record)
        if n:
            screen.text("")
        screen.text(words.heading(reading.head), "head")
        for line in statistics.lines(reading, screen.width):
            screen.text(line)
    _print_endings(screen, run)
    return 0


# -- export -----------------------------------------------------------------------------


def export(trace: str | os.PathLike[str], to: str, out: str | None = None) -> int:
    """Write a trace in another form; see `EXPORTS`."""
    from minitrainer.trace.ranks import open_run

    run = open_run(trace)
    if to in ("canonical", "portable"):
        return _export_canonical(run, to, out)
    from minitrainer.trace.render import lines, markdown, perfetto

    path = None if out == "-" else _target(run, EXPORTS[to][0], out)
    with _writing(path) as file:
        if to == "markdown":
            file.write(markdown.page_of(run))
            said = "a page"
        elif to == "json":
            said = f"{lines.write(run, file):,} records"
        else:
            said = f"{perfetto.write(run, file):,} trace events: open it at ui.perfetto.dev"
    if path is not None:
        print(f"wrote {path} ({said})")
    return 0


def _export_canonical(run: Run, level: str, out: str | None) -> int:
    from minitrainer.trace.rows import encode_canonical, write_canonical

    for rank, reading in run.readings.items():
        if out == "-":
            if len(run.readings) > 1:
                raise UsageError("several ranks can't be printed as one file: name one file, or a folder for --out")
            _print_canonical(reading, level, encode_canonical)
            continue
        name = EXPORTS[level][0].format(rank=rank)
        if out is not None and len(run.readings) > 1:
            Path(out).mkdir(parents=True, exist_ok=True)  # several ranks: a folder with one file each
        path = _target(run, name, out)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            count = write_canonical(reading, path, level=level)
        except OSError as error:
            raise UsageError(f"{path} can't be written: {error.strerror or error}") from error
        print(f"wrote {path} ({count:,} records)")
    return 0


def _print_canonical(reading: Reading, level: str, encode) -> None:
    from minitrainer.trace.render.lines import line
    from minitrainer.trace.rows import canonical, portable

    transform = canonical if level == "canonical" else portable
    for record in transform(reading):
        # A terminal must not get a control character out of a trace; in a pipe the bytes are the file's.
        text = line(record) if sys.stdout.isatty() else encode(record).decode("utf-8")
        sys.stdout.write(text + "\n")


def _target(run: Run, name: str, out: str | None) -> Path:
    """Where an export goes: where the user says, or beside the trace; never over the trace itself."""
    folder = run.path if run.path.is_dir() else run.path.parent
    path = Path(out) if out else folder / name
    if path.is_dir():
        path = path / name
    sources = {reading.path.resolve() for reading in run.readings.values()}
    if path.resolve() in sources:
        raise UsageError(f"{path} is the trace itself: name another file with --out")
    return path


@contextmanager
def _writing(path: Path | None) -> Iterator[TextIO]:
    """Open a file for writing, or standard output; what can't be written gives one line."""
    if path is None:
        yield sys.stdout
        return
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "w", encoding="utf-8", newline="\n") as file:
            yield file
    except OSError as error:
        raise UsageError(f"{path} can't be written: {error.strerror or error}") from error


# Read next: ranks.py, which finds the files of a run.
