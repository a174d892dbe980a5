"""The microscope: watch what a Trainer does, ours or upstream's, and change nothing.

    from minitrainer.trace import trace

    with trace(trainer, "runs/first"):
        trainer.train()

Importing this package imports neither torch nor transformers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from minitrainer.trace.compare import assert_trace_matches, compare_runs
    from minitrainer.trace.rows import read, write_canonical
    from minitrainer.trace.script import run_script
    from minitrainer.trace.session import trace, trace_library

_HOMES = {
    "trace": "minitrainer.trace.session",
    "trace_library": "minitrainer.trace.session",
    "run_script": "minitrainer.trace.script",
    "read": "minitrainer.trace.rows",
    "write_canonical": "minitrainer.trace.rows",
    "assert_trace_matches": "minitrainer.trace.compare",
    "compare_runs": "minitrainer.trace.compare",
}

__all__ = ["assert_trace_matches", "compare_runs", "read", "run_script", "trace", "trace_library", "write_canonical"]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        from importlib import import_module

        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


# Read next: events.py, what a trace is.
