"""Other averages of the same losses, and why the logged value is none of them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from minitrainer.trace import events
from minitrainer.trace.rounding import as_float


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


def averages_of(records: Sequence[events.Loss]) -> Averages:
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
    if divisor and record.steps and divisor * record.steps != micro_batches and quotient is not None:
        if micro_batches % record.steps == 0:
            counts = f"there are {micro_batches // record.steps} micro-batches in a step, but each was"
        else:
            counts = f"{micro_batches} micro-batches make {record.steps} steps, each was"
        reasons.append(f"{counts} divided by {divisor} ({_signed(quotient - per_micro)})")
    filtered = sum(len(record.filtered) for record in records)
    if filtered:
        reasons.append(filtered_losses(filtered))
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


def filtered_losses(count: int) -> str:
    """Return what became of losses that were not finite."""
    losses = "a loss was not finite" if count == 1 else f"{count} losses were not finite"
    return f"{losses}: the average so far was added instead"


# Read next: ranks.py, which brings the files of one run together.
