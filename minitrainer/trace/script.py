"""Trace an unchanged script: run it as Python would, and hook its Trainer as soon as the script has imported one.

Nothing is imported on the script's behalf. A finder at the front of `sys.meta_path` waits for `transformers.trainer`
and `minitrainer.trainer`, and starts the trace right after one of them has been executed. Under `torchrun` or
`accelerate launch` every process does this for itself and writes its own file.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import importlib.util
import os
import runpy
import sys
from collections.abc import Sequence
from types import ModuleType
from typing import Any

from minitrainer.trace.errors import UsageError
from minitrainer.trace.patching import unlink_wrappers
from minitrainer.trace.session import Session, trace_library

TRAINER_MODULES = ("transformers.trainer", "minitrainer.trainer")


def run_script(
    script: str | os.PathLike[str],
    arguments: Sequence[str],
    folder: str | os.PathLike[str],
    collectives: bool = False,
) -> int:
    """Run a script as `python SCRIPT ARGUMENTS` would, and record its Trainers.

    Args:
        script: path of the script.
        arguments: its command line.
        folder: folder for the recordings.
        collectives: record what the ranks exchange too.

    Returns:
        The script's exit status.

    Raises:
        UsageError: where there is no such script, or where it ended well without ever importing a Trainer.
        Exception: whatever the script raises, untouched, after the trace was closed.
    """
    script = os.fspath(script)
    if not os.path.isfile(script):
        raise UsageError(f"{script}: no such script")
    sessions: list[Session] = []
    libraries = 0

    def begin(library: str) -> None:
        nonlocal libraries
        target = os.fspath(folder) if not libraries else os.path.join(folder, library)
        libraries += 1
        sessions.append(trace_library(library, target, os.path.basename(script), collectives).start())

    finder = _AfterImport(begin)
    for module in TRAINER_MODULES:
        if module in sys.modules:
            begin(module.partition(".")[0])
    sys.meta_path.insert(0, finder)
    previous_argv, previous_path = sys.argv, list(sys.path)
    sys.argv = [script, *arguments]
    sys.path.insert(0, os.path.dirname(os.path.abspath(script)))
    try:
        runpy.run_path(script, run_name="__main__")
    except SystemExit as ending:
        return _exit_status(ending)
    except BaseException as error:
        for session in sessions:
            session.stop()
        unlink_wrappers(error.__traceback__)
        raise
    finally:
        for session in sessions:
            session.stop()
        sys.argv, sys.path[:] = previous_argv, previous_path
        if finder in sys.meta_path:
            sys.meta_path.remove(finder)
    if not sessions:
        raise UsageError(f"{script} has run, but it imported no Trainer: there is nothing to show")
    return 0


def _exit_status(ending: SystemExit) -> int:
    """What Python makes of the argument of `sys.exit`."""
    if ending.code is None or isinstance(ending.code, int):
        return ending.code or 0
    print(ending.code, file=sys.stderr)
    return 1


class _AfterImport(importlib.abc.MetaPathFinder):
    """Calls back after a Trainer's module was executed; finds nothing itself."""

    def __init__(self, begin: Any):
        self._begin = begin
        self._searching = False

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if name not in TRAINER_MODULES or self._searching:
            return None
        self._searching = True
        try:
            spec = importlib.util.find_spec(name)
        finally:
            self._searching = False
        if spec is not None and spec.loader is not None:
            spec.loader = _Loader(spec.loader, self._begin)  # type: ignore[assignment]
        return spec


class _Loader(importlib.abc.Loader):
    """A module's own loader, with a call after it is done."""

    def __init__(self, loader: Any, begin: Any):
        self._loader = loader
        self._begin = begin

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)  # type: ignore[no-any-return]

    def exec_module(self, module: ModuleType) -> None:
        spec = module.__spec__
        if spec is not None:
            spec.loader = self._loader
        module.__loader__ = self._loader
        self._loader.exec_module(module)
        self._begin(module.__name__.partition(".")[0])


# Read next: render/, how a trace is shown.
