"""Our Trainer equals the real 4.31.0 on two and on three ranks, to the last bit and on every rank.

The named cases are the situations in which ranks differ from one another: uneven last batches, unequal label counts,
duplicated samples, streams, unused parameters, buffers, resumption. Drawn cases come on top.
"""

from __future__ import annotations

import os
from typing import Any

import pytest

from .cases import Case, rank_cases
from .mutants import BUSY
from .ranks import compare_on_ranks
from .search import drawn_from

pytestmark = [pytest.mark.reference, pytest.mark.slow]

DRAWN_CASES = int(os.environ.get("MINITRAINER_RANK_EXAMPLES", "24"))
ALONE = BUSY | {"no_cuda": True, "per_device_eval_batch_size": 2}


def on_ranks(train_samples: int = 13, **fields: Any) -> Case:
    """A case with samples enough for several steps on three ranks, and an uneven last batch."""
    return Case(train_samples=train_samples, **fields)


NAMED: dict[str, Case] = {
    "defaults": Case(args={"no_cuda": True}),
    # 7 samples in batches of 2: on 2 ranks the last batch is filled up with samples seen before, on 3 also
    "uneven last batch": on_ranks(train_samples=7, eval_samples=(7,), metrics="digest", args=ALONE),
    "last batch dropped": on_ranks(eval_samples=(7,), metrics="digest", args=ALONE | {"dataloader_drop_last": True}),
    "fewer samples than ranks": on_ranks(train_samples=1, eval_samples=(1,), metrics="digest", args=ALONE),
    # every sample has its own number of labels: the mean of means is not the mean over all tokens
    "unequal label counts": on_ranks(model="tagger", train_samples=9, eval_samples=(7,), metrics="digest", args=ALONE),
    "smoothed labels": on_ranks(model="tagger", train_samples=9, args=ALONE | {"label_smoothing_factor": 0.1}),
    "accumulation across an epoch's end": on_ranks(
        train_samples=10, args=ALONE | {"gradient_accumulation_steps": 2, "num_train_epochs": 3}
    ),
    "stream": on_ranks(train="iterable", evaluation="iterable", metrics="digest", args=ALONE | {"max_steps": 4}),
    "sized stream": on_ranks(train="iterable_sized", evaluation="iterable_sized", metrics="digest", args=ALONE),
    "several sets": on_ranks(evaluation="datasets", eval_samples=(3, 5), metrics="digest", args=ALONE),
    "gathered by and by": on_ranks(
        model="tagger",
        eval_samples=(11,),
        metrics="digest",
        preprocess="pair",
        args=ALONE | {"eval_accumulation_steps": 1},
    ),
    "legacy loop": on_ranks(
        evaluation="iterable_sized", metrics="digest", args=ALONE | {"use_legacy_prediction_loop": True}
    ),
    "grouped by length": on_ranks(model="tagger", train_samples=11, args=ALONE | {"group_by_length": True}),
    "unused parameters searched for": on_ranks(model="buffered", args=ALONE | {"ddp_find_unused_parameters": True}),
    "unused parameters not searched for": on_ranks(
        model="buffered", args=ALONE | {"ddp_find_unused_parameters": False}
    ),
    "buffers broadcast": on_ranks(model="buffered", args=ALONE | {"ddp_broadcast_buffers": True}),
    "buffers left alone": on_ranks(model="buffered", args=ALONE | {"ddp_broadcast_buffers": False}),
    "small buckets": on_ranks(model="classifier", args=ALONE | {"ddp_bucket_cap_mb": 1}),
    "saved on each node": on_ranks(args=ALONE | {"save_on_each_node": True, "save_total_limit": 1}),
    "logged on each node": on_ranks(args=ALONE | {"log_on_each_node": False}),
    "main process first": on_ranks(args=ALONE, calls=("main_process_first", "train", "predict")),
    "dropout": on_ranks(model="bert", dropout=0.3, args=ALONE, calls=("train", "evaluate")),
    "best model": on_ranks(metrics="digest", args=ALONE | {"load_best_model_at_end": True, "save_total_limit": 1}),
    "broken loss": on_ranks(model="classifier", broken_losses=(2,), args=ALONE),
    "bf16": on_ranks(model="bert", args=ALONE | {"bf16": True}),
    "model_init": on_ranks(model_source="init", args=ALONE),
    "stopped by a callback": on_ranks(nudges=(("on_step_end", 2, "should_training_stop", True),), args=ALONE),
    "resumed in mid-epoch": on_ranks(model="classifier", dropout=0.3, train_samples=13, args=ALONE, resume=1),
    "resumed without skipping": on_ranks(
        train_samples=13, args=ALONE, resume=0, resume_args={"ignore_data_skip": True}
    ),
    "resumed stream": on_ranks(train="iterable", train_samples=13, args=ALONE | {"max_steps": 5}, resume=1),
    "evaluated only": on_ranks(
        model="pretrained", metrics="digest", args={"no_cuda": True}, calls=("evaluate", "predict")
    ),
    "no training set": on_ranks(train="none", args=ALONE),
    "refused on the CPU": on_ranks(args=ALONE | {"fp16": True}),
}
EXPECTED_TO_FAIL = {"no training set", "refused on the CPU", "unused parameters not searched for"}


@pytest.mark.parametrize("world_size", [2, 3])
def test_ours_equals_the_real_trainer_on_every_rank(world_size: int) -> None:
    """No rank sees a difference in any named or drawn case."""
    cases = [*NAMED.values(), *drawn_rank_cases(DRAWN_CASES)]
    found = compare_on_ranks(cases, world_size)
    assert len(found) == len(NAMED) + DRAWN_CASES
    assert all(len(of_ranks) == world_size for of_ranks in found)
    differences = [answer.difference for of_ranks in found for answer in of_ranks if answer.difference is not None]
    assert not differences, f"{len(differences)} differ\n\n" + "\n\n".join(differences)
    # and they are equal runs, not equal failures
    named = dict(zip(NAMED, found, strict=False))
    assert {name for name, of_ranks in named.items() if of_ranks[0].failure is not None} == EXPECTED_TO_FAIL
    assert sum(of_ranks[0].steps for of_ranks in found) > 3 * len(NAMED)


def drawn_rank_cases(count: int) -> list[Case]:
    """Draw cases for several ranks, the same ones every time."""
    cases: list[Case] = []
    drawn_from(rank_cases(), "ranks", count, None, cases.append, shrink=False)
    return cases[:count]


# each is planted in what a rank does alone, gathers, restores or writes
PLANTED: dict[str, Case] = {
    "loss_not_divided_by_group": Case(args=ALONE | {"gradient_accumulation_steps": 2}),
    "loss_off_by_one_bit": Case(args={"no_cuda": True}, calls=("evaluate",)),
    "random_state_not_restored": NAMED["resumed in mid-epoch"],
    "scheduler_not_saved": Case(args={"no_cuda": True, "save_strategy": "steps", "save_steps": 1, "max_steps": 1}),
}


def test_planted_differences_are_found_on_ranks_too() -> None:
    """The harness can fail with several ranks as well."""
    found = compare_on_ranks(list(PLANTED.values()), 2, against=list(PLANTED))
    assert len(found) == len(PLANTED)
    for name, of_ranks in zip(PLANTED, found, strict=True):
        assert of_ranks[0].difference is not None, name


# Read next: tests/parity/mutants.py
