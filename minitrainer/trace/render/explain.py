"""Tells in sentences how one logged loss came about, and why it is not the average per sample."""

from __future__ import annotations

from collections.abc import Mapping

from minitrainer.trace import events, lossmath
from minitrainer.trace.averages import Averages, averages_of
from minitrainer.trace.events import as_float
from minitrainer.trace.render import words
from minitrainer.trace.render.escape import printable
from minitrainer.trace.render.words import counted, exact, numbers


def explain_loss(found_by_rank: Mapping[int, lossmath.Found], world_size: int) -> tuple[list[str], bool]:
    """Return the derivation of a logged training loss as numbered sentences, and whether the loss follows.

    Args:
        found_by_rank: the same log on each rank whose file is here.
        world_size: ranks of the run.
    """
    rank, found = next(iter(found_by_rank.items()))
    record = found.record
    assert isinstance(record, events.Loss)
    peers = [other for peer, other in found_by_rank.items() if peer != rank]
    derivation = lossmath.derive(found, rank, world_size, peers)
    of_rank = f" (rank {rank} of {world_size})" if world_size > 1 else ""
    lines = [f"How the loss {exact(record.logged)} logged at step {record.step} came about{of_rank}:", ""]
    for i, sentence in enumerate(_sentences(record, world_size), start=1):
        lines.append(f"{i:3}. {sentence}")
    lines.append("")
    lines.append(_verdict(derivation))
    lines += [f"Note: {printable(note)}." for note in derivation.notes]
    records = [other.record for other in found_by_rank.values() if isinstance(other.record, events.Loss)]
    lines += ["", *_average(record, averages_of(records))]
    return lines, derivation.follows


def _sentences(record: events.Loss, world_size: int) -> list[str]:
    micro_batches, steps = len(record.micro), record.steps
    first = record.step - steps + 1
    span = f"step {record.step}" if steps == 1 else f"steps {first}–{record.step}"
    sentences = [
        f"{counted(micro_batches, 'micro-batch')} on this rank in {span}; the loss of each: {numbers(record.losses)}"
    ]
    divisors = sorted({divisor for divisor in record.divided_by if divisor is not None})
    if divisors == [1]:
        is_alone = micro_batches == steps
        reason = "a group is one micro-batch" if is_alone else "none is divided, although a group has several"
        sentences.append(f"{reason}, so each counts in full")
    elif divisors:
        by = " or ".join(map(str, divisors))
        sentences.append(f"each is divided by {by}, the micro-batches in a group: {numbers(record.micro)}")
    else:
        sentences.append(f"training_step returned for each: {numbers(record.micro)}")
    if record.filtered:
        which = ", ".join(str(i + 1) for i in record.filtered[:8])
        sentences.append(f"micro-batch {which} gave no finite number: the average so far stands in for it")
    sentences.append(f"added up on this rank: {exact(record.rank_sum)}")
    if world_size > 1:
        sentences.append(f"the sums of all ranks: {numbers(record.gathered, 8, 7)}; their mean: {exact(record.mean)}")
    sentences.append(f"divided by {counted(steps, 'step')} since the last log: {exact(record.quotient)}")
    if as_float(record.quotient) == as_float(record.logged):
        sentences.append("logged as it is, without rounding")
    else:
        sentences.append(f"rounded to 4 digits and logged: {exact(record.logged)}")
    return sentences


def _verdict(derivation: lossmath.Derivation) -> str:
    if derivation.follows:
        return f"Derived again from the recorded numbers: all {len(derivation.links)} links hold to the last bit."
    broken = derivation.broken
    if broken is None:
        return "The recorded numbers are not enough to derive it again."
    return (
        f"This does not follow: {printable(broken.what)} is recorded as {exact(broken.recorded)}, "
        f"but comes out as {exact(broken.derived)} ({broken.how})."
    )


def _average(record: events.Loss, averages: Averages) -> list[str]:
    if averages.per_sample is None:
        return ["The average per sample can't be told: the number of samples in a micro-batch is not recorded."]
    lines = [f"Average per sample: {words.number(averages.per_sample, 8)} over {counted(averages.samples, 'sample')}."]
    if averages.per_label is not None and averages.per_label != averages.per_sample:
        lines.append(f"Average per label: {words.number(averages.per_label, 8)}.")
    if averages.reasons:
        lines.append("The logged value is another one, because")
        lines += [f"  - {reason}" for reason in averages.reasons]
    else:
        # Sums on the rank are float32's; the average here is not.
        rounding = "" if averages.per_sample == as_float(record.logged) else ", but for the rounding of float32"
        lines.append(f"The logged value is that average{rounding}: micro-batches of one size, complete groups.")
    return lines


# Read next: side_by_side.py, which shows several ranks at once.
