"""Audits a run: what its losses, gradients and sample counts should be, and where the Trainer's differ.

    python -m minitrainer.trace audit run_glue --trainer transformers==5.24.0 --gradient_accumulation_steps 2
    python -m minitrainer.trace audit my_script.py
    python -m minitrainer.trace audit runs/FOLDER

The rule is that of one big batch: the loss of a step is the mean over all samples (for token tasks: all tokens that
count) of all its micro-batches on all ranks, and the gradient is the gradient of that mean. `audit_probe.py` measures
both in the training process without asking the Trainer. Where the Trainer's number is off, the factor is compared
with the counts of the run: a factor that equals the accumulation steps names the cause.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from minitrainer.trace import events
from minitrainer.trace.errors import UsageError
from minitrainer.trace.events import as_float
from minitrainer.trace.findings import Findings, encode
from minitrainer.trace.ranks import Run, open_run
from minitrainer.trace.rows import portable

PROBE_FILES = "audit-rank{rank}.jsonl"
"""What the probe leaves beside a trace, one file a rank."""

NEAR = 2e-4
"""Relative difference that rounding in float32 and to four logged digits can explain."""

ROUNDING = 0.6e-4

A_FACTOR = 0.01
"""Relative difference from which a number is off by a factor, and not only averaged in another way."""


@dataclass
class Check:
    """One quantity: what it should be and what it was, each time.

    Attributes:
        what: its name.
        should, was: the numbers, in order.
        steps: `global_step` of each.
        of: what the right number is the mean or norm of, in words.
        rows: the recorded row that each of the numbers stands in.
        else_equal: other rules and the numbers they give: a quantity that is wrong may follow one of them.
        seen: what else the trace shows of it where it is wrong, one sentence.
    """

    what: str
    of: str
    should: list[float] = field(default_factory=list)
    was: list[float] = field(default_factory=list)
    steps: list[int] = field(default_factory=list)
    rows: list[Any] = field(default_factory=list)
    else_equal: dict[str, list[float]] = field(default_factory=dict)
    seen: str = ""

    def add(self, step: int, should: float, was: float, row: Any = None, **others: float) -> None:
        self.steps.append(step)
        self.rows.append(row)
        self.should.append(should)
        self.was.append(was)
        for name, number in others.items():
            self.else_equal.setdefault(name, []).append(number)

    @property
    def is_right(self) -> bool:
        return all(_near(a, b) for a, b in zip(self.should, self.was, strict=True))

    @property
    def first_wrong(self) -> int:
        """Which of the numbers is the first that is not right; the first of all where all are."""
        pairs = zip(self.should, self.was, strict=True)
        return next((i for i, (should, was) in enumerate(pairs) if not _near(should, was)), 0)

    @property
    def off(self) -> float:
        """Was / should: 1 where all is right, else what it is each time, or the first time that it is wrong."""
        if self.is_right:
            return 1.0
        first = self.first_wrong
        return self.factor or (self.was[first] / self.should[first] if self.should[first] else math.inf)

    @property
    def factor(self) -> float | None:
        """Was / should, where it is the same every time (within a thousandth); else None."""
        ratios = [b / a for a, b in zip(self.should, self.was, strict=True) if a]
        if not ratios or max(ratios) - min(ratios) > 2e-3 * abs(max(ratios)):
            return None
        return sum(ratios) / len(ratios)


def _near(should: float, was: float) -> bool:
    rounded = ROUNDING if round(was, 4) == was else 0.0
    return abs(should - was) <= max(NEAR * abs(should), rounded)


@dataclass
class Audit:
    """What an audit found: the checks, the counts a factor may equal, and what could not be checked."""

    checks: list[Check]
    counts: dict[str, float]
    notes: list[str]

    @property
    def passed(self) -> bool:
        return bool(self.checks) and all(check.is_right for check in self.checks)

    def lines(self) -> list[str]:
        said = []
        for check in self.checks:
            said.append(sentence(check, self.counts))
        return [*said, *self.notes]


_SUM = "sum_of_micro_batch_means"

_RULES = {
    "mean_of_micro_batch_means": "the mean of the micro-batches' means, each weighing the same however many "
    "samples or tokens it holds",
    "mean_of_batch_means": "the mean of the batches' means (rows repeated to fill a batch included), each weighing as "
    "much as it has samples, however many tokens count in it",
    _SUM: "the sum of the micro-batches' means, where their mean belongs: nothing divides by how many there are",
    "mean_over_all_labels": "the sum divided by all labels, those of the first tokens included, which nothing predicts",
    "mean_of_means_over_all_labels": "the mean of the batches' sums each divided by all its labels, those of the first "
    "tokens included, which nothing predicts",
    "mean_of_shares_of_a_round": "what comes out when the sum of each batch is divided by the labels in the batches of "
    "all ranks of its round (those of the first tokens included, which nothing predicts), multiplied by the ranks, and "
    "averaged over samples: a batch with fewer labels than the other ranks' weighs less",
}


def sentence(check: Check, counts: dict[str, float]) -> str:
    """One check in words."""
    times = len(check.was)
    if check.is_right:
        example = f"at step {check.steps[0]}: {check.was[0]:.6g}"
        return f"right: {check.what} is {check.of}, {times} of {times} times ({example})"
    first = check.first_wrong
    off = sum(not _near(a, b) for a, b in zip(check.should, check.was, strict=True))
    said = (
        f"{check.what} is {check.was[first]:.6g} at step {check.steps[first]}, should be "
        f"{check.should[first]:.6g} ({check.of}); {off} of {times} times"
    )
    cause = explanation(check, counts)
    verdict = "not exact" if cause in [f"It is {rule}" for name, rule in _RULES.items() if name != _SUM] else "wrong"
    return f"{verdict}: {said}{'. ' if cause else ''}{cause}"


def explanation(check: Check, counts: dict[str, float]) -> str:
    """What a number that is not right is instead, as far as it can be named; the first that holds every time."""
    rules = {rule: numbers for rule, numbers in check.else_equal.items() if rule != _SUM}
    for rule, numbers in rules.items():
        if _all_near(numbers, check.was):
            return f"It is {_RULES[rule]}"
    for count, names in _named(counts).items():
        if _all_near([count * number for number in check.should], check.was):
            return f"It is {count:.3f} × what it should be = {names}"
    factor = check.factor
    if _SUM in check.else_equal and _all_near(check.else_equal[_SUM], check.was):
        first = check.was[check.first_wrong] / check.should[check.first_wrong]
        at_first = f"{first:.3f} × what it should be at step {check.steps[check.first_wrong]}{_equals(first, counts)}"
        return f"It is {_RULES[_SUM]} ({at_first})"
    for rule, numbers in rules.items():
        for count, names in _named(counts).items():
            if _all_near([count * number for number in numbers], check.was):
                return f"It is {count:.3f} (= {names}) times {_RULES[rule]}"
    if factor is not None and abs(factor - 1) > 0.02 and not check.seen:
        return f"It is {factor:.3f} × what it should be{_equals(factor, counts)}"
    ratios = [b / a for a, b in zip(check.should, check.was, strict=True) if a]
    said = f"The factor is no constant: {min(ratios):.4f} to {max(ratios):.4f}" if ratios else ""
    return f"{said}. {check.seen}" if check.seen else said


def _all_near(numbers: list[float], was: list[float]) -> bool:
    return all(_near(a, b) for a, b in zip(numbers, was, strict=True))


def _equals(factor: float, counts: dict[str, float]) -> str:
    """What a factor is equal to, in words: " = ranks", or "" if it can't be named."""
    equal = [names for count, names in _named(counts).items() if abs(count - factor) <= 3e-3 * factor]
    return f" = {' = '.join(equal)}" if equal else ""


def _named(counts: dict[str, float]) -> dict[float, str]:
    """Each number that a factor may equal, with all that has it: {2.0: "ranks = accumulation steps"}."""
    names = [(name, count) for name, count in counts.items() if count > 1]
    candidates = [*names, *((f"1 / {name}", 1 / count) for name, count in names)]
    for i, (name, count) in enumerate(names):
        for other, other_count in names[i + 1 :]:
            candidates += [(f"{name} × {other}", count * other_count), (f"{name} / {other}", count / other_count)]
            candidates += [(f"{other} / {name}", other_count / count)]
    named: dict[float, str] = {}
    for name, count in candidates:
        if count != 1:
            named[count] = f"{named[count]} = {name}" if count in named else name
    return named


# -- auditing ------------------------------------------------------------------------------------


def audit_run(trace: Run | str | os.PathLike[str]) -> Audit:
    """Audit a run whose trace has the probe's files beside it.

    Raises:
        UsageError: there is no trace, or the probe did not run with it.
    """
    run = trace if isinstance(trace, Run) else open_run(trace)
    folder = run.path if run.path.is_dir() else run.path.parent
    measured = {rank: _measured(folder, rank) for rank in run.readings}
    if any(lines is None for lines in measured.values()) or run.missing:
        what = run.first.head.scenario or "SCRIPT.py"
        raise UsageError(
            f"{run.path} can't be audited: no trace holds the loss of each sample, and the probe that measures it did "
            f"not run beside this one. Run it again with: python -m minitrainer.trace audit {what}"
        )
    steps = _steps([[line for line in lines or [] if line["kind"] == "step"] for lines in measured.values()])
    evaluated = [[line for line in lines or [] if line["kind"] == "evaluated"] for lines in measured.values()]
    recorded = list(run.first)
    if not steps and not any(evaluated):
        raise UsageError("the model's passes show no logits with labels, so the audit has nothing to measure with")
    checks = [
        _training_loss(recorded, steps),
        _train_loss(recorded, steps),
        _gradient(run, recorded, steps),
        *_evaluation(recorded, evaluated),
    ]
    notes = _samples(run)
    counts = _counts(recorded, run.world_size)
    return Audit([check for check in checks if check.was], counts, notes)


def compare_audits(findings: Findings, run_a: Run, run_b: Run) -> list[str]:
    """Note where one of two audited runs is off by another factor than the other.

    The two need not have seen the same samples: each is held against what its own should be.

    Returns:
        One sentence for each factor, for the verdict. Nothing where one of the runs was not audited.
    """
    if not all(_is_audited(run) for run in (run_a, run_b)):
        return []
    try:
        audit_a, audit_b = audit_run(run_a), audit_run(run_b)
    except UsageError:
        return []  # no pass showed logits with labels
    said: dict[tuple[str, str], list[str]] = {}
    for check_a, check_b in itertools.product(audit_a.checks, audit_b.checks):
        off_a, off_b = check_a.off, check_b.off
        if check_a.what != check_b.what or abs(off_a - off_b) <= A_FACTOR * max(off_a, off_b):
            continue
        worse, other = (check_b, check_a) if abs(off_b - 1) > abs(off_a - 1) else (check_a, check_b)
        at = worse.first_wrong
        row, other_row = (encode_plain(check.rows[min(at, len(check.rows) - 1)]) for check in (worse, other))
        subject = f"{check_a.what}, as a multiple of what it should be"
        step = worse.steps[at]
        finding = findings.note("number", "changed", subject, step, 0, values=(round(off_a, 4), round(off_b, 4)))
        finding.count = sum(not _near(a, b) for a, b in zip(worse.should, worse.was, strict=True))
        finding.last_step = worse.steps[-1]
        finding.row_a, finding.row_b = (other_row, row) if worse is check_b else (row, other_row)
        side, counts = ("B", audit_b.counts) if worse is check_b else ("A", audit_a.counts)
        numbers = f"{worse.was[at]:.6g} at step {step}, should be {worse.should[at]:.6g}"
        finding.note = f"In {side} it is {numbers}. {explanation(worse, counts)}"
        named = f"{worse.off:.3f} × the true one{_equals(worse.off, counts)}"
        said.setdefault((side, named), []).append(check_a.what)
    sentences = []
    for (side, named), whats in said.items():
        names = " and ".join(filter(None, [", ".join(whats[:-1]), whats[-1]]))
        sentences.append(f"in {side} {names} {'is' if len(whats) == 1 else 'are each'} {named}")
    return sentences


def _is_audited(run: Run) -> bool:
    folder = run.path if run.path.is_dir() else run.path.parent
    return not run.missing and all((folder / PROBE_FILES.format(rank=rank)).exists() for rank in run.readings)


def encode_plain(row: Any) -> str:
    """A recorded row as it is shown: in the portable form, without its time."""
    return encode(next(portable([row])))


def _measured(folder: Path, rank: int) -> list[dict[str, Any]] | None:
    try:
        text = (folder / PROBE_FILES.format(rank=rank)).read_text(encoding="utf-8")
        return [json.loads(line) for line in text.splitlines()]
    except (OSError, ValueError):
        return None


@dataclass
class _Step:
    """One step over all ranks: its loss and gradient norm as they should be, and by each other rule."""

    mean: float
    mean_by_rule: dict[str, float]
    grad_norm: float
    grad_norm_by_rule: dict[str, float]


def _steps(by_rank: list[list[dict[str, Any]]]) -> list[_Step]:
    steps = []
    for together in zip(*by_rank, strict=False):  # a rank that was killed has fewer
        sums = [loss_sum for line in together for loss_sum in line["loss_sums"]]
        units = [count for line in together for count in line["units"]]
        labels = sum(count for line in together for count in line["labels"])
        means = [loss_sum / count for loss_sum, count in zip(sums, units, strict=True) if count]
        passes = max(len(means), 1)
        norm, norm_of_means = together[0]["grad_norm"], together[0]["grad_norm_of_means"]
        by_rule = {"mean_of_micro_batch_means": sum(means) / passes, _SUM: sum(means)}
        norm_by_rule = {"mean_of_micro_batch_means": norm_of_means, _SUM: norm_of_means * passes}
        by_rule["mean_over_all_labels"] = sum(sums) / max(labels, 1)
        norm_by_rule["mean_over_all_labels"] = norm * sum(units) / max(labels, 1)
        steps.append(_Step(sum(sums) / max(sum(units), 1), by_rule, norm, norm_by_rule))
    return steps


def _mean_by_rule(steps: list[_Step]) -> dict[str, float]:
    """By each rule, the mean of the losses of some steps."""
    return {rule: sum(step.mean_by_rule[rule] for step in steps) / len(steps) for rule in steps[0].mean_by_rule}


def _training_loss(recorded: Iterable[Any], steps: list[_Step]) -> Check:
    check = Check("the logged training loss", "the mean over all samples (or tokens) of the steps since the last log")
    done = 0
    for record in recorded:
        if type(record) is not events.Log or "loss" not in record.logs:
            continue
        was, since = as_float(record.logs["loss"]), steps[done : record.step]
        if was is not None and since:
            mean = sum(step.mean for step in since) / len(since)
            check.add(record.step, mean, was, record, **_mean_by_rule(since))
        done = record.step
    return check


def _train_loss(recorded: Iterable[Any], steps: list[_Step]) -> Check:
    check = Check("train_loss", "the mean over all samples (or tokens) of all steps")
    for record in recorded:
        if type(record) is events.Log and "train_loss" in record.logs and record.step == len(steps):
            was = as_float(record.logs["train_loss"])
            if was is not None:
                mean = sum(step.mean for step in steps) / len(steps)
                check.add(record.step, mean, was, record, **_mean_by_rule(steps))
    return check


def _gradient(run: Run, recorded: Iterable[Any], steps: list[_Step]) -> Check:
    check = Check("the gradient's norm", "that of one pass over all samples of the step")
    check.seen = _ranks_drift(run)
    rows = [record for record in recorded if type(record) is events.GradNorm]
    if len(rows) == len(steps):
        for number, (row, step) in enumerate(zip(rows, steps, strict=True), start=1):
            norm = as_float(row.norm)
            if norm is not None:
                check.add(number, step.grad_norm, norm, row, **step.grad_norm_by_rule)
    return check


def _ranks_drift(run: Run) -> str:
    """Say from which step on the ranks have other gradients: what they step with was not averaged over all of them."""
    norms = ([row.norm for row in reading if type(row) is events.GradNorm] for reading in run.readings.values())
    for step, together in enumerate(zip(*norms, strict=False), start=1):
        if len(set(together)) > 1:
            shown = ", ".join(f"{as_float(norm):.4g} on rank {rank}" for rank, norm in zip(run.readings, together))
            return (
                f"From step {step} on the ranks' own gradients differ ({shown}): they were not averaged over the ranks"
            )
    return ""


def _evaluation(recorded: list[Any], by_rank: list[list[dict[str, Any]]]) -> list[Check]:
    """Evaluation losses: the batches of one evaluation are those that the trace counts for it, on every rank.

    Ranks take turns, batch by batch; what they evaluate beyond the data set, to be equally long, is cut off at its end.
    """
    checks: dict[str, Check] = {}
    position = 0
    for i, record in enumerate(recorded):
        if type(record) is not events.EvalLoss:
            continue
        batches = [lines[position : position + len(record.losses)] for lines in by_rank]
        position += len(record.losses)
        was = as_float(record.logged)
        in_order = [line for together in zip(*batches, strict=False) for line in together]
        sums = [loss_sum for line in in_order for loss_sum in line["loss_sums"]][: record.kept]
        units = [count for line in in_order for count in line["units"]][: record.kept]
        if was is None or not sum(units):
            continue
        check = checks.setdefault(record.key, Check(record.key, "the mean over all evaluated samples (or tokens)"))
        by_rule = {"mean_of_batch_means": _repeated(in_order, record.kept, [sum(line["units"]) for line in in_order])}
        labels = [line["labels"] for line in in_order]
        by_rule["mean_of_means_over_all_labels"] = _repeated(in_order, record.kept, labels)
        if len(by_rank) > 1:
            rounds = [together for together in zip(*batches, strict=False) for _ in together]
            shares = [sum(line["labels"] for line in together) / len(together) for together in rounds]
            by_rule["mean_of_shares_of_a_round"] = _repeated(in_order, record.kept, shares)
        check.add(_step_before(recorded, i), sum(sums) / sum(units), was, record, **by_rule)
    return list(checks.values())


def _repeated(batches: list[dict[str, Any]], kept: int, divisors: Sequence[float]) -> float:
    """Mean over samples where each counts with the loss of its batch: the batch's sum divided by its divisor."""
    losses: list[float] = []
    for batch, divisor in zip(batches, divisors, strict=True):
        losses += [sum(batch["loss_sums"]) / max(divisor, 1)] * len(batch["units"])
    return sum(losses[:kept]) / max(len(losses[:kept]), 1)


def _step_before(recorded: list[Any], i: int) -> int:
    return next((record.step for record in reversed(recorded[:i]) if type(record) is events.Event), 0)


def _samples(run: Run) -> list[str]:
    """Say how many samples all ranks trained on, and whether some came twice in an epoch."""
    from minitrainer.trace.render.words import counted

    seen = 0
    repeated = 0
    known = True
    epochs: dict[int, set[int]] = {}
    for reading in run.readings.values():
        epoch = 0
        for record in reading:
            if type(record) is events.Event and record.event == "on_epoch_begin":
                epoch += 1
            elif type(record) is events.Samples and record.split == "train":
                seen += record.rows or 0
                if record.indices is None:
                    known = False
                    continue
                different = epochs.setdefault(epoch, set())
                repeated += sum(index in different for index in record.indices)
                different.update(record.indices)
    if not seen:
        return []
    if not known:
        return [f"samples: {seen:,} were trained on; which ones is not known"]
    sizes = sorted({len(different) for different in epochs.values()})
    different_ones = " to ".join(map(str, sizes))
    epochs_in_words = counted(len(epochs), "epoch")
    said = f"samples: {seen:,} were trained on in {epochs_in_words}, {different_ones} different ones in each"
    return [f"{said}; {repeated} came a second time in their epoch" if repeated else f"{said}, none twice"]


def _counts(recorded: Iterable[Any], world_size: int) -> dict[str, float]:
    counts: dict[str, float] = {"ranks": world_size}
    for record in recorded:
        if type(record) is events.TrainerBegin:
            accumulation = record.arguments.get("gradient_accumulation_steps", 1)
            if isinstance(accumulation, int):
                counts["accumulation steps"] = accumulation
            break
    return counts


# -- the command ---------------------------------------------------------------------------------------


def add_arguments(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command to a command line."""
    parser = commands.add_parser(
        "audit",
        help="tell whether losses, gradients and sample counts of a run are what they should be",
        usage="python -m minitrainer.trace audit [--trainer WHICH] [--nproc N] [--out FOLDER] [--json] "
        "SCENARIO|SCRIPT.py|TRACE [its arguments]",
        description="Exit status: 0 all is right, 1 something is not, 2 it can't be audited.",
        parents=[_options()],
        allow_abbrev=False,
    )
    parser.add_argument("what", nargs=argparse.REMAINDER, metavar="WHAT", help="a scenario, a script or a trace")


def _options() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument(
        "--trainer", default="transformers", metavar="WHICH", help="as for a run; default: transformers"
    )
    parser.add_argument("--nproc", metavar="N", help="number of processes")
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="where the trace goes")
    parser.add_argument("--json", action="store_true", help="print the audit as JSON")
    return parser


def main(options: argparse.Namespace) -> int:
    """Run the command that was parsed and return its exit status."""
    from minitrainer.trace import scenarios
    from minitrainer.trace.command_words import own_options_out_of

    words = own_options_out_of(options, _options(), "audit")
    if not words:
        raise UsageError("audit takes a scenario, a script or a trace (see audit --help)")
    what = words[0]
    if what in scenarios.SCENARIOS or what.endswith(".py"):
        from minitrainer.trace.compare import record
        from minitrainer.trace.running import _trace_folder

        folder = options.out or _trace_folder(None, f"audit-{Path(what).stem}")
        record(options.trainer, what, words[1:], folder, options.nproc, {"MINITRAINER_AUDIT": "1"})
    else:
        folder = Path(what)
    audit = audit_run(folder)
    if options.json:
        print(json.dumps(_as_json(audit), indent=1))
    else:
        from minitrainer.trace.render.escape import printable
        from minitrainer.trace.render.terminal import Screen

        screen = Screen()
        for line in audit.lines():
            screen.line([(printable(line, 2000), "bad" if line.startswith("wrong") else "")], "", "    ")
    return 0 if audit.passed else 1


def _as_json(audit: Audit) -> dict[str, Any]:
    return {
        "passed": audit.passed,
        "counts": audit.counts,
        "notes": audit.notes,
        "checks": [
            {
                "what": check.what,
                "right": check.is_right,
                "factor": check.factor,
                "sentence": sentence(check, audit.counts),
                "steps": check.steps,
                "should": check.should,
                "was": check.was,
            }
            for check in audit.checks
        ],
    }


# Read next: history.py, which finds the release in which a number went wrong.
