"""Hyperparameter search: many short `train` calls, each with other arguments, steered by a search library.

    hyperparameter_search           picks a backend by name (registry.py) and hands it the Trainer
        backend.run                 for each trial: train(trial=…), then the objective
            train
                _hp_search_setup        the trial's values become self.args
                _report_to_hp_search    after each evaluation: the objective, perhaps the order to stop

**Beware:** a search leaves its marks. `args` keeps the values of the *last* trial, not the best one, and so does the
model. Set the best values by hand and train once more.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch

from . import compat
from .attributes import Attributes
from .parts.checkpoints import OPTIMIZER_NAME, PREFIX_CHECKPOINT_DIR, SCHEDULER_NAME, TRAINER_STATE_NAME
from .parts.choices import HPSearchBackend
from .parts.logs import get_logger
from .parts.search_spaces import default_compute_objective
from .registry import ALL_HYPERPARAMETER_SEARCH_BACKENDS, default_hp_search_backend

if TYPE_CHECKING:
    import optuna

    from .parts.outputs import BestRun

logger = get_logger(__name__)


class SearchMixin(Attributes):
    """Needs `model_init`, `args`, `train`, `evaluate`, `save_model` and the callback handler.

    You get: `hyperparameter_search` for users; the other three are called from within `train`.
    """

    def hyperparameter_search(
        self,
        hp_space: Callable[[optuna.Trial], dict[str, float]] | None = None,
        compute_objective: Callable[[dict[str, float]], float] | None = None,
        n_trials: int = 20,
        direction: str = "minimize",
        backend: str | HPSearchBackend | None = None,
        hp_name: Callable[[optuna.Trial], str] | None = None,
        **kwargs: Any,
    ) -> BestRun | None:
        """Train `n_trials` times with different arguments, and return the best of them.

        The Trainer must have been made with `model_init` and without `optimizers`, since each trial starts from a
        fresh model. Checkpoints go to `output_dir/run-<trial>`.

        Args:
            hp_space: gives the values to try, by names of `TrainingArguments`; the default depends on the backend.
                optuna calls it with each trial, the others once with None.
            compute_objective: turns the metrics of an evaluation into the number to improve; by default the loss if
                there is nothing else, the sum of all other metrics otherwise.
            n_trials: how many runs.
            direction: `minimize` or `maximize`.
            backend: `optuna`, `ray`, `sigopt` or `wandb`; by default the first of these that is installed.
            hp_name: gives a trial its name, and its folder below `output_dir`.
            kwargs: for the backend: `optuna.create_study` (and `timeout`, `n_jobs`), `ray.tune.run`, and so on.

        Returns:
            `BestRun(run_id, objective, hyperparameters, run_summary)`; on ranks other than 0, None.

        Raises:
            RuntimeError: if there is no backend, if the chosen one is not installed, or without `model_init`.
            ValueError: for a backend of another name.

        Writes: hp_search_backend, hp_space, hp_name, compute_objective
        Source: trainer.py 2480-2553
        """
        if backend is None:
            backend = default_hp_search_backend()
        backend = HPSearchBackend(getattr(backend, "value", backend))  # upstream's enum members are welcome too
        search = ALL_HYPERPARAMETER_SEARCH_BACKENDS[backend]()
        search.ensure_available()
        self.hp_search_backend = backend
        if self.model_init is None:
            raise RuntimeError(
                "hyperparameter_search needs a fresh model for each trial: pass model_init=... to the Trainer instead "
                "of model=..."
            )

        self.hp_space = search.default_hp_space if hp_space is None else hp_space
        self.hp_name = hp_name
        self.compute_objective = default_compute_objective if compute_objective is None else compute_objective

        best_run = search.run(self, n_trials, direction, **kwargs)

        self.hp_search_backend = None
        return best_run

    def _hp_search_setup(self, trial: Any) -> None:
        """Write the trial's values into `self.args` and build a new accelerator for them; first thing in `train`.

        **Beware:** each value is cast to the type of the value it replaces. A float for an argument that is an int
        now is cut, any text but the empty one is True for a bool, and where None stands now nothing is cast.
        DeepSpeed was never run on the hardware.

        Args:
            trial: what the backend gives: an optuna trial, a dict of values, or a SigOpt suggestion. None outside a
                search, where nothing happens but `_trial` being cleared.

        Raises:
            ValueError: under DeepSpeed, if `args.deepspeed` is not set.

        Writes: _trial, args.hf_deepspeed_config, args.deepspeed_plugin
        Source: trainer.py 1171-1216
        """
        self._trial = trial
        if self.hp_search_backend is None or trial is None:
            return

        # -- values of the trial ---
        if self.hp_search_backend == HPSearchBackend.OPTUNA:
            params = self.hp_space(trial)
        elif self.hp_search_backend == HPSearchBackend.RAY:
            params = trial
            params.pop("wandb", None)  # a key of Ray's logger, not an argument
        elif self.hp_search_backend == HPSearchBackend.SIGOPT:
            # SigOpt knows categories as words only: batch sizes come as text.
            params = {key: int(value) if isinstance(value, str) else value for key, value in trial.assignments.items()}
        elif self.hp_search_backend == HPSearchBackend.WANDB:
            params = trial

        # -- values into the arguments ---
        for key, value in params.items():
            if not hasattr(self.args, key):
                logger.warning(f"The hyperparameter search sets {key}, but TrainingArguments has no such field.")
                continue
            current = getattr(self.args, key, None)
            if current is not None:
                value = type(current)(value)
            setattr(self.args, key, value)

        if self.hp_search_backend == HPSearchBackend.OPTUNA:
            logger.info(f"Trial: {trial.params}")
        elif self.hp_search_backend == HPSearchBackend.SIGOPT:
            logger.info(f"SigOpt Assignments: {trial.assignments}")
        elif self.hp_search_backend == HPSearchBackend.WANDB:
            logger.info(f"W&B Sweep parameters: {trial}")

        # -- what was derived from the old values ---
        if self.is_deepspeed_enabled:
            if self.args.deepspeed is None:
                raise ValueError("A hyperparameter search with DeepSpeed needs args.deepspeed to be set.")
            from accelerate.utils import DeepSpeedPlugin

            self.args.hf_deepspeed_config = compat.hf_trainer_deepspeed_config()(self.args.deepspeed)
            self.args.hf_deepspeed_config.trainer_config_process(self.args)
            self.args.deepspeed_plugin = DeepSpeedPlugin(hf_ds_config=self.args.hf_deepspeed_config)
        self.create_accelerator_and_postprocess()

    def _report_to_hp_search(self, trial: Any, step: int, metrics: dict[str, float]) -> None:
        """Report the objective of one evaluation to the search, which may end the trial here.

        **Beware:** a pruned trial leaves `train` by an exception. Its `on_train_end` is called, but `train` returns
        nothing, saves nothing, and `is_in_train` stays True.

        Args:
            trial: the running trial; None outside a search, where nothing happens.
            step: `global_step`.
            metrics: what the evaluation returned; a copy goes to `compute_objective`.

        Raises:
            optuna.TrialPruned: if optuna gives the trial up.

        Writes: objective
        Events: on_train_end
        Source: trainer.py 1218-1234
        """
        if self.hp_search_backend is None or trial is None:
            return
        self.objective = self.compute_objective(metrics.copy())
        if self.hp_search_backend == HPSearchBackend.RAY:
            from ray import tune

            if self.control.should_save:
                self._tune_save_checkpoint()  # before the report: Tune may stop the trial there
            tune.report(objective=self.objective, **metrics)
        elif self.hp_search_backend == HPSearchBackend.OPTUNA:
            import optuna

            trial.report(self.objective, step)
            if trial.should_prune():
                # The exception skips the end of `train`, so its last event is fired here.
                self.callback_handler.on_train_end(self.args, self.state, self.control)
                raise optuna.TrialPruned()

    def _tune_save_checkpoint(self) -> None:
        """Write a checkpoint where Ray Tune wants it, so that it can pause a trial and go on elsewhere.

        It holds no random states: a trial that goes on is not the trial that would have been.

        Source: trainer.py 1236-1247
        """
        from ray import tune

        if not self.use_tune_checkpoints:
            return
        step = self.state.global_step
        with tune.checkpoint_dir(step=step) as checkpoint_dir:
            folder = os.path.join(checkpoint_dir, f"{PREFIX_CHECKPOINT_DIR}-{step}")
            self.save_model(folder, _internal_call=True)
            if self.args.should_save:
                self.state.save_to_json(os.path.join(folder, TRAINER_STATE_NAME))
                for part, name in ((self.optimizer, OPTIMIZER_NAME), (self.lr_scheduler, SCHEDULER_NAME)):
                    torch.save(part.state_dict(), os.path.join(folder, name))


# Read next: registry.py
