"""Our Trainer equals the real 4.31.0 on two and on three ranks, to the last bit and on every rank.

The named cases are the situations in which ranks differ from one another: uneven last batches, unequal label counts,
duplicated samples, streams, unused parameters, buffers, resumption. Drawn cases come on top.
"""

from __future__ import annotations

import os

import pytest

from .cases import Case, rank_cases
from .mutants import BUSY
from .ranks import compare_on_ranks
from .search import drawn_from

pytestmark = [pytest.mark.reference, pytest.mark.slow]

DRAWN_CASES = int(os.environ.get("MINITRAINER_RANK_EXAMPLES", "24"))
ALONE = BUSY | {"no_cuda": True}

NAMED: dict[str, Case] = {
    "one epoch": Case(args={"no_cuda": True}),
    # 7 samples in batches of 2: on 2 ranks the last batch is filled up with samples seen before, on 3 also
    "uneven last batch": Case(train_samples=7, eval_samples=(7,), metrics="digest", args=ALONE),
    "last batch dropped": Case(train_samples=7, metrics="digest", args=ALONE | {"dataloader_drop_last": True}),
    "fewer samples than ranks": Case(train_samples=1, eval_samples=(1,), metrics="digest", args=ALONE),
    # every sample has its own number of labels: the mean of means is not the mean over all tokens
    "unequal label counts": Case(model="tagger", train_samples=9, eval_samples=(7,), metrics="digest", args=ALONE),
    "smoothed labels": Case(model="tagger", train_samples=9, args=ALONE | {"label_smoothing_factor": 0.1}),
    "accumulation across an epoch's end": Case(
        train_samples=10, args=ALONE | {"gradient_accumulation_steps": 2, "num_train_epochs": 3}
    ),
    "stream": Case(train="iterable", evaluation="iterable", metrics="digest", args=ALONE | {"max_steps": 4}),
    "sized stream": Case(train="iterable_sized", evaluation="iterable_sized", metrics="digest", args=ALONE),
    "several sets": Case(evaluation="datasets", eval_samples=(3, 5), metrics="digest", args=ALONE),
    "gathered by and by": Case(
        model="tagger",
        eval_samples=(11,),
        metrics="digest",
        preprocess="pair",
        args=ALONE | {"eval_accumulation_steps": 1},
    ),
    "legacy loop": Case(
        evaluation="iterable_sized", metrics="digest", args=ALONE | {"use_legacy_prediction_loop": True}
    ),
    "grouped by length": Case(model="tagger", train_samples=11, args=ALONE | {"group_by_length": True}),
    "unused parameters searched for": Case(model="buffered", args=ALONE | {"ddp_find_unused_parameters": True}),
    "unused parameters not searched for": Case(model="buffered", args=ALONE | {"ddp_find_unused_parameters": False}),
    "buffers broadcast": Case(model="buffered", args=ALONE | {"ddp_broadcast_buffers": True}),
    "buffers left alone": Case(model="buffered", args=ALONE | {"ddp_broadcast_buffers": False}),
    "small buckets": Case(model="classifier", args=ALONE | {"ddp_bucket_cap_mb": 1}),
    "saved on each node": Case(args=ALONE | {"save_on_each_node": True, "save_total_limit": 1}),
    "logged on each node": Case(args=ALONE | {"log_on_each_node": False}),
    "main process first": Case(args=ALONE, calls=("main_process_first", "train", "predict")),
    "dropout": Case(model="bert", dropout=0.3, args=ALONE, calls=("train", "evaluate")),
    "best model": Case(metrics="digest", args=ALONE | {"load_best_model_at_end": True, "save_total_limit": 1}),
    "broken loss": Case(model="classifier", broken_losses=(2,), args=ALONE),
    "bf16": Case(model="bert", args=ALONE | {"bf16": True}),
    "model_init": Case(model_source="init", args=ALONE),
    "stopped by a callback": Case(nudges=(("on_step_end", 2, "should_training_stop", True),), args=ALONE),
    "resumed in mid-epoch": Case(model="classifier", dropout=0.3, train_samples=13, args=ALONE, resume=1),
    "resumed without skipping": Case(train_samples=13, args=ALONE, resume=0, resume_args={"ignore_data_skip": True}),
    "resumed stream": Case(train="iterable", train_samples=13, args=ALONE | {"max_steps": 5}, resume=1),
    "evaluated only": Case(
        model="pretrained", metrics="digest", args={"no_cuda": True}, calls=("evaluate", "predict")
    ),
    "no training set": Case(train="none", args=ALONE),
    "refused on the CPU": Case(args=ALONE | {"fp16": True}),
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


# each is planted in what only several ranks do, or in what they gather
PLANTED = ("loss_not_divided_by_group", "loss_off_by_one_bit", "random_state_not_restored", "scheduler_not_saved")


@pytest.mark.parametrize("name", PLANTED)
def test_a_planted_difference_is_found_on_ranks_too(name: str) -> None:
    """The harness can fail with several ranks as well."""
    case = {
        "loss_not_divided_by_group": Case(args=ALONE | {"gradient_accumulation_steps": 2}),
        "loss_off_by_one_bit": Case(args={"no_cuda": True}, calls=("evaluate",)),
        "random_state_not_restored": NAMED["resumed in mid-epoch"],
        "scheduler_not_saved": Case(args={"no_cuda": True, "save_strategy": "epoch", "num_train_epochs": 1}),
    }[name]
    (of_ranks,) = compare_on_ranks([case], 2, against=name)
    assert of_ranks[0].difference is not None


# Read next: tests/parity/mutants.py
