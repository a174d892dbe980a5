"""The probes: what is hooked on a Trainer, and what each hook writes down.

Nothing in a Trainer is edited. While an `Observer` is attached, these attributes are replaced, and put back after it:

    Trainer and its subclasses    every function that a class of the method resolution order defines
    CallbackHandler               call_event, add_callback
    callback classes              the on_* methods they override
    TrainerControl, TrainerState  __setattr__
    Accelerator                   clip_grad_norm_, gather, gather_for_metrics
    AcceleratedOptimizer          step
    the scheduler's class         step
    torch's optimizers            their hook after a step, where the Trainer's own is not accelerate's
    DataLoader's fetcher          fetch; with workers, or on a GPU, its iterator's __next__ and _next_index instead
    two module functions          transformers.trainer.nested_gather (since the 5 series, in place of a method),
                                  accelerate.data_loader.send_to_device (with a GPU or several ranks)

A hook first asks whether the object is the observed one, and on the thread that is observed; if not, it calls the
original and that is all. What a version lacks is listed in the head (`unhooked`). An error inside a hook becomes a
`Note`; it never reaches the training.

`PROBES` is the table of what happens around which method. A version that renames or moves one of them needs a line
there and no other change.
"""

from __future__ import annotations

import functools
import os
import sys
import weakref
import zlib
from collections.abc import Callable, Iterator
from itertools import cycle
from time import thread_time
from types import CodeType, FrameType
from typing import Any, NamedTuple

from minitrainer.trace import events
from minitrainer.trace.arguments import describe_arguments, reduce_paths
from minitrainer.trace.arithmetic import EvaluationBook, TrainingBook, keep
from minitrainer.trace.authors import CALLBACK as BY_CALLBACK
from minitrainer.trace.authors import HANDLER as BY_HANDLER
from minitrainer.trace.authors import TRAINER as BY_TRAINER
from minitrainer.trace.authors import Authors
from minitrainer.trace.batches import Batches
from minitrainer.trace.events import FLAGS
from minitrainer.trace.output_files import OutputFolder, checkpoint_name
from minitrainer.trace.patching import (
    SOURCE_NAME,
    Own,
    Patches,
    innermost,
    is_plain_function,
    shared_globals,
    unlink_wrappers,
    wrapper_of,
)
from minitrainer.trace.pen import Pen
from minitrainer.trace.recorder import COST_SAMPLE, Recorder, first_word, number, plain
from minitrainer.trace.rows import (
    CALL,
    CALLBACK_END,
    CELL_EVENT_END,
    CELL_NAMED,
    CODES,
    EVENT,
    EVENT_END,
    FLAG,
    PUBLIC_METHODS,
    RAISE,
    SAMPLES,
    STATE,
    WORD_BYTES,
)

try:
    from minitrainer.trace._native import IfChanged
except ImportError:  # there was no compiler
    IfChanged = None  # type: ignore[assignment, misc]

LIBRARIES = ("transformers", "minitrainer")
"""Top-level packages whose class named `Trainer` can be observed."""

FLAG_BITS = {flag: 1 << i for i, flag in enumerate(FLAGS)}
FLAG_POSITIONS = {flag: i for i, flag in enumerate(FLAGS)}

UNWATCHED_STATE_FIELDS = frozenset({"log_history", "stateful_callbacks"})
"""`log_history` only ever grows, by what `Log` records say; the other holds whole objects."""

RECURSIVE_METHODS = frozenset({"_prepare_input"})
"""Methods that call themselves for every nested tensor: only the outermost call leaves rows."""

EVENTS_LOOKED_AT = frozenset({"on_train_begin", "on_log", "on_train_end", "on_init_end"})
"""Events before whose callbacks there is something to look at."""

LONGEST_MESSAGE = 300

MOST_POSITIONS = 4096
"""More positions than this in one micro-batch are not recorded."""

GRAD_NORM, OPTIMIZER_STEP, SCHEDULER_STEP, GATHER, LOG, FILE, RNG, NOTE, FOCUS = (
    CODES[kind]
    for kind in (
        events.GradNorm,
        events.OptimizerStep,
        events.SchedulerStep,
        events.Gather,
        events.Log,
        events.File,
        events.Rng,
        events.Note,
        events.Focus,
    )
)

# -- bodies of the wrappers; `{call}` is the original with all its arguments ------------------------

_ADMIT = """\
    if {self} is not _t_watch.trainer:
        if not _t_admit({self}):
            return {call}
        try:
            return {again}
        finally:
            _t_watch.trainer = None
"""
"""Most calls come from inside another. The outermost goes through its wrapper a second time, as if it did too."""

_ENTER = """\
    if not _t_cell(_t_cell_number) and not _t_enter():
        return {call}
"""
"""The first call of a method has no number yet and ends in `_t_enter`, like one for which there is no room, and one on
another thread, which is no business of ours."""

_LEAVE = """\
    if not _t_cell(1):
        _t_put(2, ())
    return _t_result
"""
"""1 is CELL_RETURN, 2 is RETURN."""

_BODY = """\
    try:
        _t_result = {call}
    except BaseException as _t_error:
        _t_failed(_t_error)
        raise
"""

METHOD = _ADMIT + _ENTER + _BODY + _LEAVE

_BEFORE = """\
    try:
        _t_token = _t_before({self}, {argument})
    except Exception as _t_error:
        _t_token = _t_trouble(_t_error)
"""

_PROBED_BODY = """\
    try:
        _t_result = {call}
    except BaseException as _t_error:
        _t_failed_inside({self}, _t_token, _t_after, _t_error)
        raise
"""

_AFTER = """\
    try:
        _t_after({self}, _t_token, _t_result)
    except Exception as _t_error:
        _t_trouble(_t_error)
"""

_NO_TOKEN = """\
    _t_token = None
"""

PROBED_METHOD = _ADMIT + _ENTER + _BEFORE + _PROBED_BODY + _AFTER + _LEAVE

METHOD_WITH_RESULT = _ADMIT + _ENTER + _NO_TOKEN + _PROBED_BODY + _AFTER + _LEAVE

RECURSIVE_METHOD = (
    """\
    if _t_watch.in_recursion:
        return {call}
"""
    + _ADMIT
    + _ENTER
    + """\
    _t_watch.in_recursion = True
    try:
        _t_result = {call}
    except BaseException as _t_error:
        _t_watch.in_recursion = False
        _t_failed(_t_error)
        raise
    _t_watch.in_recursion = False
"""
    + _LEAVE
)

STATIC_METHOD = (
    """\
    if not _t_is_open():
        return {call}
"""
    + _ENTER
    + _BODY
    + _LEAVE
)

CONSTRUCTOR = (
    """\
    if not _t_building({self}):
        return {call}
"""
    + _ENTER
    + _BODY
    + """\
    _t_built({self})
"""
    + _LEAVE
)

_FLAG_IS_SET = " or ".join(f"_t_control.{flag}" for flag in FLAGS)
"""Written out where it runs at every event and every callback."""

CALLBACK_METHOD = """\
    _t_control = _t_watch.event_control
    if _t_control is None or _t_watch.callback_class is not None:
        return {unexpected}
    _t_watch.callback_class = _t_class = _t_class_of({self})
    if _t_class is not _t_last_class:
        _t_define(_t_class)
    if not _t_cell(_t_cell_number):
        _t_put(6, (_t_name,))
    try:
        _t_result = {call}
    except BaseException as _t_error:
        _t_callback_failed(_t_error)
        raise
    if _t_watch.event_control is not _t_control:
        return _t_result
    if _t_result is not None and _t_result is not _t_control:
        _t_same = False
    elif _t_watch.current.flags:
        _t_same = _t_bits(_t_control) == _t_watch.current.flags
    else:
        _t_same = not {flag_is_set}
    if not _t_same and not _t_callback_meddled(_t_control, _t_result):
        return _t_result
    _t_watch.callback_class = None
    if not _t_cell(2):
        _t_put(7, ())
    return _t_result
"""
"""2 is CELL_CALLBACK_END, 6 and 7 are CALLBACK and CALLBACK_END."""

CALLBACK_METHOD = CALLBACK_METHOD.replace("{flag_is_set}", f"({_FLAG_IS_SET})")

AROUND = (
    _BEFORE
    + """\
    _t_result = {call}
"""
    + _AFTER
    + """\
    return _t_result
"""
)
"""Around a function that is not a Trainer's: no rows of its own, only what its hooks write."""

AFTERWARDS = """\
    _t_result = {call}
    if _t_watch.trainer is not None:
        try:
            _t_after({self}, {argument}, _t_result)
        except Exception as _t_error:
            _t_trouble(_t_error)
    return _t_result
"""
"""The same with a hook only afterwards, while a call of a Trainer is open; its token is the argument."""


class Watched:
    """What is known of one observed Trainer.

    The Trainer is referred to weakly: a script that drops it gets its memory back.
    """

    __slots__ = (
        "announced",
        "callbacks_seen",
        "control",
        "evaluation",
        "flags",
        "folder",
        "label_name",
        "log_length",
        "lowered_by_handler",
        "number",
        "on_host",
        "ref",
        "state",
        "state_values",
        "training",
        "world_size",
    )

    def __init__(self, trainer: Any, number: int):
        self.number = number
        self.ref = weakref.ref(trainer)
        self.announced = False
        self.control: Any = None
        self.flags = 0
        self.lowered_by_handler = 0
        self.state: Any = None
        self.state_values: dict[str, Any] = {}
        self.callbacks_seen = -1
        self.training = TrainingBook()
        self.evaluation: EvaluationBook | None = None
        self.folder: OutputFolder | None = None
        self.on_host = True
        self.label_name = "labels"
        self.log_length = -1
        self.world_size = 1


class Observer:
    """Hooks Trainers and writes what they do to a recorder.

    Args:
        target: the only Trainer to observe; None observes every Trainer that is built.

    Attributes:
        hooks, unhooked: what was found, for the head.
        trainer_id: `id` of the Trainer in focus, 0 for none.
        trainer: that Trainer itself while a call of it is open, and None otherwise, so that nothing keeps it alive.
            Wrappers compare with it before anything else.
    """

    __slots__ = (
        "_bare_optimizers",
        "_batch",
        "_callback_classes_done",
        "_callback_ids",
        "_classes_done",
        "_closed",
        "_event_keywords",
        "_foreign_writes",
        "_gather_rows",
        "_globals",
        "_in_prediction_step",
        "_in_training_step",
        "_is_elsewhere",
        "_is_timed",
        "_loss",
        "_pen",
        "_scheduler_classes_done",
        "_state_sites",
        "_target_id",
        "_tensor_class",
        "_trainers_seen",
        "_troubles",
        "_watched",
        "authors",
        "batches",
        "callback_class",
        "current",
        "event_control",
        "hooks",
        "in_recursion",
        "patches",
        "recorder",
        "torch",
        "trainer",
        "trainer_id",
        "unhooked",
    )

    def __init__(self, target: Any = None):
        self.recorder: Recorder
        self.patches = Patches()
        self.authors = Authors()
        self.hooks: list[str] = []
        self.unhooked: dict[str, str] = {}
        self._is_timed = cycle([False] * (COST_SAMPLE - 1) + [True])  # of each micro-batch
        self._pen: Pen
        self._is_elsewhere: Callable[[], bool]  # asks whether this is another thread than the one that is observed
        self.trainer_id = 0
        self.trainer: Any = None
        self.in_recursion = False
        self.current: Watched | None = None
        self._target_id = id(target) if target is not None else 0
        self._watched: dict[int, Watched] = {}
        self._trainers_seen = 0
        self._classes_done: set[type] = set()
        self._callback_classes_done: set[type] = set()
        self._scheduler_classes_done: set[type] = set()
        self._bare_optimizers: Any = None
        self._troubles: set[str] = set()
        self._closed = False
        # the event that is being called: its handler's control object and the callback that is running
        self.event_control: Any = None
        self.callback_class: type | None = None
        # field -> the last place that wrote it (code and instruction), the type of its value, what writes a row of it,
        # and the row's first word
        self._state_sites: dict[str, tuple[Any, int, type, Callable[[int, Any, Any], bool], int]] = {}
        self._callback_ids: dict[type, int] = {}
        self._event_keywords: tuple[str, ...] = ()
        self._foreign_writes: dict[tuple[int, str], Any] = {}
        self._in_training_step = 0
        self._in_prediction_step = 0
        self._loss: Any = None
        self._batch: tuple[int | None, int | None] = (None, None)
        self._gather_rows: int | None = None
        self._globals: dict[str, Any]
        import torch

        self.torch = torch
        self._tensor_class = torch.Tensor
        self.batches = Batches(torch)

    # -- which Trainer ------------------------------------------------------------------

    def admit(self, trainer: Any) -> bool:
        """Decide whether a call on `trainer` is recorded, and turn the focus to it."""
        if self._closed or self._is_elsewhere():
            return False
        if id(trainer) == self.trainer_id:
            self.trainer = trainer
            return True
        watched = self._watched.get(id(trainer))
        if watched is None:
            if self._target_id or trainer is None or not hasattr(trainer, "callback_handler"):
                return False
            watched = self.watch(trainer)  # built before the trace began
        self._focus(watched)
        if not watched.announced:
            self.announce(watched)
        self.trainer = trainer
        return True

    def watch(self, trainer: Any) -> Watched:
        """Begin to follow a Trainer."""
        key = id(trainer)
        watched = self._watched[key] = Watched(trainer, self._trainers_seen)
        self._trainers_seen += 1

        def forget(_: Any) -> None:
            gone = self._watched.pop(key, None)
            if gone is not None:
                gone.control = gone.state = None
            if self.trainer_id == key:
                self.trainer_id = 0

        watched.ref = weakref.ref(trainer, forget)
        return watched

    def _focus(self, watched: Watched) -> None:
        trainer = watched.ref()
        self.trainer_id = id(trainer)
        if self.trainer is not trainer:
            self.trainer = None
        if self.current is not watched and (self.current is not None or watched.number):
            self.recorder.put(FOCUS, (watched.number,))
        self.current = watched

    def announce(self, watched: Watched) -> None:
        """Write down what this Trainer is, once it is built."""
        trainer = watched.ref()
        watched.announced = True
        model = getattr(trainer, "model", None)
        args = trainer.args
        device = getattr(getattr(args, "device", None), "type", "")
        watched.on_host = device in ("", "cpu")
        watched.world_size = int(getattr(args, "world_size", 1) or 1)
        label_names = getattr(trainer, "label_names", None) or ["labels"]
        watched.label_name = label_names[0]
        watched.folder = OutputFolder(args.output_dir, int(getattr(args, "process_index", 0) or 0))
        handler = trainer.callback_handler
        self.recorder.record(
            events.TrainerBegin(
                trainer=watched.number,
                classes=[f"{cls.__module__}.{cls.__qualname__}" for cls in self._trainer_classes(type(trainer))],
                model=type(model).__name__,
                device=device,
                arguments=describe_arguments(args),
                callbacks=[(type(cb).__name__, self._overridden_events(type(cb))) for cb in handler.callbacks],
            )
        )
        self._adopt_control(watched, trainer.control)
        self._adopt_state(watched, trainer.state)
        self._instrument_callbacks(watched, handler)
        for name in sorted(PUBLIC_METHODS & vars(trainer).keys()):
            self.note(f"{name} was replaced on the Trainer object itself; its calls are not recorded")

    def building(self, trainer: Any) -> bool:
        """A constructor of a Trainer class was entered."""
        if self._closed or self._is_elsewhere() or self._target_id:
            return False
        self.instrument_trainer_class(type(trainer))
        watched = self._watched.get(id(trainer)) or self.watch(trainer)
        self._focus(watched)
        return True

    def built(self, trainer: Any) -> None:
        """A constructor has returned; the outermost one has the finished Trainer."""
        watched = self._watched.get(id(trainer))
        if watched is not None and not watched.announced and hasattr(trainer, "control"):
            self.announce(watched)

    def note(self, text: str) -> None:
        self.recorder.put(NOTE, (text,))

    def trouble(self, where: str, error: Exception) -> None:
        """A hook failed: say so once, and go on."""
        if where not in self._troubles:
            self._troubles.add(where)
            try:
                self.note(
                    f"the hook at {where} failed ({type(error).__name__}: {plain(str(error))}); its rows are missing"
                )
            except Exception:  # nothing of ours may reach the training
                pass

    # -- calls ------------------------------------------------------------------------------

    def failed(self, error: BaseException) -> None:
        """A call is left by an exception."""
        self._raise(error)

    def failed_inside(self, trainer: Any, token: Any, after: Callable[..., Any], error: BaseException) -> None:
        """A probed call is left by an exception: its hook closes what it opened."""
        try:
            after(trainer, token, None)
        except Exception as trouble:
            self.trouble(after.__name__, trouble)
        self.failed(error)

    def _raise(self, error: BaseException) -> None:
        try:
            message = reduce_paths(str(error))[:LONGEST_MESSAGE]
        except Exception:
            message = ""
        self.recorder.put(RAISE, (self.recorder.name(type(error).__name__), message))
        unlink_wrappers(error.__traceback__)

    # -- events and callbacks ------------------------------------------------------------------

    def hook_handler(self, handler_class: type) -> None:
        """Hook the callback handler's class."""
        original = handler_class.call_event  # type: ignore[attr-defined]
        self._event_keywords = _keywords_passed(innermost(original).__code__)
        for value in vars(handler_class).values():
            self.authors.know(value, handler_class.__name__, BY_HANDLER)
        watch, sink, name_of = self, self.recorder, self.recorder.name
        write_event, write_cell, is_elsewhere = sink.pen.event, sink.pen.cell, sink.pen.is_elsewhere
        begins: dict[str, int] = {}  # event -> the first word of its rows, less the flags
        bits_of = _bits

        def call_event(self: Any, event: str, args: Any, state: Any, control: Any, **kwargs: Any) -> Any:
            trainer = watch.trainer
            is_known = trainer is not None and trainer.callback_handler is self and not is_elsewhere()
            if not is_known and not watch.admit_handler(self):
                return original(self, event, args, state, control, **kwargs)
            watched: Any = watch.current
            try:
                flags = watched.flags
                if (
                    event not in begins
                    or control is not watched.control
                    or state is not watched.state
                    or len(self.callbacks) != watched.callbacks_seen
                    or (
                        bits_of(control) != flags
                        if flags
                        else control.should_log
                        or control.should_evaluate
                        or control.should_save
                        or control.should_epoch_stop
                        or control.should_training_stop
                    )
                ):
                    watch.event_begins(watched, event, state, control, self)
                    flags = watched.flags
                    number = name_of(event)
                    begin = first_word("<BH", EVENT, number) if number < 1 << 16 else -1
                    if event not in EVENTS_LOOKED_AT:
                        begins[event] = begin
                else:
                    begin = begins[event]
                lowered, step, epoch = watched.lowered_by_handler, state.global_step, state.epoch
                if not write_event(begin | lowered << 24 | flags << 32, step, epoch):
                    sink.put(EVENT, (name_of(event), step, None if epoch is None else float(epoch), lowered, flags))
                if lowered:
                    watched.lowered_by_handler = 0
            except Exception as error:
                watch.trouble("call_event", error)
                return original(self, event, args, state, control, **kwargs)
            outer_control, outer_class = watch.event_control, watch.callback_class
            watch.event_control, watch.callback_class = control, None
            try:
                if kwargs:
                    result = original(self, event, args, state, control, **kwargs)
                else:
                    result = original(self, event, args, state, control)
            except BaseException as error:
                watch.event_control, watch.callback_class = outer_control, outer_class
                watch._raise(error)
                raise
            watch.event_control, watch.callback_class = outer_control, outer_class
            if not write_cell(CELL_EVENT_END + watched.flags):
                sink.put(EVENT_END, (watched.flags,))
            return result

        call_event.__wrapped__ = original  # type: ignore[attr-defined]
        call_event.__qualname__ = original.__qualname__
        call_event.__module__ = original.__module__
        call_event.__doc__ = original.__doc__
        call_event.__code__ = call_event.__code__.replace(co_filename=SOURCE_NAME)
        self.patches.replace(handler_class, "call_event", call_event)
        add_callback = vars(handler_class).get("add_callback")
        if is_plain_function(add_callback):
            names = self._around(self._nothing, self._callback_was_added)
            self.patches.replace(handler_class, "add_callback", wrapper_of(add_callback, AROUND, names))

    def admit_handler(self, handler: Any) -> bool:
        """Find the observed Trainer that a callback handler belongs to, and turn the focus to it."""
        if self._closed or self._is_elsewhere():
            return False
        for watched in list(self._watched.values()):
            trainer = watched.ref()
            if trainer is not None and getattr(trainer, "callback_handler", None) is handler:
                self._focus(watched)
                return True
        return False

    def event_begins(self, watched: Watched, event: str, state: Any, control: Any, handler: Any) -> None:
        """What has to be looked at before the callbacks run."""
        if not watched.announced:
            self.announce(watched)
        elif len(handler.callbacks) != watched.callbacks_seen or event == "on_train_begin":
            self._instrument_callbacks(watched, handler)
        if control is not watched.control:
            self._replace_control(watched, control, self.authors.caller(sys._getframe(2), BY_TRAINER))
        elif _bits(control) != watched.flags:
            self._flags_bypassed(watched, control, self.authors.caller(sys._getframe(2), BY_TRAINER))
        if state is not watched.state:
            self._replace_state(watched, state, self.authors.caller(sys._getframe(2), BY_TRAINER))
        if event == "on_log":
            self._log_entry(watched, state)
        elif event == "on_train_begin":
            self._hook_scheduler(watched)
        elif event == "on_train_end":
            self._scan(watched)

    def _callback_was_added(self, handler: Any, token: Any, result: Any) -> None:
        watched = self.current
        trainer = watched.ref() if watched is not None else None
        if watched is not None and trainer is not None and getattr(trainer, "callback_handler", None) is handler:
            self._instrument_callbacks(watched, handler)

    def _instrument_callbacks(self, watched: Watched, handler: Any) -> None:
        """Hook the classes of callbacks that are new."""
        watched.callbacks_seen = len(handler.callbacks)
        for callback in handler.callbacks:
            cls = type(callback)
            if cls not in self._callback_classes_done:
                self._callback_classes_done.add(cls)
                self._instrument_callback_class(cls)

    def _instrument_callback_class(self, cls: type) -> None:
        for base in _own_callback_classes(cls):
            for name, value in list(vars(base).items()):
                self.authors.know(value, base.__name__, BY_CALLBACK)
                if base in self._classes_done or not name.startswith("on_"):
                    continue
                if is_plain_function(value):
                    own = Own(self._globals, _t_last_class=None, _t_name=0, _t_cell_number=None)
                    own["_t_define"] = functools.partial(self._define_callback, own)
                    wrapper = wrapper_of(value, CALLBACK_METHOD, own, keywords=self._event_keywords)
                    self.patches.replace(base, name, wrapper)
                elif callable(value):
                    self.note(f"{base.__name__}.{name} is not a plain function; its calls are not recorded")
            self._classes_done.add(base)

    def _define_callback(self, own: Own, cls: type) -> None:
        """Give a callback's class its id at the first call of this method on it, and leave the id with its wrapper."""
        number = self._callback_ids.get(cls)
        if number is None:
            number = self._callback_ids[cls] = self.recorder.name(cls.__name__)
        own["_t_name"], own["_t_cell_number"], own["_t_last_class"] = number, CELL_NAMED + 2 * number + 1, cls

    def callback_meddled(self, control: Any, result: Any) -> bool:
        """A callback changed flags without an assignment, or returned a control object of its own.

        True where its end is still to be written.
        """
        watched = self._now()
        by = self._callback_author(self.callback_class)
        try:
            if _bits(control) != watched.flags:
                self._flags_bypassed(watched, control, by)
            if result is not None and result is not control:
                self._replace_control(watched, result, by)
                self.event_control = result
        except Exception as error:
            self.trouble("the control object", error)
        if self.event_control is control:
            return True
        self.callback_class = None
        self.recorder.put(CALLBACK_END, (1,))
        return False

    def callback_failed(self, error: BaseException) -> None:
        self.callback_class = None
        self._raise(error)

    @staticmethod
    def _callback_author(cls: type | None) -> str:
        """Name the callback's method that has just returned: the wrapper that called us has its name."""
        return f"{cls.__name__ if cls is not None else ''}.{sys._getframe(2).f_code.co_name}"

    @staticmethod
    def _overridden_events(cls: type) -> list[str]:
        """Events whose method a callback class overrides."""
        own = {name for base in _own_callback_classes(cls) for name in vars(base) if name.startswith("on_")}
        return sorted(name for name in own if callable(getattr(cls, name, None)))

    # -- flags ---------------------------------------------------------------------------------

    def hook_control(self, control_class: type) -> None:
        """Hook assignments to control flags."""
        watch = self
        original = control_class.__setattr__
        bits_of_flag = FLAG_BITS

        def __setattr__(self: Any, name: str, value: Any) -> None:
            original(self, name, value)
            watched = watch.current
            if watched is None or (not value and not watched.flags and self is watched.control):
                return  # nothing is raised that could have been lowered
            if name not in bits_of_flag:
                return
            if self is not watched.control:
                if watch.event_control is not None:
                    watch.foreign_write(self, name)
            elif (not watched.flags & bits_of_flag[name]) is not (not value):
                watch.flag_changed(watched, name, bool(value))

        __setattr__.__code__ = __setattr__.__code__.replace(co_filename=SOURCE_NAME)
        hook: Any = __setattr__
        if IfChanged is not None and original is object.__setattr__:
            hook = IfChanged(hook)
        self.patches.replace(control_class, "__setattr__", hook)

    def flag_changed(self, watched: Watched, flag: str, new: bool) -> None:
        """An assignment changed a flag of the control object in use."""
        watched.flags ^= FLAG_BITS[flag]
        if self._is_elsewhere() or not self.trainer_id:
            return
        try:
            cls = self.callback_class
            site = self.authors.site(sys._getframe(2), cls.__name__ if cls is not None else "")
            if site.role == BY_HANDLER and not new:
                watched.lowered_by_handler |= FLAG_BITS[flag]
            how = "trainer.control" if site.via_attribute and cls is not None else "set"
            self._put_flag(flag, new, site.by, site.file, site.line, how)
        except Exception as error:
            self.trouble("TrainerControl.__setattr__", error)

    def foreign_write(self, control: Any, flag: str) -> None:
        """Remember who writes to a control object that is not in use: a callback may be about to return it."""
        try:
            cls = self.callback_class
            site = self.authors.site(sys._getframe(2), cls.__name__ if cls is not None else "")
            if len(self._foreign_writes) < 256:
                self._foreign_writes[id(control), flag] = site
        except Exception as error:
            self.trouble("TrainerControl.__setattr__", error)

    def _put_flag(self, flag: str, new: bool, by: str, file: str, line: int, how: str) -> None:
        recorder = self.recorder
        site = recorder.name((by, file, line))
        fields = (FLAG_POSITIONS[flag], int(new), site)
        recorder.put(FLAG, fields if how == "set" else (*fields, recorder.name(how)))

    def _adopt_control(self, watched: Watched, control: Any) -> None:
        watched.control = control
        watched.flags = _bits(control)

    def _replace_control(self, watched: Watched, control: Any, by: str) -> None:
        """Another control object is in use from now on: its flags that differ are changes."""
        before = watched.flags
        self._adopt_control(watched, control)
        for flag, bit in FLAG_BITS.items():
            if (before ^ watched.flags) & bit:
                site = self._foreign_writes.get((id(control), flag))
                file, line = (site.file, site.line) if site is not None else ("", 0)
                self._put_flag(flag, bool(watched.flags & bit), by, file, line, "replaced")
        self._foreign_writes.clear()

    def _flags_bypassed(self, watched: Watched, control: Any, by: str) -> None:
        """Flags changed without an assignment to the attribute."""
        now = _bits(control)
        before, watched.flags = watched.flags, now
        for flag, bit in FLAG_BITS.items():
            if (before ^ now) & bit:
                self._put_flag(flag, bool(now & bit), by, "", 0, "__dict__")

    # -- state ----------------------------------------------------------------------------------

    def hook_state(self, state_class: type) -> None:
        """Hook assignments to the Trainer's state."""
        watch = self
        original = state_class.__setattr__

        sites, frame_of = self._state_sites, sys._getframe

        def __setattr__(self: Any, name: str, value: Any) -> None:
            original(self, name, value)
            watched = watch.current
            if watched is None or self is not watched.state:
                return
            if name in sites and watch.callback_class is None:
                code, instruction, kind, write, first = sites[name]
                frame, values = frame_of(1), watched.state_values
                if frame.f_lasti == instruction and frame.f_code is code and type(value) is kind:
                    old = values.get(name)
                    if old != value and write(first, old, value):  # no if `old` is of another type
                        values[name] = value
                        return
            if name not in UNWATCHED_STATE_FIELDS:
                watch.state_changed(watched, name, value)

        __setattr__.__code__ = __setattr__.__code__.replace(co_filename=SOURCE_NAME)
        self.patches.replace(state_class, "__setattr__", __setattr__)

    def state_changed(self, watched: Watched, field: str, value: Any) -> None:
        if not self.trainer_id or self._is_elsewhere():
            return
        try:
            new = _plain_state(value)
            old = watched.state_values.get(field)
            if new == old and type(new) is type(old):
                return
            watched.state_values[field] = new
            cls = self.callback_class
            frame = sys._getframe(2)
            site = self.authors.site(frame, cls.__name__ if cls is not None else "")
            field_id, site_id = self.recorder.name(field), self.recorder.name((site.by, site.file, site.line))
            if site.role == BY_TRAINER and cls is None and self.authors.knows(frame):
                kind = type(new)
                if (kind is int or kind is float) and max(field_id, site_id) < 1 << 16:
                    self._state_sites[field] = (
                        frame.f_code,
                        frame.f_lasti,
                        kind,
                        *self.recorder.state_row(kind, field_id, site_id),
                    )
            self.recorder.state(field_id, site_id, old, new)
        except Exception as error:
            self.trouble("TrainerState.__setattr__", error)

    def _adopt_state(self, watched: Watched, state: Any) -> None:
        watched.state = state
        watched.state_values = {
            field: _plain_state(value) for field, value in vars(state).items() if field not in UNWATCHED_STATE_FIELDS
        }

    def _replace_state(self, watched: Watched, state: Any, by: str) -> None:
        """Another state object is in use from now on."""
        before = watched.state_values
        self._adopt_state(watched, state)
        name = self.recorder.name
        for field, new in watched.state_values.items():
            old = before.get(field)
            if new != old or type(new) is not type(old):
                self.recorder.put(STATE, (name(field), old, new, name((by, "", 0)), name("replaced")))

    # -- Trainer classes -------------------------------------------------------------------------

    def _trainer_classes(self, cls: type) -> list[type]:
        """Classes from the object's class up to the library's Trainer."""
        classes = []
        for base in cls.__mro__:
            classes.append(base)
            if _is_library_trainer(base):
                break
        return classes

    def instrument_trainer_class(self, cls: type) -> None:
        """Hook every function of every class of the method resolution order."""
        mro = cls.__mro__
        root = next((i for i, base in enumerate(mro) if _is_library_trainer(base)), len(mro))
        for i, base in enumerate(mro):
            if base is object or base in self._classes_done or base.__module__ in ("abc", "typing", "collections.abc"):
                continue
            self._classes_done.add(base)
            part = base.__name__ if i > root else ""
            owner = mro[root].__name__ if i > root else base.__name__
            self._instrument_functions(base, owner, part)

    def _instrument_functions(self, base: type, owner: str, part: str) -> None:
        of_library = base.__module__.partition(".")[0] in LIBRARIES
        for name, value in list(vars(base).items()):
            function = value.__func__ if isinstance(value, staticmethod) else value
            if not is_plain_function(function):
                continue
            self.authors.know(function, owner, BY_TRAINER)
            if name.startswith("__") and not (name == "__init__" and not self._target_id):
                continue
            probe = PROBES.get(name)
            method = (name, owner, part, of_library and name not in PUBLIC_METHODS)
            own = Own(self._globals, _t_cell_number=None)
            own["_t_enter"] = functools.partial(self._enter, own, method)
            argument = (1, "")
            if isinstance(value, staticmethod):
                template = STATIC_METHOD
            elif name == "__init__":
                template = CONSTRUCTOR
            elif name in RECURSIVE_METHODS:
                template = RECURSIVE_METHOD
            elif probe is not None:
                template = PROBED_METHOD if probe.before else METHOD_WITH_RESULT
                before, after = (getattr(self, hook or "_nothing") for hook in (probe.before, probe.after))
                self._around(before, after, own)
                argument = (probe.position, probe.argument)
            else:
                template = METHOD
            wrapper = wrapper_of(function, template, own, argument)
            self.patches.replace(base, name, staticmethod(wrapper) if isinstance(value, staticmethod) else wrapper)

    def _enter(self, own: Own, method: tuple[str, str, str, bool]) -> bool:
        """Write a call that a wrapper could not: its first one, or one for which there was no room.

        False where nothing was written because the call is another thread's.
        """
        if self._is_elsewhere():
            return False
        number = self.recorder.name(method)
        own["_t_cell_number"] = CELL_NAMED + 2 * number
        self.recorder.put(CALL, (number,))
        return True

    def _around(self, before: Callable[..., Any], after: Callable[..., Any], own: Own | None = None) -> Own:
        """The names that a body with hooks before and after refers to."""
        own = own or Own(self._globals)
        own["_t_before"] = self._timed(before) if before.__name__ in RARE else before
        own["_t_after"] = self._timed(after) if after.__name__ in RARE else after
        own["_t_trouble"] = functools.partial(
            self.trouble, after.__name__ if after.__name__ != "_nothing" else before.__name__
        )
        return own

    def _timed(self, hook: Callable[..., Any]) -> Callable[..., Any]:
        """A hook that adds its time to the recorder's cost."""
        recorder = self.recorder

        @functools.wraps(hook)
        def run(*arguments: Any) -> Any:
            started = thread_time()
            try:
                return hook(*arguments)
            finally:
                recorder.cost.rare_s += thread_time() - started

        return run

    def _nothing(self, *_: Any) -> None:
        """No hook here."""

    # -- one micro-batch ----------------------------------------------------------------------------

    def training_step_begins(self, trainer: Any, inputs: Any) -> None:
        self._in_training_step += 1
        if self._in_training_step == 1:
            self._loss = None
            self._batch = self._samples(inputs, False)

    def _samples(self, inputs: Any, is_eval: bool) -> tuple[int | None, int | None]:
        """Write down which samples a micro-batch holds; return how many, and how many labels."""
        if timed := next(self._is_timed):
            self.recorder.cost.time_a_call()
            started = thread_time()
        rows, labels, digest, positions = self.batches.of(inputs, self.current.label_name)  # type: ignore[union-attr]
        if not self._pen.samples(SAMPLES, rows, labels, is_eval, digest, positions):
            if positions is not None and (len(positions) > MOST_POSITIONS or set(map(type, positions)) != {int}):
                positions = None
            fields = (rows, labels, None if digest is None else f"{digest:08x}", positions)
            self.recorder.put(SAMPLES, (*fields, "eval") if is_eval else fields)
        if timed:
            self.recorder.cost.micro_batch_s.append(thread_time() - started)
        return rows, labels

    def compute_loss_ends(self, trainer: Any, token: Any, result: Any) -> None:
        if self._in_training_step:
            if isinstance(result, self._tensor_class):
                self._loss = keep(result)
            else:
                loss = result[0] if isinstance(result, (tuple, list)) and result else None
                self._loss = keep(loss) if isinstance(loss, self._tensor_class) else None

    def training_step_ends(self, trainer: Any, token: Any, result: Any) -> None:
        self._in_training_step -= 1
        if self._in_training_step or not isinstance(result, self._tensor_class):
            return
        book = self.current.training  # type: ignore[union-attr]
        if not book.entries:
            book.dtype = str(result.dtype).removeprefix("torch.")
        micro = keep(result)
        since = 0
        if type(micro) is not float or micro - micro != 0:  # what a Trainer that filters divides by, instead of adding
            since = trainer.state.global_step - trainer._globalstep_last_logged
        book.entries.append((self._loss, micro, since, self._batch))

    def _now(self) -> Watched:
        assert self.current is not None
        return self.current

    # -- the log ---------------------------------------------------------------------------------------

    def log_save_evaluate_begins(self, trainer: Any, running_sum: Any) -> bool:
        book = self.current.training  # type: ignore[union-attr]
        book.running_sum = running_sum
        if not trainer.control.should_log:
            return False
        book.log_is_due = True
        book.total_before = float(trainer._total_loss_scalar)
        book.step_of_last_log = int(trainer._globalstep_last_logged)
        if running_sum.is_cpu:
            book.rank_sum = float(running_sum.item())
        return True

    def log_save_evaluate_ends(self, trainer: Any, is_log: Any, result: Any) -> None:
        if not is_log:
            return
        book = self._now().training
        book.total = float(trainer._total_loss_scalar)
        running_sum = book.running_sum
        book.forget_log()
        book.running_sum = running_sum

    def gather_begins(self, trainer: Any, tensors: Any) -> Any:
        return tensors

    def gather_ends(self, trainer: Any, tensors: Any, result: Any) -> None:
        """Keep the vector of all ranks' sums. The Trainer sets its sum to zero in place right after."""
        watched = self.current
        if watched is None or not watched.training.log_is_due or tensors is not watched.training.running_sum:
            return
        book = watched.training
        if not isinstance(result, self.torch.Tensor):
            return
        if result.is_cpu:
            book.gathered = result.reshape(-1).tolist()
        else:
            book.gathered, book.rank_sum = result.detach().clone(), tensors.detach().clone()

    def log_begins(self, trainer: Any, logs: Any) -> Any:
        """`log` is entered: the Trainer has just waited for the device itself, so kept numbers are read now."""
        watched = self._now()
        book = watched.training
        args = trainer.args
        if not isinstance(logs, dict):
            return None
        filters = bool(getattr(args, "logging_nan_inf_filter", True))
        if book.log_is_due and "loss" in logs:
            total = float(trainer._total_loss_scalar)
            accumulation = int(args.gradient_accumulation_steps)
            step = int(trainer.state.global_step)
            self.recorder.record(book.loss_record(step, total, logs["loss"], accumulation, filters))
            book.clear()
            book.log_is_due = False
        elif "train_loss" in logs:
            self.recorder.record(book.train_loss_record(int(trainer.state.global_step), logs["train_loss"], filters))
            book.clear()
            book.total = 0.0
        if watched.log_length < 0:
            watched.log_length = len(trainer.state.log_history)
            return True
        return None

    def log_ends(self, trainer: Any, token: Any, result: Any) -> None:
        if token:
            self._log_entry(self._now(), trainer.state)
            self._now().log_length = -1

    def _log_entry(self, watched: Watched, state: Any) -> None:
        """Write down the entries that `log` has appended since it was entered."""
        if watched.log_length < 0:
            return
        for entry in state.log_history[watched.log_length :]:
            logs = {key: plain(value) for key, value in entry.items() if key != "step"}
            self.recorder.put(LOG, (int(entry.get("step", state.global_step)), logs))
        watched.log_length = len(state.log_history)

    # -- evaluation ---------------------------------------------------------------------------------------

    def evaluation_begins(self, trainer: Any, prefix: Any) -> Any:
        watched = self._now()
        outer, watched.evaluation = watched.evaluation, EvaluationBook()
        return outer, prefix if isinstance(prefix, str) else "eval"

    def evaluation_ends(self, trainer: Any, token: Any, result: Any) -> None:
        watched = self._now()
        outer, prefix = token
        book, watched.evaluation = watched.evaluation, outer
        metrics = getattr(result, "metrics", None)
        key = f"{prefix}_loss"
        if book is not None and book.losses and isinstance(metrics, dict) and key in metrics:
            self.recorder.record(book.record(key, metrics[key], watched.world_size))
            if outer is not None:  # a subclass's loop that calls its super: one record is enough
                outer.losses = []

    def prediction_step_begins(self, trainer: Any, inputs: Any) -> None:
        self._in_prediction_step += 1
        if self._in_prediction_step == 1:
            self._samples(inputs, True)

    def prediction_step_ends(self, trainer: Any, token: Any, result: Any) -> None:
        self._in_prediction_step -= 1
        watched = self._now()
        if self._in_prediction_step or watched.evaluation is None or not isinstance(result, (tuple, list)):
            return
        book = watched.evaluation
        loss, logits, labels = (*result, None, None, None)[:3]
        inputs_too = bool(getattr(trainer.args, "include_inputs_for_metrics", False)) or "inputs" in (
            getattr(trainer.args, "include_for_metrics", None) or ()
        )
        present = {"loss": loss is not None, "inputs": inputs_too, "logits": logits is not None}
        book.expected = [what for what, there in present.items() if there] + (["labels"] if labels is not None else [])
        if isinstance(loss, self.torch.Tensor):
            book.dtype = str(loss.dtype).removeprefix("torch.")
            book.losses.append(keep(loss))

    def metrics_gather_begins(self, accelerator: Any, tensors: Any) -> Any:
        self._gather_rows = None
        return _first_dimension(tensors)

    def metrics_gather_ends(self, accelerator: Any, rows: int | None, result: Any) -> None:
        watched = self.current
        trainer = watched.ref() if watched is not None else None
        if watched is None or not self._is_here() or getattr(trainer, "accelerator", None) is not accelerator:
            return
        book = watched.evaluation
        what = book.expected.pop(0) if book is not None and book.expected else "other"
        kept = _first_dimension(result)
        gathered = self._gather_rows if self._gather_rows is not None else kept
        self.recorder.put(GATHER, (what, rows, gathered, kept))
        if what == "loss" and book is not None and rows is not None:
            book.rows.append(rows)
            book.gathered += gathered or 0
            book.kept += kept or 0

    def plain_gather_ends(self, accelerator: Any, token: Any, result: Any) -> None:
        self._gather_rows = _first_dimension(result)

    def legacy_gather_ends(self, trainer: Any, tensors: Any, result: Any) -> None:
        """The legacy prediction loop gathers by a method of its own, once for many batches."""
        watched = self._now()
        if tensors is None or result is None:
            return
        what = {1: "loss", 2: "logits", 3: "labels", 4: "inputs"}.get(_dimensions(tensors), "other")
        self.recorder.put(GATHER, (what, _first_dimension(tensors), _first_dimension(result)))
        book = watched.evaluation
        if book is not None and not book.rows and book.losses and _dimensions(tensors) == 1:
            book.gathered += _first_dimension(result) or 0

    # -- optimizer and scheduler ------------------------------------------------------------------------------

    def clip_ends(self, accelerator: Any, max_norm: Any, norm: Any) -> None:
        if accelerator is not self.trainer.accelerator or self._is_elsewhere() or max_norm is None:
            return
        limit = float(max_norm)
        if isinstance(norm, self._tensor_class):
            if not norm.is_cpu:
                self._now().training.grad_norms.append(norm.detach())
                self.recorder.put(GRAD_NORM, (None, number(limit)))
                return
            norm = norm.item()
        elif norm is None:
            return
        if not self._pen.floats(GRAD_NORM, norm, limit):
            norm = float(norm)
            self.recorder.put(GRAD_NORM, (number(norm), number(limit), norm > limit))

    def _is_here(self) -> bool:
        """Whether a Trainer is in focus and this is its thread."""
        return self.trainer_id != 0 and not self._is_elsewhere()

    def optimizer_step_ends(self, optimizer: Any, closure: Any, result: Any) -> None:
        """The rates that the step used: it does not change them."""
        if optimizer is self.trainer.optimizer and not self._is_elsewhere():
            try:  # what accelerate's properties return
                groups, skipped = optimizer.optimizer.param_groups, optimizer._is_overflow
            except AttributeError:
                groups, skipped = optimizer.param_groups, bool(getattr(optimizer, "step_was_skipped", False))
            if not self._pen.rates(OPTIMIZER_STEP, groups, skipped):
                self._put_rates(OPTIMIZER_STEP, groups, skipped)

    def scheduler_step_ends(self, scheduler: Any, argument: Any, result: Any) -> None:
        if scheduler is self.trainer.lr_scheduler and not self._is_elsewhere():
            groups = scheduler.optimizer.param_groups
            if not self._pen.rates(SCHEDULER_STEP, groups, False):
                self._put_rates(SCHEDULER_STEP, groups)

    def _put_rates(self, kind: int, groups: list[dict[str, Any]], skipped: bool = False) -> None:
        """A step, with the rate of each parameter group."""
        rates = [_rate(group["lr"]) for group in groups]
        self.recorder.put(kind, (rates, True) if skipped else (rates,))

    def _hook_scheduler(self, watched: Watched) -> None:
        """The scheduler exists when training begins: hook the class that defines its `step`, and a bare optimizer."""
        trainer = watched.ref()
        scheduler = getattr(trainer, "lr_scheduler", None)
        owner = _definer(type(scheduler), "step")
        if owner is not None and owner not in self._scheduler_classes_done:
            self._scheduler_classes_done.add(owner)
            names = self._around(self._nothing, self.scheduler_step_ends)
            self.patches.replace(owner, "step", wrapper_of(vars(owner)["step"], AFTERWARDS, names))
        optimizer = getattr(trainer, "optimizer", None)
        if optimizer is None or _definer(type(optimizer), "step") in self._scheduler_classes_done:
            return
        if not isinstance(optimizer, self.torch.optim.Optimizer):
            self.note(
                f"the optimizer ({type(optimizer).__name__}) is neither accelerate's nor torch's; "
                "its steps are not recorded"
            )
        elif self._bare_optimizers is None:
            # Not prepared by accelerate, as with DataParallel. The scheduler has replaced `step` on the object itself,
            # so a hook on its class would never be reached; torch has one for all optimizers.
            from torch.optim.optimizer import register_optimizer_step_post_hook

            self._bare_optimizers = register_optimizer_step_post_hook(self.bare_step_ends)

    def bare_step_ends(self, optimizer: Any, arguments: Any, keywords: Any) -> None:
        """Any optimizer of torch has stepped."""
        try:
            if self.trainer is not None and optimizer is self.trainer.optimizer and not self._is_elsewhere():
                groups = optimizer.param_groups
                if not self._pen.rates(OPTIMIZER_STEP, groups, False):
                    self._put_rates(OPTIMIZER_STEP, groups)
        except Exception as error:
            self.trouble("Optimizer.step", error)

    # -- files and random states ---------------------------------------------------------------------------------

    def files_begin(self, trainer: Any, _: Any) -> None:
        self._scan(self._now())

    def files_end(self, trainer: Any, token: Any, result: Any) -> None:
        self._scan(self._now())

    def _scan(self, watched: Watched) -> None:
        folder = watched.folder
        if folder is None:
            return
        for change in folder.changes():
            self.recorder.put(FILE, (change.action, change.path, change.size)[: 2 if change.size is None else 3])
        if folder.too_large:
            watched.folder = None
            self.note("the output folder holds too many files; what happens in it is not recorded")

    def rng_load_begins(self, trainer: Any, checkpoint: Any) -> Any:
        return checkpoint

    def rng_load_ends(self, trainer: Any, checkpoint: Any, result: Any) -> None:
        if checkpoint is not None:
            self.recorder.put(RNG, (checkpoint_name(checkpoint), self._rng_digest()))

    def _rng_digest(self) -> str:
        """Digest of the host's random states: Python's, NumPy's and torch's."""
        import random

        import numpy

        crc = zlib.crc32(repr(random.getstate()).encode())
        algorithm, keys, *position = numpy.random.get_state(legacy=True)
        crc = zlib.crc32(keys.tobytes() + repr((algorithm, position)).encode(), crc)
        return f"{zlib.crc32(self.torch.get_rng_state().numpy(), crc):08x}"

    # -- attaching -------------------------------------------------------------------------------------------------

    def attach(self, trainer_classes: list[type], recorder_of: Callable[[], Recorder]) -> None:
        """Hook everything. The head needs to know what was hooked, so the recorder is made in between."""
        root = next(base for cls in trainer_classes for base in cls.__mro__ if _is_library_trainer(base))
        parts = _library_parts(root)
        self._survey(root, parts)
        self.recorder = recorder_of()
        self._pen = self.recorder.pen
        self._is_elsewhere = self._pen.is_elsewhere
        self._globals = shared_globals(
            _t_cell=self._pen.cell,
            _t_put=self.recorder.put,
            _t_watch=self,
            _t_admit=self.admit,
            _t_is_open=self._is_open,
            _t_failed=self.failed,
            _t_failed_inside=self.failed_inside,
            _t_building=self.building,
            _t_built=self.built,
            _t_class_of=type,
            _t_bits=_bits,
            _t_callback_failed=self.callback_failed,
            _t_callback_meddled=self.callback_meddled,
        )
        self.recorder.cost.call = self._empty_call()
        for part, hook in (("TrainerControl", self.hook_control), ("TrainerState", self.hook_state)):
            if part in parts:
                hook(parts[part])
        if "CallbackHandler" in parts:
            self.hook_handler(parts["CallbackHandler"])
        for cls in trainer_classes:
            self.instrument_trainer_class(cls)
        self._hook_module(sys.modules[root.__module__])
        self._hook_accelerate()
        self._hook_loader()

    def _empty_call(self) -> Callable[[], Any]:
        """A hooked method that does nothing, whose rows go nowhere: what it takes is what a call takes."""
        pen = Pen(self._pen.zero)
        pen.move(bytearray(2 * WORD_BYTES))
        wrapper = wrapper_of(_does_nothing, METHOD, Own(self._globals, _t_cell=pen.cell, _t_cell_number=CELL_NAMED))

        def call() -> None:
            pen.position = 0
            wrapper(self.trainer)

        return call

    def _survey(self, root: type, parts: dict[str, type]) -> None:
        """List what is there to hook, and what is not."""
        self.hooks = ["CallbackHandler.call_event", "TrainerControl.__setattr__", "TrainerState.__setattr__"]
        for part in ("CallbackHandler", "TrainerControl", "TrainerState"):
            if part not in parts:
                self.unhooked[part] = "no class of this name beside the Trainer"
        self.hooks = [hook for hook in self.hooks if hook.partition(".")[0] in parts]
        for name in PROBES:
            if not callable(getattr(root, name, None)):
                moved = MOVED_TO_MODULE.get(name)
                if moved and callable(getattr(sys.modules[root.__module__], moved, None)):
                    self.unhooked[f"Trainer.{name}"] = f"a module function in this version; {moved} is hooked instead"
                else:
                    self.unhooked[f"Trainer.{name}"] = "not in this version"
        for name, (module, owner, attribute) in OUTSIDE.items():
            if callable(getattr(getattr(sys.modules.get(module), owner, None), attribute, None)):
                self.hooks.append(name)
            else:
                self.unhooked[name] = f"{module} has no such method"
        self.hooks.sort()

    def _hook_module(self, module: Any) -> None:
        around = {
            "nested_gather": (self.module_gather_begins, self.module_gather_ends),
            "rotate_checkpoints": (self.module_files_begin, self.module_files_end),
        }
        for moved, (before, after) in around.items():
            function = vars(module).get(moved)
            if is_plain_function(function):
                self.patches.replace(module, moved, wrapper_of(function, AROUND, self._around(before, after)))

    def module_gather_begins(self, tensors: Any, _: Any) -> Any:
        return tensors

    def module_gather_ends(self, tensors: Any, token: Any, result: Any) -> None:
        self.gather_ends(None, tensors, result)

    def module_files_begin(self, *_: Any) -> None:
        if self._is_open():
            self._scan(self._now())

    def module_files_end(self, *_: Any) -> None:
        if self._is_open():
            self._scan(self._now())

    def _is_open(self) -> bool:
        """Whether a call of the Trainer in focus is open on this thread."""
        if not self.trainer_id or self.current is None or self._is_elsewhere():
            return False
        return bool(self.authors.caller(sys._getframe(2), BY_TRAINER))

    def _hook_accelerate(self) -> None:
        around: dict[str, tuple[Callable[..., Any], Callable[..., Any], tuple[int, str]]] = {
            "Accelerator.clip_grad_norm_": (self._nothing, self.clip_ends, (2, "max_norm")),
            "Accelerator.gather": (self._nothing, self.plain_gather_ends, (1, "tensor")),
            "Accelerator.gather_for_metrics": (
                self.metrics_gather_begins,
                self.metrics_gather_ends,
                (1, "input_data"),
            ),
            "AcceleratedOptimizer.step": (self._nothing, self.optimizer_step_ends, (1, "closure")),
        }
        for name, (module, owner, attribute) in OUTSIDE.items():
            cls: Any = getattr(sys.modules.get(module), owner, None)
            function = vars(cls).get(attribute) if cls is not None else None
            if name not in around or not is_plain_function(function):
                continue
            before, after, argument = around[name]
            hooks = self._around(before, after)
            template = AFTERWARDS if before == self._nothing else AROUND
            self.patches.replace(cls, attribute, wrapper_of(function, template, hooks, argument))
            self._scheduler_classes_done.add(cls)

    def _hook_loader(self) -> None:
        from torch.utils.data import dataloader

        if self.torch.cuda.is_available():  # a batch may be pinned after it was put together: then it is another
            self._hook_iterators(dataloader._BaseDataLoaderIter)
        else:
            self._hook_fetcher()
            self._hook_iterators(dataloader._MultiProcessingDataLoaderIter)
        data_loader = sys.modules.get("accelerate.data_loader")
        copies = self.torch.cuda.is_available() or os.environ.get("WORLD_SIZE", "1") != "1"  # see was_moved
        if data_loader is not None and copies and hasattr(data_loader, "send_to_device"):
            hooks = self._around(self._move_begins, self._move_ends)
            function = data_loader.send_to_device
            if is_plain_function(function):
                self.patches.replace(data_loader, "send_to_device", wrapper_of(function, AROUND, hooks))

    def _hook_fetcher(self) -> None:
        """What puts a batch together is given its positions."""
        from torch.utils.data._utils.fetch import _MapDatasetFetcher as fetcher_class

        watch, is_elsewhere, was_fetched = self, self._is_elsewhere, self.batches.was_fetched
        original = fetcher_class.fetch

        def fetch(self: Any, possibly_batched_index: Any) -> Any:
            batch = original(self, possibly_batched_index)
            if watch.trainer_id and not is_elsewhere():
                try:
                    was_fetched(batch, possibly_batched_index)
                except Exception as error:
                    watch.trouble("DataLoader.fetch", error)
            return batch

        self.patches.replace(fetcher_class, "fetch", fetch)

    def _hook_iterators(self, iterator_class: Any) -> None:
        """Workers fetch in processes of their own, and pinned memory holds a copy: what an iterator draws from the
        sampler comes back from it in the same order."""
        watch, is_elsewhere, batches = self, self._is_elsewhere, self.batches
        next_batch, next_index = iterator_class.__next__, iterator_class._next_index

        def __next__(self: Any) -> Any:
            batch = None
            try:
                batch = next_batch(self)
            finally:
                if watch.trainer_id and not is_elsewhere():
                    try:
                        batches.came_out(self, batch)
                    except Exception as error:
                        watch.trouble("DataLoader.__next__", error)
            return batch

        def _next_index(self: Any) -> Any:
            index = next_index(self)
            if watch.trainer_id and not is_elsewhere():
                batches.put_in_line(self, index)
            return index

        self.patches.replace(iterator_class, "__next__", __next__)
        self.patches.replace(iterator_class, "_next_index", _next_index)

    def _move_begins(self, batch: Any, _: Any) -> Any:
        return batch

    def _move_ends(self, batch: Any, token: Any, moved: Any) -> None:
        watched = self.current
        if watched is not None and self.trainer_id and not self._is_elsewhere():
            self.batches.was_moved(batch, moved, watched.label_name)

    def refresh_bound_gathers(self, trainer: Any) -> None:
        """Some versions keep `accelerator.gather_for_metrics` on the Trainer, bound before it was hooked: bind it anew."""
        accelerator = getattr(trainer, "accelerator", None)
        bound = vars(trainer).get("gather_function")
        if bound is not None and accelerator is not None:
            vars(trainer)["gather_function"] = _rebound(bound, accelerator)

    def detach(self) -> None:
        """Put everything back. Frames that are still running pass through from now on."""
        self._closed = True
        self.trainer_id = 0
        self.trainer = None
        self.event_control = None
        trainers = [watched.ref() for watched in self._watched.values()]
        self.current = None
        self.patches.undo()
        if self._bare_optimizers is not None:
            self._bare_optimizers.remove()
        for trainer in trainers:
            if trainer is not None:
                self.refresh_bound_gathers(trainer)


# -- the table ----------------------------------------------------------------------------------------


class Probe(NamedTuple):
    """What happens around a method: names of the observer's hooks, and which argument they look at.

    `before(trainer, argument)` returns a token, `after(trainer, token, result)` gets it. Only what is inside the call
    and return rows.
    """

    before: str | None = None
    after: str | None = None
    argument: str = ""
    position: int = 1


_FILES = Probe(None, "files_end")

PROBES: dict[str, Probe] = {
    "training_step": Probe("training_step_begins", "training_step_ends", "inputs", 2),
    "compute_loss": Probe(None, "compute_loss_ends"),
    "_maybe_log_save_evaluate": Probe("log_save_evaluate_begins", "log_save_evaluate_ends", "tr_loss", 1),
    "_nested_gather": Probe("gather_begins", "gather_ends", "tensors", 1),
    "log": Probe("log_begins", "log_ends", "logs", 1),
    "evaluation_loop": Probe("evaluation_begins", "evaluation_ends", "metric_key_prefix", 5),
    "prediction_loop": Probe("evaluation_begins", "evaluation_ends", "metric_key_prefix", 5),
    "prediction_step": Probe("prediction_step_begins", "prediction_step_ends", "inputs", 2),
    "_gather_and_numpify": Probe("gather_begins", "legacy_gather_ends", "tensors", 1),
    "_load_rng_state": Probe("rng_load_begins", "rng_load_ends", "checkpoint", 1),
    "_rotate_checkpoints": Probe("files_begin", "files_end"),
    "_save_checkpoint": _FILES,
    "save_model": _FILES,
    "_save": _FILES,
    "save_state": _FILES,
    "save_metrics": _FILES,
    "create_model_card": _FILES,
    "train": _FILES,
}

RARE = frozenset(
    """
    log_begins log_ends evaluation_ends files_begin files_end module_files_begin module_files_end rng_load_ends
    legacy_gather_ends
    """.split()
)
"""Hooks that do more than write a row and run once in many steps: each of their calls is timed."""

MOVED_TO_MODULE = {"_nested_gather": "nested_gather", "_rotate_checkpoints": "rotate_checkpoints"}
"""Methods that a later version made a function of the Trainer's module."""

OUTSIDE = {
    "Accelerator.clip_grad_norm_": ("accelerate.accelerator", "Accelerator", "clip_grad_norm_"),
    "Accelerator.gather": ("accelerate.accelerator", "Accelerator", "gather"),
    "Accelerator.gather_for_metrics": ("accelerate.accelerator", "Accelerator", "gather_for_metrics"),
    "AcceleratedOptimizer.step": ("accelerate.optimizer", "AcceleratedOptimizer", "step"),
    "DataLoader.fetch": ("torch.utils.data._utils.fetch", "_MapDatasetFetcher", "fetch"),
}
"""Hooked points outside the Trainer: module, class, attribute."""


def _does_nothing(self: Any) -> None:
    """What `Observer._empty_call` hooks."""


# -- small questions ---------------------------------------------------------------------------------------


def _is_library_trainer(cls: type) -> bool:
    return cls.__name__ == "Trainer" and cls.__module__.partition(".")[0] in LIBRARIES


def _library_parts(root: type) -> dict[str, type]:
    """The library's handler, control and state classes, wherever this version keeps them."""
    package = root.__module__.partition(".")[0]
    names = ("CallbackHandler", "TrainerControl", "TrainerState")
    parts: dict[str, type] = {}
    for module in (root.__module__, f"{package}.trainer_callback", f"{package}.callbacks"):
        for name in names:
            value = getattr(sys.modules.get(module), name, None)
            if isinstance(value, type):
                parts.setdefault(name, value)
    return parts


def _own_callback_classes(cls: type) -> Iterator[type]:
    """Classes of a callback that hold methods of their own: all but the library's empty base."""
    for base in cls.__mro__:
        library = base.__module__.partition(".")[0] in LIBRARIES
        if base is not object and not (library and base.__name__ in ("TrainerCallback", "ExportableState")):
            yield base


def _keywords_passed(call_event: CodeType) -> tuple[str, ...]:
    """What `call_event` passes to every callback by name: the tuple of these names is among its constants."""
    for constant in call_event.co_consts:
        if isinstance(constant, tuple) and {"model", "optimizer", "lr_scheduler"} <= set(constant):
            return constant
    return ()


def _definer(cls: type, name: str) -> type | None:
    """The class of the method resolution order whose own `name` is a plain function."""
    for base in cls.__mro__:
        if name in vars(base):
            return base if is_plain_function(vars(base)[name]) else None
    return None


def _bits(control: Any) -> int:
    """The flags that are set, as a set of bits. Written out, because it runs at every event and every callback."""
    bits = 0
    if control.should_training_stop:
        bits = 1
    if control.should_epoch_stop:
        bits += 2
    if control.should_save:
        bits += 4
    if control.should_evaluate:
        bits += 8
    if control.should_log:
        bits += 16
    return bits


def _rate(rate: Any) -> events.Number:
    """A learning rate as it stands in a record; one that lives on a GPU is not read."""
    on_device = getattr(getattr(rate, "device", None), "type", "cpu") != "cpu"
    return None if on_device else number(float(rate))


def _plain_state(value: Any) -> Any:
    if isinstance(value, (list, tuple, dict)):
        return f"{type(value).__name__} of {len(value)}"
    return reduce_paths(value) if isinstance(value, str) else plain(value)


def _first_dimension(value: Any) -> int | None:
    """Rows of the first array of a nested value."""
    shape = getattr(value, "shape", None)
    if shape is not None:
        return int(shape[0]) if len(shape) else None
    values = value.values() if isinstance(value, dict) else value if isinstance(value, (list, tuple)) else ()
    return next((rows for rows in map(_first_dimension, values) if rows is not None), None)


def _dimensions(value: Any) -> int:
    shape = getattr(value, "shape", None)
    return len(shape) if shape is not None else 0


def _rebound(bound: Any, owner: Any) -> Any:
    """A bound method (or a partial of one) bound again, so that it is the class's present function."""
    if isinstance(bound, functools.partial):
        return functools.partial(_rebound(bound.func, owner), *bound.args, **bound.keywords)
    if getattr(bound, "__self__", None) is owner:
        present = getattr(owner, bound.__func__.__name__, None)
        if present is not None and innermost(present.__func__) is innermost(bound.__func__):
            return present
    return bound


def frames_of(frame: FrameType | None) -> Iterator[FrameType]:
    while frame is not None:
        yield frame
        frame = frame.f_back


# Read next: session.py, how a trace is begun and ended.
