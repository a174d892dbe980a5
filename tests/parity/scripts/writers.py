"""Models that write, in the form of upstream's run_summarization, run_translation and run_seq2seq_qa."""

import os
from dataclasses import dataclass, field

import datasets
import numpy as np
from transformers import (
    AutoConfig,
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    DataCollatorForSeq2Seq,
    HfArgumentParser,
    M2M100Tokenizer,
    MBart50Tokenizer,
    MBart50TokenizerFast,
    MBartTokenizer,
    MBartTokenizerFast,
    Seq2SeqTrainer,
    Seq2SeqTrainingArguments,
    default_data_collator,
    set_seed,
)
from transformers.trainer_utils import EvalLoopOutput, EvalPrediction, PredictionOutput, get_last_checkpoint

MULTILINGUAL = (MBartTokenizer, MBartTokenizerFast, MBart50Tokenizer, MBart50TokenizerFast, M2M100Tokenizer)


@dataclass
class DataArguments:
    """Where texts and model come from, and how long texts may be."""

    data_folder: str = field(metadata={"help": "Folder with e2e_nlg/, bart/ and tokenizer/."})
    answers: bool = field(default=False, metadata={"help": "Score whole answers, in a Trainer of the script's own."})
    pad_to_max_length: bool = field(default=False, metadata={"help": "One length for all batches."})
    num_beams: int = field(default=2, metadata={"help": "For evaluate and predict."})


class AnswersTrainer(Seq2SeqTrainer):
    """Evaluates without metrics first, and computes them on what a function makes of all outputs."""

    def __init__(self, *args, eval_examples=None, post_process_function=None, **kwargs):
        super().__init__(*args, **kwargs)
        self.eval_examples, self.post_process_function = eval_examples, post_process_function

    def evaluate(
        self, eval_dataset=None, eval_examples=None, ignore_keys=None, metric_key_prefix="eval", **gen_kwargs
    ):
        """Evaluate the features; metrics are those of the answers."""
        self._gen_kwargs = {"max_length": self.args.generation_max_length, "num_beams": 1, **gen_kwargs}
        eval_dataset = self.eval_dataset if eval_dataset is None else eval_dataset
        compute_metrics, self.compute_metrics = self.compute_metrics, None
        eval_loop = self.prediction_loop if self.args.use_legacy_prediction_loop else self.evaluation_loop
        try:
            output: EvalLoopOutput = eval_loop(
                self.get_eval_dataloader(eval_dataset),
                description="Evaluation",
                prediction_loss_only=True if compute_metrics is None else None,
                ignore_keys=ignore_keys,
                metric_key_prefix=metric_key_prefix,
            )
        finally:
            self.compute_metrics = compute_metrics
        metrics = self.compute_metrics(self.post_process_function(self.eval_examples, eval_dataset, output))
        metrics = {f"{metric_key_prefix}_{key}": value for key, value in metrics.items()} | output.metrics
        if self.args.should_log:
            self.log(metrics)
        if self.args.debug:
            raise AssertionError("no debug option was given")
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics


def main() -> None:
    """Train, evaluate by writing, predict."""
    parser = HfArgumentParser((DataArguments, Seq2SeqTrainingArguments))
    data_args, training_args = parser.parse_args_into_dataclasses()
    if os.path.isdir(training_args.output_dir):
        assert get_last_checkpoint(training_args.output_dir) is None
    set_seed(training_args.seed)
    files = {split: f"{data_args.data_folder}/e2e_nlg/{split}.json" for split in ("train", "validation")}
    texts = datasets.load_dataset("json", data_files=files, cache_dir=f"{training_args.output_dir}-texts")
    config = AutoConfig.from_pretrained(f"{data_args.data_folder}/bart")
    tokenizer = AutoTokenizer.from_pretrained(f"{data_args.data_folder}/tokenizer")
    assert not isinstance(tokenizer, MULTILINGUAL)
    model = AutoModelForSeq2SeqLM.from_config(config)
    if model.config.decoder_start_token_id is None:
        model.config.decoder_start_token_id = tokenizer.cls_token_id
    padding = "max_length" if data_args.pad_to_max_length else False

    def tokenize(rows):
        encoded = tokenizer(rows["content"], max_length=24, padding=padding, truncation=True)
        labels = tokenizer(text_target=rows["summary"], max_length=16, padding=padding, truncation=True)
        ignored = [
            [-100 if token == tokenizer.pad_token_id else token for token in ids] for ids in labels["input_ids"]
        ]
        return {**encoded, "labels": ignored}

    with training_args.main_process_first(desc="tokenizing"):
        columns = texts["train"].column_names
        train_rows = texts["train"].select(range(24)).map(tokenize, batched=True, remove_columns=columns)
        eval_examples = texts["validation"].select(range(8))
        eval_rows = eval_examples.map(tokenize, batched=True, remove_columns=columns)

    def decode(ids):
        ids = ids[0] if isinstance(ids, tuple) else ids
        return tokenizer.batch_decode(np.where(ids != -100, ids, tokenizer.pad_token_id), skip_special_tokens=True)

    def compute_metrics(written):
        predictions, labels = decode(written[0]), decode(written[1])
        lengths = [np.count_nonzero(row != tokenizer.pad_token_id) for row in np.asarray(written[0])]
        same = np.mean([len(set(one.split()) & set(two.split())) for one, two in zip(predictions, labels)])
        return {"same_words": round(float(same), 4), "gen_len": float(np.mean(lengths))}

    def post_process(examples, features, outputs, stage="eval"):
        assert len(examples) == len(features)
        return EvalPrediction(predictions=outputs.predictions, label_ids=outputs.label_ids)

    training_args.generation_max_length = training_args.generation_max_length or 16
    collator = DataCollatorForSeq2Seq(tokenizer, model=model, label_pad_token_id=-100, pad_to_multiple_of=None)
    more = {"eval_examples": eval_examples, "post_process_function": post_process} if data_args.answers else {}
    trainer = (AnswersTrainer if data_args.answers else Seq2SeqTrainer)(
        model=model,
        args=training_args,
        train_dataset=train_rows,
        eval_dataset=eval_rows,
        tokenizer=tokenizer,
        data_collator=default_data_collator if data_args.pad_to_max_length else collator,
        compute_metrics=compute_metrics if training_args.predict_with_generate else None,
        **more,
    )
    train_result = trainer.train(resume_from_checkpoint=training_args.resume_from_checkpoint)
    trainer.save_model()
    trainer.log_metrics("train", train_result.metrics)
    trainer.save_metrics("train", train_result.metrics)
    trainer.save_state()
    lengths = {"max_length": 12, "num_beams": data_args.num_beams}
    metrics = trainer.evaluate(metric_key_prefix="eval", **lengths)
    trainer.log_metrics("eval", metrics)
    trainer.save_metrics("eval", metrics)
    result: PredictionOutput = trainer.predict(eval_rows, metric_key_prefix="predict", **lengths)
    trainer.save_metrics("predict", result.metrics)
    if trainer.is_world_process_zero() and training_args.predict_with_generate:
        with open(os.path.join(training_args.output_dir, "generated_predictions.txt"), "w") as file:
            file.write("\n".join(decode(result.predictions)))
    origin = f"{data_args.data_folder}/bart"
    trainer.create_model_card(finetuned_from=origin, tasks="summarization", dataset="e2e", dataset_args="small")


if __name__ == "__main__":
    main()

# Read next: pointers.py
