"""transformers.Trainer 4.31.0 that you can read, watch and compare.

    from minitrainer import Trainer, TrainingArguments      # one word changes: it was "from transformers import"
    python -m minitrainer.trace run_glue                    # watch it train

Importing the package imports nothing else. Each name below is fetched from its file when it is first used (PEP 562),
so `import minitrainer` takes no torch and no time.
"""

import importlib
from typing import Any

__version__ = "0.1.0"

# File to the names that it offers here. Where upstream offers a name as `transformers.X`, `minitrainer.X` is its twin.
_NAMES_BY_FILE = {
    "trainer": ("Trainer",),
    "seq2seq": ("Seq2SeqTrainer",),
    "question_answering": ("QuestionAnsweringTrainer", "QuestionAnsweringSeq2SeqTrainer"),
    "arguments": ("TrainingArguments", "Seq2SeqTrainingArguments"),
    "callbacks": (
        "CallbackHandler",
        "DefaultFlowCallback",
        "EarlyStoppingCallback",
        "PrinterCallback",
        "ProgressCallback",
        "TrainerCallback",
        "TrainerControl",
        "TrainerState",
    ),
    "notebook": ("NotebookProgressCallback",),
    "reporters": (
        "AzureMLCallback",
        "ClearMLCallback",
        "CodeCarbonCallback",
        "CometCallback",
        "DagsHubCallback",
        "FlyteCallback",
        "MLflowCallback",
        "NeptuneCallback",
        "TensorBoardCallback",
        "WandbCallback",
        "get_reporting_integration_callbacks",
    ),
    "registry": ("default_hp_search_backend",),
    "parts.choices": (
        "EvaluationStrategy",
        "FSDPOption",
        "HPSearchBackend",
        "HubStrategy",
        "IntervalStrategy",
        "OptimizerNames",
        "ParallelMode",
        "SchedulerType",
        "ShardedDDPOption",
    ),
    "parts.outputs": ("BestRun", "EvalLoopOutput", "EvalPrediction", "PredictionOutput", "TrainOutput"),
    "parts.seeding": ("enable_full_determinism", "seed_worker", "set_seed"),
    "parts.checkpoints": ("PREFIX_CHECKPOINT_DIR", "get_last_checkpoint"),
    "parts.inspection": ("get_parameter_names", "has_length"),
    "parts.label_smoothing": ("LabelSmoother",),
    "parts.metrics": ("TrainerMemoryTracker", "denumpify_detensorize", "speed_metrics"),
    "parts.processes": ("is_main_process", "torch_distributed_zero_first"),
    "parts.search_spaces": ("default_compute_objective",),
    "parts.samplers": (
        "DistributedLengthGroupedSampler",
        "DistributedSamplerWithLoop",
        "IterableDatasetShard",
        "LengthGroupedSampler",
        "SequentialDistributedSampler",
        "ShardSampler",
    ),
    "parts.gathering": (
        "DistributedTensorGatherer",
        "distributed_concat",
        "nested_concat",
        "nested_detach",
        "nested_numpify",
        "nested_truncate",
    ),
}
_FILE_BY_NAME = {name: file for file, names in _NAMES_BY_FILE.items() for name in names}

__all__ = [*_FILE_BY_NAME]  # noqa: PLE0604 - strings, although not written out


# Upstream's files whose twins stand here. A name of theirs that is not offered above is missing, not to be lent.
_UPSTREAMS_OWN = ("transformers.trainer", "transformers.training_args", "transformers.integrations")


def __getattr__(name: str) -> Any:
    """Fetch a name from its file, once; a name that has nothing to do with the Trainer comes from transformers.

    So one word changes in a script: `from transformers import AutoTokenizer, Trainer` becomes `from minitrainer import
    AutoTokenizer, Trainer`.

    Raises:
        AttributeError: for a name that neither side has, or that only upstream's Trainer has.
    """
    if name in _FILE_BY_NAME:
        value = getattr(importlib.import_module(f".{_FILE_BY_NAME[name]}", __name__), name)
    else:
        if name.startswith("_"):  # Python itself asks for such names; that must not import anything
            raise AttributeError(f"module 'minitrainer' has no attribute {name!r}")
        value = getattr(importlib.import_module("transformers"), name, None)
        if value is None or str(getattr(value, "__module__", "")).startswith(_UPSTREAMS_OWN):
            raise AttributeError(f"module 'minitrainer' has no attribute {name!r}")
    globals()[name] = value  # from now on found without coming here
    return value


def __dir__() -> list[str]:
    """List what can be fetched, fetched or not."""
    return sorted({*globals(), *_FILE_BY_NAME})


# Read next: trainer.py
