"""The search libraries by name: is it there, what would it try, and how does it run the trials?

optuna is tested. Ray, SigOpt and W&B are carried as 4.31.0 has them, and are not run by our tests: two of them need
an account, and Ray's `tune.report` of that time has gone from today's Ray.
"""

from __future__ import annotations

import functools
import importlib.metadata
import importlib.util
import os
import pickle
import sys
from abc import ABC, abstractmethod
from dataclasses import asdict
from typing import Any

import torch

from . import compat
from .parts import search_spaces
from .parts.checkpoints import PREFIX_CHECKPOINT_DIR
from .parts.choices import HPSearchBackend, IntervalStrategy, ParallelMode
from .parts.logs import get_logger
from .parts.outputs import BestRun

logger = get_logger(__name__)


def default_hp_search_backend() -> str:
    """Name the first search library that is installed, in the order optuna, ray, sigopt, wandb.

    Raises:
        RuntimeError: if none is; it says how to install each.

    Source: hyperparameter_search.py 122-138.
    """
    installed = [backend for backend in ALL_HYPERPARAMETER_SEARCH_BACKENDS.values() if backend.is_available()]
    if not installed:
        raise RuntimeError(
            "No hyperparameter search backend available.\n"
            + "\n".join(
                f" - To install {backend.name} run {backend.pip_install()}"
                for backend in ALL_HYPERPARAMETER_SEARCH_BACKENDS.values()
            )
        )
    if len(installed) > 1:
        logger.info(f"{len(installed)} hyperparameter search backends available, {installed[0].name} is the default.")
    return installed[0].name


class HyperParamSearchBackendBase(ABC):
    """What a search library must offer.

    Source: hyperparameter_search.py 41-67.
    """

    name: str
    pip_package: str | None = None  # where it is not the name

    @staticmethod
    @abstractmethod
    def is_available() -> bool:
        """Whether the library is installed."""

    @abstractmethod
    def run(self, trainer: Any, n_trials: int, direction: str, **kwargs: Any) -> BestRun | None:
        """Run the trials; return the best on rank 0, None elsewhere."""

    @abstractmethod
    def default_hp_space(self, trial: Any) -> Any:
        """Return what to try where the user gave no `hp_space`."""

    def ensure_available(self) -> None:
        """Raise a RuntimeError that says how to install the library, if it is missing."""
        if not self.is_available():
            raise RuntimeError(f"The backend {self.name} is not installed: {self.pip_install()}.")

    @classmethod
    def pip_install(cls) -> str:
        """Return the command that installs it, in backticks."""
        return f"`pip install {cls.pip_package or cls.name}`"


class OptunaBackend(HyperParamSearchBackendBase):
    """One study in this process; pruning through `_report_to_hp_search`. Source: integrations.py 180-228."""

    name = "optuna"

    @staticmethod
    def is_available() -> bool:
        from .reporters import is_optuna_available

        return is_optuna_available()

    def default_hp_space(self, trial: Any) -> dict[str, float]:
        return search_spaces.default_hp_space_optuna(trial)

    def run(self, trainer: Any, n_trials: int, direction: str, **kwargs: Any) -> BestRun | None:
        import optuna

        if trainer.args.process_index != 0:
            _follow_rank_0(trainer, n_trials, self.name)
            return None
        timeout, n_jobs = kwargs.pop("timeout", None), kwargs.pop("n_jobs", 1)
        study: Any = optuna.create_study(direction=direction, **kwargs)  # type: ignore[arg-type]
        study.optimize(
            lambda trial: _lead_one_trial(trainer, trial, self.name), n_trials=n_trials, timeout=timeout, n_jobs=n_jobs
        )
        best_trial = study.best_trial
        return BestRun(str(best_trial.number), best_trial.value, best_trial.params)


class RayTuneBackend(HyperParamSearchBackendBase):
    """Trials in Ray's workers, each with a copy of the Trainer. Source: integrations.py 231-364."""

    name = "ray"
    pip_package = "'ray[tune]'"

    @staticmethod
    def is_available() -> bool:
        from .reporters import is_ray_available

        return is_ray_available()

    def default_hp_space(self, trial: Any) -> dict[str, Any]:
        return search_spaces.default_hp_space_ray(trial)

    def run(self, trainer: Any, n_trials: int, direction: str, **kwargs: Any) -> BestRun | None:
        import ray.tune

        from .reporters import TensorBoardCallback

        # -- a Trainer that can be pickled: no memory tracker, no event writer, no model ---
        if not trainer._memory_tracker.skip_memory_metrics:
            from .parts.metrics import TrainerMemoryTracker

            logger.warning("The memory tracker cannot be sent to Ray's workers: memory metrics are switched off.")
            trainer._memory_tracker = TrainerMemoryTracker(skip_memory_metrics=True)
        tensorboard_callback = trainer.pop_callback(TensorBoardCallback)
        trainer.model = None

        # -- Ray's own settings ---
        if "resources_per_trial" not in kwargs:
            kwargs["resources_per_trial"] = {"cpu": 1}
            if trainer.args.n_gpu > 0:
                kwargs["resources_per_trial"]["gpu"] = 1
            logger.info(f"No `resources_per_trial` was passed: each trial gets {kwargs['resources_per_trial']}.")
        trainer.args._n_gpu = kwargs["resources_per_trial"].get("gpu", 0)
        if "progress_reporter" not in kwargs:
            from ray.tune import CLIReporter

            kwargs["progress_reporter"] = CLIReporter(metric_columns=["objective"])
        if kwargs.get("keep_checkpoints_num", 0) > 0:
            trainer.use_tune_checkpoints = True
            if kwargs["keep_checkpoints_num"] > 1:
                logger.warning(
                    f"Keeping {kwargs['keep_checkpoints_num']} checkpoints for each trial takes much space: "
                    "`keep_checkpoints_num=1` is often enough."
                )
        if "scheduler" in kwargs:
            _check_ray_scheduler(trainer, kwargs["scheduler"])

        # -- the trials ---
        trainable = ray.tune.with_parameters(_ray_trial, local_trainer=trainer)

        @functools.wraps(trainable)
        def trainable_with_modules(*args: Any, **kwargs: Any) -> Any:
            # Workers do not know the modules that `datasets` made for scripts of its own: load them there first.
            if compat.is_datasets_available():
                import datasets.load

                path = os.path.join(datasets.load.init_dynamic_modules(), "__init__.py")
                spec = importlib.util.spec_from_file_location("datasets_modules", path)
                assert spec is not None and spec.loader is not None
                module = importlib.util.module_from_spec(spec)
                sys.modules[spec.name] = module
                spec.loader.exec_module(module)
            return trainable(*args, **kwargs)

        if hasattr(trainable, "__mixins__"):  # set by with_parameters, looked for by run
            trainable_with_modules.__mixins__ = trainable.__mixins__  # type: ignore[attr-defined]

        analysis = ray.tune.run(trainable_with_modules, config=trainer.hp_space(None), num_samples=n_trials, **kwargs)
        best_trial = analysis.get_best_trial(metric="objective", mode=direction[:3], scope=trainer.args.ray_scope)
        if tensorboard_callback is not None:
            trainer.add_callback(tensorboard_callback)
        return BestRun(best_trial.trial_id, best_trial.last_result["objective"], best_trial.config, analysis)


class SigOptBackend(HyperParamSearchBackendBase):
    """Suggestions from SigOpt's service, one after the other. Source: integrations.py 367-462."""

    name = "sigopt"

    @staticmethod
    def is_available() -> bool:
        from .reporters import is_sigopt_available

        return is_sigopt_available()

    def default_hp_space(self, trial: Any) -> list[dict[str, Any]]:
        return search_spaces.default_hp_space_sigopt(trial)

    def run(self, trainer: Any, n_trials: int, direction: str, **kwargs: Any) -> BestRun | None:
        if trainer.args.process_index != 0:
            _follow_rank_0(trainer, n_trials, self.name)
            return None
        settings = {
            "name": "huggingface-tune",
            "parameters": trainer.hp_space(None),
            "metrics": [{"name": "objective", "objective": direction, "strategy": "optimize"}],
            "parallel_bandwidth": 1,
        }
        # A comparison of texts, as upstream's: version 10 would count as older than 8.
        if importlib.metadata.version("sigopt") >= "8.0.0":
            return self._run_from_8(trainer, {**settings, "type": "offline", "budget": n_trials})
        settings |= {"project": "huggingface", "observation_budget": n_trials}
        return self._run_before_8(trainer, settings, kwargs.pop("proxies", None))

    def _run_from_8(self, trainer: Any, settings: dict[str, Any]) -> BestRun:
        import sigopt

        sigopt.set_project("huggingface")
        experiment = sigopt.create_experiment(**settings)
        logger.info(f"SigOpt shows this search at https://app.sigopt.com/experiment/{experiment.id}")
        for run in experiment.loop():
            with run:
                run.log_metric("objective", _lead_one_trial(trainer, run.run, "Sigopt"))
        best = list(experiment.get_best_runs())[0]
        return BestRun(best.id, best.values["objective"].value, best.assignments)

    def _run_before_8(self, trainer: Any, settings: dict[str, Any], proxies: Any) -> BestRun:
        from sigopt import Connection

        connection = Connection()
        if proxies is not None:
            connection.set_proxies(proxies)
        experiment = connection.experiments().create(**settings)
        logger.info(f"SigOpt shows this search at https://app.sigopt.com/experiment/{experiment.id}")
        while experiment.progress.observation_count < experiment.observation_budget:
            suggestion = connection.experiments(experiment.id).suggestions().create()
            values = [{"name": "objective", "value": _lead_one_trial(trainer, suggestion, "Sigopt")}]
            observations = connection.experiments(experiment.id).observations()
            observation = observations.create(suggestion=suggestion.id, values=values)
            logger.info(f"[suggestion_id, observation_id]: [{suggestion.id}, {observation.id}]")
            experiment = connection.experiments(experiment.id).fetch()
        best = list(connection.experiments(experiment.id).best_assignments().fetch().iterate_pages())[0]
        return BestRun(best.id, best.value, best.assignments)


class WandbBackend(HyperParamSearchBackendBase):
    """A W&B sweep, run by its agent in this process. Source: integrations.py 465-531."""

    name = "wandb"

    @staticmethod
    def is_available() -> bool:
        from .reporters import is_wandb_available

        return is_wandb_available()

    def default_hp_space(self, trial: Any) -> dict[str, Any]:
        return search_spaces.default_hp_space_wandb(trial)

    def run(self, trainer: Any, n_trials: int, direction: str, **kwargs: Any) -> BestRun | None:
        import wandb

        from .reporters import WandbCallback, rewrite_logs

        if not any(isinstance(callback, WandbCallback) for callback in trainer.callback_handler.callbacks):
            trainer.add_callback(WandbCallback())
        trainer.args.report_to = ["wandb"]

        sweep_id, project, name, entity = (kwargs.pop(key, None) for key in ("sweep_id", "project", "name", "entity"))
        metric = kwargs.pop("metric", "eval/loss")
        sweep_config = trainer.hp_space(None)
        sweep_config["metric"].update(goal=direction, name=metric)
        if name:
            sweep_config["name"] = name
        best: dict[str, Any] = {"run_id": None, "objective": None, "hyperparameters": None}

        def run_trial() -> float:
            run = wandb.run if wandb.run else wandb.init()
            trainer.state.trial_name, trainer.objective = run.name, None
            run.config.update({"assignments": {}, "metric": metric})
            config = wandb.config

            trainer.train(resume_from_checkpoint=None, trial=vars(config)["_items"])
            if trainer.objective is None:  # no evaluation came by while it trained
                metrics = trainer.evaluate()
                trainer.objective = trainer.compute_objective(metrics)
                logged = rewrite_logs(metrics)
                if metric not in logged:
                    logger.warning(f"The sweep's metric {metric} was not logged; there are {logged.keys()}.")

            is_better = best["run_id"] is None or (
                trainer.objective < best["objective"]
                if direction == "minimize"
                else direction == "maximize" and trainer.objective > best["objective"]
            )
            if is_better:
                best.update(run_id=run.id, objective=trainer.objective, hyperparameters=dict(config))
            return trainer.objective

        if not sweep_id:
            sweep_id = wandb.sweep(sweep_config, project=project, entity=entity)
        logger.info(f"wandb sweep id - {sweep_id}")
        wandb.agent(sweep_id, function=run_trial, count=n_trials)
        return BestRun(best["run_id"], best["objective"], best["hyperparameters"])


ALL_HYPERPARAMETER_SEARCH_BACKENDS: dict[HPSearchBackend, type[HyperParamSearchBackendBase]] = {
    HPSearchBackend(backend.name): backend for backend in (OptunaBackend, RayTuneBackend, SigOptBackend, WandbBackend)
}


# -- one trial ---


def _lead_one_trial(trainer: Any, trial: Any, library: str) -> float:
    """Train once with the trial's values, on rank 0, and return the objective."""
    trainer.objective = None
    if trainer.args.world_size > 1:
        _refuse_other_than_ddp(trainer, library)
        trainer._hp_search_setup(trial)
        # **Beware**, kept from upstream: the arguments travel byte by byte, each byte an object of its own, and the
        # others wait for as many as *their* arguments have. Values that pickle to another length would hang here.
        torch.distributed.broadcast_object_list(list(pickle.dumps(trainer.args)), src=0)
        trainer.train(resume_from_checkpoint=None)
    else:
        trainer.train(resume_from_checkpoint=None, trial=trial)
    return _objective_of(trainer)


def _follow_rank_0(trainer: Any, n_trials: int, library: str) -> None:
    """Train as often as rank 0 does, with the arguments that it sends."""
    for _ in range(n_trials):
        trainer.objective = None
        pickled_arguments = list(pickle.dumps(trainer.args))
        _refuse_other_than_ddp(trainer, library)
        torch.distributed.broadcast_object_list(pickled_arguments, src=0)
        for name, value in asdict(pickle.loads(bytes(pickled_arguments))).items():
            if name != "local_rank":
                setattr(trainer.args, name, value)
        trainer.train(resume_from_checkpoint=None)
        _objective_of(trainer)


def _objective_of(trainer: Any) -> float:
    """Return the last reported objective, or evaluate now if training never did."""
    if getattr(trainer, "objective", None) is None:
        trainer.objective = trainer.compute_objective(trainer.evaluate())
    return trainer.objective


def _refuse_other_than_ddp(trainer: Any, library: str) -> None:
    if trainer.args.parallel_mode != ParallelMode.DISTRIBUTED:
        raise RuntimeError(
            f"only support DDP {library} HPO for ParallelMode.DISTRIBUTED currently: start one process a device, with "
            "torchrun."
        )


# -- Ray ---


def _ray_trial(trial: dict[str, Any], local_trainer: Any, checkpoint_dir: str | None = None) -> None:
    """Train once within a worker of Ray's."""
    import ray.tune

    from .callbacks import ProgressCallback

    try:
        from .notebook import NotebookProgressCallback

        # A worker has no notebook to draw in.
        if local_trainer.pop_callback(NotebookProgressCallback):
            local_trainer.add_callback(ProgressCallback)
    except ModuleNotFoundError:
        pass  # without IPython there was none

    checkpoint = None
    if checkpoint_dir:
        for name in os.listdir(checkpoint_dir):  # there is one, written by `_tune_save_checkpoint`
            if name.startswith(PREFIX_CHECKPOINT_DIR):
                checkpoint = os.path.join(checkpoint_dir, name)
    local_trainer.objective = None
    local_trainer.train(resume_from_checkpoint=checkpoint, trial=trial)
    if getattr(local_trainer, "objective", None) is None:
        metrics = local_trainer.evaluate()
        local_trainer.objective = local_trainer.compute_objective(metrics)
        local_trainer._tune_save_checkpoint()
        ray.tune.report(objective=local_trainer.objective, **metrics, done=True)


def _check_ray_scheduler(trainer: Any, scheduler: Any) -> None:
    """Warn or raise where a scheduler of Ray's needs checkpoints or evaluations that this run does not make."""
    from ray.tune.schedulers import ASHAScheduler, HyperBandForBOHB, MedianStoppingRule, PopulationBasedTraining

    if isinstance(scheduler, PopulationBasedTraining) and not trainer.use_tune_checkpoints:
        logger.warning(
            "PopulationBasedTraining without checkpoints trains each new configuration from scratch: pass "
            "`keep_checkpoints_num=1` to hyperparameter_search."
        )
    needs_reports = (ASHAScheduler, MedianStoppingRule, HyperBandForBOHB, PopulationBasedTraining)
    evaluates = trainer.args.do_eval and trainer.args.evaluation_strategy != IntervalStrategy.NO
    if isinstance(scheduler, needs_reports) and not evaluates:
        raise RuntimeError(
            f"{type(scheduler).__name__} stops trials by their intermediate results, but this run evaluates only at "
            "its end. Set `do_eval=True` and `evaluation_strategy='steps'`, or choose another "
            "scheduler."
        )


# Read next: hub.py
