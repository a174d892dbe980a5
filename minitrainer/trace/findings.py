"""What differs between two traces: findings, each once, however often it recurs, with the two rows that show it.

A finding says *what kind* of thing changed, *how* (added, removed, moved, changed, renamed) and *what* it is about.
All occurrences with these three in common are one finding, with a count, the steps and the ranks. A difference that is
only the echo of another (the flags as each event lists them, the running total of a loss that differs) is no finding.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
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
        follows: what it would follow from alone: "other samples", "another number of steps".
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
    follows: str = ""

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
        self._swallowed: set[tuple[str, str, str]] = set()

    def swallow(self, change: str, row: Record) -> None:
        """Remember a row of a place that only one side came to. It is no finding of its own, but where the other side
        has such a row elsewhere, this is where it went."""
        kind, subject, _ = lone_row(row)
        self._swallowed.add((kind, change, subject))

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
        """What went from one place and came at another is one finding; where it is so more often on one side, it says
        how often on each."""
        for key, finding in list(self._found.items()):
            kind, change, subject = key
            other_change = {"removed": "added", "added": "removed"}.get(change)
            if other_change is None or kind in ("argument", "log") or key not in self._found:
                continue
            other = self._found.get((kind, other_change, subject))
            if other is None:
                if (kind, other_change, subject) in self._swallowed:
                    side = "B" if change == "removed" else "A"
                    here, there = finding.place, f"in a place that only {side} comes to"
                    finding.value_a, finding.value_b = (here, there) if change == "removed" else (there, here)
                    self._replace(key, finding)
                continue
            removed, added = (finding, other) if change == "removed" else (other, finding)
            moved = Finding(kind, "moved", subject, added.place, max(removed.count, added.count))
            moved.first_step = min(removed.first_step, added.first_step)
            moved.last_step = max(removed.last_step, added.last_step)
            moved.ranks = removed.ranks | added.ranks
            moved.row_a, moved.row_b, moved.inside = removed.row_a, added.row_b, removed.inside
            moved.value_a, moved.value_b = removed.place, added.place
            if removed.count != added.count:
                moved.note = f"{removed.count:,} times in A, {added.count:,} times in B"
            del self._found[kind, other_change, subject]
            self._replace(key, moved)

    def _replace(self, key: tuple[str, str, str], moved: Finding) -> None:
        """Put what moved in the place of the first of its two, so that findings stay in the order of the run."""
        kind, _, subject = key
        moved.change = "moved"
        if key in self._echoes:
            self._echoes[kind, "moved", subject] = self._echoes[key]
        self._found = {
            ((kind, "moved", subject) if one == key else one): (moved if one == key else finding)
            for one, finding in self._found.items()
        }


COUNTS_OF_STEPS = frozenset({"max_steps", "global_step"})
FROM_THE_NUMBER_OF_STEPS = frozenset({*COUNTS_OF_STEPS, "epoch", "learning rate", "total_flos"})


def recognise_what_follows(findings: list[Finding]) -> None:
    """Mark the numbers that had to differ once the samples, or the number of steps, did.

    Whether they would be equal otherwise is not known: they are shown together, and only what has a note (a constant
    factor, say) stands apart.
    """
    numbers = [one for one in findings if one.kind == "number" and one.change == "changed" and not one.note]
    samples = [one.first_step for one in findings if one.kind == "sample" and not one.subject.startswith("eval: ")]
    other_steps = any(one.subject in COUNTS_OF_STEPS for one in numbers)
    for one in numbers:
        if one.subject in FROM_THE_NUMBER_OF_STEPS:
            one.follows = "another number of steps" if other_steps else ""
        elif samples and one.subject != DIVISOR and one.first_step >= min(samples):
            one.follows = "other samples"


_ENCODER = msgspec.json.Encoder()


def encode(record: Record) -> str:
    """A row as it is shown: one JSON object."""
    return _ENCODER.encode(record).decode("utf-8")


# -- a row that only one side has ------------------------------------------------------------


LONE_ROWS: dict[type[Record], tuple[str, Callable[[Any], str]]] = {
    events.Call: ("call", lambda row: row.method),
    events.Return: ("call", lambda row: f"end of {row.method}"),
    events.Event: ("event", lambda row: row.event),
    events.EventEnd: ("event", lambda row: f"end of {row.event}"),
    events.Callback: ("callback", lambda row: f"{row.callback} in {row.event}"),
    events.CallbackEnd: ("callback", lambda row: f"end of {row.callback}"),
    events.Flag: ("flag", lambda row: f"{row.flag} {'raised' if row.new else 'lowered'}"),
    events.State: ("state", lambda row: row.field),
    events.Log: ("log", lambda row: f"record of {log_name(row.logs)}"),
    events.File: ("file", lambda row: f"{general_path(row.path)}{'' if row.action == 'write' else ' removed'}"),
    events.Samples: ("sample", lambda row: f"{row.split} samples"),
    events.Raise: ("error", lambda row: f"{row.error} out of {row.method}"),
    events.Gather: ("gather", lambda row: row.what),
    events.Collective: ("gather", lambda row: f"collective {row.collective}"),
    events.Rng: ("rng", lambda row: general_path(row.source)),
    events.Note: ("note", lambda row: row.text),
    events.End: ("run", lambda row: "end of the recording"),
    events.Loss: ("number", lambda row: "derivation of the logged loss"),
    events.TrainLoss: ("number", lambda row: "derivation of train_loss"),
    events.EvalLoss: ("number", lambda row: f"derivation of {row.key}"),
    events.GradNorm: ("number", lambda row: "gradient norm before a step"),
    events.OptimizerStep: ("call", lambda row: "the optimizer's step"),
    events.SchedulerStep: ("call", lambda row: "the scheduler's step"),
}
"""Class of a row that has no counterpart to the kind of its finding and what that is about."""

ECHOES_OF_LONE_ROWS: dict[type[Record], tuple[str, str]] = {
    events.Loss: ("log", "record of loss"),
    events.TrainLoss: ("log", "record of train_loss"),
    events.EvalLoss: ("log", "record of"),
    events.GradNorm: ("call", "the optimizer's step"),
}
"""Class to the findings (kind, begin of their subject) that explain such a row: it is none of its own beside them."""


def lone_row(record: Any) -> tuple[str, str, tuple[str, str] | None]:
    """Kind, subject, and what it may be the echo of, for a row that has no counterpart."""
    kind, subject = LONE_ROWS.get(type(record), ("run", lambda row: row.__struct_config__.tag))
    return kind, subject(record), ECHOES_OF_LONE_ROWS.get(type(record))


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
    elif a.indices != b.indices and a.indices is not None and b.indices is not None:
        findings.note("sample", "changed", f"{split}which samples, in which order", step, rank, a, b,
                      (a.indices, b.indices))  # fmt: skip
    elif a.digest != b.digest:
        findings.note("sample", "changed", f"{split}content of the samples", step, rank, a, b, (a.digest, b.digest))
    if a.labels != b.labels and a.rows == b.rows and (a.indices == b.indices or None in (a.indices, b.indices)):
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


DIVISOR = "divisor of a micro-batch's loss"


def _loss(findings: Findings, a: Any, b: Any, step: int, rank: int) -> None:
    """The chain of a logged loss: the first link that differs is the finding, those after it follow from it."""
    _vector(findings, "gradient norm", a, b, a.grad_norms, b.grad_norms, step, rank)
    if a.rows != b.rows:
        findings.note("sample", "changed", "samples in a micro-batch", step, rank, a, b, (a.rows, b.rows))
    elif a.labels != b.labels:
        findings.note("sample", "changed", "labels that count", step, rank, a, b, (a.labels, b.labels))
    if a.dtype != b.dtype:
        findings.note("number", "changed", "precision of the loss", step, rank, a, b, (a.dtype, b.dtype))
    divisors_a, divisors_b = sorted(set(map(str, a.divided_by))), sorted(set(map(str, b.divided_by)))
    if divisors_a != divisors_b:  # also where the losses differ: it shows that they are not averaged alike
        values = (", ".join(divisors_a), ", ".join(divisors_b))
        finding = findings.note("number", "changed", DIVISOR, step, rank, a, b, values)
        if len(divisors_a) == len(divisors_b) == 1 and None not in (*a.divided_by, *b.divided_by):
            finding.note = f"with equal losses B would log {a.divided_by[0] / b.divided_by[0]:.3f} × A"
    if _vector(findings, "loss of a micro-batch", a, b, a.losses, b.losses, step, rank):
        return
    if divisors_a != divisors_b:
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


def _collective(findings: Findings, a: Any, b: Any, step: int, rank: int) -> None:
    left, right = [a.elements, a.dtype, a.ranks], [b.elements, b.dtype, b.ranks]
    if left != right:
        subject = f"what {a.collective} exchanges (elements, type, ranks)"
        findings.note("gather", "changed", subject, step, rank, a, b, (left, right))


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
        values, echo = (a.path, b.path), None
        if general_path(a.path) == general_path(b.path):  # a checkpoint is called after its step
            echo = ("number", "global_step")
        findings.note("file", "changed", f"folder of {name_a}", step, rank, a, b, values, echo_of=echo)
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
    events.Collective: _collective,
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
        len(set(pairs)) > 1
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
