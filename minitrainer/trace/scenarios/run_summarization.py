"""run_summarization: a model that writes, and a Trainer that lets it write in order to judge it.

Six hundred times a restaurant's facts (`name[The Punter], eatType[coffee shop], food[Chinese]`) and a sentence that a
person wrote about them; a small BART that starts knowing nothing. Training compares token by token with the person's
sentence. Evaluation can't: it has to generate a sentence of its own, word after word, and then compare the two. That
is what Seq2SeqTrainer adds to Trainer, and what this scenario shows.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import datasets
import numpy as np
from transformers import AutoModelForSeq2SeqLM, DataCollatorForSeq2Seq

from .arguments import common_defaults, parse, tokenizer_parameter, use_one_thread
from .models import pretrained_model, small_model
from .texts import shipped_texts, texts_from_files

DEFAULTS = {
    "num_train_epochs": 8.0,
    "per_device_train_batch_size": 16,
    "per_device_eval_batch_size": 40,
    "evaluation_strategy": "epoch",
    "save_strategy": "epoch",
    "save_total_limit": 2,
    "logging_steps": 38,  # Once an epoch.
    "predict_with_generate": True,
    "generation_max_length": 48,
    "generation_num_beams": 1,
}
"""How it trains and generates, by 4.31.0's names."""

FROM_SCRATCH = {"learning_rate": 3e-3}
"""For the small model; a pretrained one takes the Trainer's own default."""

WITHOUT_NETWORK = "the embedded default needs none: leave out --model_name_or_path"


@dataclass
class DataArguments:
    """What to read and what to write."""

    train_file: str | None = field(
        default=None, metadata={"help": "Your own training rows, .csv or .json lines, with `content` and `summary`."}
    )
    validation_file: str | None = field(
        default=None, metadata={"help": "Your own held-out rows; goes with --train_file."}
    )
    max_source_length: int = field(default=96, metadata={"help": "Longer contents are cut to this many tokens."})
    max_target_length: int = field(default=64, metadata={"help": "Longer summaries are cut to this many tokens."})
    source_prefix: str = field(default="", metadata={"help": "Put before every content; T5 wants 'summarize: '."})
    max_train_samples: int | None = field(default=None, metadata={"help": "Train on the first so many rows only."})
    max_eval_samples: int | None = field(default=None, metadata={"help": "Evaluate on the first so many rows only."})
    max_predict_samples: int | None = field(default=None, metadata={"help": "Predict the first so many rows only."})


@dataclass
class ModelArguments:
    """Which model writes."""

    model_name_or_path: str | None = field(
        default=None,
        metadata={
            "help": "A pretrained model with an encoder and a decoder: a folder, or a name on the hub such as "
            "facebook/bart-base. Without it, a small BART starts from random weights."
        },
    )


def rouge(predicted: str, wanted: str) -> dict[str, float]:
    """How much of two texts agrees: single words (`rouge1`), and words in the same order (`rougeL`).

    Each is the harmonic mean of two shares: of the predicted words, and of the wanted ones. 0 to 100.
    """
    predicted_words, wanted_words = predicted.lower().split(), wanted.lower().split()
    shared = sum((Counter(predicted_words) & Counter(wanted_words)).values())
    # lengths[j]: longest common subsequence of the predicted words so far and the first j wanted ones.
    lengths = [0] * (len(wanted_words) + 1)
    for word in predicted_words:
        diagonal = 0
        for j, wanted_word in enumerate(wanted_words, start=1):
            diagonal, lengths[j] = (
                lengths[j],
                diagonal + 1 if word == wanted_word else max(lengths[j], lengths[j - 1]),
            )
    word_count = max(1, len(predicted_words) + len(wanted_words))
    return {"rouge1": 200 * shared / word_count, "rougeL": 200 * lengths[-1] / word_count}


# -- the program ---


def main(library: ModuleType, argv: list[str]) -> int:
    """Train, evaluate and predict with `library`'s Seq2SeqTrainer, as the arguments in `argv` say.

    Returns:
        The exit status, 0.

    Raises:
        UsageError: The arguments ask for something that can't be done.
    """
    data_args, model_args, training_args = parse(
        library,
        argv,
        own_types=(DataArguments, ModelArguments),
        training_type=library.Seq2SeqTrainingArguments,
        choose_defaults=choose_defaults,
        name="run_summarization",
        description=__doc__,
    )
    use_one_thread()
    library.set_seed(training_args.seed)

    # -- data and model ---
    if data_args.train_file is None and data_args.validation_file is None:
        texts = shipped_texts("e2e_nlg")
    else:
        texts = texts_from_files(data_args.train_file, data_args.validation_file, columns=("content", "summary"))
    if model_args.model_name_or_path is None:
        tokenizer, model = small_model(AutoModelForSeq2SeqLM, "bart")
    else:
        tokenizer, model = pretrained_model(AutoModelForSeq2SeqLM, model_args.model_name_or_path, WITHOUT_NETWORK)

    # -- words to numbers ---
    def tokenize(rows: dict[str, list]) -> dict[str, list]:
        contents = [data_args.source_prefix + content for content in rows["content"]]
        encoded = tokenizer(contents, truncation=True, max_length=data_args.max_source_length)
        # The decoder starts from a token of its own, so a sentence needs none at its beginning, but one at its end:
        # without it the model would never learn to stop.
        sentences = tokenizer(rows["summary"], add_special_tokens=False)["input_ids"]
        encoded["labels"] = [
            tokens[: data_args.max_target_length - 1] + [model.config.eos_token_id] for tokens in sentences
        ]
        return encoded

    def prepare(rows: datasets.Dataset, max_rows: int | None) -> datasets.Dataset:
        if max_rows is not None:
            rows = rows.select(range(min(max_rows, len(rows))))
        return rows.map(tokenize, batched=True, keep_in_memory=True)

    train_rows = prepare(texts["train"], data_args.max_train_samples)
    validation_rows = prepare(texts["validation"], data_args.max_eval_samples)
    test_rows = prepare(texts["validation"], data_args.max_predict_samples)

    # -- numbers to words ---
    def to_texts(token_ids: np.ndarray) -> list[str]:
        # Rows of unequal length were filled up with -100, which is no token.
        token_ids = np.where(token_ids < 0, tokenizer.pad_token_id, token_ids)
        return [text.strip() for text in tokenizer.batch_decode(token_ids, skip_special_tokens=True)]

    def compute_metrics(prediction: Any) -> dict[str, float]:
        written, wanted = to_texts(prediction.predictions), to_texts(prediction.label_ids)
        scores = [rouge(*pair) for pair in zip(written, wanted, strict=True)]
        metrics = {key: float(np.mean([score[key] for score in scores])) for key in scores[0]}
        return {**metrics, "words": float(np.mean([len(text.split()) for text in written]))}

    trainer = library.Seq2SeqTrainer(
        model=model,
        args=training_args,
        train_dataset=train_rows if training_args.do_train else None,
        eval_dataset=validation_rows if training_args.do_eval else None,
        data_collator=DataCollatorForSeq2Seq(tokenizer, model=model),  # Pads contents with [PAD], labels with -100.
        # Without generation, what comes back is a distribution over 3,500 words for every position: no text to score.
        compute_metrics=compute_metrics if training_args.predict_with_generate else None,
        **{tokenizer_parameter(library.Seq2SeqTrainer): tokenizer},
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
    if training_args.do_predict and training_args.predict_with_generate:
        result = trainer.predict(test_rows, metric_key_prefix="predict")
        metrics = {**result.metrics, "predict_samples": len(test_rows)}
        trainer.log_metrics("predict", metrics)
        trainer.save_metrics("predict", metrics)
        if trainer.is_world_process_zero():
            sentences = "\n".join(to_texts(result.predictions))
            path = Path(training_args.output_dir) / "generated_predictions.txt"
            path.write_text(sentences + "\n", encoding="utf-8")
    return 0


def choose_defaults(data_args: DataArguments, model_args: ModelArguments) -> dict[str, Any]:
    """What this scenario asks of the Trainer unless the user says otherwise."""
    from_scratch = FROM_SCRATCH if model_args.model_name_or_path is None else {}
    return {**common_defaults(), **DEFAULTS, **from_scratch, "output_dir": "runs/run_summarization"}


# Read next: run_qa.py, where predictions become answers only after the evaluation loop.
