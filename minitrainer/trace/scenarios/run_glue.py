"""run_glue: fine-tune a classifier, the way most people meet the Trainer.

Two thousand sentences from film reviews, each praise or blame; a small BERT that starts knowing nothing; three epochs.
On two processor cores that takes a few seconds, and at the end the model tells praise from blame in seven of ten
sentences it has never seen. The same program trains on pairs of sentences (`--task pairs`), on two files of yours
(`--train_file`, `--validation_file`), or, with a network, on the real GLUE benchmark with a real BERT.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import datasets
import numpy as np
from transformers import AutoModelForSequenceClassification, DataCollatorWithPadding

from ..errors import UsageError
from .arguments import common_defaults, parse, tokenizer_parameter, use_one_thread
from .models import pretrained_model, small_model
from .texts import shipped_texts, texts_from_files, texts_from_hub

DEFAULTS = {
    "num_train_epochs": 3.0,  # 375 steps. After that it learns its training sentences by heart.
    "per_device_train_batch_size": 16,
    "per_device_eval_batch_size": 32,
    "evaluation_strategy": "epoch",
    "save_strategy": "epoch",
    "logging_steps": 25,
}
"""How long and how often, by 4.31.0's names. Dropout stays at BERT's 0.1, and the seed at the Trainer's 42."""

FROM_SCRATCH = {"learning_rate": 1.5e-3, "weight_decay": 0.1}
"""The small BERT has everything to learn; a pretrained one takes the Trainer's own defaults, a rate of 5e-5."""

WITHOUT_NETWORK = "the embedded default needs none: leave out --task_name and --model_name_or_path"


# -- what can be learned ---


@dataclass
class DataArguments:
    """Which sentences to learn from."""

    task: str = field(
        default="polarity",
        metadata={
            "help": "What to classify: film-review sentences by their polarity (SST-2's form), or pairs of questions "
            "to a bank by whether they ask the same (MRPC's form). Both come with the package; pairs want a "
            "pretrained model, the small one stays at two thirds, the share of the larger class.",
            "choices": ["polarity", "pairs"],
        },
    )
    task_name: str | None = field(
        default=None,
        metadata={
            "help": "A task of the GLUE benchmark instead, loaded over the network.",
            "choices": ["cola", "mnli", "mrpc", "qnli", "qqp", "rte", "sst2", "stsb", "wnli"],
        },
    )
    train_file: str | None = field(
        default=None,
        metadata={"help": "Your own training rows, .csv or .json lines, with --task's columns and a label 0 or 1."},
    )
    validation_file: str | None = field(
        default=None, metadata={"help": "Your own held-out rows; goes with --train_file."}
    )
    max_seq_length: int = field(default=128, metadata={"help": "Longer texts are cut to this many tokens."})
    max_train_samples: int | None = field(default=None, metadata={"help": "Train on the first so many rows only."})
    max_eval_samples: int | None = field(default=None, metadata={"help": "Evaluate on the first so many rows only."})
    max_predict_samples: int | None = field(default=None, metadata={"help": "Predict the first so many rows only."})


@dataclass
class ModelArguments:
    """Which model learns."""

    model_name_or_path: str | None = field(
        default=None,
        metadata={
            "help": "A pretrained model: a folder, or a name on the hub such as bert-base-cased. Without it, a small "
            "BERT (one layer, 142,338 weights) starts from random weights."
        },
    )


def accuracy(predicted: np.ndarray, labels: np.ndarray) -> float:
    """Share of rows whose label was predicted."""
    return float((predicted == labels).mean())


def f1(predicted: np.ndarray, labels: np.ndarray) -> float:
    """Harmonic mean of precision and recall for label 1; 0 if nothing of label 1 was found."""
    found = int(((predicted == 1) & (labels == 1)).sum())
    return 2 * found / max(1, int((predicted == 1).sum() + (labels == 1).sum()))


def correlation(predicted: np.ndarray, labels: np.ndarray) -> float:
    """Pearson's correlation; between labels 0 and 1 it is Matthews'. 0 if one side never varies."""
    if np.ptp(predicted) == 0 or np.ptp(labels) == 0:
        return 0.0
    return float(np.corrcoef(predicted, labels)[0, 1])


@dataclass(frozen=True)
class Task:
    """What the program must know of a task."""

    columns: tuple[str, ...]
    label_names: tuple[str, ...]  # Empty: the label is a number to come close to.
    scores: tuple[Callable[[np.ndarray, np.ndarray], float], ...]
    train: datasets.Dataset
    validation: datasets.Dataset
    test: datasets.Dataset


FORMS = {
    "polarity": (("sentence",), ("negative", "positive"), (accuracy,), "polarity"),
    "pairs": (("sentence1", "sentence2"), ("different", "same"), (accuracy, f1), "banking_pairs"),
}
"""The two forms of data that come with the package: columns, label names, scores, folder."""

GLUE_COLUMNS = {
    "cola": ("sentence",),
    "mnli": ("premise", "hypothesis"),
    "mrpc": ("sentence1", "sentence2"),
    "qnli": ("question", "sentence"),
    "qqp": ("question1", "question2"),
    "rte": ("sentence1", "sentence2"),
    "sst2": ("sentence",),
    "stsb": ("sentence1", "sentence2"),
    "wnli": ("sentence1", "sentence2"),
}
"""Where each task of the benchmark keeps its texts."""

GLUE_SCORES = {"cola": (correlation,), "stsb": (correlation,), "mrpc": (accuracy, f1), "qqp": (accuracy, f1)}
"""What the benchmark counts; accuracy where nothing is said."""


# -- the program ---


def main(library: ModuleType, argv: list[str]) -> int:
    """Train, evaluate and predict with `library`'s Trainer, as the arguments in `argv` say.

    Returns:
        The exit status, 0.

    Raises:
        UsageError: The arguments ask for something that can't be done.
    """
    data_args, model_args, training_args = parse(
        library,
        argv,
        own_types=(DataArguments, ModelArguments),
        training_type=library.TrainingArguments,
        choose_defaults=choose_defaults,
        name="run_glue",
        description=__doc__,
    )
    use_one_thread()
    library.set_seed(training_args.seed)  # Before the model draws its weights; the Trainer sets it again for the rest.

    # -- data and model ---
    task = load_task(data_args)
    config_changes: dict[str, Any] = {"num_labels": max(1, len(task.label_names))}
    if task.label_names:
        config_changes["id2label"] = dict(enumerate(task.label_names))
        config_changes["label2id"] = {name: label for label, name in enumerate(task.label_names)}
    if model_args.model_name_or_path is None:
        tokenizer, model = small_model(AutoModelForSequenceClassification, "bert", **config_changes)
    else:
        tokenizer, model = pretrained_model(
            AutoModelForSequenceClassification, model_args.model_name_or_path, WITHOUT_NETWORK, **config_changes
        )

    # -- words to numbers ---
    def tokenize(rows: dict[str, list]) -> dict[str, list]:
        texts = [rows[column] for column in task.columns]
        return tokenizer(*texts, truncation=True, max_length=data_args.max_seq_length)

    def prepare(rows: datasets.Dataset, max_rows: int | None) -> datasets.Dataset:
        if max_rows is not None:
            rows = rows.select(range(min(max_rows, len(rows))))
        # The text columns stay: taking out what the model can't use is the Trainer's first lesson.
        return rows.map(tokenize, batched=True, keep_in_memory=True)

    train_rows = prepare(task.train, data_args.max_train_samples)
    validation_rows = prepare(task.validation, data_args.max_eval_samples)
    test_rows = prepare(task.test, data_args.max_predict_samples)

    # -- what counts as good ---
    def compute_metrics(prediction: Any) -> dict[str, float]:
        logits = prediction.predictions[0] if isinstance(prediction.predictions, tuple) else prediction.predictions
        predicted = logits.argmax(axis=1) if task.label_names else logits.squeeze(axis=1)
        return {score.__name__: score(predicted, prediction.label_ids) for score in task.scores}

    trainer = library.Trainer(
        model=model,
        args=training_args,
        train_dataset=train_rows if training_args.do_train else None,
        eval_dataset=validation_rows if training_args.do_eval else None,
        data_collator=DataCollatorWithPadding(tokenizer),  # Pads each micro-batch to its own longest row.
        compute_metrics=compute_metrics,
        **{tokenizer_parameter(library.Trainer): tokenizer},
    )

    # -- train ---
    if training_args.do_train:
        result = trainer.train(resume_from_checkpoint=training_args.resume_from_checkpoint)
        metrics = {**result.metrics, "train_samples": len(train_rows)}
        trainer.save_model()
        trainer.log_metrics("train", metrics)
        trainer.save_metrics("train", metrics)
        trainer.save_state()

    # -- evaluate ---
    if training_args.do_eval:
        metrics = {**trainer.evaluate(), "eval_samples": len(validation_rows)}
        trainer.log_metrics("eval", metrics)
        trainer.save_metrics("eval", metrics)

    # -- predict ---
    if training_args.do_predict:
        # Without its label a row has no loss, and the Trainer no score to compute: only predictions come back.
        logits = trainer.predict(test_rows.remove_columns("label"), metric_key_prefix="predict").predictions
        logits = logits[0] if isinstance(logits, tuple) else logits
        if trainer.is_world_process_zero():
            name = data_args.task_name or data_args.task
            write_predictions(Path(training_args.output_dir) / f"predict_results_{name}.txt", logits, task)
    return 0


def choose_defaults(data_args: DataArguments, model_args: ModelArguments) -> dict[str, Any]:
    """What this scenario asks of the Trainer unless the user says otherwise."""
    from_scratch = FROM_SCRATCH if model_args.model_name_or_path is None else {}
    return {**common_defaults(), **DEFAULTS, **from_scratch, "output_dir": "runs/run_glue"}


def load_task(data_args: DataArguments) -> Task:
    """Load the rows that the arguments name, with what must be known of them.

    Raises:
        UsageError: They can't be had, or lack a column or a usable label.
    """
    if data_args.task_name is not None:
        return _load_glue_task(data_args.task_name)

    columns, label_names, scores, folder = FORMS[data_args.task]
    if data_args.train_file is None and data_args.validation_file is None:
        texts = shipped_texts(folder)
    else:
        texts = texts_from_files(data_args.train_file, data_args.validation_file, columns)
        _check_labels(texts["train"], data_args.train_file, label_names)
        _check_labels(texts["validation"], data_args.validation_file, label_names)
    # The package has no third split: predicting runs on the held-out rows again, then without their labels.
    return Task(columns, label_names, scores, texts["train"], texts["validation"], texts["validation"])


def _load_glue_task(name: str) -> Task:
    texts = texts_from_hub("nyu-mll/glue", name, WITHOUT_NETWORK)
    matched = "_matched" if name == "mnli" else ""
    return Task(
        columns=GLUE_COLUMNS[name],
        label_names=() if name == "stsb" else tuple(texts["train"].features["label"].names),
        scores=GLUE_SCORES.get(name, (accuracy,)),
        train=texts["train"],
        validation=texts["validation" + matched],
        test=texts["test" + matched],
    )


def _check_labels(rows: datasets.Dataset, path: str | None, label_names: tuple[str, ...]) -> None:
    if "label" not in rows.column_names:
        raise UsageError(f"{path} has no column 'label'")
    known = range(len(label_names))
    wrong = [label for label in rows["label"] if label not in known]
    if wrong:
        raise UsageError(f"{path} has the label {wrong[0]!r}; labels are {' or '.join(map(str, known))}")


def write_predictions(path: Path, logits: np.ndarray, task: Task) -> None:
    """Write one line for each row: its number, and the label (or the number) that the model predicts for it."""
    if task.label_names:
        answers = [task.label_names[label] for label in logits.argmax(axis=1)]
    else:
        answers = [f"{value:.3f}" for value in logits.squeeze(axis=1)]
    lines = ["index\tprediction", *(f"{index}\t{answer}" for index, answer in enumerate(answers))]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


# Read next: arguments.py, how a command line becomes TrainingArguments of any version.
