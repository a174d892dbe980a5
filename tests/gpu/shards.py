"""FSDP through accelerate: train sharded, save in the middle, resume, and end where an unbroken run ends."""

from __future__ import annotations

import traceback
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.parity.observation import plain
from tests.parity.run import our_library, real_library

from . import program

if TYPE_CHECKING:
    from .worker import Here

STEPS, SAVED_AT = 6, 3


def trained_saved_resumed(here: Here) -> dict[str, Any]:
    """Run both libraries. What either cannot do is a fact too: the text of its error."""
    found: dict[str, Any] = {}
    for library in (real_library(), our_library()):
        module = import_module(library.name)
        answer: dict[str, Any] = {"unbroken": None, "resumed": None, "error": None}
        folder = here.fresh_folder()
        for name, resume_from in (("unbroken", None), ("resumed", folder / "out" / f"checkpoint-{SAVED_AT}")):
            try:
                with here.one_run(library):
                    answer[name] = one(module, folder, resume_from)
            except Exception as error:
                answer["error"] = f"{name}: {type(error).__name__}: {error}"[:600]
                answer["stack"] = traceback.format_exc()[-3000:]
                break
        found[library.name] = answer
    return {"libraries": found}


def one(library: Any, folder: Path, resume_from: Path | None) -> dict[str, Any]:
    """Train all steps, or the ones after the checkpoint; return this rank's shards and the logs."""
    trainer = program.trainer(
        library,
        folder / "out",
        max_steps=STEPS,
        logging_steps=1,
        per_device_train_batch_size=2,
        save_strategy="steps",
        save_steps=SAVED_AT,
        fsdp="full_shard auto_wrap",
        fsdp_config={
            "fsdp_transformer_layer_cls_to_wrap": ["BertLayer"],
            "transformer_layer_cls_to_wrap": ["BertLayer"],
        },
    )
    trainer.train(resume_from_checkpoint=None if resume_from is None else str(resume_from))
    # 4.31.0 lets `model` be the outermost wrapper with FSDP, later versions let `model_wrapped`
    outermost = trainer.model if type(trainer.model).__name__.startswith("Fully") else trainer.model_wrapped
    pieces = [each.to_local() if hasattr(each, "to_local") else each.detach() for each in outermost.parameters()]
    return {
        "shards": [str(plain(each.detach())) for each in pieces],
        "elements_here": sum(each.numel() for each in pieces),
        "elements_of_the_model": sum(each.numel() for each in program.bert(64, 2, 0.1).parameters()),
        "wrapped_as": type(outermost).__name__,
        "losses": [entry["loss"] for entry in trainer.state.log_history if "loss" in entry],
        "files": sorted(path.name for path in (folder / "out" / f"checkpoint-{SAVED_AT}").iterdir()),
    }


# Read next: tests/gpu/test_gpu.py
