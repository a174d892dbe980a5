"""Wrong use gets upstream's kind of error, and a message that names the argument and the remedy."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import IterableDataset

import minitrainer


class Small(nn.Module):
    """One layer; a loss if there are labels."""

    def __init__(self, returns_tuple: bool = False) -> None:
        super().__init__()
        self.out = nn.Linear(2, 1)
        self.returns_tuple = returns_tuple

    def forward(self, x: torch.Tensor, labels: torch.Tensor | None = None) -> Any:
        prediction = self.out(x).squeeze(-1)
        if self.returns_tuple:
            return (prediction,)
        return {"logits": prediction} if labels is None else {"loss": ((prediction - labels) ** 2).mean()}


def samples(count: int, *names: str) -> list[dict[str, torch.Tensor]]:
    values = {"x": torch.ones(2), "labels": torch.zeros(())}
    return [{name: values[name] for name in names or values} for _ in range(count)]


class Stream(IterableDataset):
    """Samples without a length."""

    def __init__(self, rows: list[Any]) -> None:
        self.rows = rows

    def __iter__(self) -> Any:
        return iter(self.rows)


def build(folder: Path, model: Any = None, train_dataset: Any = None, **options: Any) -> minitrainer.Trainer:
    options = {"per_device_train_batch_size": 4, "save_strategy": "no", **options}
    arguments = minitrainer.TrainingArguments(
        output_dir=str(folder), no_cuda=True, report_to=[], disable_tqdm=True, dataloader_pin_memory=False, **options
    )
    return minitrainer.Trainer(Small() if model is None else model, arguments, train_dataset=train_dataset)


def test_no_model() -> None:
    with pytest.raises(RuntimeError, match="pass a `model`, or a `model_init`"):
        minitrainer.Trainer()


def test_no_train_dataset(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="pass train_dataset to Trainer"):
        build(tmp_path).train()


def test_an_unknown_keyword(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="no such keyword arguments: epochs"):
        build(tmp_path, train_dataset=samples(8)).train(epochs=3)


def test_no_labels(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="No loss came from the model, only logits. It was given x: are the labels"):
        build(tmp_path, train_dataset=samples(8, "x")).train()


def test_a_tuple_without_a_loss(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match=r"scalar outputs.*shape \(4,\).*first element must be the loss"):
        build(tmp_path, Small(returns_tuple=True), samples(8, "x")).train()


def test_a_loss_that_is_none(tmp_path: Path) -> None:
    class Lossless(Small):
        def forward(self, x: torch.Tensor, labels: torch.Tensor | None = None) -> Any:
            return {"loss": None, "logits": self.out(x)}

    with pytest.raises(TypeError, match=r"the loss of the `model` is None\..*labels \(here: x\)"):
        build(tmp_path, Lossless(), samples(8, "x")).train()


def test_no_data_to_evaluate_on(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="pass eval_dataset to Trainer, or to evaluate"):
        build(tmp_path).evaluate()


def test_a_checkpoint_of_another_plain_model(tmp_path: Path) -> None:
    torch.save({"elsewhere": torch.ones(1)}, tmp_path / "pytorch_model.bin")
    with pytest.raises(AttributeError, match=r"checkpoint lacks: \['out.weight', 'out.bias'\]. Is it another model's"):
        build(tmp_path / "run", train_dataset=samples(8)).train(resume_from_checkpoint=str(tmp_path))


def test_columns_that_the_model_does_not_take(tmp_path: Path) -> None:
    rows = [{"words": torch.ones(2)} for _ in range(8)]
    with pytest.raises(ValueError, match="Nothing is left of the batch: .*x,labels.*remove_unused_columns"):
        build(tmp_path, train_dataset=rows).train()


def test_less_than_one_full_batch_with_drop_last(tmp_path: Path) -> None:
    # accelerate 0.21 gives one batch that is None where later ones give none.
    with pytest.raises((TypeError, ZeroDivisionError), match="`dataloader_drop_last`"):
        build(tmp_path, train_dataset=samples(3), dataloader_drop_last=True).train()


def test_no_length_and_no_max_steps(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="train_dataset has no __len__.*set max_steps"):
        build(tmp_path, train_dataset=Stream(samples(3)))


def test_a_stop_before_the_first_step(tmp_path: Path) -> None:
    class Stop(minitrainer.TrainerCallback):
        def on_substep_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            control.should_training_stop = True

    trainer = build(tmp_path, train_dataset=samples(16), gradient_accumulation_steps=2)
    trainer.add_callback(Stop)
    with pytest.raises(ZeroDivisionError, match="float division by zero: no step was made.*`train_dataset`"):
        trainer.train()


def test_a_metric_that_no_evaluation_returns(tmp_path: Path) -> None:
    trainer = build(
        tmp_path,
        train_dataset=samples(8),
        evaluation_strategy="epoch",
        lr_scheduler_type="reduce_lr_on_plateau",
        metric_for_best_model="bleu",
    )
    trainer.eval_dataset = samples(4)
    with pytest.raises(KeyError, match="eval_bleu: `metric_for_best_model`.*eval_loss"):
        trainer.train()


@pytest.mark.skipif(os.name != "posix", reason="folders and files")
def test_an_output_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OSError, match="`output_dir` cannot be made") as caught:
        build(tmp_path / "file" / "run")
    assert caught.value.filename == str(tmp_path / "file" / "run")


def test_a_device_map_without_devices(tmp_path: Path) -> None:
    model = Small()
    model.hf_device_map = {"": "cpu"}
    with pytest.raises(IndexError, match="hf_device_map.*without `device_map`"):
        build(tmp_path, model)


def test_no_checkpoint_to_resume_from(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"resume_from_checkpoint=True, but output_dir \(.*\) holds no checkpoint-"):
        build(tmp_path, train_dataset=samples(8)).train(resume_from_checkpoint=True)


def test_a_collator_of_the_old_kind(tmp_path: Path) -> None:
    class Old:
        def collate_batch(self, rows: Any) -> Any:
            return rows

    with pytest.raises(ValueError, match="rename `collate_batch` to `__call__`"):
        arguments = minitrainer.TrainingArguments(output_dir=str(tmp_path), no_cuda=True, report_to=[])
        minitrainer.Trainer(Small(), arguments, data_collator=Old())


# Read next: ../parity/test_named.py
