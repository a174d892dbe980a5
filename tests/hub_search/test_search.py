"""Hyperparameter search with the real optuna, and the errors of backends that are not there."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch

import minitrainer
from minitrainer import registry
from tests.saving import subjects


def build(tmp_path: Path, trainer_class: Any = None, **arguments: Any) -> Any:
    settings = {
        "output_dir": str(tmp_path),
        "max_steps": 4,
        "per_device_train_batch_size": 4,
        "save_steps": 2,
        "eval_steps": 2,
        "evaluation_strategy": "steps",
        "report_to": [],
        "disable_tqdm": True,
        "no_cuda": True,
        **arguments,
    }
    return (trainer_class or minitrainer.Trainer)(
        model_init=lambda: subjects.tiny_bert(),
        args=minitrainer.TrainingArguments(**settings),
        train_dataset=subjects.Tokens(),
        eval_dataset=subjects.Tokens(subjects.EVAL_EXAMPLES),
    )


# -- optuna ---


def test_optuna_finds_the_best_of_its_trials(tmp_path: Path) -> None:
    optuna = pytest.importorskip("optuna")
    trainer = build(tmp_path)
    rates = [0.0, 0.01, 1e-5]
    objectives = []

    def objective(metrics: dict[str, float]) -> float:
        objectives.append(metrics["eval_loss"])
        return metrics["eval_loss"]

    best = trainer.hyperparameter_search(
        hp_space=lambda trial: {"learning_rate": trial.suggest_categorical("learning_rate", rates)},
        compute_objective=objective,
        n_trials=len(rates),
        direction="minimize",
        sampler=optuna.samplers.GridSampler({"learning_rate": rates}),
        pruner=optuna.pruners.NopPruner(),
    )
    assert len(objectives) == 2 * len(rates)  # two evaluations a trial; the last one counts
    assert best.objective == min(objectives[1::2])
    assert best.hyperparameters["learning_rate"] in rates
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run-0", "run-1", "run-2"]
    assert sorted(path.name for path in (tmp_path / f"run-{best.run_id}").iterdir()) == [
        "checkpoint-2",
        "checkpoint-4",
    ]
    assert trainer.hp_search_backend is None

    # The best trial is what a plain run with its values would have been.
    alone = build(tmp_path / "alone", learning_rate=best.hyperparameters["learning_rate"])
    alone.train()
    assert alone.evaluate()["eval_loss"] == best.objective


def test_the_default_space_names_and_objective(tmp_path: Path) -> None:
    optuna = pytest.importorskip("optuna")
    trainer = build(tmp_path, max_steps=1, evaluation_strategy="no", save_strategy="steps", save_steps=1)
    best = trainer.hyperparameter_search(
        n_trials=1, hp_name=lambda trial: f"my-trial-{trial.number}", sampler=optuna.samplers.RandomSampler(seed=1)
    )
    assert set(best.hyperparameters) == {"learning_rate", "num_train_epochs", "seed", "per_device_train_batch_size"}
    assert best.hyperparameters["seed"] == trainer.args.seed
    assert [path.name for path in tmp_path.iterdir()] == ["my-trial-0"]
    assert trainer.state.trial_name == "my-trial-0" and trainer.state.trial_params == best.hyperparameters
    assert trainer.state.is_hyper_param_search
    assert best.objective == trainer.objective  # evaluated once after training, since training never did


def test_a_pruned_trial_ends_with_its_last_event(tmp_path: Path) -> None:
    optuna = pytest.importorskip("optuna")
    ends = []

    class Ends(minitrainer.TrainerCallback):
        def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            ends.append(state.global_step)

    class PrunesTheSecond(optuna.pruners.BasePruner):
        def prune(self, study: Any, trial: Any) -> bool:
            return trial.number == 1

    trainer = build(tmp_path)
    trainer.add_callback(Ends())
    best = trainer.hyperparameter_search(
        hp_space=lambda trial: {"seed": trial.suggest_int("seed", 1, 3)}, n_trials=3, pruner=PrunesTheSecond()
    )
    assert ends == [4, 2, 4]
    assert best.run_id in ("0", "2")


def test_values_are_cast_to_what_they_replace(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("optuna")
    trainer = build(tmp_path)
    accelerator = trainer.accelerator
    trainer.hp_search_backend = minitrainer.HPSearchBackend.WANDB  # its trials are plain dicts
    values = {"max_steps": 2.9, "learning_rate": "0.5", "group_by_length": "False", "run_name": 5, "no_such_field": 1}
    trainer._hp_search_setup(values)
    assert trainer.args.max_steps == 2 and trainer.args.learning_rate == 0.5
    assert trainer.args.group_by_length is True, "any text but the empty one"
    assert trainer.args.run_name == "5"
    assert not hasattr(trainer.args, "no_such_field")
    assert trainer.accelerator is not accelerator
    assert trainer._trial is values


# -- wrong use ---


def test_without_model_init(tmp_path: Path) -> None:
    pytest.importorskip("optuna")
    trainer = subjects.build(tmp_path)
    with pytest.raises(RuntimeError, match="pass model_init"):
        trainer.hyperparameter_search(n_trials=1, backend="optuna")


@pytest.mark.parametrize(
    ("name", "command"),
    [
        ("optuna", "`pip install optuna`"),
        ("ray", "`pip install 'ray[tune]'`"),
        ("sigopt", "`pip install sigopt`"),
        ("wandb", "`pip install wandb`"),
    ],
)
def test_a_missing_backend_says_how_to_install_it(
    name: str, command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the library hidden from Python's own search, whether it is installed here or not."""
    find_spec = importlib.util.find_spec
    hidden = {"optuna", "ray", "sigopt", "wandb"}
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda module, *rest: None if module in hidden else find_spec(module, *rest)
    )
    trainer = build(tmp_path)
    with pytest.raises(RuntimeError) as error:
        trainer.hyperparameter_search(backend=name)
    assert str(error.value) == f"The backend {name} is not installed: {command}."

    with pytest.raises(RuntimeError, match="No hyperparameter search backend available") as error:
        trainer.hyperparameter_search()
    assert all(
        backend.pip_install() in str(error.value) for backend in registry.ALL_HYPERPARAMETER_SEARCH_BACKENDS.values()
    )


def test_an_unknown_backend(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="hyperband"):
        build(tmp_path).hyperparameter_search(backend="hyperband")


def test_the_order_of_preference() -> None:
    assert list(registry.ALL_HYPERPARAMETER_SEARCH_BACKENDS) == ["optuna", "ray", "sigopt", "wandb"]


def test_a_resumed_trial_is_no_search(tmp_path: Path) -> None:
    """Outside a search, a trial that is passed to train changes nothing but what is remembered of it."""
    trainer = build(tmp_path)
    trainer._hp_search_setup(None)
    trainer._report_to_hp_search(None, 1, {"eval_loss": 1.0})
    assert trainer._trial is None and not hasattr(trainer, "objective")
    assert trainer._get_output_dir(None) == str(tmp_path)
    assert torch.is_tensor(next(trainer.model.parameters()))


# Read next: tests/hub_search/test_hub.py
