"""A script to audit: one of four tasks with a tiny model, micro-batches of uneven size, and an evaluation.

python audited.py TASK OUTPUT_FOLDER [accumulation]
"""

import sys

import torch
from transformers import (
    BertConfig,
    BertForQuestionAnswering,
    BertForSequenceClassification,
    BertForTokenClassification,
    GPT2Config,
    GPT2LMHeadModel,
    Trainer,
    TrainingArguments,
    set_seed,
)

task, folder = sys.argv[1], sys.argv[2]
accumulation = int(sys.argv[3]) if len(sys.argv) > 3 else 2
SAMPLES, LENGTH = 22, 12  # 22 is no multiple of 4: the last micro-batch is smaller
set_seed(3)
sizes = {
    "vocab_size": 60,
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 16,
}
gpt = GPT2Config(vocab_size=60, n_embd=16, n_layer=1, n_head=2, n_positions=16, bos_token_id=0, eos_token_id=0)
model = {
    "classification": lambda: BertForSequenceClassification(BertConfig(**sizes)),
    "tokens": lambda: BertForTokenClassification(BertConfig(**sizes)),
    "answers": lambda: BertForQuestionAnswering(BertConfig(**sizes)),
    "causal": lambda: GPT2LMHeadModel(gpt),
}[task]()


def sample(number: int) -> dict:
    """Samples differ in how many of their labels count, so that means of means are not exact."""
    ids = torch.randint(1, 60, (LENGTH,))
    if task == "classification":
        return {"input_ids": ids, "labels": number % 2}
    if task == "answers":
        return {"input_ids": ids, "start_positions": number % LENGTH, "end_positions": (number + 2) % LENGTH}
    labels = ids.clone() if task == "causal" else ids % 2
    labels[: number % (LENGTH - 2)] = -100
    return {"input_ids": ids, "labels": labels}


samples = [sample(number) for number in range(SAMPLES)]
arguments = TrainingArguments(
    output_dir=folder,
    per_device_train_batch_size=4,
    per_device_eval_batch_size=4,
    gradient_accumulation_steps=accumulation,
    logging_steps=1,
    num_train_epochs=1,
    save_strategy="no",
    report_to=[],
    disable_tqdm=True,
    **({"use_cpu": True} if hasattr(TrainingArguments, "use_cpu") else {"no_cuda": True}),
)
trainer = Trainer(model, arguments, train_dataset=samples, eval_dataset=samples[:10])
trainer.train()
trainer.evaluate()
