"""Checkpoints of ours and of the real 4.31.0: the same files, and each side goes on from the other's."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

import minitrainer
from tests.saving import subjects

pytestmark = pytest.mark.reference

OURS = (minitrainer.Trainer, minitrainer.TrainingArguments)
REAL = (transformers.Trainer, transformers.TrainingArguments)


def run(output_dir: Path, classes: Any, resume: Path | None = None, model: Any = None, **arguments: Any) -> Any:
    tokenizer = a_tokenizer() if arguments.pop("with_tokenizer", False) else None
    trainer = subjects.build(output_dir, *classes, model=model() if model else None, tokenizer=tokenizer, **arguments)
    with subjects.upstream_may_unpickle():
        trainer.train(resume_from_checkpoint=None if resume is None else str(resume))
    return trainer


def a_tokenizer() -> Any:
    from tokenizers import Tokenizer, models

    words = {"[UNK]": 0, "[PAD]": 1, "word": 2}
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel(words, unk_token="[UNK]")), unk_token="[UNK]", pad_token="[PAD]"
    )


class TiedModel(transformers.BertForMaskedLM):
    """Input and output embeddings are one tensor: the two weight formats treat it differently."""

    def __init__(self) -> None:
        torch.manual_seed(1)
        super().__init__(subjects.tiny_bert().config)

    def forward(self, input_ids: Any = None, labels: Any = None, **inputs: Any) -> Any:
        return super().forward(input_ids=input_ids, labels=input_ids if labels is not None else None, **inputs)


SHAPES = {
    "plain": {},
    "safetensors": {"save_safetensors": True},
    "tokenizer": {"with_tokenizer": True},
    "no_pretrained_model": {"model": subjects.PlainModel},
    "no_pretrained_model_safetensors": {"model": subjects.PlainModel, "save_safetensors": True},
    "tied_weights": {"model": TiedModel, "evaluation_strategy": "no"},
    "tied_weights_safetensors": {"model": TiedModel, "save_safetensors": True, "evaluation_strategy": "no"},
    "each_epoch": {"save_strategy": "epoch", "evaluation_strategy": "epoch"},
    "best_model": {"load_best_model_at_end": True, "metric_for_best_model": "accuracy"},
    "best_by_loss": {"load_best_model_at_end": True},
    "limit_2": {"save_total_limit": 2},
    "limit_1_best": {"save_total_limit": 1, "load_best_model_at_end": True, "metric_for_best_model": "accuracy"},
    "limit_2_best": {"save_total_limit": 2, "load_best_model_at_end": True, "metric_for_best_model": "accuracy"},
    "plateau": {"lr_scheduler_type": "reduce_lr_on_plateau", "metric_for_best_model": "loss"},
    "adafactor": {"optim": "adafactor"},
    "sgd_accumulating": {"optim": "sgd", "gradient_accumulation_steps": 2},
    "bf16": {"bf16": True},
}

# The accuracy never moves, so the first checkpoint is the best and stays it.
BEST = {"load_best_model_at_end": True, "metric_for_best_model": "accuracy"}

# Those whose checkpoints differ in what resuming has to read.
CROSSING = ("plain", "safetensors", "no_pretrained_model", "each_epoch", "plateau", "sgd_accumulating")


@pytest.mark.parametrize("shape", SHAPES)
def test_the_same_files_with_equal_content(shape: str, tmp_path: Path) -> None:
    theirs = run(tmp_path / "real", REAL, **SHAPES[shape])
    ours = run(tmp_path / "ours", OURS, **SHAPES[shape])

    assert len(subjects.files_in(tmp_path / "real")) >= 7
    assert subjects.differences(tmp_path / "ours", tmp_path / "real") == []
    assert torch.equal(subjects.parameters(ours), subjects.parameters(theirs))


@pytest.mark.parametrize("shape", CROSSING)
@pytest.mark.parametrize("writer", ["ours", "real"])
def test_each_side_goes_on_from_the_other(shape: str, writer: str, tmp_path: Path) -> None:
    """Resumed at a step by ours and by the real Trainer: equal to each other, and, where the real one is, unbroken."""
    sides = {"ours": OURS, "real": REAL}
    arguments = {**SHAPES[shape], "save_total_limit": None}
    # Every run works in this one folder: the state holds its path.
    folder = tmp_path / "run"
    unbroken = run(folder, sides[writer], **arguments)
    states_unbroken = subjects.random_states()
    as_written = subjects.copy(folder, tmp_path / "as_written")

    steps = sorted(int(path.name.split("-")[1]) for path in folder.glob("checkpoint-*"))[:-1]
    assert len(steps) >= 1
    for step in steps:
        ends = {}
        for resumer, classes in sides.items():
            shutil.rmtree(folder)
            subjects.copy(as_written, folder)
            trainer = run(folder, classes, resume=folder / f"checkpoint-{step}", **arguments)
            ends[resumer] = (subjects.parameters(trainer), subjects.random_states())
            subjects.copy(folder, tmp_path / f"{step}-{resumer}")
        assert subjects.differences(tmp_path / f"{step}-ours", tmp_path / f"{step}-real") == []
        assert torch.equal(ends["ours"][0], ends["real"][0])
        assert ends["ours"][1] == ends["real"][1]

        # 4.31.0 shuffles a later epoch anew when it resumes within it, so only there may the unbroken run differ.
        if step <= unbroken.state.max_steps // subjects.EPOCHS:
            assert torch.equal(ends["ours"][0], subjects.parameters(unbroken)), step
            assert ends["ours"][1] == states_unbroken


def test_shards_written_by_one_side_load_on_the_other(tmp_path: Path) -> None:
    """Weights in several files, as models above 10 GB have them; here forced to be small."""

    def sharding(trainer_class: Any, safe: bool) -> Any:
        class Sharding(trainer_class):
            def _save(self, output_dir: Any = None, state_dict: Any = None) -> None:
                super()._save(output_dir, state_dict)
                for name in ("pytorch_model.bin", "model.safetensors"):
                    Path(output_dir, name).unlink(missing_ok=True)
                self.model.save_pretrained(output_dir, max_shard_size="8KB", safe_serialization=safe)

        return Sharding

    for safe in (False, True):
        arguments = {"save_safetensors": safe}
        root = tmp_path / str(safe)
        run(root / "real", (sharding(REAL[0], safe), REAL[1]), **arguments)
        run(root / "ours", (sharding(OURS[0], safe), OURS[1]), **arguments)
        assert subjects.differences(root / "ours", root / "real") == []
        assert sum("-of-" in name for name in subjects.files_in(root / "ours" / "checkpoint-3")) >= 2
        ends = []
        for writer in ("real", "ours"):
            for classes in (REAL, OURS):
                folder = subjects.copy(root / writer, root / f"{writer}-{classes[0].__module__}")
                ends.append(subjects.parameters(run(folder, classes, resume=folder / "checkpoint-6", **arguments)))
        assert all(torch.equal(end, ends[0]) for end in ends)


def test_the_sharded_best_model_is_found_or_missed_alike(tmp_path: Path, caplog: Any) -> None:
    """Of shards, only the index of `.bin` files is looked for: a best model in safetensors shards is not loaded."""
    for safe in (False, True):
        weights = []
        for name, (trainer_class, arguments_class) in (("real", REAL), ("ours", OURS)):

            class Sharding(trainer_class):  # type: ignore[misc, valid-type]
                def _save(self, output_dir: Any = None, state_dict: Any = None) -> None:
                    super()._save(output_dir, state_dict)
                    for file_name in ("pytorch_model.bin", "model.safetensors"):
                        Path(output_dir, file_name).unlink(missing_ok=True)
                    self.model.save_pretrained(output_dir, max_shard_size="8KB", safe_serialization=safe)  # noqa: B023

            folder = tmp_path / f"{name}-{safe}"
            trainer = run(
                folder,
                (Sharding, arguments_class),
                save_safetensors=safe,
                load_best_model_at_end=True,
                metric_for_best_model="accuracy",
            )
            assert trainer.state.best_model_checkpoint == str(folder / "checkpoint-3")
            weights.append(subjects.parameters(trainer))
        assert torch.equal(weights[0], weights[1])


@pytest.mark.parametrize("output_dir", ["out", "./out", "out/"])
def test_rotation_with_limit_one_whatever_the_folder_is_called(
    output_dir: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`./out` makes 4.31.0 keep, and at the end delete, other checkpoints than `out`: a comparison of strings."""
    left = {}
    for name, classes in (("real", REAL), ("ours", OURS)):
        (tmp_path / name).mkdir()
        monkeypatch.chdir(tmp_path / name)
        run(output_dir, classes, save_total_limit=1, **BEST)  # type: ignore[arg-type]
        left[name] = sorted(path.name for path in Path("out").iterdir())
    assert left["ours"] == left["real"]


def test_a_missing_best_checkpoint_fails_alike(tmp_path: Path) -> None:
    """Resumed into another output folder, the rotation looks for the best checkpoint there, in both."""
    for name, classes in (("real", REAL), ("ours", OURS)):
        arguments = {"save_total_limit": 2, **BEST}
        run(tmp_path / name, classes, **arguments)
        with pytest.raises(ValueError, match="checkpoint-"):
            run(tmp_path / f"{name}-elsewhere", classes, resume=tmp_path / name / "checkpoint-9", **arguments)


# Read next: tests/saving/test_checkpoints.py
