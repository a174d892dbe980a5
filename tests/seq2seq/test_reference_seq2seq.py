"""Seq2SeqTrainer of ours against the real 4.31.0: every number, every generated token, every call of `generate`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

import minitrainer
from tests.seq2seq import subjects

pytestmark = pytest.mark.reference

OURS = (minitrainer.Seq2SeqTrainer, minitrainer.Seq2SeqTrainingArguments)
REAL = (transformers.Seq2SeqTrainer, transformers.Seq2SeqTrainingArguments)

SHAPES: dict[str, dict[str, Any]] = {
    "plain": {},
    "without_generate": {"predict_with_generate": False},
    "length_of_arguments": {"generation_max_length": 9},
    "beams_of_arguments": {"generation_max_length": 5, "generation_num_beams": 3},
    "loss_only": {"prediction_loss_only": True},
    "label_smoothing": {"label_smoothing_factor": 0.1, "data": subjects.WithDecoderInputs},
    "accumulating_evaluation": {"eval_accumulation_steps": 1},
    "generation_config": {
        "generation_config": transformers.GenerationConfig(max_length=7, num_beams=2, decoder_start_token_id=0)
    },
    "new_tokens_in_config": {
        "generation_config": transformers.GenerationConfig(max_length=3, max_new_tokens=6, decoder_start_token_id=0)
    },
}

CALLS: dict[str, dict[str, Any]] = {
    "nothing": {},
    "max_length": {"max_length": 4},
    "max_new_tokens": {"max_new_tokens": 3},
    "beams": {"num_beams": 2},
    "sampling": {"do_sample": True, "top_k": 5},
}


def both(tmp_path: Path, **arguments: Any) -> tuple[Any, Any]:
    return (
        subjects.build(tmp_path / "ours", *OURS, **arguments),
        subjects.build(tmp_path / "real", *REAL, **arguments),
    )


def watched(trainer: Any) -> list[dict[str, Any]]:
    """Collect what `generate` is given."""
    calls: list[dict[str, Any]] = []
    generate = trainer.model.generate

    def recorded(**inputs: Any) -> Any:
        calls.append({key: v.tolist() if isinstance(v, torch.Tensor) else v for key, v in inputs.items()})
        return generate(**inputs)

    trainer.model.generate = recorded
    return calls


def numbers(metrics: dict[str, float]) -> dict[str, float]:
    return {key: value for key, value in metrics.items() if not key.endswith(("_runtime", "_per_second"))}


@pytest.mark.parametrize("shape", SHAPES)
def test_training_with_evaluations(shape: str, tmp_path: Path) -> None:
    ours, real = both(tmp_path, **SHAPES[shape])
    calls_ours, calls_real = watched(ours), watched(real)
    for trainer in (ours, real):
        torch.manual_seed(11)
        trainer.train()
    assert [numbers(row) for row in ours.state.log_history] == [numbers(row) for row in real.state.log_history]
    assert calls_ours == calls_real
    generates = SHAPES[shape].get("predict_with_generate", True) and not SHAPES[shape].get("prediction_loss_only")
    assert (len(calls_ours) > 0) == bool(generates)


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("shape", ["plain", "beams_of_arguments", "generation_config", "new_tokens_in_config"])
def test_evaluate_and_predict(shape: str, call: str, tmp_path: Path) -> None:
    results = []
    for trainer in both(tmp_path, **SHAPES[shape]):
        calls = watched(trainer)
        torch.manual_seed(11)
        metrics = trainer.evaluate(**CALLS[call])
        labelled = trainer.predict(subjects.Copying(5), metric_key_prefix="test", **CALLS[call])
        unlabelled = trainer.predict(subjects.Unlabelled(5), **CALLS[call])
        assert unlabelled.label_ids is None
        results.append((calls, metrics, labelled, unlabelled))

    (calls, metrics, labelled, unlabelled), (real_calls, real_metrics, real_labelled, real_unlabelled) = results
    assert calls == real_calls and len(calls) == 7  # three batches, then two, then two
    assert numbers(metrics) == numbers(real_metrics)
    assert numbers(labelled.metrics) == numbers(real_labelled.metrics)
    for a, b in ((labelled, real_labelled), (unlabelled, real_unlabelled)):
        assert np.array_equal(a.predictions, b.predictions)
    assert np.array_equal(labelled.label_ids, real_labelled.label_ids)


@pytest.mark.parametrize("pad", [None, 0])
def test_padding(pad: int | None, tmp_path: Path) -> None:
    outcomes = []
    for trainer in both(tmp_path):
        trainer.model.config.pad_token_id = pad
        try:
            outcomes.append(trainer._pad_tensors_to_max_len(torch.tensor([[4, 5]]), 4).tolist())
        except ValueError:
            outcomes.append("ValueError")
    assert outcomes[0] == outcomes[1]


# Read next: tests/seq2seq/test_seq2seq.py
