"""How long it takes to read, show and verify a trace of a million rows, and how much memory that needs.

    python tests/benchmarks/reading_speed.py [--rows 1000000] [--seconds 10] [--megabytes 500]

The trace is made by repeating realistic steps (two micro-batches, a log every ten steps, an evaluation every
thousand) until the number of rows is reached. Each command runs in a process of its own. Exit status 1 if one is
over the limits. The seconds are of the processor: a machine that others use as well makes the wall clock meaningless.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from minitrainer.trace import events
from minitrainer.trace.events import Record
from minitrainer.trace.rows import sample_trace, write_rows

MICROSECONDS_A_ROW = 190
"""As in a run of a tiny BERT: 26 rows in a step of 5 ms."""

COMMANDS = {
    "show": ["show", "{trace}"],
    "show --only flags": ["show", "{trace}", "--only", "flags"],
    "show --only loss": ["show", "{trace}", "--only", "loss"],
    "show --step 3..5": ["show", "{trace}", "--step", "3..5"],
    "verify": ["verify", "{trace}"],
    "stats": ["stats", "{trace}"],
    "export --to markdown": ["export", "{trace}", "--to", "markdown", "--out", "{out}"],
    "export --to perfetto": ["export", "{trace}", "--to", "perfetto", "--out", "{out}"],
    "export --to canonical": ["export", "{trace}", "--to", "canonical", "--out", "{out}"],
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--megabytes", type=float, default=500.0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        trace = Path(folder) / "rank0.rows"
        written = write_rows(long_trace(options.rows), trace)
        print(f"{written:,} rows, {trace.stat().st_size / 1e6:.1f} MB on disk")
        print(f"{'command':<24}{'processor':>12}{'wall clock':>12}{'memory':>12}")
        over = 0
        for name, words in COMMANDS.items():
            words = [word.format(trace=trace, out=Path(folder) / "out") for word in words]
            processor_s, wall_s, megabytes, status = measured([sys.executable, "-m", "minitrainer.trace", *words])
            is_over = processor_s > options.seconds or megabytes > options.megabytes or status != 0
            over += is_over
            mark = "  over the limit" if is_over else ""
            print(f"{name:<24}{processor_s:>10.2f} s{wall_s:>10.2f} s{megabytes:>9.0f} MB{mark}")
    print(f"limits: {options.seconds:g} s of the processor, {options.megabytes:g} MB; {over} of {len(COMMANDS)} over")
    return 1 if over else 0


def measured(command: list[str]) -> tuple[float, float, float, int]:
    """Run a command: seconds of the processor, seconds on the clock, megabytes at its largest, exit status."""
    began = time.perf_counter()
    with open(os.devnull, "wb") as nowhere:
        child = subprocess.Popen(command, stdout=nowhere)
        _, status, used = os.wait4(child.pid, 0)
    child.returncode = os.waitstatus_to_exitcode(status)
    wall_s = time.perf_counter() - began
    kilobytes = used.ru_maxrss if sys.platform != "darwin" else used.ru_maxrss / 1024
    return used.ru_utime + used.ru_stime, wall_s, kilobytes / 1024, child.returncode


def long_trace(rows: int) -> Iterator[Record]:
    """Repeat the steps of a small trace until there are `rows` rows, every loss and total right."""
    head, *body = sample_trace(steps=10, accumulation=2, logging_steps=10)
    begin = next(
        i for i, record in enumerate(body) if isinstance(record, events.Event) and record.event == "on_step_begin"
    )
    end = next(
        i for i, record in enumerate(body) if isinstance(record, events.Event) and record.event == "on_epoch_end"
    )
    clock = rowcount = step = 0
    total = 0.0
    yield head

    def timed(record: Record, **fields) -> Record:
        nonlocal clock, rowcount
        clock += MICROSECONDS_A_ROW
        rowcount += 1
        values = {name: getattr(record, name) for name in record.__struct_fields__}
        return type(record)(**{**values, "at": clock, **fields})

    for record in body[:begin]:
        yield timed(record)
    while rowcount < rows - 20:
        for record in body[begin:end]:
            if isinstance(record, events.Loss):
                yield timed(record, step=step + record.step, total_before=total)
                total += float(record.mean or 0)
            elif isinstance(record, (events.Event, events.Log)):
                yield timed(record, step=step + record.step)
            elif isinstance(record, events.State):
                yield timed(record, old=step + record.old, new=step + record.new)
            else:
                yield timed(record)
        step += 10
        if step % 1000 == 0:
            for record in evaluation(step):
                yield timed(record)
    for record in body[end:]:
        if isinstance(record, events.TrainLoss):
            yield timed(record, total=total, rest=0.0, micro=[], steps=step, logged=total / step)
        elif isinstance(record, events.End):
            yield timed(record, rows=rowcount + 1)
        else:
            yield timed(record)


def evaluation(step: int) -> Iterator[Record]:
    """An evaluation of fifty batches."""
    yield events.Call(method="evaluate", cls="Trainer", depth=2)
    yield events.Call(method="evaluation_loop", cls="Trainer", depth=3)
    for batch in range(50):
        yield events.Call(method="prediction_step", cls="Trainer", depth=4)
        yield events.Samples(rows=8, digest=f"{batch:08x}", split="eval")
        yield events.Return(method="prediction_step", depth=4)
        yield events.Gather(what="loss", rows=8, gathered=8)
        yield events.Event(event="on_prediction_step", step=step, epoch=0.5)
        yield events.EventEnd(event="on_prediction_step")
    yield events.EvalLoss(
        key="eval_loss", losses=[0.5] * 50, rows=[8] * 50, gathered=400, kept=400, mean=0.5, logged=0.5, verified=True
    )
    yield events.Return(method="evaluation_loop", depth=3)
    yield events.Log(step=step, logs={"eval_loss": 0.5, "epoch": 0.5})
    yield events.Return(method="evaluate", depth=2)


if __name__ == "__main__":
    sys.exit(main())

# Read next: the other benchmarks beside this file.
