"""Derives every logged loss again from the recorded numbers.

The Trainer's loss is a chain of small operations, each rounded to the precision it ran in. Here the chain is run once
more, link by link, in that precision (rounding.py), and each link is compared with what was recorded, to the last bit.

    micro-batch loss  ÷ micro-batches in a group            in the loss's precision
    added up on the rank, one micro-batch after the other   float32
    gathered from all ranks, averaged                       float32
    ÷ steps since the last log                              float64
    rounded to four digits (up to transformers 4.57)        float64
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from minitrainer.trace import events
from minitrainer.trace.averages import filtered_losses
from minitrainer.trace.rounding import PRECISIONS, as_float, float32, mean_of, rounded_for_log, running_sum, same

# -- what a derivation is -------------------------------------------------------------


OWN_SUM_GATHERED = "this rank's place among the gathered sums"
MEAN_OVER_RANKS = "mean over ranks"
"""Names of the two links that say nothing new on one rank."""


class Link(NamedTuple):
    """One step of a derivation: `what` stands in the trace as `recorded` and, computed as `how` says, is `derived`."""

    what: str
    recorded: float | None
    derived: float | None
    how: str = ""

    @property
    def follows(self) -> bool:
        return same(self.recorded, self.derived)


class Derivation(NamedTuple):
    """A logged value and the links that lead to it.

    Attributes:
        key: name of the logged value ("loss", "train_loss", "eval_loss" …).
        step: `global_step`, None where the record has none.
        logged: the value in the log.
        links: from the micro-batches to `logged`.
        notes: what a reader should know: a divisor that had to be taken on trust, a loss that was filtered.
        lacking: what would have to be here for a derivation, where it is not; it then neither follows nor fails.
    """

    key: str
    step: int | None
    logged: float | None
    links: list[Link]
    notes: list[str]
    lacking: str = ""

    @property
    def follows(self) -> bool:
        """Whether every link holds exactly. A derivation without links shows nothing, and so does not follow."""
        return bool(self.links) and all(link.follows for link in self.links)

    @property
    def broken(self) -> Link | None:
        """The first link that does not hold."""
        return next((link for link in self.links if not link.follows), None)


# -- the training loss -----------------------------------------------------------------


def derive_loss(
    loss: events.Loss, rank: int = 0, peers: Sequence[events.Loss] = (), total: float | None = None
) -> Derivation:
    """Derive one logged training loss.

    Args:
        loss: the record.
        rank: which element of `loss.gathered` is this rank's.
        peers: the other ranks' records of the same log.
        total: `_total_loss_scalar` as it follows from the logs before, or None where they are not known.
    """
    notes: list[str] = []
    links = _division_links(loss, notes)
    links.append(_sum_link(loss, notes))
    links += _rank_links(loss, rank, peers, notes)
    gathered = [as_float(number) for number in loss.gathered]
    mean, steps = as_float(loss.mean), loss.steps
    derived_mean, how = mean_of(gathered, mean)
    links.append(Link(MEAN_OVER_RANKS, mean, derived_mean, how))
    quotient = None if mean is None else _divide(mean, steps)
    links.append(Link("divided by the steps since the last log", as_float(loss.quotient), quotient, f"÷ {steps}"))
    logged = as_float(loss.logged)
    rounded, how = rounded_for_log(as_float(loss.quotient), logged)
    links.append(Link("logged", logged, rounded, how))
    if total is not None:
        links.append(Link("sum of all means so far", as_float(loss.total_before), total, "means of earlier logs"))
    return Derivation("loss", loss.step, logged, links, notes)


def _division_links(loss: events.Loss, notes: list[str]) -> list[Link]:
    """Each micro-batch's loss over its divisor; one way to divide has to explain all of them."""
    known = [
        (i, before, micro, divisor)
        for i, (before, micro, divisor) in enumerate(
            zip(map(as_float, loss.losses), map(as_float, loss.micro), loss.divided_by, strict=False)
        )
        if before is not None and micro is not None and divisor is not None
    ]
    on_trust = len(loss.micro) - len(known)
    if on_trust:
        notes.append(
            f"{on_trust} of {len(loss.micro)} micro-batch losses are taken as recorded: no divisor leads to them"
        )
    rounding = PRECISIONS.get(loss.dtype, float32)
    # A CPU divides; a GPU multiplies by the reciprocal, which can differ in the last bit.
    divided = [
        Link(
            f"micro-batch {i + 1}",
            micro,
            rounding(before / divisor) if divisor else math.nan,
            f"÷ {divisor} in {loss.dtype}",
        )
        for i, before, micro, divisor in known
    ]
    if all(link.follows for link in divided):
        return divided
    reciprocal = float if loss.dtype == "float64" else float32  # the small types compute in float32
    multiplied = [
        Link(
            f"micro-batch {i + 1}", micro, rounding(before * reciprocal(1 / divisor)), f"× 1/{divisor} in {loss.dtype}"
        )
        for i, before, micro, divisor in known
        if divisor
    ]
    explains_all = len(multiplied) == len(known) and all(link.follows for link in multiplied)
    return multiplied if explains_all else divided


def _sum_link(loss: events.Loss, notes: list[str]) -> Link:
    recorded = as_float(loss.rank_sum)
    if loss.filtered:
        notes.append(filtered_losses(len(loss.filtered)))
    derived, how = running_sum(loss.micro, loss.filtered, loss.filter_divisors, recorded)
    return Link("this rank's sum", recorded, derived, how)


def _rank_links(loss: events.Loss, rank: int, peers: Sequence[events.Loss], notes: list[str]) -> list[Link]:
    gathered = [as_float(number) for number in loss.gathered]
    own = gathered[rank] if rank < len(gathered) else None
    if len(gathered) == 1:
        own = gathered[0]
    links = [Link(OWN_SUM_GATHERED, own, as_float(loss.rank_sum), "equal to this rank's sum")]
    for peer in peers:
        other = [as_float(number) for number in peer.gathered]
        for i, (ours, theirs) in enumerate(zip(gathered, other, strict=False)):
            if not same(ours, theirs):
                links.append(Link(f"rank {i}'s gathered sum", ours, theirs, "as another rank received it"))
        if len(gathered) != len(other):
            links.append(Link("ranks gathered", float(len(gathered)), float(len(other)), "as another rank counted"))
    if len(gathered) > 1 and len(peers) + 1 < len(gathered):
        notes.append("the sums of the other ranks are taken as gathered")
    return links


def _divide(number: float, steps: float) -> float:
    return number / steps if steps else math.nan


# -- the loss of the whole training --------------------------------------------------------


def derive_train_loss(record: events.TrainLoss, total: float | None = None) -> Derivation:
    """Derive `train_loss`: the means of all logs, plus what this rank added up since, over all steps."""
    rest, before = as_float(record.rest), as_float(record.total)
    notes: list[str] = []
    links: list[Link] = []
    if total is not None:
        links.append(Link("sum of the means of all logs", before, total, "means of all logs added"))
    derived, how = running_sum(record.micro, record.filtered, record.filter_divisors, rest)
    links.append(Link("rest since the last log", rest, derived, how))
    # Versions from 4.36 on divide by at least a thousandth of a step, where no step was made.
    steps = record.steps or 0.001
    logged = as_float(record.logged)
    quotient = None if before is None or rest is None else (before + rest) / steps
    links.append(Link("train_loss", logged, quotient, f"(sum + rest) ÷ {record.steps}"))
    return Derivation("train_loss", record.steps, logged, links, notes)


# -- the evaluation loss ---------------------------------------------------------------------


MOST_SAMPLES = 200_000_000
"""Samples of one evaluation whose losses are written out for their mean. A file that claims more is not believed."""


def derive_eval_loss(records: Sequence[events.EvalLoss], world_size: int = 1, step: int | None = None) -> Derivation:
    """Derive an evaluation loss from the records of all ranks, in rank order.

    Each batch's loss is repeated once for each sample, gathered, cut to the number of samples and averaged in NumPy:
    so NumPy does it here as well, in whose pairwise addition the last bit lies.
    """
    import numpy

    own = records[0]
    logged = as_float(own.logged)
    # On several ranks no rank knows the mean of its own: what was logged is compared.
    mean = logged if own.mean is None else as_float(own.mean)
    links: list[Link] = []
    expanded = sum(abs(rows) for record in records for rows in record.rows)
    if expanded > MOST_SAMPLES:
        raise ValueError(f"{expanded:,} samples in one evaluation")
    lacking = ""
    if len(records) < world_size:
        lacking = f"the losses of all {world_size} ranks are needed"
    else:
        vectors = list(_eval_vectors(records))
        length = float(len(vectors[0]))
        links.append(
            Link("losses after the gather", float(own.gathered), length, "each loss once for each row, all ranks")
        )
        derived: float | None = None
        how = ""
        for name in ("float32", "float64", "float16"):
            for vector in vectors:
                value = _numpy_mean(numpy.array(vector[: own.kept], dtype=name))
                if derived is None or same(value, mean):
                    derived, how = value, f"of the first {own.kept} in {name}"
            if same(derived, mean):
                break
        links.append(Link("mean of the kept losses", mean, derived, how))
        links.append(Link("logged", logged, mean, "the mean, not rounded"))
    return Derivation(own.key, step, logged, links, [], lacking)


def _numpy_mean(vector) -> float:
    return vector.mean().item() if len(vector) else math.nan


def _eval_vectors(records: Sequence[events.EvalLoss]) -> Iterator[list[float]]:
    """The gathered losses, batch after batch; then rank after rank, as the legacy prediction loop orders them."""
    batches = max(len(record.losses) for record in records)
    by_batch: list[float] = []
    for i in range(batches):
        for record in records:
            by_batch += _repeated(record, i)
    yield by_batch
    if len(records) > 1:
        yield [loss for record in records for i in range(len(record.losses)) for loss in _repeated(record, i)]


def _repeated(record: events.EvalLoss, i: int) -> list[float]:
    loss = as_float(record.losses[i]) if i < len(record.losses) else None
    return [] if loss is None else [loss] * (record.rows[i] if i < len(record.rows) else 1)


# -- a whole trace --------------------------------------------------------------------------------


class Found(NamedTuple):
    """A loss record in the stream of one rank, with what its derivation needs from the rows around it.

    Attributes:
        record: the record; a `Log` where a loss was logged that no record explains.
        step: `global_step` at this moment.
        total: `_total_loss_scalar` as it follows from the logs before, None where they are not known.
        key: the logged name.
    """

    record: events.Loss | events.TrainLoss | events.EvalLoss | events.Log
    step: int
    total: float | None
    key: str


class LossLedger:
    """Follows the records of one rank and hands out each loss record with its surroundings.

    It keeps the running total and the values that a log is expected to show, nothing else.
    """

    def __init__(self) -> None:
        self.step = 0
        self.total: float | None = None
        self.awaited: dict[str, float | None] = {}

    def see(self, record: events.Record) -> Found | None:
        """Take the next record; return it with its surroundings if it is a loss."""
        kind = type(record)
        if kind is events.Event:
            self.step = record.step  # type: ignore[attr-defined]
            if record.event == "on_train_begin":  # type: ignore[attr-defined]
                # Also after a resume: the losses of the run before are not in the checkpoint.
                self.total = 0.0
        elif kind is events.Loss:
            return self._loss(record)  # type: ignore[arg-type]
        elif kind is events.TrainLoss:
            self.awaited["train_loss"] = as_float(record.logged)  # type: ignore[attr-defined]
            return Found(record, self.step, self.total, "train_loss")  # type: ignore[arg-type]
        elif kind is events.EvalLoss:
            self.awaited[record.key] = as_float(record.logged)  # type: ignore[attr-defined]
            return Found(record, self.step, None, record.key)  # type: ignore[arg-type,attr-defined]
        elif kind is events.Log:
            return self._log(record)  # type: ignore[arg-type]
        return None

    def _loss(self, record: events.Loss) -> Found:
        found = Found(record, record.step, self.total, "loss")
        mean = as_float(record.mean)
        self.total = None if mean is None or self.total is None else self.total + mean
        self.awaited["loss"] = as_float(record.logged)
        return found

    def _log(self, record: events.Log) -> Found | None:
        """Compare a log with the records before it: a loss in it that none of them gave is handed out."""
        for key, value in record.logs.items():
            if key in self.awaited:
                explained = self.awaited.pop(key)
                if not same(explained, _as_number(value)):
                    return Found(record, record.step, explained, key)
            elif key in ("loss", "train_loss", "eval_loss"):
                return Found(record, record.step, None, key)
        return None


def _as_number(value: object) -> float | None:
    try:
        return None if value is None else float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return None


def losses_of(records: Iterable[events.Record]) -> Iterator[Found]:
    """The losses in the records of one rank, in order."""
    ledger = LossLedger()
    for record in records:
        found = ledger.see(record)
        if found is not None:
            yield found


def derive(found: Found, rank: int = 0, world_size: int = 1, peers: Sequence[Found] = ()) -> Derivation:
    """Derive one loss of a trace, with the same loss of the other ranks where their files are here.

    Never fails: numbers that no training could give (a file can hold anything) are a derivation that does not follow.

    Args:
        found: this rank's.
        rank, world_size: from the file's `Head`.
        peers: the other ranks', in rank order.
    """
    try:
        return _derive(found, rank, world_size, peers)
    except (ArithmeticError, ValueError, IndexError, TypeError) as error:
        link = Link("the arithmetic", None, None, f"the recorded numbers can't be computed with: {error}")
        return Derivation(found.key, found.step, None, [link], [])


def _derive(found: Found, rank: int, world_size: int, peers: Sequence[Found]) -> Derivation:
    record = found.record
    if isinstance(record, events.Loss):
        others = [peer.record for peer in peers if isinstance(peer.record, events.Loss)]
        return derive_loss(record, rank, others, found.total)
    if isinstance(record, events.TrainLoss):
        return derive_train_loss(record, found.total)
    if isinstance(record, events.EvalLoss):
        others_eval = [peer.record for peer in peers if isinstance(peer.record, events.EvalLoss)]
        ranked = others_eval[:rank] + [record] + others_eval[rank:]
        result = derive_eval_loss(ranked, world_size, found.step)
        # The record of this rank decides what was logged; lengths and losses are the same vector on every rank.
        return result._replace(logged=as_float(record.logged))
    logged = _as_number(record.logs.get(found.key))
    how = "no record of its derivation stands before it" if found.total is None else "as its record derives it"
    return Derivation(found.key, found.step, logged, [Link("logged", logged, found.total, how)], [])


# Read next: averages.py, the average that a reader might expect instead.
