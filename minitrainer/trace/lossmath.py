"""Derives every logged loss again from the recorded numbers.

The Trainer's loss is a chain of small operations, each rounded to the precision it ran in. Here the chain is run once
more, link by link, in that precision, and each link is compared with what was recorded, to the last bit. Nothing is
imported from torch: float32 is a float64 rounded once, which is exact for one addition, division or multiplication.

    micro-batch loss  ÷ micro-batches in a group            in the loss's precision
    added up on the rank, one micro-batch after the other   float32
    gathered from all ranks, averaged                       float32
    ÷ steps since the last log                              float64
    rounded to four digits (up to transformers 4.57)        float64
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from ctypes import c_float
from struct import pack, unpack
from typing import NamedTuple

from minitrainer.trace import events
from minitrainer.trace.events import Number

# -- arithmetic of one precision ------------------------------------------------------


def float32(number: float) -> float:
    """Round to float32; beyond its range the result is infinite, as on a device."""
    return c_float(number).value


def bfloat16(number: float) -> float:
    """Round to bfloat16 by way of float32, as torch does: the upper half of the bits, to the nearest even."""
    single = float32(number)
    if not math.isfinite(single):
        return single
    (bits,) = unpack("<I", pack("<f", single))
    bits += 0x7FFF + (bits >> 16 & 1)
    return unpack("<f", pack("<I", bits & 0xFFFF0000))[0]


def float16(number: float) -> float:
    """Round to float16 by way of float32."""
    single = float32(number)
    if not math.isfinite(single):
        return single
    try:
        return unpack("<e", pack("<e", single))[0]
    except OverflowError:
        return math.copysign(math.inf, single)


PRECISIONS: dict[str, Callable[[float], float]] = {
    "float32": float32,
    "bfloat16": bfloat16,
    "float16": float16,
    "float64": float,
}
"""Element type, as `Loss.dtype` names it, to the function that rounds to it."""


def as_float(number: Number) -> float | None:
    """Turn a recorded number into a float; None where it is not known or is no number."""
    try:
        return None if number is None else float(number)
    except (ValueError, OverflowError):
        return None


def same(left: float | None, right: float | None) -> bool:
    """Whether two numbers are equal, where "not a number" equals itself and an unknown number equals nothing."""
    if left is None or right is None:
        return False
    return left == right or (left != left and right != right)


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
    derived_mean, how = _mean(gathered, mean)
    links.append(Link(MEAN_OVER_RANKS, mean, derived_mean, how))
    quotient = None if mean is None else _divide(mean, steps)
    links.append(Link("divided by the steps since the last log", as_float(loss.quotient), quotient, f"÷ {steps}"))
    logged = as_float(loss.logged)
    rounded, how = _rounding(as_float(loss.quotient), logged)
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
    multiplied = [
        Link(f"micro-batch {i + 1}", micro, rounding(before * float32(1 / divisor)), f"× 1/{divisor} in {loss.dtype}")
        for i, before, micro, divisor in known
        if divisor
    ]
    explains_all = len(multiplied) == len(known) and all(link.follows for link in multiplied)
    return multiplied if explains_all else divided


def _sum_link(loss: events.Loss, notes: list[str]) -> Link:
    recorded = as_float(loss.rank_sum)
    if loss.filtered:
        notes.append(_filtered(len(loss.filtered)))
    derived, how = _running_sum(loss.micro, loss.filtered, loss.filter_divisors, recorded)
    return Link("this rank's sum", recorded, derived, how)


def _filtered(count: int) -> str:
    losses = "a loss was not finite" if count == 1 else f"{count} losses were not finite"
    return f"{losses}: the average so far was added instead"


def _running_sum(
    micro: Sequence[Number], filtered: Sequence[int], filter_divisors: Sequence[int], recorded: float | None
) -> tuple[float | None, str]:
    """Add micro-batch losses as `tr_loss` does. float64 is tried second: a loss in float64 lifts the sum where the
    version writes `tr_loss = tr_loss + loss`, and leaves it as it is where it writes `tr_loss += loss`."""
    losses = [as_float(number) for number in micro]
    if None in losses:
        return None, "a micro-batch loss is not known"
    replaced = dict(zip(filtered, filter_divisors, strict=False))
    results = []
    for name in ("float32", "float64"):
        rounding = PRECISIONS[name]
        total = 0.0
        for i, loss in enumerate(losses):
            added: float = rounding(total / replaced[i]) if i in replaced else loss  # type: ignore[assignment]
            total = rounding(total + added)
        results.append((total, f"{len(losses)} micro-batches added in {name}"))
        if same(total, recorded):
            return results[-1]
    return results[0]


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


def _mean(vector: Sequence[float | None], recorded: float | None) -> tuple[float | None, str]:
    """Mean of the gathered sums. Addition of floats depends on its order, and the order on the device: those of
    torch's CPU kernel (in registers of 1, 8 or 16 numbers) and of its CUDA kernel (halving) are tried in turn."""
    if not vector or any(number is None for number in vector):
        return None, "a gathered sum is not known"
    numbers: list[float] = list(vector)  # type: ignore[arg-type]
    results: list[tuple[float, str]] = []
    for name in ("float32", "float64"):
        rounding = PRECISIONS[name]
        totals = [_add_in_registers(numbers, width, rounding) for width in (1, 8, 16) if width <= len(numbers)]
        totals.append(_add_by_halving(numbers, rounding))
        for total in totals:
            # CUDA multiplies by the reciprocal.
            for mean in (rounding(total / len(numbers)), rounding(total * rounding(1 / len(numbers)))):
                results.append((mean, f"of {len(numbers)} in {name}"))
                if same(mean, recorded):
                    return results[-1]
    return results[0]


def _add_in_registers(numbers: Sequence[float], width: int, rounding: Callable[[float], float]) -> float:
    """Add as torch's CPU kernel does: four rows of registers side by side, then the rows, the rest, the lanes."""
    registers = [numbers[i : i + width] for i in range(0, len(numbers) // width * width, width)]
    rest = numbers[len(registers) * width :]
    rows = [[0.0] * width for _ in range(4)]
    side_by_side = len(registers) // 4 * 4
    for n, register in enumerate(registers):
        row = rows[n % 4 if n < side_by_side else 0]
        row[:] = [rounding(total + number) for total, number in zip(row, register, strict=True)]
    lanes = rows[0]
    for row in rows[1:]:
        lanes = [rounding(total + number) for total, number in zip(lanes, row, strict=True)]
    total = 0.0
    for number in [*rest, *lanes]:
        total = rounding(total + number)
    return total


def _add_by_halving(numbers: Sequence[float], rounding: Callable[[float], float]) -> float:
    width = 1 << (len(numbers) - 1).bit_length()
    lanes = [*numbers, *[0.0] * (width - len(numbers))]
    while width > 1:
        width //= 2
        lanes = [rounding(lanes[i] + lanes[i + width]) for i in range(width)]
    return lanes[0]


def _divide(number: float, steps: float) -> float:
    return number / steps if steps else math.nan


def _rounding(quotient: float | None, logged: float | None) -> tuple[float | None, str]:
    """Round as the version does: up to 4.57 to four digits, from 5.0 on not at all. The value itself tells which."""
    if quotient is None:
        return None, "the quotient is not known"
    if same(quotient, logged):
        return quotient, "not rounded" if math.isfinite(quotient) and round(
            quotient, 4
        ) != quotient else "nothing to round"
    return (round(quotient, 4) if math.isfinite(quotient) else quotient), "rounded to 4 digits"


# -- the loss of the whole training --------------------------------------------------------


def derive_train_loss(record: events.TrainLoss, total: float | None = None) -> Derivation:
    """Derive `train_loss`: the means of all logs, plus what this rank added up since, over all steps."""
    rest, before = as_float(record.rest), as_float(record.total)
    notes: list[str] = []
    links: list[Link] = []
    if total is not None:
        links.append(Link("sum of the means of all logs", before, total, "means of all logs added"))
    derived, how = _running_sum(record.micro, record.filtered, record.filter_divisors, rest)
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


# -- the average a reader might expect ----------------------------------------------------------


class Averages(NamedTuple):
    """Other averages of the same micro-batch losses.

    Attributes:
        per_sample: each micro-batch's loss weighted by its samples; None where samples are not known.
        per_label: weighted by the labels that count; None where they are not known.
        per_micro_batch: each micro-batch alike.
        samples: number of samples, all ranks that are here.
        reasons: why the logged value is another one, in the order of the chain, with the difference each makes.
    """

    per_sample: float | None
    per_label: float | None
    per_micro_batch: float | None
    samples: int
    reasons: list[str]


def averages(records: Sequence[events.Loss]) -> Averages:
    """Compare a logged loss with the average over samples that its name suggests.

    Args:
        records: the records of one log, of all ranks that are here.
    """
    finite = [
        (loss, rows, labels)
        for record in records
        for loss, rows, labels in zip(
            map(as_float, record.losses),
            _padded(record.rows, len(record.losses)),
            _padded(record.labels, len(record.losses)),
            strict=True,
        )
        if loss is not None and math.isfinite(loss)
    ]
    if not finite:
        return Averages(None, None, None, 0, [])
    try:
        per_sample = _weighted((loss, rows) for loss, rows, _ in finite)
        per_label = _weighted((loss, labels) for loss, _, labels in finite)
        per_micro = math.fsum(loss for loss, _, _ in finite) / len(finite)
    except ArithmeticError:  # numbers near the end of float64's range: no loss of a training, but a file can hold them
        return Averages(None, None, None, 0, [])
    samples = sum(rows or 0 for _, rows, _ in finite)
    reasons = _reasons(records, finite, per_sample, per_micro)
    return Averages(per_sample, per_label, per_micro, samples, reasons)


def _reasons(
    records: Sequence[events.Loss],
    finite: Sequence[tuple[float, int | None, int | None]],
    per_sample: float | None,
    per_micro: float,
) -> list[str]:
    record = records[0]
    reasons: list[str] = []
    sizes = sorted({rows for _, rows, _ in finite if rows is not None})
    if per_sample is not None and len(sizes) > 1:
        spoken = ", ".join(map(str, sizes[:-1])) + f" and {sizes[-1]}"
        reasons.append(
            f"micro-batches of {spoken} samples count alike, whatever their size ({_signed(per_micro - per_sample)})"
        )
    divisors = {divisor for record in records for divisor in record.divided_by}
    quotient = as_float(record.quotient)
    micro_batches = len(record.micro)
    divisor = divisors.pop() if len(divisors) == 1 else None
    if divisor and divisor * record.steps != micro_batches and quotient is not None:
        reasons.append(
            f"{micro_batches} micro-batches were divided as if they were {record.steps} × {divisor}: "
            f"{record.steps} steps of {divisor} ({_signed(quotient - per_micro)})"
        )
    filtered = sum(len(record.filtered) for record in records)
    if filtered:
        reasons.append(_filtered(filtered))
    missing = len(record.gathered) - len(records)
    if missing > 0:
        reasons.append(f"the logged value also holds {missing} other ranks, whose files are not here")
    logged = as_float(record.logged)
    if quotient is not None and logged is not None and logged != quotient:
        reasons.append(f"it is rounded to 4 digits ({_signed(logged - quotient)})")
    return reasons


def _signed(difference: float) -> str:
    return f"{difference:+.2g}"


def _padded(numbers: Sequence[int | None], length: int) -> list[int | None]:
    return [*numbers, *[None] * (length - len(numbers))][:length]


def _weighted(pairs: Iterable[tuple[float, int | None]]) -> float | None:
    products, weights = [], 0
    for loss, weight in pairs:
        if weight is None:
            return None
        products.append(loss * weight)
        weights += weight
    return math.fsum(products) / weights if weights else None


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


# Read next: ranks.py, which brings the files of one run together.
