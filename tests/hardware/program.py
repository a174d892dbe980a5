"""Runs cases on the stand-ins, each with both libraries, and prints what happened as JSON, for test_stand_ins.py.

python program.py FOLDER CASE …
"""

from __future__ import annotations

import hashlib
import json
import random
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from calls import CALLS
from torch import nn

EVENTS = [
    *("on_train_begin", "on_train_end", "on_epoch_begin", "on_epoch_end", "on_step_begin", "on_substep_end"),
    *("on_step_end", "on_evaluate", "on_predict", "on_save", "on_log", "on_prediction_step"),
]

BNB_NAMES = [
    *("adamw_bnb_8bit", "adamw_8bit", "lion_8bit", "lion_32bit"),
    *("paged_adamw_32bit", "paged_adamw_8bit", "paged_lion_32bit", "paged_lion_8bit"),
]

# What differs from a plain run: arguments, attributes set on the arguments once they are made, and whether to resume.
CASES: dict[str, dict[str, Any]] = {
    "apex": {"set": {"fp16": True, "half_precision_backend": "apex"}},
    "apex_fused": {"arguments": {"optim": "adamw_apex_fused"}},
    "ipex": {"arguments": {"use_ipex": True}, "evaluates": True},
    "sagemaker": {"arguments": {"gradient_accumulation_steps": 2}, "evaluates": True, "saves": True},
    "sagemaker_old": {"evaluates": True, "saves": True},
    "tpu": {"arguments": {"gradient_accumulation_steps": 2}, "evaluates": True, "saves": True},
    "tpu_debug": {"arguments": {"debug": "tpu_metrics_debug"}, "evaluates": True},
    "tpu_syncfree": {"arguments": {"optim": "adamw_torch_xla"}},
    "anyprecision": {
        "arguments": {"optim": "adamw_anyprecision", "optim_args": "use_kahan_summation=yes, momentum_dtype=bfloat16"}
    },
    **{f"bnb_{name}": {"arguments": {"optim": name}} for name in BNB_NAMES},
}


class Small(nn.Module):
    """Two layers with an embedding, and a loss."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(10, 4)
        self.norm = nn.LayerNorm(4)
        self.out = nn.Linear(4, 2)

    def forward(self, ids: torch.Tensor, labels: torch.Tensor | None = None) -> dict[str, torch.Tensor]:
        logits = self.out(self.norm(self.table(ids).mean(dim=1)))
        if labels is None:
            return {"logits": logits}
        return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}


def samples(count: int) -> list[dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(3)
    return [
        {
            "ids": torch.randint(0, 10, (5,), generator=generator),
            "labels": torch.randint(0, 2, (), generator=generator),
        }
        for _ in range(count)
    ]


def main(folder: str, *case_names: str) -> None:
    import transformers

    import minitrainer

    for case_name in case_names:
        for library in (transformers, minitrainer):
            CALLS.clear()
            told = run(library, case_name, f"{folder}/{case_name}_{library.__name__}")
            print("TOLD " + json.dumps({"case": case_name, "library": library.__name__, **told}, default=str))


def run(library: Any, case_name: str, folder: str) -> dict[str, Any]:
    case, events = CASES[case_name], []
    if case_name.startswith("sagemaker"):
        # On that platform the device is always a GPU; the stand-in's is the CPU.
        library.TrainingArguments._setup_devices = property(cpu_of_sagemaker)

    def recorder() -> Any:
        def keep(event: str) -> Any:
            def method(self: Any, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
                events.append(
                    [event, state.global_step, state.epoch, sorted(k for k, v in vars(control).items() if v)]
                )

            return method

        return type("Recorder", (library.TrainerCallback,), {event: keep(event) for event in EVENTS})()

    def build(**more: Any) -> Any:
        torch.manual_seed(0)
        options: dict[str, Any] = {"evaluation_strategy": "epoch"} if case.get("evaluates") else {}
        if case.get("saves"):
            options.update(save_strategy="epoch", load_best_model_at_end=True)
        else:
            options.update(save_strategy="no")
        arguments = library.TrainingArguments(
            output_dir=folder,
            no_cuda=True,
            report_to=[],
            disable_tqdm=True,
            dataloader_pin_memory=False,
            per_device_train_batch_size=4,
            logging_steps=2,
            learning_rate=0.01,
            **{"num_train_epochs": 2, **options, **case.get("arguments", {}), **more},
        )
        for name, value in case.get("set", {}).items():
            setattr(arguments, name, value)
        trainer = library.Trainer(
            Small(), arguments, train_dataset=samples(18), eval_dataset=samples(7), callbacks=[recorder()]
        )
        trainer.remove_callback(library.PrinterCallback)
        return trainer

    told: dict[str, Any] = {}
    try:
        trainer = build()
        told["output"] = trainer.train().training_loss.hex()
        if case.get("saves"):
            first = min(Path(folder).glob("checkpoint-*"), key=lambda path: int(path.name.rsplit("-", 1)[1]))
            told["resumed"] = build(num_train_epochs=3).train(resume_from_checkpoint=str(first)).training_loss.hex()
        trainer.save_model(f"{folder}/final")
        told["weights"] = digest(b"".join(v.numpy().tobytes() for v in trainer.model.state_dict().values()))
        told["log"] = [
            {key: value for key, value in entry.items() if "runtime" not in key and "per_second" not in key}
            for entry in trainer.state.log_history
        ]
    except Exception as error:
        told["error"] = f"{type(error).__name__}: {error}"
    # Both start SageMaker's library once a process, at other moments: upstream when it is imported.
    told["events"], told["calls"] = events, [call for call in CALLS if call != "smp.init"]
    told["files"] = sorted(str(path.relative_to(folder)) for path in Path(folder).rglob("*") if path.is_file())
    told["random"] = digest(torch.get_rng_state().numpy().tobytes() + repr(random.getstate()).encode())
    told["random_numpy"] = digest(np.random.get_state()[1].tobytes())
    told["trainer"] = type(trainer).__module__ if "trainer" in locals() else ""
    return told


def cpu_of_sagemaker(self: Any) -> torch.device:
    self.distributed_state, self._n_gpu = None, 0
    return torch.device("cpu")


def digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]


if __name__ == "__main__":
    main(*sys.argv[1:])

# Read next: test_stand_ins.py
