"""From logits to answers to scores, and the two trainers that do it between loop and metrics."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from transformers import BertConfig, BertForQuestionAnswering

import minitrainer
from minitrainer.question_answering import postprocess_qa_predictions, squad_metrics
from tests.seq2seq import subjects

# -- from logits to answers ---

CONTEXT = "the cat sat"
OFFSETS = [None, (0, 3), (4, 7), (8, 11)]  # token 0 is no part of the text


def answer(starts: list[list[float]], ends: list[list[float]], **options: Any) -> str:
    features = [{"example_id": "q", "offset_mapping": OFFSETS, **options.pop("feature", {})} for _ in starts]
    examples = Dataset.from_list([{"id": "q", "context": CONTEXT}])
    return postprocess_qa_predictions(
        examples, features, (np.array(starts, dtype=float), np.array(ends, dtype=float)), **options
    )["q"]


@pytest.mark.parametrize(
    ("start", "end", "expected"),
    [
        ([0, 1, 5, 0], [0, 1, 1, 5], "cat sat"),
        ([0, -9, 5, 0], [0, 9, 4, 1], "cat"),  # an end before the start is no answer
        ([9, 1, 5, 0], [9, 1, 4, 1], "cat"),  # token 0 is no part of the text
        ([9, 0, 0, 0], [9, 0, 0, 0], "sat"),  # of equal scores, the last token comes first
    ],
)
def test_the_best_span_that_can_be_one(start: Any, end: Any, expected: str) -> None:
    assert answer([start], [end]) == expected


def test_the_best_of_all_features() -> None:
    assert answer([[0, 5, 0, 0], [0, 0, 6, 0]], [[0, 5, 0, 0], [0, 0, 6, 0]]) == "cat"


def test_too_long_is_no_answer() -> None:
    logits = ([[0, 5, 0, 0]], [[0, 0, 1, 5]])
    assert answer(*logits) == "the cat sat"
    assert answer(*logits, max_answer_length=2) == "the cat"


def test_a_token_with_more_context_elsewhere_begins_no_answer() -> None:
    logits = ([[0, 5, 4, 0]], [[0, 0, 0, 5]])
    assert answer(*logits, feature={"token_is_max_context": {"2": True}}) == "cat sat"


def test_no_answer_must_be_better_by_the_threshold() -> None:
    logits = ([[5, 0, 4, 0]], [[5, 0, 4, 0]])  # no answer: 10; cat: 8
    assert answer(*logits, version_2_with_negative=True) == ""
    assert answer(*logits, version_2_with_negative=True, null_score_diff_threshold=2.0) == "cat"
    assert answer(*logits) == "cat"


def test_no_span_at_all_gives_the_word_empty() -> None:
    assert answer([[0, 0, 0, 0]], [[0, 0, 0, 0]], feature={"offset_mapping": [None] * 4}) == "empty"


def test_the_files(tmp_path: Path) -> None:
    answer([[5, 0, 4, 0]], [[5, 0, 4, 0]], version_2_with_negative=True, output_dir=str(tmp_path), prefix="eval")
    assert json.loads((tmp_path / "eval_predictions.json").read_text()) == {"q": ""}
    assert json.loads((tmp_path / "eval_null_odds.json").read_text()) == {"q": 2.0}
    best = json.loads((tmp_path / "eval_nbest_predictions.json").read_text())["q"]
    assert best[0]["text"] == "" and best[1]["text"] == "cat"
    assert sum(row["probability"] for row in best) == pytest.approx(1.0)  # a sum of rounded numbers
    with pytest.raises(NotADirectoryError, match="create it first"):
        answer([[0, 0, 0, 0]], [[0, 0, 0, 0]], output_dir=str(tmp_path / "nowhere"))


def test_wrong_shapes_are_named() -> None:
    examples = Dataset.from_list([{"id": "q", "context": CONTEXT}])
    with pytest.raises(ValueError, match="it has 3 elements"):
        postprocess_qa_predictions(examples, [], (1, 2, 3))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="Got 2 predictions and 0 features"):
        postprocess_qa_predictions(examples, [], (np.zeros((2, 4)), np.zeros((2, 4))))


# -- from answers to scores ---


@pytest.mark.parametrize(
    ("predicted", "right", "exact", "f1"),
    [
        ("The Cat!", ["cat"], 100, 100),
        ("black cat", ["cat"], 0, 2 * (1 / 2) * 1 / (1 / 2 + 1) * 100),
        ("black cat", ["dog", "black cat"], 100, 100),
        ("dog", ["cat"], 0, 0),
        ("", ["cat"], 0, 0),
    ],
)
def test_squad_scores(predicted: str, right: list[str], exact: float, f1: float) -> None:
    scores = squad_metrics(
        [{"id": 1, "prediction_text": predicted}], [{"id": 1, "answers": {"text": right, "answer_start": [0]}}]
    )
    assert scores == {"exact_match": exact, "f1": f1}


def test_a_missing_prediction_scores_nothing() -> None:
    references = [{"id": 1, "answers": {"text": ["a b"]}}, {"id": 2, "answers": {"text": ["b"]}}]
    assert squad_metrics([{"id": 2, "prediction_text": "b"}], references) == {"exact_match": 50.0, "f1": 50.0}


# -- the trainers ---


class Questions(torch.utils.data.Dataset):
    """Five features of four tokens, with positions of the answer."""

    def __len__(self) -> int:
        return 5

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        ids = torch.arange(4) + index
        return {"input_ids": ids, "start_positions": torch.tensor(1), "end_positions": torch.tensor(2)}


def trainer_with(tmp_path: Path, post_process: Any, metrics: Any, **arguments: Any) -> Any:
    torch.manual_seed(1)
    config = BertConfig(vocab_size=10, hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8)
    args = minitrainer.TrainingArguments(
        output_dir=str(tmp_path),
        per_device_eval_batch_size=2,
        per_device_train_batch_size=5,
        max_steps=1,
        report_to=[],
        disable_tqdm=True,
        no_cuda=True,
        **arguments,
    )
    return minitrainer.QuestionAnsweringTrainer(
        model=BertForQuestionAnswering(config),
        args=args,
        train_dataset=Questions(),
        eval_dataset=Questions(),
        eval_examples=["an example"],
        post_process_function=post_process,
        compute_metrics=metrics,
    )


def test_metrics_are_computed_on_answers(tmp_path: Path) -> None:
    calls = []

    def post_process(*arguments: Any) -> Any:
        calls.append(arguments)
        return minitrainer.EvalPrediction(predictions=["an answer"], label_ids=["a reference"])

    seen = []

    def metrics(prediction: Any) -> dict[str, float]:
        seen.append((prediction.predictions, prediction.label_ids))
        return {"exact_match": 25.0, "eval_f1": 50.0}

    trainer = trainer_with(tmp_path, post_process, metrics)
    result = trainer.evaluate()
    examples, features, predictions = calls[0]
    assert examples == ["an example"] and features is trainer.eval_dataset
    assert [logits.shape for logits in predictions] == [(5, 4), (5, 4)]
    assert seen == [(["an answer"], ["a reference"])]
    assert (result["eval_exact_match"], result["eval_f1"]) == (25.0, 50.0)
    assert "eval_loss" in result and "eval_runtime" in result
    assert trainer.state.log_history[-1]["eval_exact_match"] == 25.0
    assert trainer.compute_metrics is metrics

    predicted = trainer.predict(Questions(), ["others"])
    assert calls[1][0] == ["others"] and calls[1][3] == "predict"
    assert (predicted.predictions, predicted.label_ids) == (["an answer"], ["a reference"])
    assert predicted.metrics["test_exact_match"] == 25.0 and predicted.metrics["test_eval_f1"] == 50.0


def test_without_post_processing_there_are_no_metrics_of_answers(tmp_path: Path) -> None:
    trainer = trainer_with(tmp_path, None, lambda prediction: {"never": 1.0})
    assert "eval_never" not in trainer.evaluate()
    output = trainer.predict(Questions(), [])
    assert isinstance(output, minitrainer.EvalLoopOutput) and output.num_samples == 5


def test_metrics_come_back_even_if_the_loop_fails(tmp_path: Path) -> None:
    metrics = object()
    trainer = trainer_with(tmp_path, None, metrics)
    trainer.prediction_step = None
    with pytest.raises(TypeError):
        trainer.evaluate()
    assert trainer.compute_metrics is metrics


def test_within_train(tmp_path: Path) -> None:
    trainer = trainer_with(
        tmp_path,
        lambda *_: minitrainer.EvalPrediction(predictions=[], label_ids=[]),
        lambda _: {"exact_match": 1.0},
        evaluation_strategy="epoch",
        save_strategy="epoch",
        load_best_model_at_end=True,
        metric_for_best_model="exact_match",
    )
    trainer.train()
    assert trainer.state.best_metric == 1.0


def test_the_generating_one_gets_the_whole_output(tmp_path: Path) -> None:
    calls = []

    class Answers(minitrainer.QuestionAnsweringSeq2SeqTrainer):
        def __init__(self, **arguments: Any) -> None:
            super().__init__(
                **arguments,
                eval_examples=["an example"],
                post_process_function=lambda *arguments: (
                    calls.append(arguments) or minitrainer.EvalPrediction(predictions=["a"], label_ids=["b"])
                ),
            )

    trainer = subjects.build(tmp_path, Answers, generation_max_length=6)
    trainer.compute_metrics = lambda _: {"f1": 2.0}
    settings = []
    generate = trainer.model.generate
    trainer.model.generate = lambda **inputs: (settings.append(inputs["max_length"]), generate(**inputs))[1]

    assert trainer.evaluate(max_new_tokens=3)["eval_f1"] == 2.0
    assert settings == [6, 6, 6], "the arguments' length is passed beside max_new_tokens"
    assert isinstance(calls[0][2], minitrainer.EvalLoopOutput)
    trainer.predict(subjects.Copying(2), [])
    assert settings[3:] == [20], "predict does not look at the arguments"


# Read next: tests/hub_search/test_search.py
