"""What Seq2SeqTrainer gives `generate`, and what comes back; on every version of transformers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import GenerationConfig

import minitrainer
from tests.seq2seq import subjects


def settings_of(trainer: Any) -> list[dict[str, Any]]:
    """Collect the settings that `generate` is given."""
    calls: list[dict[str, Any]] = []
    generate = trainer.model.generate

    def recorded(**inputs: Any) -> Any:
        calls.append({key: value for key, value in inputs.items() if not isinstance(value, torch.Tensor)})
        return generate(**inputs)

    trainer.model.generate = recorded
    return calls


def test_evaluation_within_train_uses_the_arguments(tmp_path: Path) -> None:
    trainer = subjects.build(tmp_path, generation_max_length=7, generation_num_beams=2)
    calls = settings_of(trainer)
    trainer.train()
    assert len(calls) == 6  # two evaluations of three batches
    assert all(call == {"max_length": 7, "num_beams": 2, "synced_gpus": False} for call in calls)


def test_a_call_decides_before_the_arguments_do(tmp_path: Path) -> None:
    trainer = subjects.build(tmp_path, generation_max_length=7, generation_num_beams=2)
    calls = settings_of(trainer)
    trainer.evaluate(max_length=5, num_beams=1)
    trainer.predict(subjects.Copying(4), max_new_tokens=3)
    assert calls[0] == {"max_length": 5, "num_beams": 1, "synced_gpus": False}
    assert calls[-1] == {"max_new_tokens": 3, "num_beams": 2, "synced_gpus": False}


def test_without_any_setting_the_models_config_decides(tmp_path: Path) -> None:
    trainer = subjects.build(tmp_path)
    calls = settings_of(trainer)
    trainer.evaluate()
    assert calls[0] == {"max_length": 20, "num_beams": 1, "synced_gpus": False}


def test_labels_are_no_beginning_of_an_answer(tmp_path: Path) -> None:
    """Decoder inputs of the labels' shape were made from them: they are left out of `generate` and of the loss."""
    trainer = subjects.build(tmp_path)
    seen: list[set[str]] = []
    generate = trainer.model.generate
    trainer.model.generate = lambda **inputs: (seen.append(set(inputs)), generate(**inputs))[1]
    batch = {name: torch.stack([row[name] for row in subjects.Copying(2)]) for name in subjects.Copying(1)[0]}
    batch["decoder_input_ids"] = batch["labels"].clamp(min=0)
    trainer.prediction_step(trainer.model, batch, prediction_loss_only=False)
    assert "decoder_input_ids" not in seen[0] and "labels" in seen[0]

    # A beginning of the user's own stays.
    batch["decoder_input_ids"] = batch["decoder_input_ids"][:, :1]
    del batch["labels"]
    trainer.prediction_step(trainer.model, batch, prediction_loss_only=False)
    assert "decoder_input_ids" in seen[1]


def test_generated_ids_and_labels_are_filled_up(tmp_path: Path) -> None:
    trainer = subjects.build(tmp_path)
    trainer.model.generation_config = GenerationConfig(max_length=15, decoder_start_token_id=subjects.PAD)
    output = trainer.predict(subjects.Copying(5), max_length=4)
    assert output.predictions.shape == (5, 15)
    assert (output.predictions[:, 4:] == subjects.PAD).all()
    assert output.label_ids.shape == (5, 15)
    assert (output.label_ids[:, 6:] == subjects.PAD).all()


def test_batches_generated_longer_than_the_config_says_are_joined_with_minus_100(tmp_path: Path) -> None:
    trainer = subjects.build(tmp_path, per_device_eval_batch_size=1)
    trainer.model.generation_config.max_length = 2
    lengths = iter([3, 5])
    trainer.model.generate = lambda **_: torch.full((1, next(lengths)), 7)
    output = trainer.predict(subjects.Unlabelled(2))
    assert output.predictions.tolist() == [[7, 7, 7, -100, -100], [7, 7, 7, 7, 7]]


def test_nothing_to_fill_up_with_is_named(tmp_path: Path) -> None:
    trainer = subjects.build(tmp_path)
    trainer.model.config.pad_token_id = None
    with pytest.raises(ValueError, match="model.config.pad_token_id, or pass a tokenizer"):
        trainer._pad_tensors_to_max_len(torch.ones(1, 2, dtype=torch.long), 3)


# -- the generation config ---


def test_it_comes_from_an_object_a_file_or_a_folder(tmp_path: Path) -> None:
    config = GenerationConfig(max_length=11, num_beams=2)
    config.save_pretrained(tmp_path)
    config.save_pretrained(tmp_path, config_file_name="mine.json")
    load = minitrainer.Seq2SeqTrainer.load_generation_config
    for source in (config, str(tmp_path), str(tmp_path / "mine.json"), tmp_path / "generation_config.json"):
        loaded = load(source)
        assert (loaded.max_length, loaded.num_beams) == (11, 2)
        assert loaded is not config
    trainer = subjects.build(tmp_path / "run", generation_config=str(tmp_path / "mine.json"))
    assert trainer.model.generation_config.max_length == 11


def test_a_wrong_name_is_an_os_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(OSError):
        minitrainer.Seq2SeqTrainer.load_generation_config(str(tmp_path / "nothing" / "here"))


def test_training_and_a_checkpoint(tmp_path: Path) -> None:
    trainer = subjects.build(tmp_path, save_strategy="steps", save_steps=2, evaluation_strategy="no")
    trainer.train()
    assert (tmp_path / "checkpoint-2" / "generation_config.json").is_file()
    ends = trainer.predict(subjects.Copying(4)).predictions
    resumed = subjects.build(tmp_path, save_strategy="steps", save_steps=2, evaluation_strategy="no")
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert np.array_equal(resumed.predict(subjects.Copying(4)).predictions, ends)


# Read next: tests/seq2seq/test_question_answering.py
