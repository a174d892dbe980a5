"""What a checkpoint holds, how it is resumed, and which ones are kept; without the real Trainer."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import BertForSequenceClassification

import minitrainer
from tests.saving import subjects

ALWAYS = ["optimizer.pt", "rng_state.pth", "scheduler.pt", "trainer_state.json", "training_args.bin"]


@pytest.mark.parametrize("safe", [False, True])
def test_the_files_and_that_transformers_can_load_them(safe: bool, tmp_path: Path) -> None:
    trainer = subjects.build(tmp_path, save_safetensors=safe)
    trainer.train()
    weights = "model.safetensors" if safe else "pytorch_model.bin"
    checkpoint = tmp_path / "checkpoint-12"
    assert subjects.files_in(checkpoint) == sorted([*ALWAYS, "config.json", weights])

    model = BertForSequenceClassification.from_pretrained(str(checkpoint))
    for name, value in trainer.model.state_dict().items():
        assert torch.equal(model.state_dict()[name], value), name


def test_the_arguments_can_be_read_back(tmp_path: Path) -> None:
    subjects.build(tmp_path, learning_rate=0.125).save_model()
    args = torch.load(tmp_path / "training_args.bin", weights_only=False)
    assert type(args) is minitrainer.TrainingArguments
    assert args.learning_rate == 0.125


@pytest.mark.parametrize("safe", [False, True])
@pytest.mark.parametrize("step", [3, 6])
def test_a_resumed_run_is_the_unbroken_run(safe: bool, step: int, tmp_path: Path) -> None:
    unbroken = subjects.build(tmp_path, save_safetensors=safe)
    unbroken.train()
    states = subjects.random_states()
    resumed = subjects.build(tmp_path, save_safetensors=safe)
    resumed.train(resume_from_checkpoint=str(tmp_path / f"checkpoint-{step}"))
    assert torch.equal(subjects.parameters(resumed), subjects.parameters(unbroken))
    assert subjects.random_states() == states
    assert losses(resumed) == losses(unbroken)


def losses(trainer: Any) -> list[tuple[int, float]]:
    return [(row["step"], row["loss"]) for row in trainer.state.log_history if "loss" in row]


def test_a_process_of_its_own_resumes_to_the_same_bits(tmp_path: Path) -> None:
    """What only lives in memory cannot help: another process goes on from the files alone."""
    unbroken = subjects.build(tmp_path)
    unbroken.train()
    program = (
        "import sys, torch; from tests.saving import subjects\n"
        "trainer = subjects.build(sys.argv[1])\n"
        "trainer.train(resume_from_checkpoint=sys.argv[1] + '/checkpoint-6')\n"
        "torch.save(subjects.parameters(trainer), sys.argv[2])"
    )
    end = tmp_path / "end.pt"
    subprocess.run([sys.executable, "-c", program, str(tmp_path), str(end)], check=True, cwd=Path(__file__).parents[2])
    assert torch.equal(torch.load(end, weights_only=True), subjects.parameters(unbroken))


# -- wrong use ---


def test_a_folder_without_weights_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is no checkpoint: it holds none of .*resume_from_checkpoint"):
        subjects.build(tmp_path / "run").train(resume_from_checkpoint=str(tmp_path))


def test_a_checkpoint_of_another_model_is_named(tmp_path: Path) -> None:
    subjects.build(tmp_path / "a").save_model()
    other = subjects.build(tmp_path / "b", model=subjects.tiny_bert(hidden_size=32))
    with pytest.raises(RuntimeError, match="does not fit BertForSequenceClassification: was it written by another"):
        other.train(resume_from_checkpoint=str(tmp_path / "a"))


def test_a_metric_that_evaluation_never_returns_is_named(tmp_path: Path) -> None:
    trainer = subjects.build(tmp_path, load_best_model_at_end=True, metric_for_best_model="f1")
    with pytest.raises(KeyError, match="metric_for_best_model='f1' asks for 'eval_f1'.*eval_accuracy"):
        trainer.train()


def test_only_safetensors_with_save_safetensors_false_is_a_missing_file(tmp_path: Path) -> None:
    subjects.build(tmp_path / "a", save_safetensors=True).save_model()
    with pytest.raises(FileNotFoundError, match="pytorch_model.bin"):
        subjects.build(tmp_path / "b").train(resume_from_checkpoint=str(tmp_path / "a"))


def test_keys_of_one_side_only_are_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    trainer = subjects.build(tmp_path)
    trainer.save_model()
    weights = torch.load(tmp_path / "pytorch_model.bin", weights_only=True)
    weights["a.name.of.its.own"] = weights.pop("classifier.bias")
    torch.save(weights, tmp_path / "pytorch_model.bin")
    root = logging.getLogger("transformers")
    root.addHandler(caplog.handler)
    try:
        trainer._load_from_checkpoint(str(tmp_path))
    finally:
        root.removeHandler(caplog.handler)
    assert "checkpoint lacks weights, which keep their values: ['classifier.bias']" in caplog.text
    assert "checkpoint holds weights that the model lacks: ['a.name.of.its.own']" in caplog.text


# -- the best one, and rotation ---


class Scores:
    """compute_metrics that returns given scores, one an evaluation."""

    def __init__(self, *scores: float) -> None:
        self.scores = iter(scores)

    def __call__(self, prediction: Any) -> dict[str, float]:
        return {"score": next(self.scores)}


def trained_with_scores(folder: Path, *scores: float, **arguments: Any) -> Any:
    trainer = subjects.build(folder, load_best_model_at_end=True, metric_for_best_model="score", **arguments)
    trainer.compute_metrics = Scores(*scores)
    trainer.train()
    return trainer


@pytest.mark.parametrize(
    ("scores", "best"),
    [
        ((1, 2, 3, 4), 12),
        ((1, 3, 2, 1), 6),
        ((2, 2, 2, 2), 3),  # not better is not best
        ((1, float("nan"), 3, 2), 9),
        ((float("nan"), 1, 2, 3), 3),  # a NaN that came first stays the best
    ],
)
def test_the_best_checkpoint_and_its_weights(scores: tuple[float, ...], best: int, tmp_path: Path) -> None:
    trainer = trained_with_scores(tmp_path, *scores, learning_rate=0.01)
    assert trainer.state.best_model_checkpoint == str(tmp_path / f"checkpoint-{best}")
    weights = torch.load(tmp_path / f"checkpoint-{best}" / "pytorch_model.bin", weights_only=True)
    assert weights.keys() == trainer.model.state_dict().keys()
    assert all(torch.equal(weights[name], value) for name, value in trainer.model.state_dict().items())


@pytest.mark.parametrize(
    ("limit", "scores", "left"),
    [
        (None, (4, 3, 2, 1), [3, 6, 9, 12]),
        (1, (1, 2, 3, 4), [12]),
        (1, (4, 3, 2, 1), [3]),  # the newest is deleted at the very end
        (2, (4, 3, 2, 1), [3, 12]),
        (2, (1, 4, 3, 2), [6, 12]),
        (3, (1, 4, 3, 2), [6, 9, 12]),
    ],
)
def test_which_checkpoints_are_left(limit: int | None, scores: Any, left: list[int], tmp_path: Path) -> None:
    trained_with_scores(tmp_path, *scores, save_total_limit=limit)
    assert sorted(int(path.name.split("-")[1]) for path in tmp_path.glob("checkpoint-*")) == left


def test_checkpoints_in_order_of_steps_or_of_time(tmp_path: Path) -> None:
    trainer = subjects.build(tmp_path)
    for step, seconds in ((5, 300), (10, 100), (1000, 200)):
        folder = tmp_path / f"checkpoint-{step}"
        folder.mkdir()

        os.utime(folder, (seconds, seconds))
    (tmp_path / "checkpoint-notes").mkdir()
    (tmp_path / "checkpoint-7").write_text("a file")

    def names(**options: Any) -> list[str]:
        return [Path(path).name for path in trainer._sorted_checkpoints(output_dir=str(tmp_path), **options)]

    assert names() == ["checkpoint-5", "checkpoint-10", "checkpoint-1000"]
    (tmp_path / "checkpoint-notes").rmdir()
    assert names(use_mtime=True) == ["checkpoint-10", "checkpoint-1000", "checkpoint-5"]
    trainer.state.best_model_checkpoint = str(tmp_path / "checkpoint-5")
    assert names() == ["checkpoint-10", "checkpoint-5", "checkpoint-1000"]
    trainer.state.best_model_checkpoint = str(tmp_path / "checkpoint-6")
    with pytest.raises(ValueError, match="checkpoint-6 is not in"):
        names()


# -- other ways to save ---


def test_a_subclass_may_save_less(tmp_path: Path) -> None:
    """As prefix tuning does: only what requires gradients is written, and a resumed run is still the unbroken one."""

    class SavesWhatIsTrained(minitrainer.Trainer):
        def _save(self, output_dir: Any = None, state_dict: Any = None) -> None:
            trained = {name for name, parameter in self.model.named_parameters() if parameter.requires_grad}
            everything = self.model.state_dict()
            super()._save(output_dir, {name: everything[name] for name in trained})

    def build() -> Any:
        model = subjects.tiny_bert()
        model.bert.requires_grad_(False)
        return subjects.build(tmp_path, SavesWhatIsTrained, model=model)

    unbroken = build()
    unbroken.train()
    weights = torch.load(tmp_path / "checkpoint-6" / "pytorch_model.bin", weights_only=True)
    assert sorted(weights) == ["classifier.bias", "classifier.weight"]
    resumed = build()
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-6"))
    assert torch.equal(subjects.parameters(resumed), subjects.parameters(unbroken))


@pytest.mark.parametrize("safe", [False, True])
def test_a_model_that_is_no_pretrained_model(safe: bool, tmp_path: Path) -> None:
    trainer = subjects.build(tmp_path, model=subjects.PlainModel(), save_safetensors=safe)
    trainer.train()
    weights = "model.safetensors" if safe else "pytorch_model.bin"
    assert subjects.files_in(tmp_path / "checkpoint-3") == sorted([*ALWAYS, weights])
    resumed = subjects.build(tmp_path, model=subjects.PlainModel(), save_safetensors=safe)
    resumed.train(resume_from_checkpoint=True)
    assert torch.equal(subjects.parameters(resumed), subjects.parameters(trainer))


def test_weights_in_several_files(tmp_path: Path) -> None:
    trainer = subjects.build(tmp_path)
    weights = trainer.model.state_dict()
    names = sorted(weights)
    index = {}
    for number, part in enumerate((names[::2], names[1::2]), start=1):
        file_name = f"pytorch_model-0000{number}-of-00002.bin"
        torch.save({name: weights[name] + 1 for name in part}, tmp_path / file_name)
        index.update(dict.fromkeys(part, file_name))
    (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))
    before = subjects.parameters(trainer).clone()
    trainer._load_from_checkpoint(str(tmp_path))
    assert torch.equal(subjects.parameters(trainer), before + 1)
    trainer.state.best_model_checkpoint = str(tmp_path)
    trainer._load_best_model()
    assert torch.equal(subjects.parameters(trainer), before + 1)


# Read next: tests/evaluation/test_evaluation.py
