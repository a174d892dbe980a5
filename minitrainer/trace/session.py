"""How a trace is begun and ended.

    with trace(trainer, "runs/first"):                  one Trainer
        trainer.train()

    with trace_library("transformers", "runs/second"):  every Trainer that is built in the block
        main()

Both write one recording a process, `rank0.rows` in the folder (or the file that the path names, if it ends in
`.rows`), and put everything back at the end. An exception passes through untouched.
"""

from __future__ import annotations

import importlib
import os
import platform
import sys
import time
from pathlib import Path
from types import ModuleType, TracebackType
from typing import Any

from minitrainer.trace import events
from minitrainer.trace.errors import UsageError
from minitrainer.trace.patching import unlink_wrappers
from minitrainer.trace.recorder import Recorder
from minitrainer.trace.rows import RECORDING

COLLECTIVES_HOOK = "torch.ops.c10d"
VERSIONS_OF = ("transformers", "minitrainer", "accelerate", "torch", "numpy")


class Session:
    """A trace being recorded. Use it as a context manager, or call `start` and `stop`.

    Attributes:
        path: the recording of this process.
        recorder, observer: what writes and what watches; there from `start` on.
    """

    def __init__(
        self,
        target: Any,
        library: ModuleType | None,
        path: str | os.PathLike[str],
        scenario: str,
        collectives: bool = False,
    ):
        self._target = target
        self._library = library
        self._scenario = scenario
        self._with_collectives = collectives
        self._collectives: Any = None
        self._unwatched = ""  # why collectives can't be recorded, though they were asked for
        self.path = recording_path(path)
        self.recorder: Recorder
        self.observer: Any = None

    def start(self) -> Session:
        """Hook the Trainer and open the recording."""
        from minitrainer.trace.probes import Observer, _is_library_trainer

        if self._target is not None:
            cls = type(self._target)
            classes = [cls]
            if not any(_is_library_trainer(base) for base in cls.__mro__) or not hasattr(
                self._target, "callback_handler"
            ):
                raise UsageError(f"{cls.__name__} is not a Trainer of transformers or minitrainer, or not yet built")
        else:
            classes = _trainer_classes_of(self._library)
        observer = Observer(self._target)
        if self._with_collectives:
            from minitrainer.trace.collectives import Collectives

            self._collectives = Collectives(lambda record: observer.recorder.record(record), observer.trouble)
            self._unwatched = self._collectives.attach()

        def open_recorder() -> Recorder:
            try:
                return Recorder(self.path, self._head(observer))
            except OSError as error:
                raise UsageError(f"the trace {self.path} can't be written: {error.strerror or error}") from error

        begun = time.thread_time()
        observer.attach(classes, open_recorder)
        self.observer, self.recorder = observer, observer.recorder
        if self._target is not None:
            observer.refresh_bound_gathers(self._target)
            watched = observer.watch(self._target)
            observer._focus(watched)
            observer.announce(watched)
        else:
            _instrument_new_subclasses(observer, classes)
        self.recorder.cost.rare_s += time.thread_time() - begun
        return self

    def stop(self) -> None:
        """Unhook everything and close the recording. A second call does nothing."""
        observer, self.observer = self.observer, None
        if observer is not None:
            if self._collectives is not None:
                self._collectives.detach()
            observer.detach()
            self.recorder.close()

    def __enter__(self) -> Session:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()
        if error is not None:
            unlink_wrappers(error.__traceback__)

    def _head(self, observer: Any) -> events.Head:
        hooks, unhooked = list(observer.hooks), dict(observer.unhooked)
        if self._unwatched:
            unhooked[COLLECTIVES_HOOK] = self._unwatched
        elif self._with_collectives:
            hooks.append(COLLECTIVES_HOOK)
        return events.Head(
            schema=events.SCHEMA,
            form=RECORDING,
            versions=loaded_versions(),
            rank=rank_of_process(),
            world_size=world_size_of_run(),
            hooks=sorted(hooks),
            unhooked=unhooked,
            scenario=self._scenario,
            process={
                "pid": os.getpid(),
                "host": platform.node(),
                "argv": sys.argv,
                "wall_ns": time.time_ns(),
                "local_rank": int(os.environ.get("LOCAL_RANK", "0") or 0),
                "launcher": os.environ.get("TORCHELASTIC_RUN_ID", ""),
                "restarts": int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") or 0),
            },
        )


def trace(trainer: Any, path: str | os.PathLike[str], scenario: str = "", collectives: bool = False) -> Session:
    """Record what one Trainer does.

    Args:
        trainer: a Trainer of transformers (4.31.0 or later) or of minitrainer, or of a subclass.
        path: folder for the recording (`rank0.rows` in it), or a file that ends in `.rows`.
        scenario: name to stand in the head.
        collectives: record what the ranks exchange too.

    Returns:
        A context manager: `with trace(trainer, path): trainer.train()`.

    Raises:
        UsageError: on entering, where `trainer` is not a Trainer or `path` can't be written.
    """
    return Session(trainer, None, path, scenario, collectives)


def trace_library(
    library: str | ModuleType, folder: str | os.PathLike[str], scenario: str = "", collectives: bool = False
) -> Session:
    """Record every Trainer that is built while the trace is active, its construction included.

    Args:
        library: "transformers" or "minitrainer", or the module itself.
        folder: folder for the recording, one file a process.
        scenario: name to stand in the head.
        collectives: record what the ranks exchange too.

    Returns:
        A context manager.

    Raises:
        UsageError: where the library can't be imported or has no Trainer.
    """
    return Session(None, _module(library), folder, scenario, collectives)


def _module(library: str | ModuleType) -> ModuleType:
    name = library if isinstance(library, str) else library.__name__
    package = name.partition(".")[0]
    try:
        return importlib.import_module(f"{package}.trainer")
    except ImportError as error:
        raise UsageError(f"{package} has no Trainer that can be imported: {error}") from error


def _trainer_classes_of(module: ModuleType | None) -> list[type]:
    """The library's Trainer and all its subclasses that exist by now."""
    root = getattr(module, "Trainer", None)
    if not isinstance(root, type):
        raise UsageError(f"{getattr(module, '__name__', module)} has no class Trainer")
    classes, pending = [], [root]
    while pending:
        cls = pending.pop()
        if cls not in classes:
            classes.append(cls)
            pending.extend(cls.__subclasses__())
    return classes


def _instrument_new_subclasses(observer: Any, classes: list[type]) -> None:
    """Hook a subclass as soon as it is defined: its constructor runs before we see the first object of it."""
    root = classes[0]
    if "__init_subclass__" in vars(root):
        return

    def __init_subclass__(cls: type, **arguments: Any) -> None:
        super(root, cls).__init_subclass__(**arguments)  # type: ignore[arg-type]
        if not observer._closed:
            observer.instrument_trainer_class(cls)

    observer.patches.replace(root, "__init_subclass__", classmethod(__init_subclass__))


# -- this process among all ------------------------------------------------------------------


def rank_of_process() -> int:
    """Number of this process: from the launcher's environment, else from torch.distributed, else 0."""
    return _from_environment("RANK", "get_rank", 0)


def world_size_of_run() -> int:
    return _from_environment("WORLD_SIZE", "get_world_size", 1)


def _from_environment(variable: str, function: str, otherwise: int) -> int:
    text = os.environ.get(variable, "")
    if text.isdigit():
        return int(text)
    distributed: Any = sys.modules.get("torch.distributed")
    if distributed is not None and distributed.is_available() and distributed.is_initialized():
        return int(getattr(distributed, function)())
    return otherwise


def recording_path(path: str | os.PathLike[str]) -> Path:
    """File of this process's recording.

    A launcher that restarts a failed group would overwrite the record of the failure: restarts get a name of their own.
    """
    given = Path(path)
    if given.suffix == ".rows":
        return given
    restarts = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    suffix = f".restart{restarts}" if restarts.isdigit() and int(restarts) else ""
    return given / f"rank{rank_of_process()}{suffix}.rows"


def loaded_versions() -> dict[str, str]:
    """Versions of what is really imported, which in an isolated folder is not what the environment lists."""
    versions = {"python": platform.python_version()}
    for name in VERSIONS_OF:
        module = sys.modules.get(name)
        version = getattr(module, "__version__", None)
        if version is None and module is not None:
            try:
                from importlib.metadata import version as installed_version

                version = installed_version(name)
            except Exception:
                continue
        if version is not None:
            versions[name] = str(version)
    return dict(sorted(versions.items()))


# Read next: script.py, how an unchanged script is traced.
