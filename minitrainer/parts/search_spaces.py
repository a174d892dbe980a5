"""The defaults of a hyperparameter search: which values to try, and which number to improve."""

from typing import Any


def default_compute_objective(metrics: dict[str, float]) -> float:
    """Return the evaluation loss if there are no other metrics, the *sum* of the other metrics otherwise.

    **Beware:** a sum mixes whatever there is. With accuracy and F1 it is meant to grow, with a loss to shrink, so the
    direction of the search has to fit. Runtimes, throughputs and the epoch do not count.

    Args:
        metrics: what `evaluate` returned; not changed.

    Source: trainer_utils.py 216-238.
    """
    left_out = ("_runtime", "_per_second", "_compilation_time")
    scores = [
        value for name, value in metrics.items() if name not in ("eval_loss", "epoch") and not name.endswith(left_out)
    ]
    return sum(scores) if scores else metrics.get("eval_loss")  # type: ignore[return-value]


# Every backend is offered the same four hyperparameters, in its own words.

BATCH_SIZES = [4, 8, 16, 32, 64]


def default_hp_space_optuna(trial: Any) -> dict[str, float]:
    """Ask an Optuna trial for learning rate (log scale), epochs, seed and batch size.

    Source: trainer_utils.py 241-250.
    """
    from ..reporters import is_optuna_available

    assert is_optuna_available(), "the Optuna search space: `pip install optuna`"
    space = {"learning_rate": trial.suggest_float("learning_rate", 1e-6, 1e-4, log=True)}
    space["num_train_epochs"] = trial.suggest_int("num_train_epochs", 1, 5)
    space["seed"] = trial.suggest_int("seed", 1, 40)
    batch_size_name = "per_device_train_batch_size"
    return space | {batch_size_name: trial.suggest_categorical(batch_size_name, BATCH_SIZES)}


def default_hp_space_ray(trial: Any) -> dict[str, Any]:
    """The same for Ray Tune, which draws from the distributions itself: `trial` plays no part.

    Source: trainer_utils.py 253-264.
    """
    from ..reporters import is_ray_tune_available

    assert is_ray_tune_available(), "the Ray Tune search space: `pip install ray[tune]`"
    from ray import tune

    epochs = tune.choice([1, 2, 3, 4, 5])
    space = {"learning_rate": tune.loguniform(1e-6, 1e-4), "num_train_epochs": epochs}
    return space | {"seed": tune.uniform(1, 40), "per_device_train_batch_size": tune.choice(BATCH_SIZES)}


def default_hp_space_sigopt(trial: Any) -> list[dict[str, Any]]:
    """The same for SigOpt, as a list of parameter descriptions, batch sizes as words.

    **Beware:** the key of the log scale is misspelt upstream (`transformamtion`), and kept: SigOpt is sent the same.

    Source: trainer_utils.py 267-277.
    """

    def between(name: str, kind: str, low: float, high: float) -> dict[str, Any]:
        return {"bounds": {"min": low, "max": high}, "name": name, "type": kind}

    batch_size = {"name": "per_device_train_batch_size", "type": "categorical"}
    return [
        between("learning_rate", "double", 1e-6, 1e-4) | {"transformamtion": "log"},
        between("num_train_epochs", "int", 1, 6),
        between("seed", "int", 1, 40),
        {"categorical_values": [str(size) for size in BATCH_SIZES], **batch_size},
    ]


def default_hp_space_wandb(trial: Any) -> dict[str, Any]:
    """The same as a W&B sweep, which minimizes the objective.

    Raises:
        ImportError: without wandb.

    Source: trainer_utils.py 280-295.
    """
    from ..reporters import is_wandb_available

    if not is_wandb_available():
        raise ImportError("the W&B search space: `pip install wandb`")

    def between(distribution: str, low: float, high: float) -> dict[str, Any]:
        return {"distribution": distribution, "min": low, "max": high}

    parameters = {
        "num_train_epochs": between("int_uniform", 1, 6),
        "learning_rate": between("uniform", 1e-6, 1e-4),
        "seed": between("int_uniform", 1, 40),
        "per_device_train_batch_size": {"values": BATCH_SIZES},
    }
    return {"method": "random", "metric": {"name": "objective", "goal": "minimize"}, "parameters": parameters}


# Read next: sagemaker.py
