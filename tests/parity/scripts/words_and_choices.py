"""A label for every word, and the better of several endings: in the form of upstream's run_ner and run_swag."""

from dataclasses import dataclass, field
from typing import Union

import datasets
import numpy as np
import torch
from transformers import (
    AutoConfig,
    AutoModelForMultipleChoice,
    AutoModelForTokenClassification,
    AutoTokenizer,
    DataCollatorForTokenClassification,
    HfArgumentParser,
    PreTrainedTokenizerFast,
    Trainer,
    TrainingArguments,
    set_seed,
)
from transformers.tokenization_utils_base import PreTrainedTokenizerBase
from transformers.utils import PaddingStrategy


@dataclass
class DataArguments:
    """Which task, and where its texts come from."""

    data_folder: str = field(metadata={"help": "Folder with polarity/, bert/ and tokenizer/."})
    task: str = field(default="words", metadata={"help": "words or choices"})


@dataclass
class DataCollatorForMultipleChoice:
    """Pads all choices of all examples to one length, and gives each example its choices back."""

    tokenizer: PreTrainedTokenizerBase
    padding: Union[bool, str, PaddingStrategy] = True
    pad_to_multiple_of: int | None = None

    def __call__(self, features):
        """Join examples into one batch: ids of shape (examples, choices, length)."""
        labels = [feature.pop("label") for feature in features]
        choices = len(features[0]["input_ids"])
        flat = [{key: value[at] for key, value in feature.items()} for feature in features for at in range(choices)]
        batch = self.tokenizer.pad(
            flat, padding=self.padding, pad_to_multiple_of=self.pad_to_multiple_of, return_tensors="pt"
        )
        batch = {key: value.view(len(features), choices, -1) for key, value in batch.items()}
        return {**batch, "labels": torch.tensor(labels, dtype=torch.int64)}


def main() -> None:
    """Train, evaluate, predict."""
    data_args, training_args = HfArgumentParser((DataArguments, TrainingArguments)).parse_args_into_dataclasses()
    set_seed(training_args.seed)
    files = {split: f"{data_args.data_folder}/polarity/{split}.csv" for split in ("train", "validation")}
    texts = datasets.load_dataset("csv", data_files=files, cache_dir=f"{training_args.output_dir}-texts")
    texts = datasets.DatasetDict({split: rows.select(range(40)) for split, rows in texts.items()})
    tokenizer = AutoTokenizer.from_pretrained(f"{data_args.data_folder}/tokenizer")
    assert isinstance(tokenizer, PreTrainedTokenizerFast)
    config = AutoConfig.from_pretrained(f"{data_args.data_folder}/bert", num_labels=3)

    def label_words(rows):
        encoded = tokenizer([text.split() for text in rows["sentence"]], truncation=True, is_split_into_words=True)
        words = [encoded.word_ids(batch_index=at) for at in range(len(rows["sentence"]))]
        # no label for special tokens, nor for any piece of a word but its first
        encoded["labels"] = [
            [-100 if word is None or word == before else word % 3 for before, word in zip([None, *row], row)]
            for row in words
        ]
        return encoded

    def write_choices(rows):
        beginnings = [[text[:20]] * 4 for text in rows["sentence"]]
        endings = [[text[20 + at :] for at in range(4)] for text in rows["sentence"]]
        flat = tokenizer(sum(beginnings, []), sum(endings, []), truncation=True, max_length=24)
        cut = {key: [value[at : at + 4] for at in range(0, len(value), 4)] for key, value in flat.items()}
        return {**cut, "label": [at % 4 for at in range(len(beginnings))]}

    def right_words(predicted):
        predictions, labels = np.argmax(predicted.predictions, axis=2), predicted.label_ids
        return {"accuracy": float((predictions == labels)[labels != -100].mean())}

    def right_choices(predicted):
        return {"accuracy": float((np.argmax(predicted[0], axis=1) == predicted[1]).astype(np.float32).mean())}

    labels_words = data_args.task == "words"
    with training_args.main_process_first(desc="tokenizing"):
        prepare = label_words if labels_words else write_choices
        texts = texts.map(prepare, batched=True, remove_columns=["sentence", "idx"])
    if labels_words:
        texts = texts.remove_columns("label")
    auto_class = AutoModelForTokenClassification if labels_words else AutoModelForMultipleChoice
    pad_to = 8 if training_args.fp16 else None
    trainer = Trainer(
        model=auto_class.from_config(config),
        args=training_args,
        train_dataset=texts["train"] if training_args.do_train else None,
        eval_dataset=texts["validation"] if training_args.do_eval else None,
        tokenizer=tokenizer,
        data_collator=DataCollatorForTokenClassification(tokenizer, pad_to_multiple_of=pad_to)
        if labels_words
        else DataCollatorForMultipleChoice(tokenizer=tokenizer, pad_to_multiple_of=pad_to),
        compute_metrics=right_words if labels_words else right_choices,
    )
    train_result = trainer.train()
    trainer.save_model()
    trainer.log_metrics("train", train_result.metrics)
    trainer.save_metrics("train", train_result.metrics)
    trainer.save_state()
    trainer.save_metrics("eval", trainer.evaluate())
    predictions, labels, metrics = trainer.predict(texts["validation"], metric_key_prefix="predict")
    trainer.save_metrics("predict", metrics)
    np.save(f"{training_args.output_dir}/predictions.npy", predictions)
    np.save(f"{training_args.output_dir}/labels.npy", labels)


if __name__ == "__main__":
    main()

# Read next: writers.py
