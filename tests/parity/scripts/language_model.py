"""Three language models, in the form of upstream's run_clm, run_mlm and run_plm: next, masked and permuted words."""

import math
import os
import sys
from dataclasses import dataclass, field
from itertools import chain

import datasets
from transformers import (
    CONFIG_MAPPING,
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_MASKED_LM_MAPPING,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoTokenizer,
    DataCollatorForLanguageModeling,
    DataCollatorForPermutationLanguageModeling,
    HfArgumentParser,
    Trainer,
    TrainingArguments,
    XLNetConfig,
    XLNetLMHeadModel,
    default_data_collator,
    is_torch_tpu_available,
    set_seed,
)

KINDS = {"gpt2": MODEL_FOR_CAUSAL_LM_MAPPING, "bert": MODEL_FOR_MASKED_LM_MAPPING}
BLOCK = 16


@dataclass
class DataArguments:
    """Which model, and where its texts come from."""

    data_folder: str = field(metadata={"help": "Folder with polarity/ and tokenizer/."})
    model_type: str = field(metadata={"help": "gpt2, bert or xlnet.", "choices": ["gpt2", "bert", "xlnet"]})
    streaming: bool = field(default=False, metadata={"help": "Read the texts as they are needed."})


def make_model(kind, vocabulary_size):
    """A model of one layer, with random weights."""
    sizes = {"vocab_size": vocabulary_size}
    if kind == "xlnet":
        return XLNetLMHeadModel(XLNetConfig(d_model=16, n_layer=1, n_head=2, d_inner=16, **sizes))
    if kind == "gpt2":
        config = CONFIG_MAPPING[kind](n_embd=16, n_layer=1, n_head=2, n_positions=BLOCK, **sizes)
        model = AutoModelForCausalLM.from_config(config)
    else:
        small = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
        model = AutoModelForMaskedLM.from_config(CONFIG_MAPPING[kind](**small, **sizes))
    assert type(model) is KINDS[kind][type(model.config)]
    return model


def main() -> None:
    """Train, evaluate, and say how perplexed the model is."""
    data_args, training_args = HfArgumentParser((DataArguments, TrainingArguments)).parse_args_into_dataclasses()
    set_seed(training_args.seed)
    files = {split: f"{data_args.data_folder}/polarity/{split}.csv" for split in ("train", "validation")}
    cache = None if data_args.streaming else f"{training_args.output_dir}-texts"
    texts = datasets.load_dataset("csv", data_files=files, streaming=data_args.streaming, cache_dir=cache)
    tokenizer = AutoTokenizer.from_pretrained(f"{data_args.data_folder}/tokenizer")
    model = make_model(data_args.model_type, len(tokenizer))
    if len(tokenizer) > model.get_input_embeddings().weight.shape[0]:
        model.resize_token_embeddings(len(tokenizer))

    def tokenize(rows):
        return tokenizer(rows["sentence"], return_special_tokens_mask=data_args.model_type != "gpt2")

    def blocks(rows):
        joined = {key: list(chain(*rows[key])) for key in rows}
        whole = len(joined["input_ids"]) // BLOCK * BLOCK
        cut = {key: [ids[at : at + BLOCK] for at in range(0, whole, BLOCK)] for key, ids in joined.items()}
        return {**cut, "labels": [list(ids) for ids in cut["input_ids"]]} if data_args.model_type == "gpt2" else cut

    with training_args.main_process_first(desc="blocks of words"):
        texts = texts.map(tokenize, batched=True, remove_columns=["sentence", "label", "idx"]).map(
            blocks, batched=True
        )
    if data_args.streaming:
        train_rows, eval_rows = texts["train"].with_format("torch"), list(texts["validation"].take(12))
    else:
        train_rows, eval_rows = texts["train"].select(range(40)), texts["validation"].select(range(12))

    def preprocess_logits_for_metrics(logits, labels):
        return (logits[0] if isinstance(logits, tuple) else logits).argmax(dim=-1)

    def compute_metrics(predicted):
        ids, labels = predicted
        if data_args.model_type == "gpt2":  # the word at one place is guessed from those before it
            labels, ids = labels[:, 1:], ids[:, :-1]
        return {"accuracy": float((ids == labels)[labels != -100].mean())}

    collator = {
        "gpt2": lambda: default_data_collator,
        "bert": lambda: DataCollatorForLanguageModeling(tokenizer=tokenizer, mlm_probability=0.3),
        "xlnet": lambda: DataCollatorForPermutationLanguageModeling(tokenizer=tokenizer, plm_probability=1 / 6),
    }[data_args.model_type]()
    counts = data_args.model_type != "xlnet" and not is_torch_tpu_available()
    trainer = Trainer(
        model=model,
        args=training_args,
        train_dataset=train_rows,
        eval_dataset=eval_rows,
        tokenizer=tokenizer,
        data_collator=collator,
        compute_metrics=compute_metrics if counts else None,
        preprocess_logits_for_metrics=preprocess_logits_for_metrics if counts else None,
    )
    metrics = trainer.train(resume_from_checkpoint=training_args.resume_from_checkpoint).metrics
    trainer.save_model()
    trainer.log_metrics("train", metrics)
    trainer.save_metrics("train", metrics)
    trainer.save_state()
    metrics = trainer.evaluate()
    metrics["perplexity"] = math.exp(metrics["eval_loss"]) if metrics["eval_loss"] < 700 else float("inf")
    trainer.log_metrics("eval", metrics)
    trainer.save_metrics("eval", metrics)
    sys.stdout.flush()
    assert os.path.isfile(os.path.join(training_args.output_dir, "all_results.json"))


if __name__ == "__main__":
    main()

# Read next: words_and_choices.py
