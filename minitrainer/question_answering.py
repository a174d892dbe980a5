"""Question answering: two trainers whose predictions become answers before metrics are computed.

A model that reads long texts sees them in overlapping pieces, called *features*; an *example* is one question. So
metrics cannot be computed from what comes out of the evaluation loop, feature by feature. Both trainers run the loop
without metrics, call `post_process_function` with all predictions, and compute metrics on the answers.

`postprocess_qa_predictions` is that function's heart for models that point at the beginning and the end of an answer;
`squad_metrics` scores answers as SQuAD does.

    predictions of features -> post_process_function -> answers of examples -> compute_metrics

Source: 4.31.0's examples/pytorch/question-answering, which are no part of the installed package.
"""

from __future__ import annotations

import json
import logging
import os
import re
import string
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

import numpy as np

from .attributes import Attributes
from .evaluation import _with_prefix
from .parts.logs import get_logger
from .parts.outputs import EvalLoopOutput, PredictionOutput
from .seq2seq import Seq2SeqTrainer
from .trainer import Trainer

if TYPE_CHECKING:
    from torch.utils.data import DataLoader, Dataset

logger = get_logger(__name__)


class _AnswersMixin(Attributes):
    """Needs the evaluation loops, `compute_metrics`, `eval_examples` and `post_process_function`.

    You get: evaluation and prediction over features, with metrics over answers.
    """

    def _evaluate_answers(
        self,
        eval_dataset: Dataset | None,
        eval_examples: Any,
        ignore_keys: list[str] | None,
        metric_key_prefix: str,
        what_to_process: Callable[[EvalLoopOutput], Any],
    ) -> dict[str, float]:
        """Evaluate the features, turn predictions into answers, log and return the metrics.

        Writes: control
        Events: on_evaluate
        """
        eval_dataset = self.eval_dataset if eval_dataset is None else eval_dataset
        eval_dataloader = self.get_eval_dataloader(eval_dataset)
        eval_examples = self.eval_examples if eval_examples is None else eval_examples
        output = self._loop_without_metrics(eval_dataloader, "Evaluation", ignore_keys, metric_key_prefix)

        metrics = output.metrics
        # Answers are made, and files written, where models are saved: other ranks get no metrics of answers. With
        # load_best_model_at_end on such a metric, those ranks fail.
        if self.post_process_function is not None and self.compute_metrics is not None and self.args.should_save:
            answers = self.post_process_function(eval_examples, eval_dataset, what_to_process(output))
            metrics = {**_with_prefix(self.compute_metrics(answers), metric_key_prefix), **output.metrics}

        if self.args.should_log:
            self.log(metrics)
        self._print_tpu_metrics()
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def _predict_answers(
        self,
        predict_dataset: Dataset,
        predict_examples: Any,
        ignore_keys: list[str] | None,
        metric_key_prefix: str,
        what_to_process: Callable[[EvalLoopOutput], Any],
    ) -> EvalLoopOutput | PredictionOutput:
        """Predict the features and turn predictions into answers; fires no `on_predict`."""
        predict_dataloader = self.get_test_dataloader(predict_dataset)
        output = self._loop_without_metrics(predict_dataloader, "Prediction", ignore_keys, metric_key_prefix)
        if self.post_process_function is None or self.compute_metrics is None:
            return output

        answers = self.post_process_function(predict_examples, predict_dataset, what_to_process(output), "predict")
        metrics = {**_with_prefix(self.compute_metrics(answers), metric_key_prefix), **output.metrics}
        return PredictionOutput(predictions=answers.predictions, label_ids=answers.label_ids, metrics=metrics)

    def _loop_without_metrics(
        self, dataloader: DataLoader, description: str, ignore_keys: list[str] | None, metric_key_prefix: str
    ) -> EvalLoopOutput:
        """Run the evaluation loop with `compute_metrics` put aside, and add speed metrics.

        Writes: compute_metrics
        """
        compute_metrics, self.compute_metrics = self.compute_metrics, None
        loop = self.prediction_loop if self.args.use_legacy_prediction_loop else self.evaluation_loop
        start_time = time.time()
        try:
            output = loop(
                dataloader,
                description=description,
                # Without metrics nobody reads the predictions, so `predict` returns none either.
                prediction_loss_only=True if compute_metrics is None else None,
                ignore_keys=ignore_keys,
                metric_key_prefix=metric_key_prefix,
            )
        finally:
            self.compute_metrics = compute_metrics
        self._add_speed_metrics(output, start_time, metric_key_prefix)
        return output


class QuestionAnsweringTrainer(_AnswersMixin, Trainer):
    """A Trainer for models that point at the beginning and the end of the answer in the text.

    **Beware:** no memory metrics, and `predict` without `compute_metrics` returns an `EvalLoopOutput` that holds no
    predictions.
    """

    def __init__(
        self,
        *args: Any,
        eval_examples: Any = None,
        post_process_function: Callable[..., Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Build the Trainer.

        Args:
            args: those of `Trainer`.
            eval_examples: the questions that the features of `eval_dataset` were made from.
            post_process_function: called as (examples, features, predictions), with a fourth argument `"predict"`
                from `predict`; returns an `EvalPrediction` of answers and references.
            kwargs: those of `Trainer`.

        Writes: eval_examples, post_process_function
        """
        super().__init__(*args, **kwargs)
        self.eval_examples = eval_examples
        self.post_process_function = post_process_function

    def evaluate(  # type: ignore[override]  # upstream's signature: examples come second
        self,
        eval_dataset: Dataset | None = None,
        eval_examples: Any = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> dict[str, float]:
        """Evaluate, with metrics over answers.

        Args:
            eval_dataset: features, instead of `self.eval_dataset`.
            eval_examples: questions, instead of `self.eval_examples`.
            ignore_keys: keys of the model's output that are not predictions.
            metric_key_prefix: every metric is named `<prefix>_<name>`.

        Returns:
            The metrics: those of the answers first.
        """
        return self._evaluate_answers(
            eval_dataset, eval_examples, ignore_keys, metric_key_prefix, lambda output: output.predictions
        )

    def predict(  # type: ignore[override]
        self,
        predict_dataset: Dataset,
        predict_examples: Any,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "test",
    ) -> EvalLoopOutput | PredictionOutput:
        """Predict answers.

        Args:
            predict_dataset: features.
            predict_examples: the questions they were made from.
            ignore_keys: keys of the model's output that are not predictions.
            metric_key_prefix: every metric is named `<prefix>_<name>`.

        Returns:
            `PredictionOutput` of answers, references and metrics; the raw `EvalLoopOutput` where there is no
            `post_process_function` or no `compute_metrics`.
        """
        return self._predict_answers(
            predict_dataset, predict_examples, ignore_keys, metric_key_prefix, lambda output: output.predictions
        )


class QuestionAnsweringSeq2SeqTrainer(_AnswersMixin, Seq2SeqTrainer):
    """A Seq2SeqTrainer for models that write the answer.

    Its `post_process_function` gets the whole output of the loop where the other trainer's gets the predictions.
    """

    def __init__(
        self,
        *args: Any,
        eval_examples: Any = None,
        post_process_function: Callable[..., Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Build the Trainer from the arguments of `Seq2SeqTrainer` and the two of `QuestionAnsweringTrainer`.

        Writes: eval_examples, post_process_function
        """
        super().__init__(*args, **kwargs)
        self.eval_examples = eval_examples
        self.post_process_function = post_process_function

    def evaluate(  # type: ignore[override]
        self,
        eval_dataset: Dataset | None = None,
        eval_examples: Any = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
        **gen_kwargs: Any,
    ) -> dict[str, float]:
        """Evaluate by generating, with metrics over answers.

        **Beware:** unlike in `Seq2SeqTrainer`, `max_new_tokens` does not keep the arguments' `max_length` away.

        Args:
            eval_dataset: features, instead of `self.eval_dataset`.
            eval_examples: questions, instead of `self.eval_examples`.
            ignore_keys: keys of the model's output that are not predictions.
            metric_key_prefix: every metric is named `<prefix>_<name>`.
            gen_kwargs: for `generate`; `max_length` and `num_beams` default to the arguments'.

        Returns:
            The metrics: those of the answers first.

        Writes: _gen_kwargs
        """
        gen_kwargs = gen_kwargs.copy()
        if gen_kwargs.get("max_length") is None:
            gen_kwargs["max_length"] = self.args.generation_max_length
        if gen_kwargs.get("num_beams") is None:
            gen_kwargs["num_beams"] = self.args.generation_num_beams
        self._gen_kwargs = gen_kwargs
        return self._evaluate_answers(
            eval_dataset, eval_examples, ignore_keys, metric_key_prefix, lambda output: output
        )

    def predict(  # type: ignore[override]
        self,
        predict_dataset: Dataset,
        predict_examples: Any,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "test",
        **gen_kwargs: Any,
    ) -> EvalLoopOutput | PredictionOutput:
        """Predict answers by generating.

        **Beware:** the arguments' `generation_max_length` and `generation_num_beams` are not used here: what the call
        leaves open comes from the model's config.

        Args:
            predict_dataset: features.
            predict_examples: the questions they were made from.
            ignore_keys: keys of the model's output that are not predictions.
            metric_key_prefix: every metric is named `<prefix>_<name>`.
            gen_kwargs: for `generate`.

        Returns:
            As `QuestionAnsweringTrainer.predict`.

        Writes: _gen_kwargs
        """
        self._gen_kwargs = gen_kwargs.copy()
        return self._predict_answers(
            predict_dataset, predict_examples, ignore_keys, metric_key_prefix, lambda output: output
        )


# -- from logits to answers ---


def postprocess_qa_predictions(
    examples: Any,
    features: Any,
    predictions: tuple[np.ndarray, np.ndarray],
    version_2_with_negative: bool = False,
    n_best_size: int = 20,
    max_answer_length: int = 30,
    null_score_diff_threshold: float = 0.0,
    output_dir: str | None = None,
    prefix: str | None = None,
    log_level: int | None = logging.WARNING,
) -> dict[str, str]:
    """Find each question's answer: the span with the highest sum of start and end logit over all its features.

    Args:
        examples: questions with `id` and `context`.
        features: pieces with `example_id` and `offset_mapping`: for each token its (first, last + 1) character in the
            context, None outside the context; perhaps `token_is_max_context`.
        predictions: start logits and end logits, each of shape (features, tokens).
        version_2_with_negative: whether there may be no answer; the null answer's score is that of token 0, the lowest
            one of all features.
        n_best_size: how many starts and ends to combine for each feature, and how many answers to keep.
        max_answer_length: in tokens.
        null_score_diff_threshold: how much better than the best answer "no answer" must be to win.
        output_dir: where to write `predictions.json`, `nbest_predictions.json` and `null_odds.json`.
        prefix: put before these names, with an underscore.
        log_level: of this module's logger.

    Returns:
        The answers by id of the question; an empty text means no answer.

    Raises:
        ValueError: if there are not two arrays, or not a row for each feature.
        NotADirectoryError: if `output_dir` is not a folder.
    """
    if len(predictions) != 2:
        raise ValueError(f"`predictions` must be (start_logits, end_logits); it has {len(predictions)} elements.")
    start_logits, end_logits = predictions
    if len(start_logits) != len(features):
        raise ValueError(f"Got {len(start_logits)} predictions and {len(features)} features.")

    position_of_example = {example_id: position for position, example_id in enumerate(examples["id"])}
    features_of_example: dict[int, list[int]] = defaultdict(list)
    for position, feature in enumerate(features):
        features_of_example[position_of_example[feature["example_id"]]].append(position)

    logger.setLevel(log_level)
    logger.info(f"Post-processing {len(examples)} questions that were split into {len(features)} features.")

    answers: dict[str, str] = {}
    n_best: dict[str, list[dict[str, Any]]] = {}
    null_odds: dict[str, float] = {}
    for position, example in enumerate(examples):
        candidates: list[dict[str, Any]] = []
        null: dict[str, Any] | None = None
        for row in features_of_example[position]:
            null_here = _candidate((0, 0), start_logits[row][0], end_logits[row][0])
            if null is None or null["score"] > null_here["score"]:
                null = null_here
            candidates += _spans(features[row], start_logits[row], end_logits[row], n_best_size, max_answer_length)

        if version_2_with_negative:
            assert null is not None, f"question {example['id']} has no features"
            candidates.append(null)
        # Python's sort is stable, also in reverse: of equal scores, the one found first wins.
        best = sorted(candidates, key=lambda candidate: candidate["score"], reverse=True)[:n_best_size]
        if version_2_with_negative and not any(candidate["offsets"] == (0, 0) for candidate in best):
            best.append(null)  # type: ignore[arg-type]

        for candidate in best:
            first, end = candidate.pop("offsets")
            candidate["text"] = example["context"][first:end]
        if len(best) == 0 or (len(best) == 1 and best[0]["text"] == ""):
            best.insert(0, {"text": "empty", "start_logit": 0.0, "end_logit": 0.0, "score": 0.0})
        _add_probabilities(best)

        answer = best[0]
        if version_2_with_negative:
            answer = next((candidate for candidate in best if candidate["text"] != ""), best[0])
            null_score = null["start_logit"] + null["end_logit"]  # type: ignore[index]
            odds = null_score - answer["start_logit"] - answer["end_logit"]
            null_odds[example["id"]] = float(odds)
            if odds > null_score_diff_threshold:
                answer = {"text": ""}
        answers[example["id"]] = answer["text"]
        n_best[example["id"]] = [
            {key: float(value) if isinstance(value, np.floating) else value for key, value in candidate.items()}
            for candidate in best
        ]

    if output_dir is not None:
        files: dict[str, Any] = {"predictions": answers, "nbest_predictions": n_best}
        if version_2_with_negative:
            files["null_odds"] = null_odds
        _write_answers(output_dir, prefix, files)
    return answers


def _spans(
    feature: Any, start_logits: np.ndarray, end_logits: np.ndarray, n_best_size: int, max_answer_length: int
) -> Iterable[dict[str, Any]]:
    """Combine the best starts and the best ends of one feature into all spans that can be answers."""
    offset_mapping = feature["offset_mapping"]
    # Where given: whether a token stands well inside this feature, or better in a neighbour that overlaps it.
    is_max_context = feature.get("token_is_max_context", None)
    starts = np.argsort(start_logits)[-1 : -n_best_size - 1 : -1].tolist()
    ends = np.argsort(end_logits)[-1 : -n_best_size - 1 : -1].tolist()
    for start in starts:
        for end in ends:
            if max(start, end) >= len(offset_mapping) or offset_mapping[start] is None or offset_mapping[end] is None:
                continue  # in the question or the padding
            if end < start or end - start + 1 > max_answer_length:
                continue
            if is_max_context is not None and not is_max_context.get(str(start), False):
                continue
            yield _candidate((offset_mapping[start][0], offset_mapping[end][1]), start_logits[start], end_logits[end])


def _candidate(offsets: tuple[int, int], start_logit: Any, end_logit: Any) -> dict[str, Any]:
    return {
        "offsets": offsets,
        "score": start_logit + end_logit,
        "start_logit": start_logit,
        "end_logit": end_logit,
    }


def _add_probabilities(candidates: list[dict[str, Any]]) -> None:
    """Replace scores by the softmax over the candidates, in place."""
    scores = np.array([candidate.pop("score") for candidate in candidates])
    exponentials = np.exp(scores - np.max(scores))  # the largest becomes 1: nothing overflows
    for candidate, probability in zip(candidates, exponentials / exponentials.sum(), strict=True):
        candidate["probability"] = probability


def _write_answers(output_dir: str, prefix: str | None, files: dict[str, Any]) -> None:
    if not os.path.isdir(output_dir):
        raise NotADirectoryError(f"output_dir={output_dir!r} of the answers is not a folder: create it first.")
    for name, content in files.items():
        path = os.path.join(output_dir, f"{name}.json" if prefix is None else f"{prefix}_{name}.json")
        logger.info(f"Saving {path}.")
        with open(path, "w") as file:
            file.write(json.dumps(content, indent=4) + "\n")


# -- from answers to scores ---


def squad_metrics(predictions: list[dict[str, Any]], references: list[dict[str, Any]]) -> dict[str, float]:
    """Score answers as SQuAD 1.1 does.

    Case, punctuation, the articles a, an, the and extra spaces do not count. Where a question has several right
    answers, the best comparison counts. **Beware:** words are what spaces part, so in Chinese a whole phrase is one
    word, and F1 falls to exact match.

    Args:
        predictions: `{"id": …, "prediction_text": …}` each.
        references: `{"id": …, "answers": {"text": […]}}` each.

    Returns:
        `exact_match` and `f1`, both in percent, averaged over the references; a missing prediction scores 0.
    """
    predicted = {prediction["id"]: prediction["prediction_text"] for prediction in predictions}
    exact_sum = f1_sum = 0.0
    for reference in references:
        if reference["id"] not in predicted:
            continue
        words = _words(predicted[reference["id"]])
        right_answers = [_words(text) for text in reference["answers"]["text"]]
        exact_sum += max(float(words == right) for right in right_answers)
        f1_sum += max(_f1(words, right) for right in right_answers)
    return {"exact_match": 100.0 * exact_sum / len(references), "f1": 100.0 * f1_sum / len(references)}


def _words(text: str) -> list[str]:
    without_punctuation = "".join(letter for letter in text.lower() if letter not in string.punctuation)
    return re.sub(r"\b(a|an|the)\b", " ", without_punctuation).split()


def _f1(words: list[str], right: list[str]) -> float:
    """Harmonic mean of precision and recall over words, counted with their multiplicity."""
    common = sum((Counter(words) & Counter(right)).values())
    if common == 0:
        return 0.0
    precision, recall = common / len(words), common / len(right)
    return 2 * precision * recall / (precision + recall)


# Read next: parts/__init__.py
