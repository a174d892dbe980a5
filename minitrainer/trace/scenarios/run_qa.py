"""run_qa: a model that points at the answer, and a Trainer that turns pointing into text before it judges.

A hundred and forty-five questions about two dozen paragraphs of an encyclopedia; each answer stands in its paragraph.
The model gives every token two numbers: how likely the answer begins here, and ends here. A paragraph too long for one
row becomes several overlapping ones, called features, so what the evaluation loop brings back is neither a text nor
one row a question. QuestionAnsweringTrainer makes answers of it first, and computes metrics then.

So few questions can't teach a small model to read: on unseen ones its F1 stays below ten of a hundred. What there is
to see here is the way from features to answers; `--model_name_or_path` brings a model that reads.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

import datasets
from transformers import AutoModelForQuestionAnswering, DataCollatorWithPadding, PreTrainedTokenizerFast

from ...question_answering import postprocess_qa_predictions, squad_metrics
from ..errors import UsageError
from .arguments import common_defaults, parse, tokenizer_parameter, use_one_thread
from .models import pretrained_model, small_model
from .texts import shipped_texts

DEFAULTS = {
    "num_train_epochs": 3.0,  # 102 steps.
    "per_device_train_batch_size": 16,
    "per_device_eval_batch_size": 32,
    "evaluation_strategy": "epoch",
    "save_strategy": "epoch",
    "save_total_limit": 2,
    "logging_steps": 20,
}
"""How it trains, by 4.31.0's names."""

FROM_SCRATCH = {"learning_rate": 2e-3}
"""For the small model; a pretrained one takes the Trainer's own default."""

WITHOUT_NETWORK = "the embedded default needs none: leave out --model_name_or_path"


@dataclass
class DataArguments:
    """How questions become features, and features answers."""

    max_seq_length: int = field(
        default=128, metadata={"help": "A question with a piece of its paragraph has at most this many tokens."}
    )
    doc_stride: int = field(default=48, metadata={"help": "Neighbouring pieces share this many tokens."})
    n_best_size: int = field(default=20, metadata={"help": "How many beginnings and ends to combine into answers."})
    max_answer_length: int = field(default=30, metadata={"help": "The longest answer considered, in tokens."})
    max_train_samples: int | None = field(default=None, metadata={"help": "Train on the first so many questions."})
    max_eval_samples: int | None = field(default=None, metadata={"help": "Evaluate the first so many questions."})
    max_predict_samples: int | None = field(default=None, metadata={"help": "Predict the first so many questions."})


@dataclass
class ModelArguments:
    """Which model reads."""

    model_name_or_path: str | None = field(
        default=None,
        metadata={
            "help": "A pretrained model: a folder, or a name on the hub such as bert-base-cased. Without it, a small "
            "BERT starts from random weights."
        },
    )


# -- the program ---


def main(library: ModuleType, argv: list[str]) -> int:
    """Train, evaluate and predict with a question-answering Trainer, as the arguments in `argv` say.

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
        name="run_qa",
        description=__doc__,
    )
    use_one_thread()
    library.set_seed(training_args.seed)

    # -- data and model ---
    texts = shipped_texts("xquad_en")
    if model_args.model_name_or_path is None:
        tokenizer, model = small_model(AutoModelForQuestionAnswering, "bert")
    else:
        tokenizer, model = pretrained_model(
            AutoModelForQuestionAnswering, model_args.model_name_or_path, WITHOUT_NETWORK
        )
    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        raise UsageError(
            f"the tokenizer of {model_args.model_name_or_path} can't say where in the text a token stands"
        )

    # -- questions to features ---
    def tokenize(rows: dict[str, list]) -> Any:
        return tokenizer(
            [question.strip() for question in rows["question"]],
            rows["context"],
            truncation="only_second",  # The paragraph is cut, never the question.
            max_length=data_args.max_seq_length,
            stride=data_args.doc_stride,
            return_overflowing_tokens=True,
            return_offsets_mapping=True,
        )

    def with_positions(rows: dict[str, list]) -> dict[str, list]:
        features = tokenize(rows)
        row_numbers = features.pop("overflow_to_sample_mapping")
        offset_mapping = features.pop("offset_mapping")
        spans = [
            answer_span(offsets, features.sequence_ids(number), rows["answers"][row])
            for number, (offsets, row) in enumerate(zip(offset_mapping, row_numbers, strict=True))
        ]
        return {
            **features,
            "start_positions": [start for start, _ in spans],
            "end_positions": [end for _, end in spans],
        }

    def with_origin(rows: dict[str, list]) -> dict[str, list]:
        features = tokenize(rows)
        row_numbers = features.pop("overflow_to_sample_mapping")
        # Offsets only where a token is part of the paragraph: elsewhere no answer can begin.
        offset_mapping = [
            [
                offset if part == 1 else None
                for offset, part in zip(offsets, features.sequence_ids(number), strict=True)
            ]
            for number, offsets in enumerate(features.pop("offset_mapping"))
        ]
        return {
            **features,
            "example_id": [rows["id"][row] for row in row_numbers],
            "offset_mapping": offset_mapping,
        }

    def first(rows: datasets.Dataset, max_rows: int | None) -> datasets.Dataset:
        return rows if max_rows is None else rows.select(range(min(max_rows, len(rows))))

    def prepare(questions: datasets.Dataset, how: Any) -> datasets.Dataset:
        return questions.map(how, batched=True, keep_in_memory=True, remove_columns=questions.column_names)

    train_features = prepare(first(texts["train"], data_args.max_train_samples), with_positions)
    eval_questions = first(texts["validation"], data_args.max_eval_samples)
    eval_features = prepare(eval_questions, with_origin)
    test_questions = first(texts["validation"], data_args.max_predict_samples)
    test_features = prepare(test_questions, with_origin)

    # -- features to answers ---
    def post_process(questions: datasets.Dataset, features: datasets.Dataset, logits: Any, stage: str = "eval") -> Any:
        answers = postprocess_qa_predictions(
            examples=questions,
            features=features,
            predictions=logits,
            n_best_size=data_args.n_best_size,
            max_answer_length=data_args.max_answer_length,
            output_dir=training_args.output_dir,
            prefix=stage,
        )
        return library.EvalPrediction(
            predictions=[{"id": name, "prediction_text": text} for name, text in answers.items()],
            label_ids=[{"id": row["id"], "answers": row["answers"]} for row in questions],
        )

    trainer = answering_trainer(library)(
        model=model,
        args=training_args,
        train_dataset=train_features if training_args.do_train else None,
        eval_dataset=eval_features if training_args.do_eval else None,
        eval_examples=eval_questions if training_args.do_eval else None,
        data_collator=DataCollatorWithPadding(tokenizer),
        post_process_function=post_process,
        compute_metrics=lambda answers: squad_metrics(answers.predictions, answers.label_ids),
        **{tokenizer_parameter(library.Trainer): tokenizer},
    )

    # -- train ---
    if training_args.do_train:
        result = trainer.train(resume_from_checkpoint=training_args.resume_from_checkpoint)
        metrics = {**result.metrics, "train_samples": len(train_features)}
        trainer.save_model()
        trainer.log_metrics("train", metrics)
        trainer.save_metrics("train", metrics)
        trainer.save_state()

    # -- evaluate ---
    if training_args.do_eval:
        metrics = {**trainer.evaluate(), "eval_samples": len(eval_features)}
        trainer.log_metrics("eval", metrics)
        trainer.save_metrics("eval", metrics)

    # -- predict ---
    if training_args.do_predict:
        output = trainer.predict(test_features, test_questions, metric_key_prefix="predict")
        metrics = {**output.metrics, "predict_samples": len(test_features)}
        trainer.log_metrics("predict", metrics)
        trainer.save_metrics("predict", metrics)
    return 0


def answer_span(offsets: list[tuple[int, int]], parts: list[int | None], answers: dict[str, list]) -> tuple[int, int]:
    """Find the first and the last token of the answer in one feature.

    Args:
        offsets: For each token, where in its text it begins and where it ends, in characters.
        parts: For each token, 0 in the question, 1 in the paragraph, None elsewhere.
        answers: The row's `text` and `answer_start`; the first one counts.

    Returns:
        (0, 0), the position of `[CLS]`, where the whole answer doesn't stand in this piece of the paragraph.
    """
    first_character = answers["answer_start"][0]
    end_character = first_character + len(answers["text"][0])
    paragraph = [number for number, part in enumerate(parts) if part == 1]
    if not paragraph or offsets[paragraph[0]][0] > first_character or offsets[paragraph[-1]][1] < end_character:
        return 0, 0
    start = max(number for number in paragraph if offsets[number][0] <= first_character)
    end = min(number for number in paragraph if offsets[number][1] >= end_character)
    return start, end


def answering_trainer(library: ModuleType) -> Any:
    """Return the library's QuestionAnsweringTrainer, or make one of its Trainer.

    transformers keeps that class in an example script, not in the package, so a run on transformers brings it along:
    the class below does to any version's Trainer what minitrainer's own does.
    """
    if hasattr(library, "QuestionAnsweringTrainer"):
        return library.QuestionAnsweringTrainer

    from transformers.trainer_utils import speed_metrics

    trainer_class: Any = library.Trainer

    class QuestionAnsweringTrainer(trainer_class):
        """A Trainer that makes answers of its predictions before it computes metrics."""

        control: Any
        compute_metrics: Any

        def __init__(self, *args: Any, eval_examples: Any = None, post_process_function: Any = None, **kwargs: Any):
            super().__init__(*args, **kwargs)
            self.eval_examples = eval_examples
            self.post_process_function = post_process_function

        def evaluate(self, eval_dataset=None, eval_examples=None, ignore_keys=None, metric_key_prefix="eval"):
            features = self.eval_dataset if eval_dataset is None else eval_dataset
            questions = self.eval_examples if eval_examples is None else eval_examples
            output = self._loop(self.get_eval_dataloader(features), "Evaluation", ignore_keys, metric_key_prefix)
            metrics = output.metrics
            if self.args.should_save:  # Answers are files too: one rank writes them.
                answers = self.post_process_function(questions, features, output.predictions)
                metrics = {**self._scores(answers, metric_key_prefix), **metrics}
            if self.args.should_log:
                self.log(metrics)
            self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
            return metrics

        def predict(self, predict_dataset, predict_examples, ignore_keys=None, metric_key_prefix="test"):
            output = self._loop(
                self.get_test_dataloader(predict_dataset), "Prediction", ignore_keys, metric_key_prefix
            )
            answers = self.post_process_function(predict_examples, predict_dataset, output.predictions, "predict")
            metrics = {**self._scores(answers, metric_key_prefix), **output.metrics}
            return output._replace(predictions=answers.predictions, label_ids=answers.label_ids, metrics=metrics)

        def _loop(self, dataloader: Any, description: str, ignore_keys: Any, prefix: str) -> Any:
            """Run the evaluation loop with `compute_metrics` put aside: it wants answers, not logits."""
            compute_metrics, self.compute_metrics = self.compute_metrics, None
            start = time.time()
            try:
                output = self.evaluation_loop(
                    dataloader,
                    description,
                    prediction_loss_only=None,
                    ignore_keys=ignore_keys,
                    metric_key_prefix=prefix,
                )
            finally:
                self.compute_metrics = compute_metrics
            rows_per_step = self.args.eval_batch_size * self.args.world_size
            step_count = math.ceil(output.num_samples / rows_per_step)
            output.metrics.update(speed_metrics(prefix, start, output.num_samples, step_count))
            return output

        def _scores(self, answers: Any, prefix: str) -> dict[str, float]:
            return {f"{prefix}_{name}": score for name, score in self.compute_metrics(answers).items()}

    return QuestionAnsweringTrainer


def choose_defaults(data_args: DataArguments, model_args: ModelArguments) -> dict[str, Any]:
    """What this scenario asks of the Trainer unless the user says otherwise."""
    from_scratch = FROM_SCRATCH if model_args.model_name_or_path is None else {}
    return {**common_defaults(), **DEFAULTS, **from_scratch, "output_dir": "runs/run_qa"}


# Read next: ../../question_answering.py, where answers are made.
