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
import json
import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from minitrainer.trace import events
from minitrainer.trace.errors import UsageError
from minitrainer.trace.events import as_float
from minitrainer.trace.ranks import Run, open_run

PROBE_FILES = "audit-rank{rank}.jsonl"
"""What the probe leaves beside a trace, one file a rank."""

NEAR = 2e-4
"""Relative difference that rounding in float32 and to four logged digits can explain."""

ROUNDING = 0.6e-4


@dataclass
class Check:
    """One quantity: what it should be and what it was, each time.

    Attributes:
        what: its name.
        should, was: the numbers, in order.
        steps: `global_step` of each.
        of: what the right number is the mean or norm of, in words.
        else_equal: other rules and the numbers they give: a quantity that is wrong may follow one of them.
    """

    what: str
    of: str
    should: list[float] = field(default_factory=list)
    was: list[float] = field(default_factory=list)
    steps: list[int] = field(default_factory=list)
    else_equal: dict[str, list[float]] = field(default_factory=dict)

    def add(self, step: int, should: float, was: float, **others: float) -> None:
        self.steps.append(step)
        self.should.append(should)
        self.was.append(was)
        for name, number in others.items():
            self.else_equal.setdefault(name, []).append(number)

    @property
    def is_right(self) -> bool:
        return all(_near(a, b) for a, b in zip(self.should, self.was, strict=True))

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
    "mean_of_batch_means": "the mean of the batches' means, each weighing as much as it has samples, however many "
    "tokens count in it",
    _SUM: "the sum of the micro-batches' means, where their mean belongs: nothing divides by how many there are",
    "mean_over_all_labels": "the sum divided by all labels, those of the first tokens included, which nothing predicts",
    "mean_of_means_over_all_labels": "the mean of the batches' sums each divided by all its labels, those of the first "
    "tokens included, which nothing predicts",
}


def sentence(check: Check, counts: dict[str, float]) -> str:
    """One check in words."""
    times = len(check.was)
    if check.is_right:
        example = f"at step {check.steps[0]}: {check.was[0]:.6g}"
        return f"right: {check.what} is {check.of}, {times} of {times} times ({example})"
    first = next(i for i in range(times) if not _near(check.should[i], check.was[i]))
    off = sum(not _near(a, b) for a, b in zip(check.should, check.was, strict=True))
    said = (
        f"wrong: {check.what} is {check.was[first]:.6g} at step {check.steps[first]}, should be "
        f"{check.should[first]:.6g} ({check.of}); {off} of {times} times"
    )
    for rule, numbers in check.else_equal.items():
        if rule != _SUM and all(_near(a, b) for a, b in zip(numbers, check.was, strict=True)):
            return f"not exact: {said.removeprefix('wrong: ')}. It is {_RULES[rule]}"
    factor = check.factor
    has_factor = factor is not None and abs(factor - 1) > 0.02
    if factor is not None and has_factor and _equals(factor, counts):
        return f"{said}. It is {factor:.3f} × what it should be{_equals(factor, counts)}"
    if _SUM in check.else_equal and all(_near(a, b) for a, b in zip(check.else_equal[_SUM], check.was, strict=True)):
        return f"{said}. It is {_RULES[_SUM]}"
    if has_factor:
        return f"{said}. It is {factor:.3f} × what it should be"
    for rule, numbers in check.else_equal.items():
        ratios = [b / a for a, b in zip(numbers, check.was, strict=True) if a]
        if ratios and max(ratios) - min(ratios) <= 2e-3 * max(ratios):
            return f"{said}. It is {ratios[0]:.3f}{_equals(ratios[0], counts)} times {_RULES[rule]}"
    ratios = [b / a for a, b in zip(check.should, check.was, strict=True) if a]
    return f"{said}. The factor is no constant: {min(ratios):.4f} to {max(ratios):.4f}" if ratios else said


def _equals(factor: float, counts: dict[str, float]) -> str:
    names = [(name, count) for name, count in counts.items() if count > 1]
    candidates = [*names, *((f"1 / {name}", 1 / count) for name, count in names)]
    for i, (name, count) in enumerate(names):
        for other, other_count in names[i + 1 :]:
            candidates += [(f"{name} × {other}", count * other_count), (f"{name} / {other}", count / other_count)]
            candidates += [(f"{other} / {name}", other_count / count)]
    equal = [name for name, count in candidates if count != 1 and abs(count - factor) <= 3e-3 * factor]
    return f" = {' = '.join(equal)}" if equal else ""


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
        raise UsageError(f"{run.path} was recorded without the audit's probe: record it with: audit SCENARIO|SCRIPT")
    steps = _steps([[line for line in lines or [] if line["kind"] == "step"] for lines in measured.values()])
    evaluated = [[line for line in lines or [] if line["kind"] == "evaluated"] for lines in measured.values()]
    recorded = list(run.first)
    if not steps and not any(evaluated):
        raise UsageError("the model's passes show no logits with labels, so the audit has nothing to measure with")
    checks = [
        _training_loss(recorded, steps),
        _train_loss(recorded, steps),
        _gradient(recorded, steps),
        *_evaluation(recorded, evaluated),
    ]
    notes = _samples(run)
    counts = _counts(recorded, run.world_size)
    return Audit([check for check in checks if check.was], counts, notes)


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
            check.add(record.step, sum(step.mean for step in since) / len(since), was, **_mean_by_rule(since))
        done = record.step
    return check


def _train_loss(recorded: Iterable[Any], steps: list[_Step]) -> Check:
    check = Check("train_loss", "the mean over all samples (or tokens) of all steps")
    for record in recorded:
        if type(record) is events.Log and "train_loss" in record.logs and record.step == len(steps):
            was = as_float(record.logs["train_loss"])
            if was is not None:
                mean = sum(step.mean for step in steps) / len(steps)
                check.add(record.step, mean, was, **_mean_by_rule(steps))
    return check


def _gradient(recorded: Iterable[Any], steps: list[_Step]) -> Check:
    check = Check("the gradient's norm", "that of one pass over all samples of the step")
    norms = [as_float(record.norm) for record in recorded if type(record) is events.GradNorm]
    if len(norms) == len(steps):
        for number, (norm, step) in enumerate(zip(norms, steps, strict=True), start=1):
            if norm is not None:
                check.add(number, step.grad_norm, norm, **step.grad_norm_by_rule)
    return check


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
        check.add(_step_before(recorded, i), sum(sums) / sum(units), was, **by_rule)
    return list(checks.values())


def _repeated(batches: list[dict[str, Any]], kept: int, divisors: list[int]) -> float:
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
