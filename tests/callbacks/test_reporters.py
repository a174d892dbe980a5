"""Reporters: TensorBoard's files are read back; W&B and MLflow run in their own offline modes."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from minitrainer import reporters
from minitrainer.callbacks import TrainerControl, TrainerState

from .tiny import Line, train

# -- names ---


def test_an_unknown_name_lists_the_known_ones() -> None:
    """In upstream's order."""
    with pytest.raises(
        ValueError, match="^report_to knows no paper, only azure_ml, comet_ml, mlflow, neptune, tensor"
    ):
        reporters.get_reporting_integration_callbacks(["paper"])


def test_names_become_classes() -> None:
    """Classes, not instances: the handler makes them."""
    classes = reporters.get_reporting_integration_callbacks(["wandb", "tensorboard"])
    assert classes == [reporters.WandbCallback, reporters.TensorBoardCallback]
    assert reporters.get_reporting_integration_callbacks([]) == []


MISSING = {
    "azure_ml": (RuntimeError, "AzureMLCallback needs the package azureml: `pip install azureml-sdk`."),
    "comet_ml": (RuntimeError, "CometCallback needs the package comet-ml: `pip install comet-ml`."),
    "mlflow": (RuntimeError, "MLflowCallback needs the package mlflow: `pip install mlflow`."),
    "neptune": (ValueError, "NeptuneCallback needs the package neptune: `pip install neptune`."),
    "tensorboard": (RuntimeError, "TensorBoardCallback has nothing to write with: `pip install tensorboard`, or"),
    "wandb": (RuntimeError, "WandbCallback needs the package wandb: `pip install wandb`."),
    "codecarbon": (RuntimeError, "CodeCarbonCallback needs the package codecarbon: `pip install codecarbon`."),
    "clearml": (RuntimeError, "ClearMLCallback needs the package clearml: `pip install clearml`."),
    "dagshub": (RuntimeError, "MLflowCallback needs the package mlflow: `pip install mlflow`."),
    "flyte": (ImportError, "FlyteCallback needs the package flytekit: `pip install flytekit`."),
}


@pytest.mark.parametrize("name", MISSING)
def test_a_missing_library_is_named(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Upstream's error at upstream's moment, when the reporter is built; with nothing installed at all."""
    monkeypatch.setattr(reporters, "_is_installed", lambda module_name: False)
    reporters.is_comet_available.cache_clear()
    kind, text = MISSING[name]
    (reporter_class,) = reporters.get_reporting_integration_callbacks([name])
    with pytest.raises(kind) as raised:
        reporter_class()
    assert type(raised.value) is kind
    assert str(raised.value).startswith(text)
    assert reporters.get_available_reporting_integrations() == []


def test_every_name_that_is_accepted_is_tested_for_its_library() -> None:
    """So that a new reporter cannot be forgotten above."""
    assert set(MISSING) == set(reporters.INTEGRATION_TO_CALLBACK)


@pytest.mark.parametrize(
    ("variable", "value", "question"),
    [("WANDB_DISABLED", "yes", "is_wandb_available"), ("DISABLE_MLFLOW_INTEGRATION", "true", "is_mlflow_available")],
)
def test_variables_switch_reporters_off(
    variable: str, value: str, question: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Installed or not."""
    monkeypatch.setattr(reporters, "_is_installed", lambda module_name: True)
    assert getattr(reporters, question)()
    monkeypatch.setenv(variable, value)
    assert not getattr(reporters, question)()


def test_azure_ml_gives_way_to_mlflow(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where both are installed, "all" means MLflow; Flyte is never meant."""
    for installed, expected in (
        ({"azureml.core.run"}, ["azure_ml"]),
        ({"azureml.core.run", "mlflow", "flytekit"}, ["mlflow"]),
        ({"mlflow", "dagshub", "wandb", "tensorboardX"}, ["dagshub", "mlflow", "tensorboard", "wandb"]),
    ):
        monkeypatch.setattr(reporters, "_is_installed", installed.__contains__)
        reporters.is_comet_available.cache_clear()
        assert reporters.get_available_reporting_integrations() == expected


def test_names_are_grouped() -> None:
    """By what stands before the first underscore."""
    logs = {
        "eval_loss": 1,
        "test_f1": 2,
        "loss": 3,
        "train_loss": 4,
        "evaluation": 5,
        "eval_a_b": 6,
        "eval": 7,
        "eval_": 8,
    }
    assert reporters.rewrite_logs(logs) == {
        "eval/loss": 1,
        "test/f1": 2,
        "train/loss": 3,
        "train/train_loss": 4,
        "train/evaluation": 5,
        "eval/a_b": 6,
        "train/eval": 7,
        "eval/": 8,
    }


# -- TensorBoard ---


def read_events(folder: Path) -> tuple[dict[str, list[tuple[int, float]]], dict[str, str]]:
    """All scalars, by name, as (step, value); all texts, by name."""
    event_accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    events = event_accumulator.EventAccumulator(str(folder), size_guidance={"tensors": 0, "scalars": 0})
    events.Reload()
    scalars = {name: [(e.step, e.value) for e in events.Scalars(name)] for name in events.Tags()["scalars"]}
    texts = {name: events.Tensors(name)[0].tensor_proto.string_val[0].decode() for name in events.Tags()["tensors"]}
    return scalars, texts


def test_tensorboard_files_hold_what_was_logged(tmp_path: Path) -> None:
    """A whole training: every number of the log at its step, and the arguments as text."""
    numpy = pytest.importorskip("numpy")
    pytest.importorskip("tensorboard")
    trainer = train(tmp_path, ["tensorboard"])
    scalars, texts = read_events(tmp_path / "logs")

    expected: dict[str, list[tuple[int, float]]] = {}
    for logged in trainer.state.log_history:
        step = logged["step"]
        for name, value in logged.items():
            if name != "step":
                group = f"eval/{name[5:]}" if name.startswith("eval_") else f"train/{name}"
                expected.setdefault(group, []).append((step, float(numpy.float32(value))))  # the file holds float32
    # total_flos too: reporters stand before the callback that shows progress, which takes it out of the logs.
    assert scalars == expected
    assert [step for step, _ in scalars["train/loss"]] == [2, 4]
    assert [step for step, _ in scalars["eval/loss"]] == [2, 4]
    assert json.loads(texts["args/text_summary"])["learning_rate"] == 0.01


def test_tensorboard_drops_what_is_no_number(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """With a warning; the rest is written. A process that is not the first writes nothing."""
    pytest.importorskip("tensorboard")
    reporter = reporters.TensorBoardCallback()
    args = Arguments(tmp_path)
    reporter.on_log(args, TrainerState(is_world_process_zero=False), TrainerControl(), logs={"loss": 1.0})
    assert reporter.tb_writer is None
    reporter.on_log(args, TrainerState(global_step=3), TrainerControl(), logs={"loss": 0.5, "text": "word"})
    reporter.on_train_end(args, TrainerState(), TrainerControl())
    scalars, _ = read_events(tmp_path / "logs")
    assert scalars == {"train/loss": [(3, 0.5)]}
    assert "\"train/text\" is not reported: 'word' (<class 'str'>) is no number" in caplog.text


def test_tensorboard_gives_each_trial_a_folder(tmp_path: Path) -> None:
    """In a hyperparameter search."""
    pytest.importorskip("tensorboard")
    reporter = reporters.TensorBoardCallback()
    state = TrainerState(is_hyper_param_search=True, trial_name="trial-7")
    reporter.on_train_begin(Arguments(tmp_path), state, TrainerControl(), model=Line())
    reporter.on_train_end(Arguments(tmp_path), state, TrainerControl())
    assert list((tmp_path / "logs" / "trial-7").iterdir())


class Arguments:
    """The little that this reporter asks of the arguments."""

    def __init__(self, folder: Path):
        self.logging_dir = str(folder / "logs")

    def to_json_string(self) -> str:
        return "{}"


# -- Weights & Biases ---


def test_wandb_logs_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A whole training; the run's configuration and last values are those of the Trainer."""
    wandb = pytest.importorskip("wandb")
    for name, value in {"MODE": "offline", "DIR": str(tmp_path), "SILENT": "true", "PROJECT": "ours"}.items():
        monkeypatch.setenv(f"WANDB_{name}", value)
    try:
        trainer = train(tmp_path, ["wandb"], run_name="first")
        run = wandb.run
        assert (run.name, run.project) == ("first", "ours")
        assert run.config["learning_rate"] == 0.01
        last_loss = [logged["loss"] for logged in trainer.state.log_history if "loss" in logged][-1]
        last_eval = [logged["eval_loss"] for logged in trainer.state.log_history if "eval_loss" in logged][-1]
        assert run.summary["train/loss"] == last_loss
        assert run.summary["eval/loss"] == last_eval
        assert run.summary["train/global_step"] == 4
    finally:
        wandb.finish()
    assert list(tmp_path.glob("wandb/offline-run-*/*.wandb"))


def test_wandb_uploads_the_model_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With WANDB_LOG_MODEL=end: an artifact with the files that a user's save_model would write."""
    wandb = pytest.importorskip("wandb")
    for name, value in {"MODE": "offline", "DIR": str(tmp_path), "SILENT": "true", "LOG_MODEL": "true"}.items():
        monkeypatch.setenv(f"WANDB_{name}", value)
    monkeypatch.setenv("WANDB_DATA_DIR", str(tmp_path / "staging"))
    uploaded: list[Any] = []
    monkeypatch.setattr(wandb.Run, "log_artifact", lambda run, artifact, *rest, **how: uploaded.append(artifact))
    try:
        train(tmp_path, ["wandb"])
    finally:
        wandb.finish()
    (artifact,) = uploaded
    assert artifact.type == "model"
    assert {"pytorch_model.bin", "training_args.bin"} <= set(artifact.manifest.entries)
    assert artifact.metadata["train/global_step"] == 4


# -- MLflow ---


def test_mlflow_logs_to_a_local_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A whole training; metrics, parameters and tags are read back from the store."""
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "ours")
    monkeypatch.setenv("MLFLOW_TAGS", '{"kind": "test"}')
    mlflow.set_tracking_uri((tmp_path / "store").as_uri())
    try:
        trainer = train(tmp_path, ["mlflow"], run_name="first")
        assert mlflow.active_run() is None  # ended with the training
        client = mlflow.MlflowClient()
        (run,) = client.search_runs([client.get_experiment_by_name("ours").experiment_id])
        assert run.info.run_name == "first"
        assert run.data.params["learning_rate"] == "0.01"
        assert run.data.tags["kind"] == "test"
        history = [(m.step, m.value) for m in client.get_metric_history(run.info.run_id, "loss")]
        assert history == [
            (logged["step"], logged["loss"]) for logged in trainer.state.log_history if "loss" in logged
        ]
        evaluations = client.get_metric_history(run.info.run_id, "eval_loss")
        assert [m.step for m in evaluations] == [2, 4]
    finally:
        mlflow.end_run()
        mlflow.set_tracking_uri(None)
        os.environ.pop("MLFLOW_RUN_ID", None)


def test_mlflow_drops_long_parameters(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """With a warning that names the remedy; and parameters travel in parcels."""
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    mlflow.set_tracking_uri((tmp_path / "store").as_uri())
    reporter = reporters.MLflowCallback()
    reporter._MAX_PARAM_VAL_LENGTH, reporter._MAX_PARAMS_TAGS_PER_BATCH, reporter._flatten_params = 5, 2, True
    try:
        mlflow.set_experiment("parcels")
        with mlflow.start_run() as run:
            reporter._log_parameters({"a": 1, "b": "too long", "c": {"d": 2, "e": 3}})
        assert mlflow.MlflowClient().get_run(run.info.run_id).data.params == {"a": "1", "c.d": "2", "c.e": "3"}
    finally:
        mlflow.set_tracking_uri(None)


# Read next: ../parts/test_parts.py
