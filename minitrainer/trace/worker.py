"""What runs in the place that running.py chose: one scenario or script, recorded, in this process.

    python -m minitrainer.trace.worker --out FOLDER --library transformers --scenario run_glue -- [its arguments]

It is started directly, by torchrun (one process a rank), or in an isolated upstream version. The exit status is the
run's own.
"""

from __future__ import annotations

import argparse
import gc
import importlib
import os
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path

from . import scenarios
from .errors import UsageError


def main(argv: Sequence[str] | None = None) -> int:
    """Run and record what `argv` names; return 0, 2 for what can't be done, or the script's own exit status."""
    parser = argparse.ArgumentParser(prog="python -m minitrainer.trace.worker", allow_abbrev=False)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--library", required=True)
    parser.add_argument("--scenario")
    parser.add_argument("--script", type=Path)
    parser.add_argument("--collectives", action="store_true")
    parser.add_argument("--debug", action="store_true")
    words = list(sys.argv[1:] if argv is None else argv)
    split = words.index("--")
    options, rest = parser.parse_args(words[:split]), words[split + 1 :]
    if os.environ.get("MINITRAINER_AUDIT") == "1":
        from . import audit_probe

        audit_probe.install(options.out)
    if options.scenario:
        return _run_scenario(options, rest)
    from .script import run_script

    status = run_script(options.script, rest, options.out, options.collectives)
    if options.library in sys.modules:  # the script's own import of it
        from . import defaults

        defaults.write(sys.modules[options.library], options.out)
    return status


def _run_scenario(options: argparse.Namespace, rest: list[str]) -> int:
    # What the Trainer writes stays with its trace, unless the user says where: a later word outweighs this one.
    rest = ["--output_dir", str(options.out / "output"), *rest]
    try:
        library = importlib.import_module(options.library)
        run = scenarios.program(options.scenario)
        if "--help-all" in rest:
            rest = ["--help"]
        from . import defaults
        from .session import trace_library

        defaults.write(library, options.out)
        with trace_library(library, options.out, options.scenario, options.collectives):
            status = run(library, rest)
    except UsageError:
        raise
    except (ValueError, ImportError, OSError) as error:
        # The library refused its arguments, or something it needs is not there: its message says which.
        if options.debug or os.environ.get("MINITRAINER_DEBUG") == "1":
            traceback.print_exc()
        raise UsageError(f"{type(error).__name__}: {error}") from error
    leave_group()
    return status


def leave_group() -> None:
    """Take the group of ranks apart, if there is one, after a run that ended well.

    No Trainer does so. But the group's own threads let go of the tensors of the last collective when they get to it. If
    the interpreter is ending by then, they end the process: "terminate called without an active exception", SIGABRT.
    """
    from torch import distributed

    if distributed.is_available() and distributed.is_initialized():
        gc.collect()  # a model that DDP has wrapped holds the group, too
        distributed.destroy_process_group()


if __name__ == "__main__":
    try:
        sys.exit(main())
    except UsageError as error:
        print("minitrainer.trace: " + " ".join(str(error).split()), file=sys.stderr)
        sys.exit(2)

# Read next: session.py, which attaches the recorder.
