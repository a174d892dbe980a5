"""Run on a real upstream version: trains two steps, saves, and goes on for a third when asked to resume.

    two_steps.py OUTPUT_FOLDER [resume]

Prints one JSON object: the steps done, the training loss, and where the Trainer came from.
"""

import inspect
import json
import sys

import datasets
from transformers import BertConfig, BertForSequenceClassification, Trainer, TrainingArguments, set_seed


def main() -> None:
    """Train a BERT of a few thousand parameters on sixty-four rows."""
    output_folder, resumes = sys.argv[1], sys.argv[2:] == ["resume"]
    rows = datasets.Dataset.from_dict(
        {"input_ids": [[i % 50 + 1] * 8 for i in range(64)], "labels": [i % 2 for i in range(64)]}
    )
    # The flag for CPUs changed its name at 4.34; a version may know both.
    names = inspect.signature(TrainingArguments).parameters
    on_cpu = {"use_cpu": True} if "use_cpu" in names else {"no_cuda": True}
    for max_steps in [2, 3] if resumes else [2]:
        set_seed(1)
        sizes = {"vocab_size": 64, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
        model = BertForSequenceClassification(BertConfig(**sizes, intermediate_size=16))
        training_args = TrainingArguments(
            output_folder,
            max_steps=max_steps,
            save_steps=1,
            logging_steps=1,
            per_device_train_batch_size=4,
            report_to=[],
            **on_cpu,
        )
        trainer = Trainer(model=model, args=training_args, train_dataset=rows)
        output = trainer.train(resume_from_checkpoint=max_steps == 3)
    print(
        json.dumps(
            {"steps": trainer.state.global_step, "loss": output.training_loss, "file": inspect.getfile(type(trainer))}
        )
    )


if __name__ == "__main__":
    main()

# Read next: test_real_versions.py
