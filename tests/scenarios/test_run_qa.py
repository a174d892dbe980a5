"""run_qa trains, makes answers of features, and scores them."""

from __future__ import annotations

import json
from pathlib import Path

import transformers

from minitrainer.trace.scenarios import DATA_FOLDER, run_qa

from .support import in_both_environments, log_history, results, run

SHORT = ("--max_steps", "4", "--logging_steps", "2", "--max_eval_samples", "6", "--max_predict_samples", "4")


def questions(count: int) -> list[dict]:
    lines = (DATA_FOLDER / "xquad_en" / "validation.json").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines[:count]]


@in_both_environments
def test_a_short_run_trains_and_answers_every_question(environment: str, tmp_path: Path) -> None:
    out = run("run_qa", tmp_path, *SHORT)
    assert [record["step"] for record in log_history(out) if "loss" in record] == [2, 4]
    assert {"eval_exact_match", "eval_f1", "eval_steps_per_second", "predict_f1", "train_loss"} <= set(results(out))
    for stage, count in (("eval", 6), ("predict", 4)):
        answers = json.loads((out / f"{stage}_predictions.json").read_text())
        assert list(answers) == [question["id"] for question in questions(count)]
        assert all(answers[question["id"]] in question["context"] for question in questions(count))
    # A paragraph of more than 128 tokens gives several rows.
    assert results(out)["eval_samples"] > 6


@in_both_environments
def test_two_runs_agree_to_the_last_bit(environment: str, tmp_path: Path) -> None:
    first, second = (log_history(run("run_qa", tmp_path / name, *SHORT)) for name in "ab")
    assert json.dumps(first) == json.dumps(second)
    assert len(first) == 2 + 1 + 1


def test_the_answers_tokens_are_found() -> None:
    #          [CLS] who [SEP] Ada Love ##lace did [SEP]
    offsets = [(0, 0), (0, 3), (0, 0), (0, 3), (4, 8), (8, 12), (13, 16), (0, 0)]
    parts = [None, 0, None, 1, 1, 1, 1, None]

    def span(text: str, start: int) -> tuple[int, int]:
        return run_qa.answer_span(offsets, parts, {"text": [text], "answer_start": [start]})

    assert span("Ada Lovelace", 0) == (3, 5)
    assert span("Lovelace", 4) == (4, 5)
    assert span("did", 13) == (6, 6)
    assert span("did it", 13) == (0, 0)  # Its end stands in the next piece.
    assert run_qa.answer_span(offsets[:3], parts[:3], {"text": ["Ada"], "answer_start": [0]}) == (0, 0)


def test_the_librarys_own_trainer_is_taken_where_there_is_one() -> None:
    import minitrainer

    assert run_qa.answering_trainer(minitrainer) is minitrainer.QuestionAnsweringTrainer
    made = run_qa.answering_trainer(transformers)
    assert issubclass(made, transformers.Trainer)
    assert made.__name__ == "QuestionAnsweringTrainer"


# Read next: test_both_trainers.py
