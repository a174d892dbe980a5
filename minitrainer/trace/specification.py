"""The specification: what the real transformers 4.31.0 does, recorded and committed.

    python -m minitrainer.trace.specification                    record all scenarios anew into traces/
    python -m minitrainer.trace.specification one-epoch          only this one

For each scenario `traces/NAME/` holds the trace of every rank in its portable form (`rank0.jsonl`) and one rendered
page (`page.md`). Whoever claims to be a 4.31.0 Trainer must give the same bytes. `record` is also what the tests call,
with our Trainer and with upstream's.
"""

from __future__ import annotations

import argparse
import importlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path

from . import scenarios
from .errors import UsageError
from .scenarios.flows import FLOWS

REFERENCE = "4.31.0"

REAL_DATA = {"run_glue": ["--max_steps", "50", "--logging_steps", "10"]}
"""Scenarios on real data, with the words that keep their traces short. Their numbers depend on the machine's arithmetic
in the last digits; all else is as exact as in the flow scenarios."""

SCENARIOS = (*FLOWS, *REAL_DATA)
"""Everything that the specification holds."""


def main(argv: Sequence[str] | None = None) -> int:
    """Record the specification from the real 4.31.0."""
    parser = argparse.ArgumentParser(
        prog="python -m minitrainer.trace.specification", description=__doc__.splitlines()[0]
    )
    parser.add_argument("names", nargs="*", metavar="SCENARIO", help="default: all of them")
    parser.add_argument("--to", type=Path, default=Path("traces"), help="folder; default: %(default)s")
    parser.add_argument("--trainer", default="transformers", choices=["transformers", "minitrainer"])
    parser.add_argument(
        "--environment", default=REFERENCE, help="transformers version to run in; 'here' for the installed one"
    )
    options = parser.parse_args(argv)
    unknown = [name for name in options.names if name not in SCENARIOS]
    if unknown:
        parser.error(f"the specification has no scenario {unknown[0]}; there are: {', '.join(SCENARIOS)}")
    names = options.names or list(SCENARIOS)
    record(names, options.to, options.trainer, options.environment)
    print(f"recorded {len(names)} scenarios in {options.to}")
    return 0


def record(names: Iterable[str], to: Path, library: str, environment: str = REFERENCE) -> None:
    """Record the scenarios `names` with the Trainer of `library`, one folder each in `to`.

    All scenarios of equal rank count share one child: a Trainer sets its own seeds, so their order does not matter,
    and the tests prove it by recording some of them alone.

    Args:
        names: some of `SCENARIOS`.
        to: folder that gets one folder for each scenario; what was there under its name is replaced.
        library: "transformers" or "minitrainer".
        environment: transformers version whose isolated folder the run happens in; "here" for the installed one.

    Raises:
        UsageError: the version is not at hand and can't be added, or a run failed (its output says why).
    """
    by_ranks: dict[int, list[str]] = {}
    for name in names:
        by_ranks.setdefault(scenarios.RANKS.get(name, 1), []).append(name)
    with tempfile.TemporaryDirectory() as work:
        for ranks, group in by_ranks.items():
            words = ["-m", "minitrainer.trace.specification", "--in-place", library, work, *group]
            if ranks > 1:
                words[:0] = ["-m", "torch.distributed.run", "--nproc_per_node", str(ranks), "--standalone"]
            status, said = _run_there(words, environment)
            if status != 0:
                raise UsageError(f"recording {', '.join(group)} failed:\n{said}")
        for name in names:
            _write(Path(work) / name, to / name)


def _run_there(words: list[str], environment: str) -> tuple[int, str]:
    """Run this interpreter with `words` in the environment; return its exit status and what it said."""
    if environment == "here":
        finished = subprocess.run(
            [sys.executable, *words],
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        return finished.returncode, finished.stdout
    from . import upstream

    done = upstream.run_in(
        environment,
        words,
        env={"OMP_NUM_THREADS": "1"},
        capture=True,
        add_if_missing=True,
        resume_own_checkpoints=True,
    )
    return done.returncode, f"{done.stdout}\n{done.stderr}"


def _write(recorded: Path, folder: Path) -> None:
    """Turn the recording of one scenario into its committed form, replacing what was there."""
    from . import rows
    from .render import markdown

    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for recording in sorted(recorded.glob("rank*.rows")):
        rows.write_canonical(rows.read(recording), folder / f"{recording.stem}.jsonl", level="portable")
    (folder / "page.md").write_text(markdown.page(folder), encoding="utf-8")


def _run_here(library_name: str, work: Path, names: list[str]) -> None:
    """Run the scenarios in this process, inside 4.31.0's folder; each leaves its recording in `work/NAME`."""
    from .session import trace_library
    from .worker import leave_group

    library = importlib.import_module(library_name)
    for name in names:
        out = work / name
        out.mkdir(exist_ok=True)
        with trace_library(library, out, scenario=name):
            scenarios.program(name)(library, ["--output_dir", str(out / "output"), *REAL_DATA.get(name, ())])
    leave_group()


if __name__ == "__main__":
    if sys.argv[1:2] == ["--in-place"]:
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
        _run_here(sys.argv[2], Path(sys.argv[3]), sys.argv[4:])
    else:
        try:
            sys.exit(main())
        except UsageError as error:
            print(f"minitrainer.trace: {error}", file=sys.stderr)
            sys.exit(2)

# Read next: ../../traces/README.md, what the recordings show.
