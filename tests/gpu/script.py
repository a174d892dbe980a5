"""A script as a user has it: builds a Trainer, trains and evaluates. Launchers start it under observation.

torchrun --nproc_per_node 2 -m minitrainer.trace tests/gpu/script.py LIBRARY FOLDER
"""

from __future__ import annotations

import sys
from importlib import import_module
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.gpu import program

library = import_module(sys.argv[1])
trainer = program.trainer(
    library,
    sys.argv[2],
    hidden=32,
    layers=1,
    train_samples=64,
    eval_samples=9,
    num_train_epochs=1,
    per_device_train_batch_size=4,
    per_device_eval_batch_size=4,
    gradient_accumulation_steps=2,
    logging_steps=2,
    evaluation_strategy="epoch",
    save_strategy="epoch",
)
trainer.train()

# Read next: tests/gpu/publish.py
