"""run_summarization trains, generates, and scores what it wrote."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from minitrainer.trace.errors import UsageError
from minitrainer.trace.scenarios import run_summarization

from .support import in_both_environments, log_history, results, run

SHORT = ("--max_steps", "4", "--logging_steps", "2", "--max_eval_samples", "6", "--max_predict_samples", "4")


@in_both_environments
def test_a_short_run_trains_and_writes_sentences(environment: str, tmp_path: Path) -> None:
    out = run("run_summarization", tmp_path, *SHORT)
    assert [record["step"] for record in log_history(out) if "loss" in record] == [2, 4]
    assert {"eval_rouge1", "eval_rougeL", "eval_words", "predict_rouge1", "train_loss"} <= set(results(out))
    assert len((out / "generated_predictions.txt").read_text().splitlines()) == 4


@in_both_environments
def test_two_runs_agree_to_the_last_bit(environment: str, tmp_path: Path) -> None:
    first, second = (log_history(run("run_summarization", tmp_path / name, *SHORT)) for name in "ab")
    assert json.dumps(first) == json.dumps(second)
    assert len(first) == 2 + 1 + 1


def test_without_generation_there_is_a_loss_and_nothing_else(tmp_path: Path) -> None:
    out = run("run_summarization", tmp_path, *SHORT, "--predict_with_generate", "false")
    assert "eval_loss" in results(out)
    assert not [key for key in results(out) if "rouge" in key]
    assert not (out / "generated_predictions.txt").exists()


def test_rouge_worked_by_hand() -> None:
    # Shared words: the, cat, sat, mat (4 of 4 and of 6). In order: "cat sat mat" (3), since "the" moved to the end.
    scores = run_summarization.rouge("cat sat mat the", "the cat sat on a mat")
    assert scores == {"rouge1": 200 * 4 / 10, "rougeL": 200 * 3 / 10}
    assert run_summarization.rouge("a a a", "a b") == {"rouge1": 200 * 1 / 5, "rougeL": 200 * 1 / 5}
    assert run_summarization.rouge("", "a b") == {"rouge1": 0.0, "rougeL": 0.0}
    assert run_summarization.rouge("A b", "a B") == {"rouge1": 100.0, "rougeL": 100.0}


@pytest.mark.slow
def test_the_default_learns_to_write(tmp_path: Path) -> None:
    out = run("run_summarization", tmp_path)
    by_epoch = [record["eval_rouge1"] for record in log_history(out) if "eval_rouge1" in record]
    assert len(by_epoch) == 8
    assert by_epoch[-1] > 33 > by_epoch[0]
    written = (out / "generated_predictions.txt").read_text().splitlines()
    assert len(written) == 120
    assert len(set(written)) > 30, "the sentences must depend on the facts"


def test_wrong_columns_get_one_line(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("content,text\nname[X],X\n")
    words = [f"--{split}_file={tmp_path / 'a.csv'}" for split in ("train", "validation")]
    with pytest.raises(UsageError, match=r"has no column 'summary'; it needs content, summary$"):
        run("run_summarization", tmp_path / "out", *words)


# Read next: test_run_qa.py
