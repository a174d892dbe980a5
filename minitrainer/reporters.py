"""Reporters: callbacks that send what is logged to a tracker.

`report_to` names them. Each needs its library and says so when it is built without it. The first three are tested
against the library itself: TensorBoard by reading its files back, Weights & Biases and MLflow in their offline modes.

**Not tested:** the seven below the banner "never run here" (Comet, Azure ML, DagsHub, Neptune, CodeCarbon, ClearML,
Flyte). They are complete, and written after the same source, but no run has reached their services.

A reporter changes neither the state nor the flags. Only the first process of all reports, except where noted.
"""

import functools
import importlib
import importlib.util
import json
import numbers
import os
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import transformers
from transformers.utils import flatten_dict

from . import compat
from .callbacks import TrainerCallback
from .parts.checkpoints import PREFIX_CHECKPOINT_DIR
from .parts.logs import get_logger

if TYPE_CHECKING:
    from .arguments import TrainingArguments
    from .callbacks import TrainerState

logger = get_logger(__name__)


# =========================================================================================================
# The names of report_to
# =========================================================================================================


def get_reporting_integration_callbacks(report_to: list[str]) -> list[type[TrainerCallback]]:
    """Return the reporter classes of some names.

    **Beware:** it expects a list. From a plain word it takes the letters, and complains about the first.

    Raises:
        ValueError: for a name that is none of them; the message lists them all.

    Source: integrations.py 1613-1620.
    """
    for name in report_to:
        if name not in INTEGRATION_TO_CALLBACK:
            raise ValueError(f"report_to knows no {name}, only {', '.join(INTEGRATION_TO_CALLBACK)}.")
    return [INTEGRATION_TO_CALLBACK[name] for name in report_to]


def get_available_reporting_integrations() -> list[str]:
    """Name the reporters whose libraries are installed: what `report_to="all"` means.

    Flyte is never among them, and Azure ML only without MLflow, which reports to it too.

    Source: integrations.py 534-554.
    """
    is_available = {
        "azure_ml": is_azureml_available() and not is_mlflow_available(),
        "comet_ml": is_comet_available(),
        "dagshub": is_dagshub_available(),
        "mlflow": is_mlflow_available(),
        "neptune": is_neptune_available(),
        "tensorboard": is_tensorboard_available(),
        "wandb": is_wandb_available(),
        "codecarbon": is_codecarbon_available(),
        "clearml": is_clearml_available(),
    }
    return [name for name, installed in is_available.items() if installed]


def rewrite_logs(d: dict[str, Any]) -> dict[str, Any]:
    """Group names as trackers do: `eval_loss` becomes `eval/loss`, `test_x` `test/x`, all else `train/…`.

    **Beware:** `train_loss` becomes `train/train_loss`.

    Source: integrations.py 557-570.
    """
    grouped = {}
    for name, value in d.items():
        group, _, rest = name.partition("_")
        is_grouped = group in ("eval", "test") and len(name) > len(group)
        grouped[f"{group}/{rest}" if is_grouped else f"train/{name}"] = value
    return grouped


def hp_params(trial: Any) -> dict[str, Any]:
    """The hyperparameters of one trial, whichever backend it comes from.

    Raises:
        RuntimeError: if no installed backend makes such trials.

    Source: integrations.py 159-177.
    """
    if is_optuna_available():
        import optuna

        if isinstance(trial, optuna.Trial):
            return trial.params
    if isinstance(trial, dict) and (is_ray_tune_available() or is_sigopt_available() or is_wandb_available()):
        return trial
    raise RuntimeError(f"Unknown type for trial {trial.__class__}")


# =========================================================================================================
# TensorBoard
# =========================================================================================================


class TensorBoardCallback(TrainerCallback):
    """Writes scalars to event files in `args.logging_dir`, and arguments and model configuration as text.

    Args:
        tb_writer: a writer to use; by default one is opened when training begins.

    Raises:
        RuntimeError: without tensorboard and tensorboardX.

    Source: integrations.py 573-656.
    """

    def __init__(self, tb_writer: Any = None):
        if not is_tensorboard_available():
            raise RuntimeError(
                "TensorBoardCallback has nothing to write with: `pip install tensorboard`, or tensorboardX for an old"
                " PyTorch."
            )
        self._SummaryWriter = _tensorboard_writer_class()
        self.tb_writer = tb_writer

    def _init_summary_writer(self, args: "TrainingArguments", log_dir: str | None = None) -> None:
        """Open the event file."""
        if self._SummaryWriter is not None:
            self.tb_writer = self._SummaryWriter(log_dir=log_dir or args.logging_dir)

    def on_train_begin(self, args, state, control, model=None, **kwargs):
        """Open the file, in a folder of its own for a trial of a search, and describe the run."""
        if not state.is_world_process_zero:
            return
        if self.tb_writer is None:
            is_trial = state.is_hyper_param_search and state.trial_name is not None
            self._init_summary_writer(args, os.path.join(args.logging_dir, state.trial_name) if is_trial else None)
        if self.tb_writer is not None:
            self.tb_writer.add_text("args", args.to_json_string())
            if getattr(model, "config", None) is not None:
                self.tb_writer.add_text("model_config", model.config.to_json_string())

    def on_log(self, args, state, control, logs=None, **kwargs):
        """Write the numbers at the present step. It does not ask `control.should_log`: the event is the reason."""
        if not state.is_world_process_zero:
            return
        if self.tb_writer is None:  # an evaluation without training
            self._init_summary_writer(args)
        if self.tb_writer is None:
            return
        for name, value in rewrite_logs(logs).items():
            if isinstance(value, (int, float)):
                self.tb_writer.add_scalar(name, value, state.global_step)
            else:
                _warn_not_a_number(name, value, "a scalar")
        self.tb_writer.flush()

    def on_train_end(self, args, state, control, **kwargs):
        """Close the file. A later evaluation opens another."""
        if self.tb_writer:
            self.tb_writer.close()
            self.tb_writer = None


def _tensorboard_writer_class() -> Any:
    """torch's writer, or tensorboardX's; None if neither can be imported."""
    for module_name in ("torch.utils.tensorboard", "tensorboardX"):
        try:
            return importlib.import_module(module_name).SummaryWriter
        except ImportError:
            continue
    return None


# =========================================================================================================
# Weights & Biases
# =========================================================================================================


class WandbCallback(TrainerCallback):
    """Opens a run, gives it arguments and model configuration, and logs to it.

    Environment: `WANDB_PROJECT` (by default `huggingface`), `WANDB_WATCH` (`gradients`, `parameters` or `all`: log
    them too), `WANDB_LOG_MODEL` (`end` or `checkpoint`: upload the model then), `WANDB_MODE=offline`.

    **Beware:** in a hyperparameter search it closes the run of the trial before, and clears `args.run_name`.

    Raises:
        RuntimeError: without wandb.

    Source: integrations.py 659-823.
    """

    def __init__(self) -> None:
        if not is_wandb_available():
            raise RuntimeError("WandbCallback needs the package wandb: `pip install wandb`.")
        import wandb

        self._wandb = wandb
        self._initialized = False
        wish = os.getenv("WANDB_LOG_MODEL", "false")
        if wish.upper() in _TRUE_WORDS:
            logger.info(f"WANDB_LOG_MODEL={wish} is an old word for `end`, which is used.")
            wish = "end"
        self._log_model = wish.lower()

    def setup(self, args, state, model, **kwargs):
        """Open the run, unless the script has opened one. Override it to open it otherwise."""
        self._initialized = True
        if not state.is_world_process_zero:
            return
        logger.info("Reporting to Weights & Biases; WANDB_DISABLED=true in the environment switches it off.")
        names = {}
        if state.trial_name is not None:
            names = {"name": state.trial_name, "group": args.run_name}
        elif _has_own_run_name(args):
            names = {"name": args.run_name}
        if self._wandb.run is None:
            self._wandb.init(project=os.getenv("WANDB_PROJECT", "huggingface"), **names)

        self._wandb.config.update(_model_config(model) | args.to_sanitized_dict(), allow_val_change=True)
        if getattr(self._wandb, "define_metric", None):
            # Our step is the x-axis of everything; wandb's own counts calls of log.
            self._wandb.define_metric("train/global_step")
            self._wandb.define_metric("*", step_metric="train/global_step", step_sync=True)
        watched = os.getenv("WANDB_WATCH", "false")
        if watched in ("all", "parameters", "gradients") and not compat.is_torch_tpu_available():
            self._wandb.watch(model, log=watched, log_freq=max(100, args.logging_steps))

    def on_train_begin(self, args, state, control, model=None, **kwargs):
        """Open a run: the first time, and for each trial of a search."""
        if state.is_hyper_param_search:
            self._wandb.finish()
            self._initialized = False
            args.run_name = None
        if not self._initialized:
            self.setup(args, state, model, **kwargs)

    def on_log(self, args, state, control, model=None, logs=None, **kwargs):
        """Log with the present step."""
        if not self._initialized:
            self.setup(args, state, model)
        if state.is_world_process_zero:
            self._wandb.log(rewrite_logs(logs) | {"train/global_step": state.global_step})

    def on_save(self, args, state, control, **kwargs):
        """Upload the checkpoint, if `WANDB_LOG_MODEL=checkpoint`."""
        if self._log_model == "checkpoint" and self._initialized and state.is_world_process_zero:
            name, path = _checkpoint_name_and_path(args, state)
            logger.info(f"Logging checkpoint artifacts in {name}. ...")
            artifact = self._artifact("checkpoint", args, self._summary_numbers())
            artifact.add_dir(path)
            self._wandb.log_artifact(artifact, aliases=[name])

    def on_train_end(self, args, state, control, model=None, tokenizer=None, **kwargs):
        """Upload the model, if `WANDB_LOG_MODEL` says so; saved by a Trainer, so that it is what a user would save."""
        if self._log_model not in ("end", "checkpoint") or not self._initialized or not state.is_world_process_zero:
            return
        from .trainer import Trainer

        if args.load_best_model_at_end:
            # The misspelt key is upstream's.
            metadata = {f"eval/{args.metric_for_best_model}": state.best_metric, "train/total_floss": state.total_flos}
        else:
            metadata = self._summary_numbers()
        with tempfile.TemporaryDirectory() as folder:
            Trainer(args=args, model=model, tokenizer=tokenizer).save_model(folder)
            logger.info("Logging model artifacts. ...")
            artifact = self._artifact("model", args, metadata)
            for path in Path(folder).iterdir():
                if path.is_file():
                    with artifact.new_file(path.name, mode="wb") as copy:
                        copy.write(path.read_bytes())
            self._wandb.run.log_artifact(artifact)

    def _artifact(self, kind: str, args: "TrainingArguments", metadata: dict[str, Any]) -> Any:
        """An empty upload, named after the run."""
        run = self._wandb.run
        run_name = run.name if _has_own_run_name(args) else run.id
        return self._wandb.Artifact(name=f"{kind}-{run_name}", type="model", metadata=metadata)

    def _summary_numbers(self) -> dict[str, Any]:
        """The last value of each metric that the run has logged."""
        summary = dict(self._wandb.summary)
        return {k: v for k, v in summary.items() if isinstance(v, numbers.Number) and not k.startswith("_")}


# =========================================================================================================
# MLflow
# =========================================================================================================


class MLflowCallback(TrainerCallback):
    """Starts a run, unless one is active, gives it arguments and model configuration as parameters, and logs to it.

    Environment: `MLFLOW_EXPERIMENT_NAME`, `MLFLOW_TAGS` (a JSON object), `MLFLOW_RUN_ID` (go on with that run),
    `MLFLOW_NESTED_RUN`, `MLFLOW_FLATTEN_PARAMS`, `HF_MLFLOW_LOG_ARTIFACTS` (upload each checkpoint), and
    `DISABLE_MLFLOW_INTEGRATION`. With `MLFLOW_TRACKING_URI=file:…` everything stays on the disk.

    **Beware:** parameters longer than MLflow takes are dropped with a warning.

    Raises:
        RuntimeError: without mlflow.

    Source: integrations.py 926-1058.
    """

    _auto_end_run = False  # whether the run is ours to end; here too, for __del__ after a failed __init__

    def __init__(self) -> None:
        if not is_mlflow_available():
            raise RuntimeError("MLflowCallback needs the package mlflow: `pip install mlflow`.")
        import mlflow
        from mlflow.utils import validation

        self._ml_flow = mlflow
        self._MAX_PARAM_VAL_LENGTH = validation.MAX_PARAM_VAL_LENGTH
        self._MAX_PARAMS_TAGS_PER_BATCH = validation.MAX_PARAMS_TAGS_PER_BATCH
        self._initialized = self._log_artifacts = False

    def setup(self, args, state, model):
        """Read the environment and start the run. Override it to start it otherwise."""
        self._log_artifacts = _is_true("HF_MLFLOW_LOG_ARTIFACTS")
        self._nested_run, self._flatten_params = _is_true("MLFLOW_NESTED_RUN"), _is_true("MLFLOW_FLATTEN_PARAMS")
        self._experiment_name, self._run_id = os.getenv("MLFLOW_EXPERIMENT_NAME"), os.getenv("MLFLOW_RUN_ID")
        if state.is_world_process_zero:
            if self._ml_flow.active_run() is None or self._nested_run or self._run_id:
                if self._experiment_name:
                    self._ml_flow.set_experiment(self._experiment_name)
                self._ml_flow.start_run(run_name=args.run_name, nested=self._nested_run)
                logger.debug(f"MLflow run started with run_id={self._ml_flow.active_run().info.run_id}")
                self._auto_end_run = True
            self._log_parameters(_model_config(model) | args.to_dict())
            tags = os.getenv("MLFLOW_TAGS")
            if tags:
                self._ml_flow.set_tags(json.loads(tags))
        self._initialized = True

    def _log_parameters(self, parameters: dict[str, Any]) -> None:
        """Log what is short enough, in parcels as large as MLflow takes."""
        if self._flatten_params:
            parameters = flatten_dict(parameters)
        kept = []
        for name, value in parameters.items():
            if len(str(value)) <= self._MAX_PARAM_VAL_LENGTH:
                kept.append((name, value))
            else:
                logger.warning(
                    f'The parameter "{name}" is dropped: its value "{value}" is longer than MLflow takes '
                    f"({self._MAX_PARAM_VAL_LENGTH} characters). MLFLOW_FLATTEN_PARAMS=1 splits nested values up."
                )
        parcel_size = self._MAX_PARAMS_TAGS_PER_BATCH
        for start in range(0, len(kept), parcel_size):
            self._ml_flow.log_params(dict(kept[start : start + parcel_size]))

    def on_train_begin(self, args, state, control, model=None, **kwargs):
        """Start the run."""
        if not self._initialized:
            self.setup(args, state, model)

    def on_log(self, args, state, control, logs, model=None, **kwargs):  # type: ignore[override]
        """Log the numbers at the present step, under their own names."""
        if not self._initialized:
            self.setup(args, state, model)
        if not state.is_world_process_zero:
            return
        metrics = {}
        for name, value in logs.items():
            if isinstance(value, (int, float)):
                metrics[name] = value
            else:
                _warn_not_a_number(name, value, "a metric")
        self._ml_flow.log_metrics(metrics=metrics, step=state.global_step)

    def on_save(self, args, state, control, **kwargs):
        """Upload the checkpoint, if `HF_MLFLOW_LOG_ARTIFACTS` is on."""
        if self._initialized and state.is_world_process_zero and self._log_artifacts:
            name, path = _checkpoint_name_and_path(args, state)
            logger.info(f"Uploading {name}, which may take a while.")
            model = self._ml_flow.pyfunc.PythonModel()
            self._ml_flow.pyfunc.log_model(name, artifacts={"model_path": path}, python_model=model)

    def on_train_end(self, args, state, control, **kwargs):
        """End the run, if it is ours."""
        if self._initialized and state.is_world_process_zero and self._auto_end_run and self._ml_flow.active_run():
            self._ml_flow.end_run()

    def __del__(self) -> None:
        # After a crash: MLflow starts no new run while the old one is active.
        if self._auto_end_run and callable(getattr(self._ml_flow, "active_run", None)) and self._ml_flow.active_run():
            self._ml_flow.end_run()


# =========================================================================================================
# Never run here: no test has reached these services
# =========================================================================================================


class CometCallback(TrainerCallback):
    """Logs to Comet. Never run here.

    Environment: `COMET_MODE` (`ONLINE`, `OFFLINE` or `DISABLED`), `COMET_PROJECT_NAME`, `COMET_OFFLINE_DIRECTORY`,
    `COMET_LOG_ASSETS` (upload the output folder at the end).

    Raises:
        RuntimeError: without comet_ml or its API key.

    Source: integrations.py 826-900.
    """

    def __init__(self) -> None:
        if not is_comet_available():
            raise RuntimeError("CometCallback needs the package comet-ml: `pip install comet-ml`.")
        self._initialized = self._log_assets = False

    def setup(self, args, state, model):
        """Open an experiment."""
        self._initialized = True
        self._log_assets = os.getenv("COMET_LOG_ASSETS", "FALSE").upper() in ("TRUE", "1")
        if not state.is_world_process_zero:
            return
        import comet_ml

        mode, project = os.getenv("COMET_MODE", "ONLINE").upper(), os.getenv("COMET_PROJECT_NAME", "huggingface")
        if mode == "ONLINE":
            experiment = comet_ml.Experiment(project_name=project)
        elif mode == "OFFLINE":
            folder = os.getenv("COMET_OFFLINE_DIRECTORY", "./")
            experiment = comet_ml.OfflineExperiment(project_name=project, offline_directory=folder)
        else:
            return
        logger.info(f"Automatic Comet.ml {mode.lower()} logging enabled")
        framework = {"framework": "transformers"}
        experiment.log_other("Created from", "transformers")
        experiment._set_model_graph(model, **framework)
        experiment._log_parameters(args, prefix="args/", **framework)
        if hasattr(model, "config"):
            experiment._log_parameters(model.config, prefix="config/", **framework)

    def on_train_begin(self, args, state, control, model=None, **kwargs):
        """Open an experiment."""
        if not self._initialized:
            self.setup(args, state, model)

    def on_log(self, args, state, control, model=None, logs=None, **kwargs):
        """Log at the present step and epoch."""
        if not self._initialized:
            self.setup(args, state, model)
        experiment = self._experiment(state)
        if experiment is not None:
            experiment._log_metrics(logs, step=state.global_step, epoch=state.epoch, framework="transformers")

    def on_train_end(self, args, state, control, **kwargs):
        """Upload the output folder if asked for, and close the experiment."""
        experiment = self._experiment(state) if self._initialized else None
        if experiment is None:
            return
        if self._log_assets:
            logger.info("Uploading the checkpoints, which may take a while.")
            experiment.log_asset_folder(args.output_dir, recursive=True, log_file_name=True, step=state.global_step)
        experiment.end()

    @staticmethod
    def _experiment(state: "TrainerState") -> Any:
        """The open experiment, on the first process only."""
        if not state.is_world_process_zero:
            return None
        import comet_ml

        return comet_ml.config.get_global_experiment()


class AzureMLCallback(TrainerCallback):
    """Logs to the run of Azure ML that this script is part of. Never run here.

    Raises:
        RuntimeError: without azureml.

    Source: integrations.py 903-923.
    """

    def __init__(self, azureml_run: Any = None):
        if not is_azureml_available():
            raise RuntimeError("AzureMLCallback needs the package azureml: `pip install azureml-sdk`.")
        self.azureml_run = azureml_run

    def on_init_end(self, args, state, control, **kwargs):
        """Find the run."""
        from azureml.core.run import Run

        if state.is_world_process_zero and self.azureml_run is None:
            self.azureml_run = Run.get_context()

    def on_log(self, args, state, control, logs=None, **kwargs):
        """Log the numbers; Azure ML counts by itself."""
        if self.azureml_run and state.is_world_process_zero:
            for name, value in logs.items():
                if isinstance(value, (int, float)):
                    self.azureml_run.log(name, value, description=name)


class DagsHubCallback(MLflowCallback):
    """Logs to DagsHub, which is an MLflow server, and can keep the output folder there too. Never run here.

    Environment: `MLFLOW_TRACKING_URI` (required), `HF_DAGSHUB_LOG_ARTIFACTS`, `HF_DAGSHUB_MODEL_NAME`, `BRANCH`.

    Raises:
        RuntimeError: without mlflow.
        ImportError: without dagshub.

    Source: integrations.py 1061-1107.
    """

    def __init__(self) -> None:
        super().__init__()
        if not is_dagshub_available():
            raise ImportError("DagsHubCallback needs the package dagshub: `pip install dagshub`.")
        import dagshub.upload

        self.Repo = dagshub.upload.Repo

    def setup(self, *args, **kwargs):
        """Find the repository in the tracking URI, whose end is `/<owner>/<name>.mlflow`."""
        self.remote = os.getenv("MLFLOW_TRACKING_URI")
        if self.remote is None:
            raise RuntimeError(
                "DagsHubCallback finds its repository in the environment variable `MLFLOW_TRACKING_URI`, which is not"
                " set: call `dagshub.init()` first."
            )
        owner, name = self.remote.split(os.sep)[-2:]
        self.repo = self.Repo(owner=owner, name=name.split(".")[0], branch=os.getenv("BRANCH") or "main")
        self.log_artifacts = _is_true("HF_DAGSHUB_LOG_ARTIFACTS")
        self.name, self.path = os.getenv("HF_DAGSHUB_MODEL_NAME") or "main", Path("artifacts")
        super().setup(*args, **kwargs)

    def on_train_end(self, args, state, control, **kwargs):
        """Upload the output folder, if asked for. **Beware:** it does not end the MLflow run."""
        if not self.log_artifacts:
            return
        loader = getattr(self, "train_dataloader", None)  # nobody sets it here; a subclass may
        if loader:
            torch.save(loader.dataset, os.path.join(args.output_dir, "dataset.pt"))
        self.repo.directory(str(self.path)).add_dir(args.output_dir)


class NeptuneMissingConfiguration(Exception):
    """A Neptune run was passed in, but a second one is needed and there is no token or project to open it with."""

    def __init__(self) -> None:
        super().__init__(
            "NeptuneCallback was given a run and now needs another one. Pass `api_token` and `project` too, or put "
            "them into NEPTUNE_API_TOKEN and NEPTUNE_PROJECT."
        )


class NeptuneCallback(TrainerCallback):
    """Logs to Neptune. Never run here.

    A run that also watches console and hardware is opened for each training; for an evaluation alone, one that does
    not.

    Args:
        api_token: by default `NEPTUNE_API_TOKEN`.
        project: `workspace/project`; by default `NEPTUNE_PROJECT`.
        name: of the run.
        base_namespace: the folder of everything in the run.
        run: go on with this one.
        log_parameters: log arguments and model configuration.
        log_checkpoints: upload none (None), each ("same"), the "last" or the "best".
        **neptune_run_kwargs: what else `neptune.init_run` takes.

    Raises:
        ValueError: without neptune.

    Source: integrations.py 1121-1385.
    """

    integration_version_key = "source_code/integrations/transformers"
    model_parameters_key = "model_parameters"
    trainer_parameters_key = "trainer_parameters"
    trial_name_key, trial_params_key = "trial", "trial_params"
    flat_metrics = {"train/epoch"}  # the last value counts, not the series

    _run: Any = None
    _volatile_checkpoints_dir: str | None = None

    def __init__(
        self,
        *,
        api_token: str | None = None,  # both of these
        project: str | None = None,  # from the environment by default
        name: str | None = None,
        base_namespace: str = "finetuning",
        run: Any = None,
        log_parameters: bool = True,
        log_checkpoints: str | None = None,
        **neptune_run_kwargs: Any,
    ):
        if not is_neptune_available():
            raise ValueError("NeptuneCallback needs the package neptune: `pip install neptune`.")
        self._init_run_kwargs = {"api_token": api_token, "project": project, "name": name, **neptune_run_kwargs}
        self._initial_run, self._run_id = run, None
        self._is_monitoring_run = self._force_reset_monitoring_run = False
        self._base_namespace_path, self._log_parameters = base_namespace, log_parameters

        self._log_checkpoints = log_checkpoints
        self._should_upload_checkpoint = log_checkpoints is not None
        self._keeps_one_checkpoint = log_checkpoints in ("last", "best")
        self._target_checkpoints_namespace = (
            f"checkpoints/{log_checkpoints}" * self._keeps_one_checkpoint or "checkpoints"
        )
        self._recent_checkpoint_path: str | None = None

    # -- the run ---

    @property
    def run(self) -> Any:
        """The open run; one without monitoring is opened if there is none."""
        if self._run is None:
            if self._initial_run is not None:
                self._use_initial_run()
            else:
                watched = ("stdout", "stderr", "hardware_metrics", "traceback")
                self._initialize_run(with_id=self._run_id, **{f"capture_{what}": False for what in watched})
                self._is_monitoring_run = False
        return self._run

    @classmethod
    def get_run(cls, trainer: Any) -> Any:
        """The run of a Trainer's Neptune callback."""
        for callback in trainer.callback_handler.callbacks:
            if isinstance(callback, cls):
                return callback.run
        raise Exception("None of the callbacks is a NeptuneCallback.")

    def _ensure_run_with_monitoring(self) -> None:
        """Open a run that watches console and hardware: a new one, or the quiet one once more."""
        if self._initial_run is not None:
            self._use_initial_run()
        elif self._force_reset_monitoring_run or not (self._run or self._is_monitoring_run):
            self._initialize_run()
            self._force_reset_monitoring_run = False
        elif not self._is_monitoring_run:
            self._initialize_run(with_id=self._run_id)
            self._is_monitoring_run = True

    def _use_initial_run(self) -> None:
        """Go on with the run that was passed in."""
        self._run, self._initial_run, self._is_monitoring_run = self._initial_run, None, True
        self._run_id = self._run["sys/id"].fetch()

    def _initialize_run(self, **more: Any) -> None:
        """Open a run in place of the present one."""
        import neptune
        from neptune.exceptions import NeptuneMissingApiTokenException, NeptuneMissingProjectNameException

        self._stop_run_if_exists()
        try:
            self._run = neptune.init_run(**self._init_run_kwargs, **more)
            self._run_id = self._run["sys/id"].fetch()
        except (NeptuneMissingApiTokenException, NeptuneMissingProjectNameException) as error:
            raise NeptuneMissingConfiguration from error

    def _stop_run_if_exists(self) -> None:
        if self._run:
            self._run.stop()
        self._run = None

    # -- events ---

    def on_init_end(self, args, state, control, **kwargs):
        """Prepare a folder for copies of checkpoints that may be deleted before they are uploaded."""
        may_be_deleted = args.overwrite_output_dir or args.save_total_limit is not None
        self._volatile_checkpoints_dir = None
        if self._log_checkpoints and may_be_deleted:
            self._volatile_checkpoints_dir = tempfile.mkdtemp()
        if self._log_checkpoints == "best" and not args.load_best_model_at_end:
            raise ValueError("log_checkpoints='best' needs load_best_model_at_end=True.")

    def on_train_begin(self, args, state, control, model=None, **kwargs):
        """Open a run and describe it."""
        if not state.is_world_process_zero:
            return
        self._ensure_run_with_monitoring()
        self._force_reset_monitoring_run = True
        self.run[self.integration_version_key] = transformers.__version__
        folder = self.run[self._base_namespace_path]
        if self._log_parameters:
            folder[self.trainer_parameters_key] = args.to_sanitized_dict()
            if getattr(model, "config", None) is not None:
                folder[self.model_parameters_key] = model.config.to_dict()
        if state.is_hyper_param_search:
            folder[self.trial_name_key] = state.trial_name
            if state.trial_params is not None:
                folder[self.trial_params_key] = state.trial_params

    def on_log(self, args, state, control, logs=None, **kwargs):
        """Log the numbers at the present step."""
        if not state.is_world_process_zero or logs is None:
            return
        folder = self.run[self._base_namespace_path]
        for name, value in rewrite_logs(logs).items():
            if not isinstance(value, (int, float)):
                continue
            if name in self.flat_metrics:
                folder[name] = value
            else:
                folder[name].log(value, step=state.global_step)

    def on_evaluate(self, args, state, control, metrics=None, **kwargs):
        """With `log_checkpoints="best"`, decide whether the next checkpoint is worth uploading."""
        if self._log_checkpoints != "best":
            return
        name = args.metric_for_best_model
        value = metrics.get(name if name.startswith("eval_") else f"eval_{name}")
        is_better = np.greater if args.greater_is_better else np.less
        self._should_upload_checkpoint = state.best_metric is None or is_better(value, state.best_metric)

    def on_save(self, args, state, control, **kwargs):
        """Upload the checkpoint, from a copy if it may be deleted meanwhile."""
        if not self._should_upload_checkpoint:
            return
        name, path = _checkpoint_name_and_path(args, state)
        uploaded_path = path
        if self._volatile_checkpoints_dir is not None:
            copy = os.path.join(self._volatile_checkpoints_dir, name)
            try:
                shutil.copytree(path, os.path.join(copy, path.replace("..", "").lstrip(os.path.sep)))
                uploaded_path = copy
            except OSError as error:
                logger.warning(f"The checkpoint {path} could not be copied ({error}); its upload may fail.")
        folder = self.run[self._base_namespace_path][self._target_checkpoints_namespace]
        folder.upload_files(uploaded_path)
        if self._keeps_one_checkpoint and self._recent_checkpoint_path is not None:
            folder.delete_files(self._recent_checkpoint_path)
        self._recent_checkpoint_path = path

    def on_train_end(self, args, state, control, **kwargs):
        """Close the run."""
        self._stop_run_if_exists()

    def __del__(self) -> None:
        if self._volatile_checkpoints_dir is not None:
            shutil.rmtree(self._volatile_checkpoints_dir, ignore_errors=True)
        self._stop_run_if_exists()


class CodeCarbonCallback(TrainerCallback):
    """Estimates the CO2 of a training, on the first process of each machine. Never run here.

    Raises:
        RuntimeError: without codecarbon.

    Source: integrations.py 1388-1414.
    """

    def __init__(self) -> None:
        if not is_codecarbon_available():
            raise RuntimeError("CodeCarbonCallback needs the package codecarbon: `pip install codecarbon`.")
        self._codecarbon = importlib.import_module("codecarbon")
        self.tracker: Any = None

    def on_init_end(self, args, state, control, **kwargs):
        """Make the tracker, which writes `emissions.csv` to the output folder."""
        if state.is_local_process_zero and self.tracker is None:
            self.tracker = self._codecarbon.EmissionsTracker(output_dir=args.output_dir)

    def on_train_begin(self, args, state, control, model=None, **kwargs):
        """Start measuring."""
        if state.is_local_process_zero and self.tracker:
            self.tracker.start()

    def on_train_end(self, args, state, control, **kwargs):
        """Stop measuring and write."""
        if state.is_local_process_zero and self.tracker:
            self.tracker.stop()


class ClearMLCallback(TrainerCallback):
    """Logs to ClearML. Never run here.

    Environment: `CLEARML_PROJECT`, `CLEARML_TASK`, `CLEARML_LOG_MODEL` (upload each checkpoint).

    Raises:
        RuntimeError: without clearml.

    Source: integrations.py 1417-1533.
    """

    _once_a_run = ("train_runtime", "train_samples_per_second", "train_steps_per_second", "train_loss", "total_flos")

    def __init__(self) -> None:
        if not is_clearml_available():
            raise RuntimeError("ClearMLCallback needs the package clearml: `pip install clearml`.")
        self._clearml = importlib.import_module("clearml")
        self._initialized = False
        self._clearml_task: Any = None
        self._log_model = _is_true("CLEARML_LOG_MODEL")

    def setup(self, args, state, model, tokenizer, **kwargs):
        """Join the task of a pipeline, or open one."""
        if self._initialized or not state.is_world_process_zero:
            return
        if self._clearml_task is None:
            self._clearml_task = self._clearml.Task.current_task() or self._clearml.Task.init(
                task_name=os.getenv("CLEARML_TASK", "Trainer"),
                project_name=os.getenv("CLEARML_PROJECT", "HuggingFace Transformers"),
                # ClearML would otherwise take the same numbers from TensorBoard's files too.
                auto_connect_frameworks={"tensorboard": False, "pytorch": False},
                output_uri=True,
            )
            self._initialized = True
        self._clearml_task.connect(args, "Args")
        if getattr(model, "config", None) is not None:
            self._clearml_task.connect(model.config, "Model Configuration")

    def on_train_begin(self, args, state, control, model=None, tokenizer=None, **kwargs):
        """Open a task."""
        self._initialized = self._initialized and not state.is_hyper_param_search
        self.setup(args, state, model, tokenizer, **kwargs)

    def on_log(self, args, state, control, model=None, tokenizer=None, logs=None, **kwargs):
        """Log the numbers: those of the whole run once, the others at the present step."""
        self.setup(args, state, model, tokenizer, **kwargs)
        if not state.is_world_process_zero:
            return
        task_logger = self._clearml_task.get_logger()
        for name, value in logs.items():
            group, _, rest = name.partition("_")
            if not isinstance(value, (int, float)):
                _warn_not_a_number(name, value, "a scalar")
            elif name in (*self._once_a_run, "epoch"):
                task_logger.report_single_value(name=name, value=value)
            else:
                title, series = (rest, group) if group in ("eval", "test") and rest else (name, "train")
                task_logger.report_scalar(title=title, series=series, value=value, iteration=state.global_step)

    def on_save(self, args, state, control, **kwargs):
        """Upload the checkpoint, if `CLEARML_LOG_MODEL` is on."""
        if self._log_model and self._clearml_task and state.is_world_process_zero:
            name, path = _checkpoint_name_and_path(args, state)
            logger.info(f"Uploading {name}, which may take a while.")
            self._clearml_task.update_output_model(path, iteration=state.global_step, auto_delete_file=False)

    def on_train_end(self, args, state, control, **kwargs):
        """Close the task."""
        if self._clearml_task and state.is_world_process_zero:
            self._clearml_task.close()


class FlyteCallback(TrainerCallback):
    """Keeps checkpoints and the log in the Flyte task that this script is part of. Never run here.

    Args:
        save_log_history: show the log as a table of the task.
        sync_checkpoints: keep checkpoints, so that an interrupted task can go on.

    Raises:
        ImportError: without flytekit.

    Source: integrations.py 1536-1596.
    """

    def __init__(self, save_log_history: bool = True, sync_checkpoints: bool = True):
        if not is_flytekit_available():
            raise ImportError("FlyteCallback needs the package flytekit: `pip install flytekit`.")
        if save_log_history and not (is_flyte_deck_standard_available() and _is_installed("pandas")):
            logger.warning(
                "The log cannot be shown: that needs pandas and flytekitplugins-deck-standard. "
                "Run `pip install flytekitplugins-deck-standard pandas`."
            )
            save_log_history = False
        from flytekit import current_context

        self.cp = current_context().checkpoint
        self.save_log_history, self.sync_checkpoints = save_log_history, sync_checkpoints

    def on_save(self, args, state, control, **kwargs):
        """Keep the checkpoint."""
        if state.is_world_process_zero and self.sync_checkpoints:
            name, path = _checkpoint_name_and_path(args, state)
            logger.info(f"Keeping {name} with Flyte, which may take a while.")
            self.cp.save(path)

    def on_train_end(self, args, state, control, **kwargs):
        """Show the log."""
        if self.save_log_history:
            import pandas
            from flytekit import Deck
            from flytekitplugins.deck.renderer import TableRenderer

            Deck("Log History", TableRenderer().to_html(pandas.DataFrame(state.log_history)))


# The order is that of the error message for an unknown name.
INTEGRATION_TO_CALLBACK: dict[str, type[TrainerCallback]] = {
    "azure_ml": AzureMLCallback,
    "comet_ml": CometCallback,
    "mlflow": MLflowCallback,
    # trackers above and below, one estimator of emissions, one workflow engine
    "neptune": NeptuneCallback,
    "tensorboard": TensorBoardCallback,
    "wandb": WandbCallback,
    "codecarbon": CodeCarbonCallback,
    # the last three
    "clearml": ClearMLCallback,
    "dagshub": DagsHubCallback,
    "flyte": FlyteCallback,
}


# =========================================================================================================
# What reporters share
# =========================================================================================================

_TRUE_WORDS = ("1", "ON", "YES", "TRUE")


def _is_true(variable: str) -> bool:
    """Whether an environment variable is switched on."""
    return os.getenv(variable, "FALSE").upper() in _TRUE_WORDS


def _has_own_run_name(args: "TrainingArguments") -> bool:
    """Whether the run was named: by default it is called after its folder, which says nothing to a tracker."""
    return args.run_name is not None and args.run_name != args.output_dir


def _model_config(model: Any) -> dict[str, Any]:
    """The model's configuration, empty if it has none."""
    config = getattr(model, "config", None)
    return {} if config is None else config.to_dict()


def _checkpoint_name_and_path(args: "TrainingArguments", state: "TrainerState") -> tuple[str, str]:
    """The folder of the checkpoint that has just been written."""
    name = f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}"
    return name, os.path.join(args.output_dir, name)


def _warn_not_a_number(name: str, value: Any, wanted: str) -> None:
    """Say that something was not reported."""
    logger.warning(f'"{name}" is not reported: {value!r} ({type(value)}) is no number, so it cannot be {wanted}.')


# -- is it installed? ---


def _is_installed(module_name: str) -> bool:
    """Whether a module can be found. A dotted name imports the packages before its last dot, if they are there."""
    try:
        return importlib.util.find_spec(module_name) is not None
    except ModuleNotFoundError:
        return False


def is_tensorboard_available() -> bool:
    """Whether tensorboard or tensorboardX is installed."""
    return _is_installed("tensorboard") or _is_installed("tensorboardX")


def is_wandb_available() -> bool:
    """Whether wandb is installed and `WANDB_DISABLED` does not forbid it."""
    if os.getenv("WANDB_DISABLED", "").upper() in _TRUE_WORDS:
        logger.warning("WANDB_DISABLED is deprecated: use --report_to to choose the trackers (`none` for none).")
        return False
    return _is_installed("wandb")


def is_mlflow_available() -> bool:
    """Whether mlflow is installed and `DISABLE_MLFLOW_INTEGRATION` does not forbid it."""
    return os.getenv("DISABLE_MLFLOW_INTEGRATION", "FALSE").upper() != "TRUE" and _is_installed("mlflow")


@functools.lru_cache
def is_comet_available() -> bool:
    """Whether comet_ml is installed, not disabled by `COMET_MODE`, and has an API key. Asked once a process."""
    if os.getenv("COMET_MODE", "").upper() == "DISABLED" or not _is_installed("comet_ml"):
        return False
    try:
        import comet_ml

        has_key = hasattr(comet_ml, "config") and bool(comet_ml.config.get_config("comet.api_key"))
    except (ImportError, ValueError):
        return False
    if not has_key:
        logger.warning("nothing goes to comet_ml: the environment has no `COMET_API_KEY`.")
    return has_key


def is_azureml_available() -> bool:
    """Whether Azure ML's SDK is installed."""
    return _is_installed("azureml.core.run")


def is_dagshub_available() -> bool:
    """Whether dagshub is installed, and mlflow with it."""
    return _is_installed("dagshub") and _is_installed("mlflow")


def is_neptune_available() -> bool:
    """Whether Neptune's client is installed."""
    return _is_installed("neptune")


def is_codecarbon_available() -> bool:
    """Whether codecarbon is installed."""
    return _is_installed("codecarbon")


def is_clearml_available() -> bool:
    """Whether clearml is installed."""
    return _is_installed("clearml")


def is_flytekit_available() -> bool:
    """Whether flytekit is installed."""
    return _is_installed("flytekit")


def is_flyte_deck_standard_available() -> bool:
    """Whether flytekit can show tables."""
    return is_flytekit_available() and _is_installed("flytekitplugins.deck")


def is_optuna_available() -> bool:
    """Whether optuna, which searches hyperparameters, is installed."""
    return _is_installed("optuna")


def is_ray_available() -> bool:
    """Whether ray is installed."""
    return _is_installed("ray")


def is_ray_tune_available() -> bool:
    """Whether ray is installed with its search."""
    return _is_installed("ray.tune")


def is_sigopt_available() -> bool:
    """Whether sigopt, which searches hyperparameters, is installed."""
    return _is_installed("sigopt")


# Read next: trace/events.py
