"""How long it takes to compare two traces of a million rows, reading them included, and how much memory that needs.

    python tests/benchmarks/compare_speed.py [--rows 1000000] [--seconds 1.5] [--megabytes 300]

Four pairs of portable files: a trace and its copy; one with a hundred small edits; one in which every step has six
more rows; one in which every gradient norm differs. Each pair also at a quarter of the rows, to show that time grows
linearly. Last, a pair of recordings, which are brought to the portable form first (no limit is set for those). Each
comparison runs in a process of its own. The seconds are of the processor.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import msgspec

sys.path.insert(0, str(Path(__file__).parent))
from reading_speed import long_trace, measured

from minitrainer.trace import events
from minitrainer.trace.events import Record
from minitrainer.trace.rows import write_canonical, write_rows


def edited(records: Iterable[Record]) -> Iterator[Record]:
    """A hundred or so gradient norms off by a little, or left out."""
    dice = random.Random(1)
    for record in records:
        if type(record) is events.GradNorm and dice.random() < 0.003:
            if dice.random() < 0.5:
                continue
            record = msgspec.structs.replace(record, norm=float(record.norm or 0) + 0.125)
        yield record


def with_more_events(records: Iterable[Record]) -> Iterator[Record]:
    """Three more events in every step, as later versions have."""
    for record in records:
        if type(record) is events.OptimizerStep:
            for name in ("on_pre_optimizer_step", "on_optimizer_step", "on_planted"):
                yield events.Event(event=name, step=0)
                yield events.EventEnd(event=name)
        yield record


def other_norms(records: Iterable[Record]) -> Iterator[Record]:
    for record in records:
        if type(record) is events.GradNorm:
            record = msgspec.structs.replace(record, norm=float(record.norm or 0) * 2)
        yield record


PAIRS: dict[str, Callable[[Iterable[Record]], Iterable[Record]]] = {
    "the same": iter,
    "a hundred edits": edited,
    "six more rows a step": with_more_events,
    "every norm differs": other_norms,
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--seconds", type=float, default=1.5)
    parser.add_argument("--megabytes", type=float, default=300.0)
    options = parser.parse_args()
    over = 0
    print(f"{'pair':<24}{'rows':>12}{'processor':>12}{'wall clock':>12}{'memory':>12}")
    with tempfile.TemporaryDirectory() as folder:
        a, b = Path(folder) / "a.jsonl", Path(folder) / "b.jsonl"
        for rows in (options.rows // 4, options.rows):
            write_canonical(long_trace(rows), a, level="portable")
            for name, edit in PAIRS.items():
                write_canonical(edit(long_trace(rows)), b, level="portable")
                over += report(name, rows, [str(a), str(b)], options.seconds, options.megabytes)
        rows = options.rows // 4
        write_rows(long_trace(rows), a.with_suffix(".rows"))
        report("recordings", rows, [str(a.with_suffix(".rows"))] * 2, float("inf"), float("inf"))
    print(f"limits: {options.seconds:g} s of the processor, {options.megabytes:g} MB; {over} over")
    return 1 if over else 0


def report(name: str, rows: int, words: list[str], seconds: float, megabytes: float) -> bool:
    """Compare once, print a line, and return whether a limit was passed."""
    processor_s, wall_s, used_mb, status = measured([sys.executable, "-m", "minitrainer.trace", "compare", *words])
    is_over = processor_s > seconds or used_mb > megabytes or status not in (0, 1)
    mark = "  over the limit" if is_over else ""
    print(f"{name:<24}{rows:>12,}{processor_s:>10.2f} s{wall_s:>10.2f} s{used_mb:>9.0f} MB{mark}", flush=True)
    return is_over


if __name__ == "__main__":
    sys.exit(main())
