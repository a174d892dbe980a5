"""Record what the book shows and neither the specification nor the atlas holds: `traces/book/`.

    python -m minitrainer.book.recordings                     all of them anew (`make book-traces`; two minutes)
    python -m minitrainer.book.recordings search run_qa       only these
    python -m minitrainer.book.recordings --to FOLDER         elsewhere, to compare with what is committed

A recording is one command line of the tracer, kept in `RECORDINGS`; what it leaves is committed in the portable form, one
file a rank. Those of the flow scenarios and of `search` are the same on every machine, byte for byte. The others train
on real texts: on another machine their numbers may differ in the last digits, and with them the sizes of files that hold
such numbers as text.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from minitrainer.trace import commands
from minitrainer.trace.errors import UsageError

from . import learning_curve

ROOT = Path(__file__).resolve().parents[2]

REFERENCE = "--trainer transformers==4.31.0"
TODAY = "--trainer transformers==5.24.0"

# Four steps of the small BERT in groups of two; by the names of newer versions, and with no evaluation in between.
GROUPS_OF_TWO = "--gradient_accumulation_steps 2 --max_steps 4 --logging_steps 1 --eval_strategy no --save_strategy no"

# A bar takes no part in training, but its callback stands in the trace: most pages are calmer without it.
NO_BAR = "--disable_tqdm true"

RECORDINGS = {
    "bert-groups-of-two-4.57.6": f"run_glue --trainer transformers==4.57.6 {GROUPS_OF_TWO}",
    "bert-groups-of-two-5.24.0": f"run_glue {TODAY} {GROUPS_OF_TWO}",
    "run_glue-two-ranks": f"run_glue {REFERENCE} --nproc 2 --max_steps 10 --logging_steps 5 {NO_BAR}",
    "run_qa": f"run_qa {REFERENCE} --num_train_epochs 1 {NO_BAR} "
    "--max_train_samples 16 --max_eval_samples 12 --max_predict_samples 12",
    "run_qa-two-ranks": f"run_qa {REFERENCE} --nproc 2 --num_train_epochs 1 {NO_BAR} "
    "--max_train_samples 4 --max_eval_samples 12 --max_predict_samples 4",
    "run_summarization": f"run_summarization {REFERENCE} --num_train_epochs 1 --logging_steps 2 {NO_BAR} "
    "--max_train_samples 32 --max_eval_samples 60 --max_predict_samples 8",
    "search": f"{REFERENCE} minitrainer/book/search_script.py",
    "two-ranks-log-every-third": f"two-ranks-uneven {REFERENCE} --logging_steps 3",
    "two-ranks-log-every-third-today": f"two-ranks-uneven {TODAY} --logging_steps 3",
    "two-ranks-seed-7": f"two-ranks-uneven {REFERENCE} --seed 7",
    "two-ranks-seed-7-today": f"two-ranks-uneven {TODAY} --seed 7",
}
"""What stands behind `python -m minitrainer.trace` for each recording; paths begin at the root of the repository."""

LEARNING_CURVE = "learning-curve"
"""What two whole runs logged, without their traces: `learning_curve.py` records it."""


def main(argv: Sequence[str] | None = None) -> int:
    """Record all that the book shows, or a part of it."""
    what_runs = "\n".join(f"  {name}\n      {words}" for name, words in RECORDINGS.items())
    parser = argparse.ArgumentParser(
        prog="python -m minitrainer.book.recordings",
        description=(__doc__ or "").splitlines()[0],
        epilog=f"The recordings, and what stands behind `python -m minitrainer.trace` for each:\n{what_runs}\n"
        f"  {LEARNING_CURVE}\n      what two whole runs of run_glue log: python -m minitrainer.book.learning_curve\n\n"
        "Afterwards `git diff --stat` says which have changed, and `python -m minitrainer.book check` which pages.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("names", nargs="*", metavar="RECORDING", help="default: all of them")
    parser.add_argument("--to", type=Path, default=Path("traces/book"), help="folder; default: %(default)s")
    options = parser.parse_args(argv)
    known = [*RECORDINGS, LEARNING_CURVE]
    unknown = [name for name in options.names if name not in known]
    if unknown:
        parser.error(f"the book has no recording {unknown[0]}; there are: {', '.join(known)}")
    names = options.names or known
    for name in names:
        if name == LEARNING_CURVE:
            learning_curve.record(options.to / name)
        else:
            record(name, options.to / name)
    print(f"recorded {len(names)} of {len(known)} in {options.to}")
    return 0


def record(name: str, folder: Path) -> None:
    """Record one of `RECORDINGS` into `folder`, replacing what was there.

    Raises:
        UsageError: the version is not at hand and can't be added, or the run failed (its output says why).
    """
    with tempfile.TemporaryDirectory() as work:
        done = subprocess.run(
            [sys.executable, "-m", "minitrainer.trace", "--quiet", "--out", f"{work}/run", *RECORDINGS[name].split()],
            cwd=ROOT,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        if done.returncode != 0:
            raise UsageError(f"recording {name} failed:\n{done.stdout}")
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        commands.export(f"{work}/run", "portable", str(folder))


if __name__ == "__main__":
    try:
        sys.exit(main())
    except UsageError as error:
        print(f"minitrainer.book: {error}", file=sys.stderr)
        sys.exit(2)

# Read next: search_script.py, the one script among them.
