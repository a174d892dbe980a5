"""Models that point at the answer, in the form of upstream's run_qa and run_qa_beam_search, on a Trainer of their own."""

import os
from dataclasses import dataclass, field

import datasets
import numpy as np
from transformers import (
    AutoConfig,
    AutoModelForQuestionAnswering,
    AutoTokenizer,
    DataCollatorWithPadding,
    EvalPrediction,
    HfArgumentParser,
    PreTrainedTokenizerFast,
    Trainer,
    TrainingArguments,
    XLNetConfig,
    XLNetForQuestionAnswering,
    XLNetTokenizerFast,
    is_torch_tpu_available,
    set_seed,
)
from transformers.trainer_utils import PredictionOutput, speed_metrics

if is_torch_tpu_available(check_device=False):
    raise SystemExit("this script is for a CPU")


@dataclass
class DataArguments:
    """Where texts and model come from."""

    data_folder: str = field(metadata={"help": "Folder with xquad_en/, bert/ and tokenizer/."})
    beam_search: bool = field(default=False, metadata={"help": "Let XLNet's head search for start and end."})


class AnswersTrainer(Trainer):
    """Evaluates without metrics first, and computes them on answers."""

    def __init__(self, *args, eval_examples=None, post_process_function=None, **kwargs):
        super().__init__(*args, **kwargs)
        self.eval_examples, self.post_process_function = eval_examples, post_process_function

    def _predictions(self, dataset, loader, prefix):
        compute_metrics, self.compute_metrics = self.compute_metrics, None
        try:
            return self.evaluation_loop(loader, description=prefix, metric_key_prefix=prefix)
        finally:
            self.compute_metrics = compute_metrics

    def evaluate(self, eval_dataset=None, eval_examples=None, ignore_keys=None, metric_key_prefix="eval"):
        """Evaluate features; metrics are those of the answers."""
        rows = self.eval_dataset if eval_dataset is None else eval_dataset
        output = self._predictions(rows, self.get_eval_dataloader(rows), metric_key_prefix)
        output.metrics.update(speed_metrics(metric_key_prefix, 0.0, num_samples=output.num_samples))
        answers = self.post_process_function(eval_examples or self.eval_examples, rows, output.predictions)
        scores = self.compute_metrics(answers)
        metrics = {f"{metric_key_prefix}_{key}": value for key, value in scores.items()} | output.metrics
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def predict(self, predict_dataset, predict_examples, ignore_keys=None, metric_key_prefix="test"):
        """Predict answers."""
        loader = self.get_test_dataloader(predict_dataset)
        output = self._predictions(predict_dataset, loader, metric_key_prefix)
        answers = self.post_process_function(predict_examples, predict_dataset, output.predictions, "predict")
        return PredictionOutput(answers.predictions, answers.label_ids, self.compute_metrics(answers) | output.metrics)


def main() -> None:
    """Train, evaluate, predict."""
    data_args, training_args = HfArgumentParser((DataArguments, TrainingArguments)).parse_args_into_dataclasses()
    set_seed(training_args.seed)
    files = {split: f"{data_args.data_folder}/xquad_en/{split}.json" for split in ("train", "validation")}
    texts = datasets.load_dataset("json", data_files=files, cache_dir=f"{training_args.output_dir}-texts")
    tokenizer = AutoTokenizer.from_pretrained(f"{data_args.data_folder}/tokenizer")
    assert isinstance(tokenizer, PreTrainedTokenizerFast) and not isinstance(tokenizer, XLNetTokenizerFast)
    if data_args.beam_search:
        config = XLNetConfig(vocab_size=len(tokenizer), d_model=16, n_layer=1, n_head=2, d_inner=16)
        config.start_n_top = config.end_n_top = 2
        model = XLNetForQuestionAnswering(config)
    else:
        config = AutoConfig.from_pretrained(f"{data_args.data_folder}/bert")
        model = AutoModelForQuestionAnswering.from_config(config)

    def right_starts(count):
        return 20 + np.arange(count) % 9

    def to_features(rows):
        encoded = tokenizer(
            rows["question"], rows["context"], truncation="only_second", max_length=48, stride=16,
            return_overflowing_tokens=True, padding="max_length",
        )  # fmt: skip
        origins = encoded.pop("overflow_to_sample_mapping")
        more = {}
        if data_args.beam_search:
            more = {"cls_index": [0] * len(origins), "p_mask": [[0.0] * 48] * len(origins)}
            more["is_impossible"] = [float(at % 2) for at in range(len(origins))]
        starts = right_starts(len(origins)).tolist()
        return {**encoded, **more, "start_positions": starts, "end_positions": [start + 2 for start in starts]}

    with training_args.main_process_first(desc="features"):
        examples = texts["validation"].select(range(4))
        columns = examples.column_names
        train_rows = texts["train"].select(range(6)).map(to_features, batched=True, remove_columns=columns)
        eval_rows = examples.map(to_features, batched=True, remove_columns=columns)
        # given the answer, the model returns no predictions but its loss
        answers = {"start_positions", "end_positions", "is_impossible"} & set(eval_rows.column_names)
        eval_rows = eval_rows.remove_columns(sorted(answers))

    def post_process(examples, features, predictions, stage="eval"):
        # with beams: the log-probabilities of the best starts, their places, the same of ends, and one for "no answer"
        starts = predictions[1][:, 0] if data_args.beam_search else predictions[0].argmax(axis=1)
        path = os.path.join(training_args.output_dir, f"{stage}_starts.txt")
        np.savetxt(path, starts, fmt="%d")
        return EvalPrediction(predictions=starts, label_ids=right_starts(len(features)))

    trainer = AnswersTrainer(
        model=model,
        args=training_args,
        train_dataset=train_rows if training_args.do_train else None,
        eval_dataset=eval_rows,
        eval_examples=examples,
        tokenizer=tokenizer,
        data_collator=DataCollatorWithPadding(tokenizer, pad_to_multiple_of=8 if training_args.fp16 else None),
        post_process_function=post_process,
        compute_metrics=lambda answers: {"exact": float((answers.predictions == answers.label_ids).mean())},
    )
    train_result = trainer.train()
    trainer.save_model()
    trainer.log_metrics("train", train_result.metrics)
    trainer.save_metrics("train", train_result.metrics)
    trainer.save_state()
    trainer.save_metrics("eval", {"exact": trainer.evaluate()["eval_exact"]})
    results = trainer.predict(eval_rows, examples)
    trainer.log_metrics("predict", results.metrics)


if __name__ == "__main__":
    main()

# Read next: frames.py
