"""What differs between two traces: findings, each once, however often it recurs, with the two rows that show it.

A finding says *what kind* of thing changed, *how* (added, removed, moved, changed, renamed) and *what* it is about.
All occurrences with these three in common are one finding, with a count, the steps and the ranks. A difference that is
only the echo of another (the flags as each event lists them, the running total of a loss that differs) is no finding.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import msgspec

from minitrainer.trace import events
from minitrainer.trace.aligning import general_path, log_name
from minitrainer.trace.events import Record
from minitrainer.trace.lossmath import as_float, same

KINDS = {
    "event": "events of the callback handler",
    "callback": "callbacks that ran, and the list of callbacks",
    "flag": "control flags",
    "number": "numbers: loss, gradient norm, learning rate, epoch, metrics",
    "log": "log records and their keys",
    "sample": "order and content of the samples",
    "file": "files of the checkpoints",
    "argument": "training arguments and their defaults",
    "state": "fields of the trainer state",
    "call": "methods of the Trainer that were called",
    "gather": "exchanges between ranks",
    "error": "exceptions",
    "rng": "random states",
    "run": "model, device, ranks, and whether the run came to its end",
    "note": "notes of the recorder",
}
"""Kind of finding to what it covers, in the order of a report."""

RENAMED_ARGUMENTS = {
    "evaluation_strategy": "eval_strategy",
    "no_cuda": "use_cpu",
    "per_gpu_train_batch_size": "per_device_train_batch_size",
    "per_gpu_eval_batch_size": "per_device_eval_batch_size",
    "fp16_backend": "half_precision_backend",
    "push_to_hub_token": "hub_token",
    "tokenizer": "processing_class",
}
"""Arguments that later versions know by another name."""

RENAMED_METHODS = {"_nested_gather": "later versions gather in a function of the module, nested_gather"}
"""Methods that are gone under their name, and what does their work now."""

# -- one finding --------------------------------------------------------------------------


@dataclass
class Finding:
    """One difference, with everything that shows it.

    Attributes:
        kind: one of `KINDS`.
        change: "added" (only B has it), "removed" (only A has it), "moved", "changed" or "renamed".
        subject: what it is about: an event's name, a quantity, a file.
        place: where it stands the first time, in words.
        count: how often it was seen, over all ranks.
        first_step, last_step: `global_step` at the first and last of them.
        ranks: where it was seen.
        inside: rows that went or came together with the first of them.
        row_a, row_b: the recorded rows that show it the first time, one JSON object each; None where a side has none.
        value_a, value_b: the first two values, for what changed.
        numbers: what is known of all pairs of a number.
        note: what is recognised in it.
    """

    kind: str
    change: str
    subject: str
    place: str = ""
    count: int = 0
    first_step: int = 0
    last_step: int = 0
    ranks: set[int] = field(default_factory=set)
    inside: int = 0
    row_a: str | None = None
    row_b: str | None = None
    value_a: Any = None
    value_b: Any = None
    numbers: Numbers | None = None
    note: str = ""

    @property
    def name(self) -> str:
        """What `bisect --finding` and `--ignore` of one finding take: "number:logged loss"."""
        return f"{self.kind}:{self.subject}"


PAIRS_KEPT = 256


@dataclass
class Numbers:
    """Pairs of one quantity that differ: the span of their differences and of their ratios, and the first of them."""

    largest_difference: float = 0.0
    largest_relative: float = 0.0
    smallest_ratio: float = math.inf
    largest_ratio: float = -math.inf
    pairs: list[tuple[float, float]] = field(default_factory=list)

    def add(self, a: float, b: float) -> None:
        if len(self.pairs) < PAIRS_KEPT:
            self.pairs.append((a, b))
        difference = abs(b - a)
        if not math.isfinite(difference):
            self.largest_difference = self.largest_relative = math.inf
            return
        self.largest_difference = max(self.largest_difference, difference)
        largest = max(abs(a), abs(b))
        if largest:
            self.largest_relative = max(self.largest_relative, difference / largest)
        if a:
            self.smallest_ratio = min(self.smallest_ratio, b / a)
            self.largest_ratio = max(self.largest_ratio, b / a)


# -- folding ---------------------------------------------------------------------------------


class Findings:
    """Collects differences and folds them into findings.

    Args:
        tolerance: relative difference up to which two numbers count as equal; 0 asks for the same bits.
        ignored: kinds that do not count as a difference.

    Attributes:
        noted: differences so far that count.
    """

    def __init__(self, tolerance: float = 0.0, ignored: set[str] | None = None):
        self.tolerance = tolerance
        self.ignored = ignored or set()
        self.noted = 0
        self._found: dict[tuple[str, str, str], Finding] = {}
        self._echoes: dict[tuple[str, str, str], tuple[str, str]] = {}

    def note(
        self,
        kind: str,
        change: str,
        subject: str,
        step: int,
        rank: int,
        row_a: Record | None = None,
        row_b: Record | None = None,
        values: tuple[Any, Any] | None = None,
        place: str = "",
        inside: int = 0,
        echo_of: tuple[str, str] | None = None,
    ) -> Finding:
        """Add one difference to its finding. `echo_of` names the kind and the start of the subject of findings that
        explain it: if there is one in the end, this is none."""
        if change != "renamed" and kind not in self.ignored:
            self.noted += 1
        key = (kind, change, subject)
        finding = self._found.get(key)
        if finding is None:
            finding = self._found[key] = Finding(kind, change, subject, place, 0, step, step, inside=inside)
            finding.row_a = None if row_a is None else encode(row_a)
            finding.row_b = None if row_b is None else encode(row_b)
            if values is not None:
                finding.value_a, finding.value_b = values
            if echo_of is not None:
                self._echoes[key] = echo_of
        self._recur(finding, step, rank)
        return finding

    def again(self, finding: Finding, step: int, rank: int) -> None:
        """Count a finding once more."""
        if finding.change != "renamed" and finding.kind not in self.ignored:
            self.noted += 1
        self._recur(finding, step, rank)

    @staticmethod
    def _recur(finding: Finding, step: int, rank: int) -> None:
        finding.count += 1
        finding.first_step = min(finding.first_step, step)
        finding.last_step = max(finding.last_step, step)
        finding.ranks.add(rank)

    def number(
        self, subject: str, a: Any, b: Any, step: int, rank: int, row_a: Record, row_b: Record, echo: bool = False
    ) -> bool:
        """Add a quantity if its two values differ; return whether they do."""
        left, right = as_float(a), as_float(b)
        if same(left, right) or (left is None and right is None and a == b):
            return False
        if left is not None and right is not None and abs(left - right) <= self.tolerance * max(abs(left), abs(right)):
            return False
        echo_of = ("number", "") if echo else None
        finding = self.note("number", "changed", subject, step, rank, row_a, row_b, (a, b), echo_of=echo_of)
        if left is not None and right is not None:
            finding.numbers = finding.numbers or Numbers()
            finding.numbers.add(left, right)
        return True

    def finish(self) -> list[Finding]:
        """All findings, in the order of `KINDS` and of their first occurrence; what moved is recognised."""
        self._recognise_moves()
        for key, (kind, begins) in self._echoes.items():
            if key in self._found and any(
                other.kind == kind and other.subject.startswith(begins)
                for other_key, other in self._found.items()
                if other_key not in self._echoes
            ):
                del self._found[key]
        order = list(KINDS)
        return sorted(self._found.values(), key=lambda finding: order.index(finding.kind))

    def _recognise_moves(self) -> None:
        for key, removed in list(self._found.items()):
            kind, change, subject = key
            added = self._found.get((kind, "added", subject))
            if change != "removed" or added is None or added.count != removed.count or kind in ("argument", "log"):
                continue
            moved = Finding(kind, "moved", subject, added.place, removed.count)
            moved.first_step = min(removed.first_step, added.first_step)
            moved.last_step = max(removed.last_step, added.last_step)
            moved.ranks = removed.ranks | added.ranks
            moved.row_a, moved.row_b, moved.inside = removed.row_a, added.row_b, removed.inside
            moved.value_a, moved.value_b = removed.place, added.place
            # in the place of the first of the two, so that findings stay in the order of the run
            self._found = {
                ((kind, "moved", subject) if other == key else other): (moved if other == key else finding)
                for other, finding in self._found.items()
                if other != (kind, "added", subject)
            }


_ENCODER = msgspec.json.Encoder()


def encode(record: Record) -> str:
    """A row as it is shown: one JSON object."""
    return _ENCODER.encode(record).decode("utf-8")


# -- a row that only one side has ------------------------------------------------------------


def lone_row(record: Any) -> tuple[str, str, tuple[str, str] | None]:
    """Kind, subject, and what it may be the echo of, for a row that has no counterpart."""
    kind = type(record)
    if kind is events.Call:
        return "call", record.method, None
    if kind is events.Return:
        return "call", f"end of {record.method}", None
    if kind is events.Event:
        return "event", record.event, None
    if kind is events.EventEnd:
        return "event", f"end of {record.event}", None
    if kind is events.Callback:
        return "callback", f"{record.callback} in {record.event}", None
    if kind is events.CallbackEnd:
        return "callback", f"end of {record.callback}", None
    if kind is events.Flag:
        return "flag", f"{record.flag} {'raised' if record.new else 'lowered'}", None
    if kind is events.State:
        return "state", record.field, None
    if kind is events.Log:
        return "log", f"record of {log_name(record.logs)}", None
    if kind is events.File:
        return "file", f"{general_path(record.path)}{'' if record.action == 'write' else ' removed'}", None
    if kind is events.Samples:
        return "sample", f"{record.split} samples", None
    if kind is events.Raise:
        return "error", f"{record.error} out of {record.method}", None
    if kind is events.Gather:
        return "gather", record.what, None
    if kind is events.Rng:
        return "rng", general_path(record.source), None
    if kind is events.Note:
        return "note", record.text, None
    if kind is events.End:
        return "run", "end of the recording", None
    if kind is events.Loss:
        return "number", "derivation of the logged loss", ("log", "record of loss")
    if kind is events.TrainLoss:
        return "number", "derivation of train_loss", ("log", "record of train_loss")
    if kind is events.EvalLoss:
        return "number", f"derivation of {record.key}", ("log", "record of")
    if kind is events.GradNorm:
        return "number", "gradient norm before a step", ("call", "the optimizer's step")
    if kind is events.OptimizerStep:
        return "call", "the optimizer's step", None
    if kind is events.SchedulerStep:
        return "call", "the scheduler's step", None
    return "run", record.__struct_config__.tag, None


# -- two rows that belong together -------------------------------------------------------------


def compare_rows(findings: Findings, a: Any, b: Any, step: int, rank: int) -> None:
    """Add what differs between two rows of equal identity."""
    comparer = _COMPARERS.get(type(a))
    if comparer is not None:
        comparer(findings, a, b, step, rank)


def _call(findings: Findings, a: Any, b: Any, step: int, rank: int) -> None:
    if a.cls != b.cls:
        findings.note("call", "changed", f"class that defines {a.method}", step, rank, a, b, (a.cls, b.cls))


def _event(findings: Findings, a: Any, b: Any, step: int, rank: int) -> None:
    findings.number("global_step", a.step, b.step, step, rank, a, b)
    if a.epoch != b.epoch:
        findings.number("epoch", a.epoch, b.epoch, step, rank, a, b)
    _flags_listed(findings, a, b, a.lowered, b.lowered, f"lowered by the handler at {a.event}", step, rank)
    _flags_listed(findings, a, b, a.raised, b.raised, f"up at {a.event}", step, rank)


def _event_end(findings: Findings, a: Any, b: Any, step: int, rank: int) -> None:
    _flags_listed(findings, a, b, a.raised, b.raised, f"up after {a.event}", step, rank)


def _flags_listed(
    findings: Findings, a: Any, b: Any, flags_a: list[str], flags_b: list[str], where: str, step: int, rank: int
) -> None:
    for flag in sorted(set(flags_a) ^ set(flags_b)):
        values = (flag in flags_a, flag in flags_b)
        # A change of the flag itself has a row of its own; this list only repeats it.
        echo = ("flag", f"{flag} ")
        findings.note("flag", "changed", f"{flag} {where}", step, rank, a, b, values, echo_of=echo)


def _callback_end(findings: Findings, a: Any, b: Any, step: int, rank: int) -> None:
    if a.replaced != b.replaced:
        subject = f"{a.callback} returns another control object"
        findings.note("callback", "changed", subject, step, rank, a, b, (a.replaced, b.replaced))


def _flag(findings: Findings, a: Any, b: Any, step: int, rank: int) -> None:
    if (a.by, a.how) != (b.by, b.how):
        verb = "raises" if a.new else "lowers"
        values = (f"{a.by} ({a.how})", f"{b.by} ({b.how})") if a.how != b.how else (a.by, b.by)
        findings.note("flag", "changed", f"{a.flag}: who {verb} it", step, rank, a, b, values)


def _state(findings: Findings, a: Any, b: Any, step: int, rank: int) -> None:
    if a.new != b.new:
        if _is_number(a.new) and _is_number(b.new):
            findings.number(a.field, a.new, b.new, step, rank, a, b)
        else:
            findings.note("state", "changed", a.field, step, rank, a, b, (a.new, b.new))
    elif a.old != b.old:
        subject, echo = f"{a.field} before it was set", None
        if _is_number(a.old) and _is_number(b.old):
            echo = ("number", a.field)
        findings.note(
            "state", "changed", subject, step, rank, a, b, (a.old, b.old), echo_of=echo or ("state", a.field)
        )
    if (a.by, a.how) != (b.by, b.how):
        values = (f"{a.by} ({a.how})", f"{b.by} ({b.how})")
        findings.note("state", "changed", f"who sets {a.field}", step, rank, a, b, values)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _samples(findings: Findings, a: Any, b: Any, step: int, rank: int) -> None:
    split = "" if a.split == "train" else f"{a.split}: "
    if a.rows != b.rows:
        findings.note("sample", "changed", f"{split}samples in a micro-batch", step, rank, a, b, (a.rows, b.rows))
    elif a.indices != b.indices:
        findings.note("sample", "changed", f"{split}which samples, in which order", step, rank, a, b,
                      (a.indices, b.indices))  # fmt: skip
    elif a.digest != b.digest:
        findings.note("sample", "changed", f"{split}content of the samples", step, rank, a, b, (a.digest, b.digest))
    if a.labels != b.labels and a.rows == b.rows and a.indices == b.indices:
        findings.note("sample", "changed", f"{split}labels that count", step, rank, a, b, (a.labels, b.labels))


def _grad_norm(findings: Findings, a: Any, b: Any, step: int, rank: int) -> None:
    differs = findings.number("gradient norm", a.norm, b.norm, step, rank, a, b)
    differs = findings.number("limit of the gradient norm", a.max_norm, b.max_norm, step, rank, a, b) or differs
    if a.clipped != b.clipped and not differs:
        findings.note("number", "changed", "whether the gradient is clipped", step, rank, a, b, (a.clipped, b.clipped))


def _rates(findings: Findings, a: Any, b: Any, step: int, rank: int) -> None:
    if len(a.lr) != len(b.lr):
        values = (len(a.lr), len(b.lr))
        findings.note("number", "changed", "groups of parameters", step, rank, a, b, values)
        return
    for left, right in zip(a.lr, b.lr, strict=True):
        if findings.number("learning rate", left, right, step, rank, a, b):
            break  # the groups move together
    if getattr(a, "skipped", False) != getattr(b, "skipped", False):
        findings.note("call", "changed", "the optimizer's step is skipped", step, rank, a, b, (a.skipped, b.skipped))


def _vector(findings: Findings, subject: str, a: Any, b: Any, left: list, right: list, step: int, rank: int) -> bool:
    """Compare two lists of numbers position by position."""
    if len(left) != len(right):
        findings.note("number", "changed", f"{subject} (how many)", step, rank, a, b, (len(left), len(right)))
        return True
    differs = [findings.number(subject, x, y, step, rank, a, b) for x, y in zip(left, right, strict=True) if x != y]
    return any(differs)


def _loss(findings: Findings, a: Any, b: Any, step: int, rank: int) -> None:
    """The chain of a logged loss: the first link that differs is the finding, those after it follow from it."""
    _vector(findings, "gradient norm", a, b, a.grad_norms, b.grad_norms, step, rank)
    if a.rows != b.rows:
        findings.note("sample", "changed", "samples in a micro-batch", step, rank, a, b, (a.rows, b.rows))
    elif a.labels != b.labels:
        findings.note("sample", "changed", "labels that count", step, rank, a, b, (a.labels, b.labels))
    if a.dtype != b.dtype:
        findings.note("number", "changed", "precision of the loss", step, rank, a, b, (a.dtype, b.dtype))
    if _vector(findings, "loss of a micro-batch", a, b, a.losses, b.losses, step, rank):
        return
    if _vector(findings, "loss as training_step returns it", a, b, a.micro, b.micro, step, rank):
        return
    if a.divided_by != b.divided_by:
        subject = "divisor of a micro-batch's loss"
        findings.note("number", "changed", subject, step, rank, a, b, (a.divided_by, b.divided_by))
    elif a.filtered != b.filtered or a.filter_divisors != b.filter_divisors:
        findings.note("number", "changed", "losses that are filtered", step, rank, a, b, (a.filtered, b.filtered))
    elif (
        findings.number("sum of the losses on a rank", a.rank_sum, b.rank_sum, step, rank, a, b)
        or _vector(findings, "sums gathered from the ranks", a, b, a.gathered, b.gathered, step, rank)
        or findings.number("mean over ranks", a.mean, b.mean, step, rank, a, b)
        or findings.number("steps since the last log", a.steps, b.steps, step, rank, a, b)
        or findings.number("logged loss", a.quotient, b.quotient, step, rank, a, b)
        or findings.number("logged loss", a.logged, b.logged, step, rank, a, b)
    ):
        return
    findings.number("total of the losses before a log", a.total_before, b.total_before, step, rank, a, b, echo=True)
    if a.verified != b.verified:
        subject = "whether the logged loss follows from its micro-batches"
        findings.note("number", "changed", subject, step, rank, a, b, (a.verified, b.verified), echo_of=("number", ""))


def _train_loss(findings: Findings, a: Any, b: Any, step: int, rank: int) -> None:
    if findings.number("train_loss", a.logged, b.logged, step, rank, a, b):
        return
    for name in ("total", "rest", "steps"):
        subject = f"train_loss: its {name}"
        if findings.number(subject, getattr(a, name), getattr(b, name), step, rank, a, b):
            return
    if (a.micro, a.filtered, a.filter_divisors) != (b.micro, b.filtered, b.filter_divisors):
        findings.note("number", "changed", "train_loss: losses in its rest", step, rank, a, b, (a.micro, b.micro))
    elif a.verified != b.verified:
        subject = "whether train_loss follows from its parts"
        findings.note("number", "changed", subject, step, rank, a, b, (a.verified, b.verified))


def _eval_loss(findings: Findings, a: Any, b: Any, step: int, rank: int) -> None:
    if (a.rows, a.gathered, a.kept) != (b.rows, b.gathered, b.kept):
        subject = f"{a.key}: rows gathered and kept"
        values = ([a.rows, a.gathered, a.kept], [b.rows, b.gathered, b.kept])
        findings.note("gather", "changed", subject, step, rank, a, b, values)
    if _vector(findings, f"{a.key}: loss of a batch", a, b, a.losses, b.losses, step, rank):
        return
    if findings.number(a.key, a.mean, b.mean, step, rank, a, b):
        return
    findings.number(a.key, a.logged, b.logged, step, rank, a, b)
    if a.verified != b.verified:
        subject = f"whether {a.key} follows from its batches"
        findings.note("number", "changed", subject, step, rank, a, b, (a.verified, b.verified), echo_of=("number", ""))


def _gather(findings: Findings, a: Any, b: Any, step: int, rank: int) -> None:
    left, right = [a.rows, a.gathered, a.kept], [b.rows, b.gathered, b.kept]
    if left != right:
        findings.note("gather", "changed", f"rows of {a.what} before, after, kept", step, rank, a, b, (left, right))


QUANTITIES = {"loss": "logged loss", "learning_rate": "learning rate", "grad_norm": "gradient norm"}
"""Keys of a log entry to the quantity as it is called elsewhere in a trace."""


def _log(findings: Findings, a: Any, b: Any, step: int, rank: int) -> None:
    if a.step != b.step:
        findings.number("global_step", a.step, b.step, step, rank, a, b)
    record = f"{log_name(a.logs)} record"
    for key in [*a.logs, *(key for key in b.logs if key not in a.logs)]:
        if key not in b.logs:
            findings.note("log", "removed", f"{key} in the {record}", step, rank, a, b, (a.logs[key], None))
        elif key not in a.logs:
            findings.note("log", "added", f"{key} in the {record}", step, rank, a, b, (None, b.logs[key]))
        elif a.logs[key] != b.logs[key]:
            left, right = a.logs[key], b.logs[key]
            if as_float_or_none(left) is not None and as_float_or_none(right) is not None:
                findings.number(QUANTITIES.get(key, key), left, right, step, rank, a, b)
            else:
                findings.note("log", "changed", f"{key} in the {record}", step, rank, a, b, (left, right))


def as_float_or_none(value: Any) -> float | None:
    return as_float(value) if isinstance(value, (int, float, str)) and not isinstance(value, bool) else None


def _file(findings: Findings, a: Any, b: Any, step: int, rank: int) -> None:
    name_a, name_b = a.path.rpartition("/")[2], b.path.rpartition("/")[2]
    if name_a != name_b and general_path(a.path) == general_path(b.path) and not _same_but_numbers(a.path, b.path):
        findings.note("file", "renamed", f"{name_a} is now {name_b}", step, rank, a, b, (name_a, name_b))
    elif a.path != b.path:
        findings.note("file", "changed", f"folder of {name_a}", step, rank, a, b, (a.path, b.path))
    elif a.size != b.size:
        findings.note("file", "changed", f"size of {general_path(a.path)}", step, rank, a, b, (a.size, b.size))


def _same_but_numbers(a: str, b: str) -> bool:
    return a.rpartition(".")[2] == b.rpartition(".")[2]


def _raise(findings: Findings, a: Any, b: Any, step: int, rank: int) -> None:
    if (a.error, a.message) != (b.error, b.message):
        values = (f"{a.error}: {a.message}", f"{b.error}: {b.message}")
        findings.note("error", "changed", f"what {a.method} raises", step, rank, a, b, values)


def _rng(findings: Findings, a: Any, b: Any, step: int, rank: int) -> None:
    if a.digest != b.digest:
        findings.note("rng", "changed", f"state set from {general_path(a.source)}", step, rank, a, b,
                      (a.digest, b.digest))  # fmt: skip


def _end(findings: Findings, a: Any, b: Any, step: int, rank: int) -> None:
    if a.dropped != b.dropped:  # the number of rows follows from what was found above
        findings.note("run", "changed", "rows that could not be written", step, rank, a, b, (a.dropped, b.dropped))


def _trainer(findings: Findings, a: Any, b: Any, step: int, rank: int) -> None:
    for name in ("trainer", "classes", "model", "device"):
        left, right = getattr(a, name), getattr(b, name)
        if left != right:
            findings.note("run", "changed", name, step, rank, a, b, (left, right))
    left, right = _by_current_name(a.arguments), _by_current_name(b.arguments)
    for name in [*left, *(name for name in right if name not in left)]:
        (old_name, value_a), (new_name, value_b) = left.get(name, ("", None)), right.get(name, ("", None))
        if name not in right:
            findings.note("argument", "removed", old_name, step, rank, a, b, (value_a, None))
        elif name not in left:
            findings.note("argument", "added", new_name, step, rank, a, b, (None, value_b))
        elif value_a != value_b:
            findings.note("argument", "changed", new_name, step, rank, a, b, (value_a, value_b))
        elif old_name != new_name:
            subject = f"{old_name} is now {new_name}"
            findings.note("argument", "renamed", subject, step, rank, a, b, (old_name, new_name))
    _callbacks_listed(findings, a, b, step, rank)


def _by_current_name(arguments: dict[str, Any]) -> dict[str, tuple[str, Any]]:
    """Each argument by the newest of its names, with the name that was used."""
    return {RENAMED_ARGUMENTS.get(name, name): (name, value) for name, value in arguments.items()}


def _callbacks_listed(findings: Findings, a: Any, b: Any, step: int, rank: int) -> None:
    left, right = dict(a.callbacks), dict(b.callbacks)
    for name in [*left, *(name for name in right if name not in left)]:
        if name not in right:
            findings.note("callback", "removed", f"{name} in the list", step, rank, a, b, (left[name], None))
        elif name not in left:
            findings.note("callback", "added", f"{name} in the list", step, rank, a, b, (None, right[name]))
        elif sorted(left[name]) != sorted(right[name]):
            values = (left[name], right[name])
            findings.note("callback", "changed", f"events that {name} overrides", step, rank, a, b, values)
    if list(left) != list(right) and sorted(left) == sorted(right):
        findings.note("callback", "moved", "order of the list", step, rank, a, b, (list(left), list(right)))


def _focus(findings: Findings, a: Any, b: Any, step: int, rank: int) -> None:
    if a.trainer != b.trainer:
        findings.note("run", "changed", "Trainer that rows belong to", step, rank, a, b, (a.trainer, b.trainer))


_COMPARERS: dict[type[Record], Any] = {
    events.Call: _call,
    events.Event: _event,
    events.EventEnd: _event_end,
    events.CallbackEnd: _callback_end,
    events.Flag: _flag,
    events.State: _state,
    events.Samples: _samples,
    events.GradNorm: _grad_norm,
    events.OptimizerStep: _rates,
    events.SchedulerStep: _rates,
    events.Loss: _loss,
    events.TrainLoss: _train_loss,
    events.EvalLoss: _eval_loss,
    events.Gather: _gather,
    events.Log: _log,
    events.File: _file,
    events.Raise: _raise,
    events.Rng: _rng,
    events.End: _end,
    events.TrainerBegin: _trainer,
    events.Focus: _focus,
}

# -- factors -----------------------------------------------------------------------------------

ROUNDING = 0.5001e-4
"""Half a unit of the fourth digit: versions up to 4.57 round what they log to four."""


def recognise(finding: Finding, counts: dict[str, float]) -> str:
    """Say in words what relation two series of a number have, or "" if none is seen.

    Args:
        finding: one of kind "number".
        counts: what a factor may equal: name ("accumulation steps") to number.
    """
    numbers = finding.numbers
    if numbers is None or not numbers.pairs:
        return ""
    pairs = numbers.pairs
    if all(round(b, 4) == a or round(a, 4) == b for a, b in pairs):
        rounded = "A" if all(round(b, 4) == a for a, b in pairs) else "B"
        return f"equal when rounded to four digits, as {rounded} is"
    for factor, name in _candidates(counts):
        if all(_is_multiple(a, b, factor) for a, b in pairs):
            return f"B = {factor:.3f} × A{' = ' + name if name else ''}"
    ratio = numbers.largest_ratio
    spread = numbers.largest_ratio - numbers.smallest_ratio
    if (
        len(pairs) > 1
        and all(a for a, _ in pairs)
        and math.isfinite(ratio)
        and abs(ratio - 1) > 1e-3
        and spread <= 1e-4 * abs(ratio)
    ):
        return f"B = {ratio:.4g} × A, always"
    return ""


def _candidates(counts: dict[str, float]) -> Iterator[tuple[float, str]]:
    """Factors worth trying, those with a name first; then the inverse of each."""
    named = [(count, name) for name, count in counts.items() if count > 1]
    yield from named
    yield from ((1 / count, f"1 / {name}") for count, name in named)
    for i, (count, name) in enumerate(named):
        for other, other_name in named[i + 1 :]:
            yield count * other, f"{name} × {other_name}"
            yield 1 / (count * other), f"1 / ({name} × {other_name})"
    for factor in (2.0, 0.5, 4.0, 0.25):
        yield factor, ""


def _is_multiple(a: float, b: float, factor: float) -> bool:
    if not (math.isfinite(a) and math.isfinite(b)) or a == 0.0:
        return False
    # a logged value may be rounded on either side, at four digits
    return abs(b - factor * a) <= max(1e-4 * abs(b), ROUNDING * (1 + abs(factor)) if _looks_rounded(a, b) else 0.0)


def _looks_rounded(a: float, b: float) -> bool:
    return round(a, 4) == a or round(b, 4) == b


# Read next: compare.py, which walks two traces and collects findings.
