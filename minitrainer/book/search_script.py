"""A hyperparameter search of three trials, as a user would write it: `recordings.py` records it for the book.

It knows nothing of the trace. Its losses are exact binary fractions, so every machine records the same bytes.
"""

# It is written for 4.31.0, and mypy reads it beside the installed version, whose names and types are others.
# mypy: disable-error-code="call-arg, arg-type, return-value"

from __future__ import annotations

import tempfile

import optuna
from transformers import Trainer, TrainingArguments

from minitrainer.trace.scenarios.scripted import Rows, ScriptedModel

LEARNING_RATES = [0.25, 0.5, 1.0]


class GivesUpTheSecond(optuna.pruners.BasePruner):
    """Gives up the second trial at its first evaluation, whatever it has reached."""

    def prune(self, study: optuna.study.Study, trial: optuna.trial.FrozenTrial) -> bool:
        """Whether to give up this trial."""
        return trial.number == 1


def main(folder: str) -> None:
    """Search for the learning rate with the smallest sum of itself and the evaluation loss."""
    arguments = TrainingArguments(
        folder,
        per_device_train_batch_size=2,
        per_device_eval_batch_size=2,
        num_train_epochs=1,
        learning_rate=0.5,
        logging_steps=2,
        evaluation_strategy="steps",
        eval_steps=2,
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
        no_cuda=True,
    )
    trainer = Trainer(
        args=arguments,
        model_init=lambda: ScriptedModel(1, (0.0,)),
        train_dataset=Rows([0.5] * 8),
        eval_dataset=Rows([0.25] * 4),
    )
    trainer.hyperparameter_search(
        hp_space=lambda trial: {"learning_rate": trial.suggest_categorical("learning_rate", LEARNING_RATES)},
        compute_objective=lambda metrics: metrics["eval_loss"] + arguments.learning_rate,
        n_trials=len(LEARNING_RATES),
        pruner=GivesUpTheSecond(),
        sampler=optuna.samplers.GridSampler({"learning_rate": LEARNING_RATES}, seed=1),
    )


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as output:
        main(output)

# Read next: ../../chapters/search.md, what the recording shows.
