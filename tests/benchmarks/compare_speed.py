"""How long it takes to compare two traces of a million rows, reading them included, and how much memory that needs.

    python tests/benchmarks/compare_speed.py [--rows 1000000] [--seconds 1.5] [--megabytes 300]

Two forms of trace, recordings (packed rows with a clock in each, as the recorder writes them) and portable files; four
pairs of each: a trace and a second one that differs in its clocks only; one with some hundred small edits; one in which
every step has six more rows; one in which every gradient norm differs. Each pair also at a quarter of the rows, to show
that time grows linearly: four times the rows may take no more than five times what a trace takes beyond the start of
Python. Each comparison runs in a process of its own. The seconds are of the processor.
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
sys.path.insert(0, str(Path(__file__).parents[1] / "compare"))
from packing import write_packed
from reading_speed import long_trace, measured

from minitrainer.trace import events
from minitrainer.trace.events import Record
from minitrainer.trace.rows import write_canonical


def edited(records: Iterable[Record]) -> Iterator[Record]:
    """Some hundred gradient norms off by a little, or left out."""
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


SAME = "the same"

PAIRS: dict[str, Callable[[Iterable[Record]], Iterable[Record]]] = {
    SAME: iter,
    "some hundred edits": edited,
    "six more rows a step": with_more_events,
    "every norm differs": other_norms,
}


FORMS = (("recording", ".rows"), ("portable file", ".jsonl"))

MOST_GROWTH = 5.0
"""Times the seconds that four times the rows may take."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--seconds", type=float, default=1.5)
    parser.add_argument("--megabytes", type=float, default=300.0)
    options = parser.parse_args()
    over = 0
    compared = 0
    start_s = measured([sys.executable, "-m", "minitrainer.trace", "compare", "--help"])[0]
    print(f"{'form':<15}{'pair':<22}{'rows':>10}{'processor':>12}{'wall clock':>12}{'memory':>10}")
    with tempfile.TemporaryDirectory() as folder:
        for form, ending in FORMS:
            a, b = Path(folder) / f"a{ending}", Path(folder) / f"b{ending}"
            first_s: dict[str, float] = {}
            for count in (options.rows // 4, options.rows):
                write(long_trace(count), a, clock=100.0)
                for name, edit in PAIRS.items():
                    write(edit(long_trace(count)), b, clock=777.0)
                    command = [sys.executable, "-m", "minitrainer.trace", "compare", str(a), str(b)]
                    processor_s, wall_s, used_mb, status = measured(command)
                    expected = 0 if name == SAME else 1
                    growth = (processor_s - start_s) / max(first_s.setdefault(name, processor_s) - start_s, 0.05)
                    wrong = [
                        said
                        for said, is_so in (
                            ("too slow", processor_s > options.seconds),
                            ("too much memory", used_mb > options.megabytes),
                            (f"exit status {status}", status != expected),
                            (f"{growth:.1f} times as long", growth > MOST_GROWTH),
                        )
                        if is_so
                    ]
                    over += bool(wrong)
                    compared += 1
                    numbers = f"{count:>10,}{processor_s:>10.2f} s{wall_s:>10.2f} s{used_mb:>7.0f} MB"
                    print(f"{form:<15}{name:<22}{numbers}  {', '.join(wrong)}".rstrip(), flush=True)
    print(f"limits: {options.seconds:g} s of the processor, {options.megabytes:g} MB; {over} of {compared} over")
    return 1 if over else 0


def write(records: Iterable[Record], path: Path, clock: float) -> None:
    if path.suffix == ".jsonl":
        write_canonical(records, path, level="portable")
    else:
        write_packed(records, path, clock)


if __name__ == "__main__":
    sys.exit(main())

# Read next: the other benchmarks beside this file.
