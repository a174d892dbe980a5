"""What evaluation counts, gathers and returns, and that its two flaws are what the docstrings say they are."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import Dataset, IterableDataset

import minitrainer

SAMPLES = 7


class Numbers(Dataset):
    """Samples 1 to 7; the loss of a sample is its number."""

    def __init__(self, samples: int = SAMPLES, labelled: bool = True) -> None:
        self.samples, self.labelled = samples, labelled

    def __len__(self) -> int:
        return self.samples

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        example = {"input_ids": torch.tensor([index + 1, 0])}
        return {**example, "labels": torch.tensor(index)} if self.labelled else example


class Stream(IterableDataset):
    """The same, one after the other, without a length."""

    def __iter__(self) -> Any:
        return (Numbers()[index] for index in range(SAMPLES))


class Echo(nn.Module):
    """Returns the numbers as logits, their mean as loss."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))
        self.config = SimpleNamespace(keys_to_ignore_at_inference=["ignored"], to_json_string=lambda: "{}")

    def forward(self, input_ids: torch.Tensor, labels: torch.Tensor | None = None) -> dict[str, torch.Tensor]:
        logits = input_ids.float() * self.scale
        output = {"logits": logits, "ignored": logits * 0}
        return output if labels is None else {"loss": logits[:, 0].mean(), **output}


def build(tmp_path: Path, eval_dataset: Any = None, compute_metrics: Any = None, **arguments: Any) -> Any:
    extra = {name: arguments.pop(name) for name in ("callbacks", "preprocess_logits_for_metrics") if name in arguments}
    args = minitrainer.TrainingArguments(
        output_dir=str(tmp_path),
        per_device_eval_batch_size=3,
        report_to=[],
        disable_tqdm=True,
        no_cuda=True,
        **arguments,
    )
    return minitrainer.Trainer(
        model=Echo(), args=args, eval_dataset=eval_dataset or Numbers(), compute_metrics=compute_metrics, **extra
    )


def keep(into: list[Any]) -> Any:
    return lambda prediction: into.append(prediction) or {"count": np.float64(len(prediction.predictions))}


def test_the_loss_is_the_mean_over_samples_on_one_rank(tmp_path: Path) -> None:
    metrics = build(tmp_path).evaluate()
    assert metrics["eval_loss"] == np.mean(range(1, SAMPLES + 1))
    assert metrics.keys() == {"eval_loss", "eval_runtime", "eval_samples_per_second", "eval_steps_per_second"}


def test_without_a_length_too(tmp_path: Path) -> None:
    trainer = build(tmp_path, Stream())
    assert trainer.evaluate()["eval_loss"] == np.mean(range(1, SAMPLES + 1))
    assert trainer.predict(Stream()).predictions.shape == (SAMPLES, 2)


@pytest.mark.parametrize("every", [None, 1, 2, 100])
def test_accumulation_moves_the_piles_after_every_batch_whatever_its_number(
    every: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from minitrainer.evaluation import _Pile

    moves = []
    move = _Pile.move_to_cpu
    monkeypatch.setattr(_Pile, "move_to_cpu", lambda pile: (moves.append(pile.on_device is not None), move(pile))[1])
    output = build(tmp_path, eval_accumulation_steps=every).predict(Numbers())
    assert output.predictions[:, 0].tolist() == list(range(1, SAMPLES + 1))
    # Three kinds (losses, predictions, labels), and three batches.
    assert sum(moves) == (3 if every is None else 9)


def test_compute_metrics_sees_everything_once_and_returns_plain_numbers(tmp_path: Path) -> None:
    seen: list[Any] = []
    trainer = build(tmp_path, compute_metrics=keep(seen), include_inputs_for_metrics=True)
    metrics = trainer.evaluate(metric_key_prefix="test")
    assert seen[0].predictions[:, 0].tolist() == list(range(1, SAMPLES + 1))
    assert seen[0].label_ids.tolist() == list(range(SAMPLES))
    assert seen[0].inputs[:, 0].tolist() == list(range(1, SAMPLES + 1))
    assert metrics["test_count"] == SAMPLES and type(metrics["test_count"]) is float
    json.dumps(trainer.state.log_history)


def test_predictions_are_not_gathered_where_nobody_reads_them(tmp_path: Path) -> None:
    output = build(tmp_path).evaluation_loop(
        build(tmp_path).get_eval_dataloader(), "Evaluation", prediction_loss_only=True
    )
    assert output.predictions is None and output.label_ids is None and output.num_samples == SAMPLES


def test_predict_without_labels(tmp_path: Path) -> None:
    output = build(tmp_path).predict(Numbers(labelled=False))
    assert output.label_ids is None
    assert "test_loss" not in output.metrics
    assert output.predictions.shape == (SAMPLES, 2), "the ignored output is left out"
    assert len(build(tmp_path).predict(Numbers(), ignore_keys=[]).predictions) == 2


def test_logits_can_be_made_smaller_first(tmp_path: Path) -> None:
    trainer = build(tmp_path, preprocess_logits_for_metrics=lambda logits, labels: logits.argmax(-1))
    assert trainer.predict(Numbers()).predictions.tolist() == [0] * SAMPLES


@pytest.mark.parametrize("every", [None, 1, 2, 100])
def test_the_older_loop_agrees_on_a_plain_dataloader(every: int | None, tmp_path: Path) -> None:
    seen: list[Any] = []
    trainer = build(tmp_path, compute_metrics=keep(seen), eval_accumulation_steps=every)
    trainer.evaluate()
    output = trainer.prediction_loop(torch.utils.data.DataLoader(Numbers(), batch_size=3), "Evaluation")
    assert output.metrics == {"eval_count": SAMPLES, "eval_loss": 4.0} and output.num_samples == SAMPLES
    assert seen[0].predictions.tolist() == seen[1].predictions.tolist()
    assert seen[0].label_ids.tolist() == seen[1].label_ids.tolist()


def test_the_older_loop_names_what_it_needs(tmp_path: Path, monkeypatch: Any) -> None:
    trainer = build(tmp_path)
    trainer.args.use_legacy_prediction_loop = True
    said: list[str] = []
    monkeypatch.setattr("minitrainer.evaluation.logger.error", said.append)
    with pytest.raises(TypeError, match="repeat"):  # as in 4.31.0, whose words name neither cause nor remedy
        trainer.evaluate()
    assert len(said) == 1 and "leave args.use_legacy_prediction_loop unset" in said[0]
    assert trainer.predict(Numbers(labelled=False)).predictions.shape == (SAMPLES, 2)
    trainer = build(tmp_path, Stream())
    trainer.args.use_legacy_prediction_loop = True
    with pytest.raises(ValueError, match="needs a dataloader with a __len__"):
        trainer.evaluate()


def test_events_in_order(tmp_path: Path) -> None:
    events = []

    class Watch(minitrainer.TrainerCallback):
        def on_prediction_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            events.append("prediction_step")

        def on_log(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            events.append("log")

        def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            events.append("evaluate")

        def on_predict(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            events.append("predict")

    trainer = build(tmp_path, callbacks=[Watch()])
    trainer.evaluate()
    assert events == ["prediction_step"] * 3 + ["log", "evaluate"]
    events.clear()
    trainer.predict(Numbers())
    assert events == ["prediction_step"] * 3 + ["predict"], "predict logs nothing"


def test_full_half_precision_evaluation_casts_the_model_for_good(tmp_path: Path) -> None:
    trainer = build(tmp_path, bf16_full_eval=True)
    trainer.evaluate()
    assert trainer.model.scale.dtype == torch.bfloat16


def test_memory_figures_are_returned_and_not_logged(tmp_path: Path) -> None:
    pytest.importorskip("psutil")
    trainer = build(tmp_path, skip_memory_metrics=False)
    metrics = trainer.evaluate()
    assert "eval_mem_cpu_alloc_delta" in metrics
    assert not any("_mem_" in key for row in trainer.state.log_history for key in row)


# -- reporting ---


def test_metrics_on_the_screen_and_in_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trainer = build(tmp_path)
    metrics = {
        "train_runtime": 3725.504,
        "total_flos": 5 << 30,
        "train_mem_cpu": 3 << 20,
        "b": 0.123456,
        "a": np.float64(0.123456),
        "n": 7,
    }
    trainer.log_metrics("train", metrics)
    assert capsys.readouterr().out.splitlines() == [
        "***** train metrics *****",
        "  a             =   0.123456",
        "  b             =     0.1235",
        "  n             =          7",
        "  total_flos    =        5GF",
        "  train_mem_cpu =        3MB",
        "  train_runtime = 1:02:05.50",
    ]
    trainer.save_metrics("train", {"loss": 1.0, "epoch": 1.0})
    trainer.save_metrics("eval", {"loss": 2.0})
    trainer.save_metrics("alone", {"loss": 3.0}, combined=False)
    read = {path.name: json.loads(path.read_text()) for path in tmp_path.glob("*_results.json")}
    assert read["all_results.json"] == {"loss": 2.0, "epoch": 1.0}
    assert read["train_results.json"] == {"loss": 1.0, "epoch": 1.0}
    assert read["alone_results.json"] == {"loss": 3.0}

    trainer.save_state()
    assert json.loads((tmp_path / "trainer_state.json").read_text())["global_step"] == 0


def test_other_ranks_report_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trainer = build(tmp_path)
    trainer.is_world_process_zero = lambda: False
    trainer.log_metrics("train", {"loss": 1.0})
    trainer.save_metrics("train", {"loss": 1.0})
    trainer.save_state()
    trainer.create_model_card()
    assert capsys.readouterr().out == "" and list(tmp_path.iterdir()) == []


# Read next: tests/seq2seq/test_seq2seq.py
