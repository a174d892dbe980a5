"""What a trace is: typed records, in one order, that say what a Trainer did.

A trace has two forms with the same content:

- the **recording**, one file a rank (`rank0.rows`): words of eight bytes, with interned names and times. It is written
  while the Trainer runs, so it is as small and as cheap as it can be (`recorder.py`);
- the **canonical form** (`rank0.jsonl`): one JSON object a line, one for each record class below, with names written
  out, the nesting depth spelled, and nothing that differs between two equal runs (no clock, host, process id or
  absolute path). It is what is compared and shown.

The canonical form has two levels. The *full* level keeps what belongs to one implementation: file and line of an
author, private phases of a version, the mixin that holds a method. The *portable* level drops exactly that, so that
two implementations that behave alike give the same bytes after the first line. Committed traces are portable. What
each level keeps is written at `canonical` and `portable` in rows.py.

Both forms start with a `Head` and, if the run came to its end, close with an `End`. A file without `End` is a run that was
cut short; every record before the cut is whole. Readers skip kinds that they do not know, and refuse a schema newer
than `SCHEMA`. Nothing in a trace is ever executed: reading one builds the plain objects below and nothing else.

The vocabulary (micro-batch, step, group, epoch, rank) is the project's; see the chapter "the four words".
"""

from __future__ import annotations

from typing import Any, Union

import msgspec

SCHEMA = 1
"""Version of the record layout. Raised whenever a field changes its meaning; adding a kind does not raise it."""

FLAGS = (
    "should_training_stop",
    "should_epoch_stop",
    "should_save",
    "should_evaluate",
    "should_log",
)
"""The five booleans of `TrainerControl`, in upstream's order. Bit i of a compact flag set is FLAGS[i]."""


Number = Union[float, str, None]
"""A number as measured. JSON has no word for the non-finite ones: they stand as "nan", "inf" and "-inf", so that a
loss that was NaN is never mistaken for one that was not known (None). `as_float` turns all three back."""


def as_float(number: Number) -> float | None:
    """Turn a `Number` into the float that was measured, or None where it is not known."""
    return None if number is None else float(number)


class Record(msgspec.Struct, tag_field="kind", omit_defaults=True, kw_only=True):
    """One line of a trace.

    `at` is the time in microseconds since the recording began. It is None in the canonical form.
    """

    at: int | None = None


# -- frame of the file ---------------------------------------------------------


class Head(Record, tag="head", kw_only=True):
    """First line: what ran.

    Attributes:
        schema: record layout, see `SCHEMA`.
        form: "recording", "canonical" (the full level) or "portable".
        versions: name of a distribution to the version really imported (transformers or minitrainer, accelerate,
            torch, numpy, python, …).
        rank: number of this process among all (0 … world_size - 1).
        world_size: number of processes of the run.
        hooks: the points outside the Trainer's own methods that were hooked, sorted; what a version does not have is
            in `unhooked`. Neither stands at the portable level.
        unhooked: point to the reason why it could not be hooked, so that an absence of rows is never mistaken for
            an absence of calls.
        scenario: name of the scenario or file name of the script; "" for `with trace(trainer)`.
        process: pid, host, argv, clock at the start, launcher id. Only in a recording, never in the canonical form.
    """

    schema: int
    form: str
    versions: dict[str, str] = {}
    rank: int = 0
    world_size: int = 1
    hooks: list[str] = []
    unhooked: dict[str, str] = {}
    scenario: str = ""
    process: dict[str, Any] | None = None


class TrainerBegin(Record, tag="trainer", kw_only=True):
    """A Trainer came under observation (built, or attached to). Rows after it belong to it until a `Focus`.

    Attributes:
        trainer: its number in this file, from 0.
        classes: qualified names from the object's class up to the library's Trainer, most derived first.
        model: class name of the model.
        device: type of the device that the model runs on ("cpu", "cuda").
        arguments: the training arguments that differ from their defaults, paths reduced to their last part.
        callbacks: class names of the callbacks in the order of the handler, each with the events it overrides.
    """

    trainer: int
    classes: list[str]
    model: str = ""
    device: str = ""
    arguments: dict[str, Any] = {}
    callbacks: list[tuple[str, list[str]]] = []


class Focus(Record, tag="focus", kw_only=True):
    """The rows that follow belong to Trainer number `trainer` (only in a file with several)."""

    trainer: int


class End(Record, tag="end", kw_only=True):
    """Last line of a run that was recorded to its end.

    Attributes:
        rows: number of records before this one (definitions of names not counted). In a recording nobody counts while
            it is written: the reader does.
        dropped: rows that could not be written (a full disk); a trace with dropped rows says so wherever it is shown.
        cost_us: microseconds that the recorder itself took, as it measured them. Only in a recording.
        bytes: size of all that stands before this record. Only in a recording; a reader that finds the record elsewhere
            knows that something is missing.
    """

    rows: int = 0
    dropped: int = 0
    cost_us: int | None = None
    bytes: int | None = None


# -- calls ---------------------------------------------------------------------


class Call(Record, tag="call", kw_only=True):
    """A method of the Trainer was entered: `method`, as defined by class `cls`, at nesting `depth` (0 is outermost).

    `depth` counts open methods, not events or callbacks. A class that only holds a part of the library's Trainer (a
    mixin) is named in `part`, and `cls` is then "Trainer"; the portable level leaves `part` out. `private` marks a
    method of the library that is none of 4.31.0's 70: the portable level leaves the whole call out.
    """

    method: str
    cls: str
    depth: int
    part: str = ""
    private: bool = False


class Return(Record, tag="return", kw_only=True):
    """The innermost open call returned."""

    method: str
    depth: int


class Raise(Record, tag="raise", kw_only=True):
    """The innermost open scope was left by an exception. It is recorded once for each scope that it leaves.

    Attributes:
        method: the method, the event, or the callback's class, as `scope` says.
        depth: that of the call; for an event or a callback the number of open calls around it.
        error: class name of the exception.
        message: its text, at most 300 characters, absolute paths reduced to their last part.
        scope: "call", "event" or "callback". An event or callback that raised has no `EventEnd` or `CallbackEnd`.
    """

    method: str
    depth: int
    error: str
    message: str
    scope: str = "call"


# -- callbacks, flags, state -----------------------------------------------------


class Event(Record, tag="event", kw_only=True):
    """The handler starts to call the callbacks.

    Attributes:
        event: "on_step_end" and so on.
        step: `state.global_step` at this moment.
        epoch: `state.epoch`, a fraction of epochs, or None where it is not set.
        lowered: the flags that the handler itself lowered from True to False before the first callback ran.
        raised: the flags that are True as the first callback sees them.
    """

    event: str
    step: int
    epoch: float | None = None
    lowered: list[str] = []
    raised: list[str] = []


class EventEnd(Record, tag="event_end", kw_only=True):
    """The last callback of the event has run; `raised` are the flags that are True now."""

    event: str
    raised: list[str] = []


class Callback(Record, tag="callback", kw_only=True):
    """A callback that overrides the event was entered. Callbacks that inherit the empty method leave no row."""

    callback: str
    event: str


class CallbackEnd(Record, tag="callback_end", kw_only=True):
    """The callback returned. `replaced` says that it returned another control object than it was given."""

    callback: str
    replaced: bool = False


class Flag(Record, tag="flag", kw_only=True):
    """A control flag changed its value.

    Attributes:
        flag: one of `FLAGS`.
        old, new: the value before and after.
        by: who: the callback's class and method, the handler, or a method of the Trainer.
        file: file of the line that wrote, relative to its package or the working folder.
        line: its number, 0 where it is not known.
        how: "set" (an assignment to the control object in use), "trainer.control" (a callback wrote through the
            Trainer it holds instead of the control that it was given), "replaced" (another control object took its
            place, and this flag differs in it), "__dict__" (changed without an assignment to the attribute; found by
            comparing after the callback, so that file and line are not known).

    `file` and `line` are left out at the portable level, and where they are not known. At the portable level `by` is
    the innermost open public method where a private phase of the Trainer wrote.
    """

    flag: str
    old: bool
    new: bool
    by: str
    file: str = ""
    line: int = 0
    how: str = "set"


class State(Record, tag="state", kw_only=True):
    """A field of `TrainerState` was assigned another value. Fields as in `Flag`; long values are summarised ("list of
    12"), and paths are reduced to their last part. `how` is "set", or "replaced" where another state object took the
    place of the one in use (a new run, a resume) and differs from it in this field."""

    field: str
    old: Any
    new: Any
    by: str
    file: str = ""
    line: int = 0
    how: str = "set"


# -- one micro-batch and one step ---------------------------------------------------


class Samples(Record, tag="samples", kw_only=True):
    """Which samples the micro-batch holds that is trained (or evaluated) in the innermost open call.

    Attributes:
        rows: number of samples, padding rows of the last batch included.
        labels: number of labels that count towards the loss (not -100), or None where there are none.
        digest: eight hexadecimal digits over the names, shapes and bytes of all tensors of the batch.
        indices: positions in the data set, in order, where the sampler made them known.
        split: "train" or "eval".
    """

    rows: int | None
    labels: int | None = None
    digest: str | None = None
    indices: list[int] | None = None
    split: str = "train"


class GradNorm(Record, tag="grad_norm", kw_only=True):
    """The gradient of the group, just before the optimizer's step.

    Attributes:
        norm: 2-norm over all parameters before clipping; None where it is not readable without waiting for the device
            (then it stands in the next `Loss` record's `grad_norms`).
        max_norm: the limit, `args.max_grad_norm`.
        clipped: whether the norm was above the limit, so that the gradient was scaled down; None with `norm`.
    """

    norm: Number
    max_norm: Number
    clipped: bool | None = None


class OptimizerStep(Record, tag="optimizer_step", kw_only=True):
    """The optimizer was asked to step; `lr` is the rate of each parameter group that it used, `skipped` is True if
    the gradient scaler left the step out because of infinite or missing values."""

    lr: list[Number]
    skipped: bool = False


class SchedulerStep(Record, tag="scheduler_step", kw_only=True):
    """The learning-rate scheduler stepped; `lr` is the rate of each parameter group from now on."""

    lr: list[Number]


# -- the loss mathematics ----------------------------------------------------------


class Loss(Record, tag="loss", kw_only=True):
    """How a logged training loss came about, from the micro-batches to the log line, on this rank.

    Attributes:
        step: `global_step` at the log.
        losses: the loss of each micro-batch since the last log as `compute_loss` gave it (the mean over cards where
            one process drives several), in order.
        micro: what `training_step` returned for each, that is `losses[i] / divided_by[i]`.
        divided_by: the divisor that leads from `losses[i]` to `micro[i]` exactly in the loss's own precision; None
            where no simple divisor does.
        filtered: positions (in `micro`) of losses that were NaN or infinite and that the Trainer replaced by the
            average so far (`logging_nan_inf_filter`): it added sum / d instead, with the sum at that moment.
        filter_divisors: d for each of `filtered`: 1 + steps since the last log at that moment.
        rows: samples in each micro-batch; labels: labels that count in each, where known.
        rank_sum: this rank's running sum of `micro`, in the precision of the loss.
        gathered: the vector of all ranks' sums, as gathered; one element in a run with one process.
        mean: its mean, as the Trainer read it.
        steps: steps since the last log: the divisor.
        quotient: mean / steps before rounding.
        logged: the value that was logged, after rounding where the version rounds.
        total_before: `_total_loss_scalar` before `mean` was added to it.
        grad_norms: gradient norms of the steps since the last log that were not readable earlier.
        dtype: element type of the losses ("float32"); sums are kept in float32 or, for float64 losses, in float64.
        verified: whether the chain above gives exactly `logged`, computed again from the recorded numbers.
    """

    step: int
    losses: list[Number]
    micro: list[Number]
    divided_by: list[int | None]
    filtered: list[int] = []
    filter_divisors: list[int] = []
    rows: list[int | None] = []
    labels: list[int | None] = []
    rank_sum: Number
    gathered: list[Number]
    mean: Number
    steps: int
    quotient: Number
    logged: Number
    total_before: Number
    grad_norms: list[Number] = []
    dtype: str = "float32"
    verified: bool


class TrainLoss(Record, tag="train_loss", kw_only=True):
    """How `train_loss` came about at the end of `train`.

    Attributes:
        total: `_total_loss_scalar` before the rest was added.
        rest: sum of the micro-batches since the last log on this rank (`tr_loss.item()`): it is *not* gathered.
        micro: the micro-batch losses that `rest` is made of; `filtered` and `filter_divisors` as in `Loss`.
        steps: the divisor, `global_step` (also after a resume, when `total` began at zero).
        logged: the value in the metrics of `train`.
        verified: whether (total + rest) / steps gives exactly `logged`.
    """

    total: Number
    rest: Number
    micro: list[Number]
    filtered: list[int] = []
    filter_divisors: list[int] = []
    steps: int
    logged: Number
    verified: bool


class EvalLoss(Record, tag="eval_loss", kw_only=True):
    """How an evaluation loss came about, on this rank.

    Attributes:
        key: the metric's name, for example "eval_loss".
        losses: the loss of each batch on this rank (None where the batch gave none).
        rows: how often each loss was repeated before the gather (the batch size observed).
        gathered: length of the vector after all gathers.
        kept: length after truncation to the number of samples.
        mean: mean of the kept vector: what is logged.
        logged: the value in the metrics.
        verified: whether the recorded numbers give exactly `logged`. On several ranks it takes the files of all ranks
            to tell; then it is None here and the join decides.
    """

    key: str
    losses: list[Number]
    rows: list[int]
    gathered: int
    kept: int
    mean: Number
    logged: Number
    verified: bool | None


class Gather(Record, tag="gather", kw_only=True):
    """Ranks exchanged a value: `what` it was ("loss", "logits", "labels", "inputs" …), with its rows before, after and
    after truncation."""

    what: str
    rows: int | None
    gathered: int | None
    kept: int | None = None


class Collective(Record, tag="collective", kw_only=True):
    """Ranks talked: one call of a collective on this rank. Only where the trace was asked for them.

    Attributes:
        collective: "allreduce", "allgather", "broadcast", "barrier" …, as torch's `c10d` calls it.
        elements, dtype, bytes: what this rank gave; nothing for a barrier.
        ranks: size of the group, 0 where this torch does not tell.
        by: the innermost function outside torch around the call.
        part: which part of DistributedDataParallel asked for it, "" where none did.
        file, line: where in `by`. With `by` they are left out at the portable level.
    """

    collective: str
    elements: int = 0
    dtype: str = ""
    bytes: int = 0
    ranks: int = 0
    part: str = ""
    by: str = ""
    file: str = ""
    line: int = 0


class Log(Record, tag="log", kw_only=True):
    """`Trainer.log` appended an entry. `logs` is that entry; clock values (runtime, per second) are left out of the
    canonical form."""

    step: int
    logs: dict[str, Any]


# -- files and random states ----------------------------------------------------------


class File(Record, tag="file", kw_only=True):
    """A file in the output folder appeared or changed ("write") or went ("remove").

    Attributes:
        path: relative to the output folder, with "/" between its parts. Rank 0 records what all write but the files
            that carry another rank's number; the others record the files that carry theirs.
        size: bytes; None for a removed file and, in the canonical form, for files that hold clock values or paths.

    TensorBoard's event files leave no row: their names hold clock and host, and they grow while they are looked at.
    """

    action: str
    path: str
    size: int | None = None


class Rng(Record, tag="rng", kw_only=True):
    """`_load_rng_state` was asked to set the random states from the checkpoint `source`; a rank without a file there keeps
    those it has. `digest` covers Python's, NumPy's and torch's states after it."""

    source: str
    digest: str


class Note(Record, tag="note", kw_only=True):
    """Something a reader must know to trust the rest: a hook that failed, rows that were dropped, a sample whose
    identity is not known. `text` is one sentence."""

    text: str


AnyRecord = Union[
    Head, TrainerBegin, Focus, End, Call, Return, Raise, Event, EventEnd, Callback, CallbackEnd, Flag, State, Samples,
    GradNorm, OptimizerStep, SchedulerStep, Loss, TrainLoss, EvalLoss, Gather, Collective, Log, File, Rng, Note,
]  # fmt: skip

RECORDS: dict[str, type[Record]] = {record.__struct_config__.tag: record for record in AnyRecord.__args__}  # type: ignore
"""Kind, as written in the canonical form, to its class."""

# Read next: recorder.py, which writes these records while a Trainer runs.
