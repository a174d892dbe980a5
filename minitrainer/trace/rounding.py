"""The arithmetic of a loss in the precision it ran in, to the last bit, without torch.

float32 is a float64 rounded once: for one addition, division or multiplication that is exact. What is not fixed is the
order in which a device adds several numbers; there the orders of torch's kernels are tried in turn.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from ctypes import c_float
from struct import pack, unpack

from minitrainer.trace.events import Number

# -- one number --------------------------------------------------------------------------


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


# -- several numbers ---------------------------------------------------------------------


def running_sum(
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


def mean_of(vector: Sequence[float | None], recorded: float | None) -> tuple[float | None, str]:
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


def rounded_for_log(quotient: float | None, logged: float | None) -> tuple[float | None, str]:
    """Round as the version does: up to 4.57 to four digits, from 5.0 on not at all. The value itself tells which."""
    if quotient is None:
        return None, "the quotient is not known"
    rounded = round(quotient, 4) if math.isfinite(quotient) else quotient
    if same(rounded, quotient):
        return quotient, "nothing to round"
    return (quotient, "not rounded") if same(quotient, logged) else (rounded, "rounded to 4 digits")


# Read next: lossmath.py, which runs the whole chain.
