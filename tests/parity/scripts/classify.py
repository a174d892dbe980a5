"""A sentence classifier, in the form of upstream's run_glue and run_xnli: all three phases, and a second start."""

import logging
import os
import sys
from dataclasses import dataclass, field

import datasets
import numpy as np
import transformers
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorWithPadding,
    EarlyStoppingCallback,
    EvalPrediction,
    HfArgumentParser,
    PretrainedConfig,
    Trainer,
    TrainingArguments,
    default_data_collator,
    set_seed,
)
from transformers.trainer_utils import get_last_checkpoint
from transformers.utils import check_min_version
from transformers.utils.versions import require_version

check_min_version("4.31.0")
require_version("datasets>=1.8.0", "pip install datasets")
logger = logging.getLogger(__name__)


@dataclass
class DataArguments:
    """Where texts and model come from."""

    data_folder: str = field(metadata={"help": "Folder with polarity/, bert/ and tokenizer/."})
    pad_to_max_length: bool = field(default=False, metadata={"help": "One length for all batches."})
    rows: int = field(default=48, metadata={"help": "How many of them."})


def main() -> None:
    """Read arguments from the command line or from one JSON file; train, evaluate, predict."""
    parser = HfArgumentParser((DataArguments, TrainingArguments))
    if len(sys.argv) == 2 and sys.argv[1].endswith(".json"):
        data_args, training_args = parser.parse_json_file(json_file=os.path.abspath(sys.argv[1]))
    else:
        data_args, training_args = parser.parse_args_into_dataclasses()
    log_level = training_args.get_process_log_level()
    logger.setLevel(log_level)
    transformers.utils.logging.set_verbosity(log_level)
    transformers.utils.logging.enable_default_handler()
    transformers.utils.logging.enable_explicit_format()
    logger.info(f"rank {training_args.local_rank} on {training_args.device}, {training_args.n_gpu} GPUs")
    logger.info(f"{training_args.parallel_mode.value == 'distributed'}, {training_args.fp16}: {training_args}")

    last_checkpoint = None
    if os.path.isdir(training_args.output_dir) and not training_args.overwrite_output_dir:
        last_checkpoint = get_last_checkpoint(training_args.output_dir)
    set_seed(training_args.seed)

    files = {split: f"{data_args.data_folder}/polarity/{split}.csv" for split in ("train", "validation")}
    texts = datasets.load_dataset("csv", data_files=files, cache_dir=f"{training_args.output_dir}-texts")
    names = sorted(texts["train"].unique("label"))
    config: PretrainedConfig = AutoConfig.from_pretrained(f"{data_args.data_folder}/bert", num_labels=len(names))
    tokenizer = AutoTokenizer.from_pretrained(f"{data_args.data_folder}/tokenizer")
    model = AutoModelForSequenceClassification.from_config(config)
    padding = "max_length" if data_args.pad_to_max_length else False

    def tokenize(rows):
        return tokenizer(rows["sentence"], padding=padding, max_length=32, truncation=True)

    with training_args.main_process_first(desc="tokenizing"):
        texts = texts.map(tokenize, batched=True, desc="tokenizing")
    train_rows = texts["train"].select(range(data_args.rows))
    eval_rows = texts["validation"].select(range(data_args.rows // 2))

    def compute_metrics(predicted: EvalPrediction):
        logits = predicted.predictions[0] if isinstance(predicted.predictions, tuple) else predicted.predictions
        return {"accuracy": float((np.argmax(logits, axis=1) == predicted.label_ids).mean())}

    trainer = Trainer(
        model=model,
        args=training_args,
        train_dataset=train_rows if training_args.do_train else None,
        eval_dataset=eval_rows if training_args.do_eval else None,
        compute_metrics=compute_metrics,
        tokenizer=tokenizer,
        data_collator=default_data_collator if data_args.pad_to_max_length else DataCollatorWithPadding(tokenizer),
        callbacks=[EarlyStoppingCallback(early_stopping_patience=5)] if training_args.load_best_model_at_end else None,
    )

    if training_args.do_train:
        checkpoint = training_args.resume_from_checkpoint or last_checkpoint
        result = trainer.train(resume_from_checkpoint=checkpoint)
        metrics = result.metrics
        metrics["train_samples"] = len(train_rows)
        trainer.save_model()
        trainer.log_metrics("train", metrics)
        trainer.save_metrics("train", metrics)
        trainer.save_state()
    if training_args.do_eval:
        for name, rows in (("", eval_rows), ("again_", eval_rows)):
            metrics = trainer.evaluate(eval_dataset=rows)
            metrics = {f"{name}{key}": value for key, value in metrics.items()} if name else metrics
            trainer.log_metrics("eval", metrics)
            trainer.save_metrics("eval", metrics)
    if training_args.do_predict:
        predictions = trainer.predict(eval_rows.remove_columns("label"), metric_key_prefix="predict").predictions
        if trainer.is_world_process_zero():
            with open(os.path.join(training_args.output_dir, "predict_results.txt"), "w") as file:
                file.writelines(f"{row}\t{label}\n" for row, label in enumerate(np.argmax(predictions, axis=1)))
    origin = f"{data_args.data_folder}/bert"  # a name on the Hub would be looked up there
    trainer.create_model_card(finetuned_from=origin, tasks="text-classification", language="en", dataset_tags="glue")


if __name__ == "__main__":
    main()

# Read next: language_model.py
