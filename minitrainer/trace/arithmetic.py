"""Where a logged loss comes from: numbers are taken where the Trainer has them, and checked before they are written.

The rule for devices: on a CPU a number is read at once. On a GPU reading makes the host wait, so tensors of one
element are kept by reference (or by a copy on the device where the Trainer changes them in place) and read when the
Trainer itself has just waited: in `log`, right after its own `.item()`.

How a Trainer averages (all versions): each micro-batch's loss, already divided by the accumulation, is added to a
running sum of one element. At a log the ranks' sums are gathered into a vector; its mean, divided by the steps since
the last log, is the logged loss. At the end `train_loss` is the total of all those means, plus what is left in this
rank's running sum, divided by all steps.
"""

from __future__ import annotations

import math
import struct
from collections import deque
from collections.abc import Iterator
from typing import Any

from minitrainer.trace import events
from minitrainer.trace.recorder import number
from minitrainer.trace.rounding import PRECISIONS

MOST_PENDING_LOSSES = 65_536
"""On a GPU each kept loss holds a small block of its memory; a log so far away loses its earliest micro-batches."""

ROUNDED_DIGITS = 4
"""Decimals of a logged loss up to the 4 series; later versions do not round."""

_FLOAT32 = struct.Struct("f")


def round_to_float32(value: float) -> float:
    """The float32 nearest to `value`. Sums and quotients of two float32 are exact this way: float64 holds more than
    twice as many digits, so that rounding twice gives what rounding once would."""
    try:
        return _FLOAT32.unpack(_FLOAT32.pack(value))[0]
    except OverflowError:
        return float("inf") if value > 0 else float("-inf")


class Kept:
    """A number on a device that is read later, without a copy: Trainers divide it and add it into other tensors.

    Attributes:
        tensor: it shares its memory with the Trainer's own.
        version: how often that had been changed in place when it was kept.
    """

    __slots__ = ("tensor", "version")

    def __init__(self, tensor: Any):
        self.tensor = tensor.detach()
        self.version = self.tensor._version

    @property
    def is_as_it_was(self) -> bool:
        """Whether nobody has changed it in place since; what it was is not known otherwise."""
        return self.tensor._version == self.version


def _as_it_was(value: Any) -> Any:
    """A kept number as a float or a tensor; None where it is not known, or not any more."""
    if type(value) is Kept:
        return value.tensor if value.is_as_it_was else None
    return value


def read(value: Any) -> float | None:
    """A kept number: a float already, or one that may be read from its device now."""
    value = _as_it_was(value)
    return value if value is None or type(value) is float else float(value.item())


def read_all(kept: list[Any]) -> list[float | None]:
    """Several kept numbers. Those on a device come over in one copy, not one by one."""
    if set(map(type, kept)) <= {float}:  # so it is on a CPU
        return kept
    kept = [_as_it_was(value) for value in kept]
    waiting = [value for value in kept if value is not None and type(value) is not float]
    if len(waiting) < 2 or len({(value.dtype, value.device) for value in waiting}) > 1:
        return [read(value) for value in kept]
    import torch  # in use already: the tensors came from it

    numbers = iter(torch.stack([value.reshape(()) if value.dim() else value for value in waiting]).tolist())
    return [value if value is None or type(value) is float else float(next(numbers)) for value in kept]


def keep(tensor: Any) -> float | Kept:
    """Keep a loss: as a float on a CPU, by reference on another device (nothing waits for it, nothing is copied)."""
    try:
        if tensor.is_cpu:
            return tensor.item()
    except (RuntimeError, ValueError):  # more than one element
        pass
    if tensor.numel() != 1:
        tensor = tensor.detach().mean()  # one loss a card, where one process drives several
    return tensor.item() if tensor.is_cpu else Kept(tensor)


class TrainingBook:
    """The losses of one Trainer since its last log."""

    def __init__(self) -> None:
        self.total = 0.0
        self.dtype = "float32"
        self.clear()
        self.forget_log()

    def clear(self) -> None:
        """Begin anew after a log."""
        # of each micro-batch: loss, what training_step returned, steps since the log (where that may not be a finite
        # number), rows and labels
        self.entries: deque[tuple[Any, Any, int, tuple[int | None, int | None]]] = deque(
            maxlen=MOST_PENDING_LOSSES + 1
        )
        self.grad_norms: list[Any] = []

    def forget_log(self) -> None:
        """Forget what was kept for the log that is being made."""
        self.log_is_due = False
        self.running_sum: Any = None
        self.rank_sum: Any = None
        self.gathered: Any = None
        self.total_before = 0.0
        self.step_of_last_log = 0

    @property
    def is_whole(self) -> bool:
        """Whether all micro-batches since the last log are there."""
        return len(self.entries) <= MOST_PENDING_LOSSES

    def loss_record(self, step: int, total_after: float, logged: Any, accumulation: int, filters: bool) -> events.Loss:
        """Derive the logged loss, check every link, and make the record."""
        losses, micro = self._read_kept()
        filtered, divisors = self._filtered(micro, filters)
        rank_sum = read(self.rank_sum)
        gathered = self.gathered
        if gathered is not None and not isinstance(gathered, list):
            gathered = gathered.reshape(-1).tolist()
        steps = step - self.step_of_last_log
        mean = self._mean(gathered)
        if mean is None:
            mean = total_after - self.total_before
        quotient = mean / steps if steps else None
        logged = float(logged)
        verified = (
            self.is_whole
            and bool(gathered)
            and same(self.total_before + mean, total_after)
            and quotient is not None
            and (same(quotient, logged) or same(round(quotient, ROUNDED_DIGITS), logged))
            and rank_sum is not None
            and any(same(rank_sum, value) for value in gathered or ())
            and same(self._sum(micro, filtered, divisors), rank_sum)
        )
        return events.Loss(
            step=step,
            losses=_numbers(losses),
            micro=_numbers(micro),
            divided_by=self._divisors(losses, micro, accumulation),
            filtered=filtered,
            filter_divisors=divisors,
            rows=[entry[3][0] for entry in self.entries],
            labels=[entry[3][1] for entry in self.entries],
            rank_sum=_number(rank_sum),
            gathered=_numbers(gathered or []),
            mean=_number(mean),
            steps=steps,
            quotient=_number(quotient),
            logged=number(logged),
            total_before=number(self.total_before),
            grad_norms=_numbers(read_all(self.grad_norms)),
            dtype=self.dtype,
            verified=verified,
        )

    def train_loss_record(self, step: int, logged: Any, filters: bool) -> events.TrainLoss:
        """Derive `train_loss`."""
        micro = read_all([entry[1] for entry in self.entries])
        filtered, divisors = self._filtered(micro, filters)
        rest = read(self.running_sum)
        if rest is None:
            rest = self._sum(micro, filtered, divisors)
        logged = float(logged)
        derived = (self.total + rest) / max(step, 0.001)
        return events.TrainLoss(
            total=number(self.total),
            rest=number(rest),
            micro=_numbers(micro),
            filtered=filtered,
            filter_divisors=divisors,
            steps=step,
            logged=number(logged),
            verified=self.is_whole and same(derived, logged) and same(self._sum(micro, filtered, divisors), rest),
        )

    def _read_kept(self) -> tuple[list[float | None], list[float | None]]:
        """The losses and what `training_step` made of them; where they live on a device, all in one copy."""
        count = len(self.entries)
        kept = read_all([entry[0] for entry in self.entries] + [entry[1] for entry in self.entries])
        return kept[:count], kept[count:]

    def _filtered(self, micro: list[float | None], filters: bool) -> tuple[list[int], list[int]]:
        """Positions of the losses that the Trainer replaced, and the divisors of what it added instead."""
        if not filters or None not in micro and math.isfinite(sum(micro)):  # type: ignore[arg-type]
            return [], []
        positions = [i for i, value in enumerate(micro) if value is not None and value - value != 0]
        return positions, [1 + self.entries[i][2] for i in positions]

    def _sum(self, micro: list[float | None], filtered: list[int], divisors: list[int]) -> float:
        """The running sum, rounded after every addition as the Trainer's tensor is."""
        if not filtered and None not in micro:
            import numpy  # loaded already: torch and every Trainer need it

            kind = "float64" if self.dtype == "float64" else "float32"
            with numpy.errstate(all="ignore"):
                return float(numpy.add.accumulate(numpy.array([0.0, *micro], dtype=kind))[-1])  # one after the other
        rounded = float if self.dtype == "float64" else round_to_float32
        replaced = dict(zip(filtered, divisors, strict=True))
        total = 0.0
        for i, value in enumerate(micro):
            if i in replaced:
                total = rounded(total + rounded(total / replaced[i]))
            elif value is not None:
                total = rounded(total + value)
        return total

    def _mean(self, gathered: list[float] | None) -> float | None:
        if not gathered:
            return None
        if len(gathered) == 1:
            return gathered[0]
        import torch  # in use already: the numbers came from it

        dtype = torch.float64 if self.dtype == "float64" else torch.float32
        return float(torch.tensor(gathered, dtype=dtype).mean().item())

    def _divisors(self, losses: list[float | None], micro: list[float | None], accumulation: int) -> list[int | None]:
        if accumulation == 1 and losses == micro and None not in micro:
            return [1] * len(micro)
        return [self._divisor(loss, part, accumulation) for loss, part in zip(losses, micro, strict=True)]

    def _divisor(self, loss: float | None, micro: float | None, accumulation: int) -> int | None:
        """The whole number that leads from a loss to what `training_step` returned, exactly."""
        if loss is None or micro is None:
            return None
        for divisor in (accumulation, 1):
            if any(same(quotient, micro) for quotient in self._quotients(loss, divisor)):
                return divisor
        return None

    def _quotients(self, loss: float, divisor: int) -> Iterator[float]:
        """What the loss's element type makes of loss / divisor: a CPU divides, a GPU multiplies by the reciprocal.

        float64 does both in float64. The types of sixteen bits compute in float32 and round the result.
        """
        if divisor == 1 or loss - loss != 0:
            yield loss
            return
        rounding = PRECISIONS.get(self.dtype, round_to_float32)
        reciprocal = 1.0 / divisor if self.dtype == "float64" else round_to_float32(1.0 / divisor)
        yield rounding(loss / divisor)
        yield rounding(loss * reciprocal)


class EvaluationBook:
    """The losses of one evaluation, and how far its gathers came."""

    def __init__(self) -> None:
        self.losses: list[Any] = []
        self.rows: list[int] = []
        self.gathered = 0
        self.kept = 0
        self.expected: list[str] = []
        self.dtype = "float32"

    def record(self, key: str, logged: Any, world_size: int) -> events.EvalLoss:
        """Derive the logged evaluation loss and make the record."""
        losses = read_all(self.losses)
        rows = self.rows or [1] * len(losses)
        mean: float | None = None
        verified: bool | None = None
        if world_size == 1 and losses and len(rows) == len(losses) and None not in losses:
            import numpy

            vector = numpy.repeat(
                numpy.array(losses, dtype=self.dtype if self.dtype == "float64" else "float32"), rows
            )[: self.kept or None]
            mean = float(vector.mean())
            verified = same(mean, float(logged))
        return events.EvalLoss(
            key=key,
            losses=_numbers(losses),
            rows=rows,
            gathered=self.gathered,
            kept=self.kept,
            mean=_number(mean),
            logged=number(float(logged)),
            verified=verified,
        )


def same(a: float | None, b: float | None) -> bool:
    """Whether two numbers are the same to the last bit; NaN is the same as NaN."""
    if a is None or b is None:
        return a is b
    return a == b or (a != a and b != b)


def _number(value: float | None) -> events.Number:
    return None if value is None else number(value)


def _numbers(values: list[Any]) -> list[events.Number]:
    """Numbers as they stand in a record. Where their sum is finite, so are they all, and nothing is to be done."""
    if None not in values and math.isfinite(sum(values)):
        return values
    return [_number(value) for value in values]


# Read next: output_files.py, what happens in the output folder.
