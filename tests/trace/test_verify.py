"""Every number of a derivation matters: one bit changed anywhere, and the loss no longer follows."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import msgspec
import numpy
import pytest

from minitrainer.trace import commands, events
from minitrainer.trace.averages import averages_of
from minitrainer.trace.errors import UsageError
from minitrainer.trace.ranks import open_run
from minitrainer.trace.recorder import Recorder
from minitrainer.trace.render.verdict import verify
from minitrainer.trace.rows import CODES, sample_trace, write_canonical

from . import made


def one_bit_up(number: float) -> float:
    return float(numpy.nextafter(numpy.float32(number), numpy.float32(numpy.inf)))


def run_of(records, tmp_path: Path):
    return open_run(made.write(records, tmp_path))


def test_sample_follows_and_is_counted(tmp_path: Path) -> None:
    verdict = verify(run_of(sample_trace(steps=6, accumulation=4, logging_steps=2), tmp_path))
    assert verdict.passed
    assert verdict.looked_at == {"loss": 3, "train_loss": 1}
    # For each of three logs eight micro-batches, sum, place, mean, quotient, logged and total; three links at the end.
    assert verdict.links == 3 * (8 + 6) + 3


@pytest.mark.parametrize("form", ["rows", "canonical", "portable"])
def test_all_forms_verify_alike(tmp_path: Path, form: str) -> None:
    records = sample_trace(steps=8, logging_steps=4)
    path = made.write(records, tmp_path) if form == "rows" else made.canonical(records, tmp_path, level=form)
    verdict = verify(open_run(path))
    assert verdict.passed and sum(verdict.looked_at.values()) == 3


NUMBERS = [
    "losses",
    "micro",
    "rank_sum",
    "gathered",
    "mean",
    "quotient",
    "logged",
    "total_before",
    "steps",
    "divided_by",
]


@pytest.mark.parametrize("field", NUMBERS)
def test_one_bit_in_any_field_of_a_loss_is_found(tmp_path: Path, field: str) -> None:
    records = sample_trace(steps=6, accumulation=2, logging_steps=3)
    loss = [record for record in records if isinstance(record, events.Loss)][1]
    value = getattr(loss, field)
    if field in ("steps",):
        changed = value + 1
    elif field == "divided_by":
        changed = [*value[:-1], value[-1] + 1]
    elif isinstance(value, list):
        changed = [*value[:-1], one_bit_up(value[-1])]
    else:
        changed = one_bit_up(value)
    verdict = verify(run_of(made.replaced(records, events.Loss, 1, **{field: changed}), tmp_path))
    assert not verdict.passed
    assert "step 6: loss" in verdict.failures[0]


@pytest.mark.parametrize("field", ["total", "rest", "logged", "steps", "micro"])
def test_one_bit_in_train_loss_is_found(tmp_path: Path, field: str) -> None:
    records = sample_trace(steps=5, logging_steps=2)  # step 5 is in no log: it is the rest
    record = next(record for record in records if isinstance(record, events.TrainLoss))
    value = getattr(record, field)
    changed = (
        value + 1 if field == "steps" else [one_bit_up(v) for v in value] if field == "micro" else one_bit_up(value)
    )
    verdict = verify(run_of(made.replaced(records, events.TrainLoss, **{field: changed}), tmp_path))
    assert not verdict.passed
    assert "train_loss" in verdict.failures[0]


def test_log_that_shows_another_value_is_found(tmp_path: Path) -> None:
    records = made.replaced(sample_trace(), events.Log, 1, logs={"loss": 0.1234})
    verdict = verify(run_of(records, tmp_path))
    assert [line for line in verdict.lines() if "0.1234" in line and line.startswith("does not follow")]


def test_logged_loss_without_derivation_is_found(tmp_path: Path) -> None:
    records = [record for record in sample_trace() if not isinstance(record, events.Loss)]
    verdict = verify(run_of(made.with_end(records), tmp_path))
    assert not verdict.passed
    assert "no record of its derivation" in verdict.failures[0]


def test_lines_taken_out_are_found_by_their_count(tmp_path: Path) -> None:
    path = tmp_path / "rank0.jsonl"
    write_canonical(sample_trace(), path)
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(line for line in lines if b'"kind":"grad_norm"' not in line))
    verdict = verify(open_run(path))
    assert verdict.failed == 1 and "rows were recorded" in verdict.failures[0]


def test_bytes_taken_out_of_a_recording_are_found(tmp_path: Path) -> None:
    path = tmp_path / "rank0.rows"
    recorder = Recorder(path, events.Head(schema=events.SCHEMA, form="recording"))
    for step in range(3):
        recorder.put(CODES[events.Log], (step, {"loss": 0.5}))
    recorder.close()
    whole = path.read_bytes()
    row = whole.splitlines(keepends=True)[2]
    assert row.startswith(b"[18,")
    path.write_bytes(whole.replace(row, b""))
    verdict = verify(open_run(path))
    missing = f"{len(whole[: whole.rindex(b'[')]):,} bytes were recorded, but "
    assert any(missing in failure for failure in verdict.failures)


def test_nothing_to_verify_does_not_pass(tmp_path: Path) -> None:
    path = made.write(made.without_end(sample_trace(), 8), tmp_path)
    verdict = verify(open_run(path))
    assert not verdict.passed and not verdict.failed
    assert verdict.lines()[-1].startswith("nothing verified")
    assert commands.verify(path) == 1


def test_filtered_loss_follows_and_is_noted(tmp_path: Path) -> None:
    records = sample_trace(steps=2, accumulation=2, logging_steps=2)
    loss = next(record for record in records if isinstance(record, events.Loss))
    micro = [*loss.micro[:2], "nan", loss.micro[3]]
    first = float(loss.micro[0]) + float(loss.micro[1])  # type: ignore[arg-type]
    total = first + first / 2 + float(loss.micro[3])  # type: ignore[arg-type]
    fields = {
        "losses": [*loss.losses[:2], "nan", loss.losses[3]],
        "micro": micro,
        "filtered": [2],
        "filter_divisors": [2],
        "rank_sum": total,
        "gathered": [total],
        "mean": total,
        "quotient": total / 2,
        "logged": round(total / 2, 4),
    }
    records = made.replaced(records, events.Loss, **fields)
    log = next(record for record in records if isinstance(record, events.Log))
    records = made.replaced(records, events.Log, logs={**log.logs, "loss": round(total / 2, 4)})
    train = next(record for record in records if isinstance(record, events.TrainLoss))
    records = made.replaced(records, events.TrainLoss, total=total, logged=(total + float(train.rest)) / 2)  # type: ignore[arg-type]
    verdict = verify(run_of(records, tmp_path))
    assert verdict.passed, verdict.lines()
    assert any("not finite" in note for note in verdict.notes)
    assert not verify(run_of(made.replaced(records, events.Loss, filter_divisors=[1]), tmp_path / "other")).passed


# -- several ranks ---------------------------------------------------------------------


def write_ranks(ranks, folder: Path):
    for rank, records in enumerate(ranks):
        made.write(records, folder, f"rank{rank}.rows")
    return open_run(folder)


def test_two_ranks_are_joined(tmp_path: Path) -> None:
    verdict = verify(write_ranks(made.two_ranks(), tmp_path))
    assert verdict.passed, verdict.lines()
    assert verdict.looked_at == {"loss": 4, "eval_loss": 2, "train_loss": 2}
    assert not verdict.notes


def test_evaluation_loss_of_two_ranks_needs_the_order_of_the_gather(tmp_path: Path) -> None:
    ranks = made.two_ranks()
    ranks[1] = made.replaced(ranks[1], events.EvalLoss, losses=[0.75, 1.5, 2.0])  # two batches exchanged
    verdict = verify(write_ranks(ranks, tmp_path))
    assert verdict.passed  # the sum is the same: exchanging whole batches changes no kept loss
    ranks[1] = made.replaced(ranks[1], events.EvalLoss, losses=[2.0, 0.75, 1.5])  # now another loss is cut off
    verdict = verify(write_ranks(ranks, tmp_path))
    assert verdict.failed == 2


def test_a_vector_that_ranks_received_differently_is_found(tmp_path: Path) -> None:
    ranks = made.two_ranks()
    loss = next(record for record in ranks[1] if isinstance(record, events.Loss))
    gathered = [float(loss.gathered[0]) + 1.0, float(loss.gathered[1]) - 1.0]  # type: ignore[arg-type]
    ranks[1] = made.replaced(ranks[1], events.Loss, gathered=gathered, rank_sum=gathered[1])
    assert not verify(write_ranks(ranks, tmp_path)).passed


def test_missing_rank_is_said_and_the_rest_verified(tmp_path: Path) -> None:
    made.write(made.two_ranks()[1], tmp_path, "rank1.rows")
    verdict = verify(open_run(tmp_path))
    assert verdict.passed
    assert any("rank 0 of 2 left no file" in line for line in verdict.lines())
    assert verdict.looked_at == {"loss": 2, "train_loss": 1}
    assert dict(verdict.lacking) == {"eval_loss: the losses of all 2 ranks are needed": 1}


def test_dead_rank_leaves_the_others_verifiable(tmp_path: Path) -> None:
    ranks = made.two_ranks()
    ranks[1] = made.without_end(ranks[1], 60)
    verdict = verify(write_ranks(ranks, tmp_path))
    assert verdict.passed
    assert verdict.looked_at == {"loss": 3, "train_loss": 1} and sum(verdict.lacking.values()) == 1
    assert any("rank 1: incomplete" in line for line in verdict.lines())


# -- files that no training wrote ----------------------------------------------------------


@pytest.mark.parametrize(
    "fields",
    [
        {"losses": ["abc", "1", "", "nan"]},
        {"divided_by": [0, 0, 0, 0]},
        {"divided_by": [10**400] * 4},
        {"steps": 0},
        {"steps": 10**400},
        {"gathered": []},
        {"micro": []},
        {"micro": [1e308] * 4, "losses": [1e308] * 4, "divided_by": [1] * 4},
        {"filtered": [7, -1], "filter_divisors": [0]},
        {"filtered": [0], "filter_divisors": [0]},
        {"mean": None},
        {"rank_sum": "no number"},
        {"dtype": "int4"},
    ],
)
def test_impossible_numbers_do_not_follow_and_do_not_fail(tmp_path: Path, fields: dict) -> None:
    records = made.replaced(sample_trace(), events.Loss, **fields)
    path = made.canonical(records, tmp_path)
    verdict = verify(open_run(path))
    if set(fields) != {"dtype"} and set(fields) != {"filtered", "filter_divisors"}:
        assert not verdict.passed
    assert commands.show(path) == 0
    commands.explain_loss(path, 2)


def test_a_claim_of_a_billion_samples_is_not_believed(tmp_path: Path) -> None:
    ranks = made.two_ranks()
    ranks[0] = made.replaced(ranks[0], events.EvalLoss, rows=[10**12, 1, 1])
    ranks[1] = made.replaced(ranks[1], events.EvalLoss, rows=[-(10**12), 1, 1])
    verdict = verify(write_ranks(ranks, tmp_path))
    assert verdict.failed == 2


def test_verify_needs_no_torch(tmp_path: Path) -> None:
    path = made.write(sample_trace(), tmp_path)
    code = "import sys; from minitrainer.trace import commands; "
    code += f"print(commands.verify({str(path)!r}), 'torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split()[-2:] == ["0", "False"]


def test_explaining_a_step_without_log_says_which_there_are(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="there are logs at 2, 4"):
        commands.explain_loss(made.write(sample_trace(), tmp_path), 3)


def test_explanation_names_unequal_micro_batches(tmp_path: Path, capsys) -> None:
    records = made.replaced(sample_trace(), events.Loss, 0, rows=[2, 2, 2, 1])
    assert commands.explain_loss(made.write(records, tmp_path), 2) == 0
    said = capsys.readouterr().out
    assert "micro-batches of 1 and 2 samples count alike" in said
    assert "over 7 samples" in said
    losses = [float(value) for value in next(r for r in records if isinstance(r, events.Loss)).losses]  # type: ignore[arg-type]
    weighted = sum(loss * rows for loss, rows in zip(losses, [2, 2, 2, 1], strict=True)) / 7
    assert f"{weighted:.8g}" in said


@pytest.mark.parametrize(
    ("steps", "divisor", "said"),
    [
        (2, 1, "there are 2 micro-batches in a step, but each was divided by 1 (+0.81)"),
        (3, 2, "4 micro-batches make 3 steps, each was divided by 2"),
    ],
)
def test_averages_tell_a_divisor_that_is_not_the_group(steps: int, divisor: int, said: str) -> None:
    loss = next(record for record in sample_trace() if isinstance(record, events.Loss))
    quotient = sum(float(value) for value in loss.losses) / divisor / steps  # type: ignore[arg-type]
    changed = msgspec.structs.replace(loss, steps=steps, divided_by=[divisor] * 4, quotient=quotient, logged=quotient)
    assert any(reason.startswith(said) for reason in averages_of([changed]).reasons), averages_of([changed]).reasons


def test_averages_of_equal_micro_batches_are_the_logged_value() -> None:
    loss = next(record for record in sample_trace() if isinstance(record, events.Loss))
    averages = averages_of([loss])
    assert averages.per_sample == averages.per_micro_batch == float(loss.logged)  # type: ignore[arg-type]
    assert not averages.reasons


# Read next: test_render_terminal.py.
