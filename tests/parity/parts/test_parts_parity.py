"""The leaf functions against those of 4.31.0, on drawn inputs, bit for bit."""

from __future__ import annotations

import functools
import os
import random
import time
import warnings
from collections import OrderedDict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.utils.data import IterableDataset

from minitrainer.parts import (
    batch_size,
    checkpoints,
    choices,
    columns,
    gathering,
    inspection,
    label_smoothing,
    metrics,
    outputs,
    processes,
    samplers,
    search_spaces,
    seeding,
)

from ..compare import Said, said_by

torch_side = pytest.importorskip("transformers.trainer_pt_utils")
plain_side = pytest.importorskip("transformers.trainer_utils")

pytestmark = pytest.mark.reference


# -- comparing ---


def outcome(function: Callable[[], Any]) -> Any:
    """What a call returns, or which error it raises and what the error says; equivalent words are equal."""
    try:
        return function()
    except Exception as error:
        return said_by(error)


def assert_equal(mine: Any, theirs: Any) -> None:
    """Equal in type, shape, dtype and every bit, nested."""
    assert type(mine) is type(theirs)
    if isinstance(mine, (list, tuple)):
        assert len(mine) == len(theirs)
        for one, other in zip(mine, theirs, strict=True):
            assert_equal(one, other)
    elif isinstance(mine, dict):
        assert list(mine) == list(theirs)
        for key in mine:
            assert_equal(mine[key], theirs[key])
    elif isinstance(mine, torch.Tensor):
        assert (mine.dtype, mine.shape, mine.requires_grad) == (theirs.dtype, theirs.shape, theirs.requires_grad)
        assert_equal(mine.detach().float().numpy(), theirs.detach().float().numpy())
    elif isinstance(mine, np.ndarray):
        assert (mine.dtype, mine.shape) == (theirs.dtype, theirs.shape)
        assert mine.tobytes() == theirs.tobytes()
    else:
        assert mine == theirs


# -- samplers ---

LENGTHS = st.lists(st.integers(1, 40), min_size=1, max_size=60)


@given(
    lengths=LENGTHS,
    size=st.integers(1, 9),
    multiple=st.none() | st.integers(1, 6),
    seed=st.integers(0, 2**31),
    is_global=st.booleans(),
)
def test_length_grouped_order(lengths: list[int], size: int, multiple: int | None, seed: int, is_global: bool) -> None:
    """The same order, drawn from a generator or from torch's global one, which is left in the same state."""
    orders, states = [], []
    for side in (samplers, torch_side):
        torch.manual_seed(seed)
        generator = None if is_global else torch.Generator().manual_seed(seed)
        orders.append(side.get_length_grouped_indices(lengths, size, multiple, generator))
        states.append(torch.get_rng_state().tolist())
    assert orders[0] == orders[1]
    assert states[0] == states[1]
    assert sorted(orders[0]) == list(range(len(lengths)))


@given(lengths=LENGTHS, size=st.integers(1, 9), kind=st.sampled_from(["lengths", "tensor", "dataset", "named"]))
def test_length_grouped_sampler(lengths: list[int], size: int, kind: str) -> None:
    """Lengths given, given as a tensor, or measured; two epochs."""
    name = "input_ids" if kind == "dataset" else "other_ids"
    dataset = [{name: list(range(length))} for length in lengths]
    given_as: dict[str, Any] = {
        "lengths": {"lengths": lengths},
        "tensor": {"lengths": torch.tensor(lengths)},
        "dataset": {"dataset": dataset},
        "named": {"dataset": dataset, "model_input_name": name},
    }[kind]
    epochs = []
    for side in (samplers, torch_side):
        sampler = side.LengthGroupedSampler(size, generator=torch.Generator().manual_seed(3), **given_as)
        epochs.append([list(sampler), list(sampler), len(sampler), sampler.lengths])
    assert epochs[0] == epochs[1]


@given(
    lengths=LENGTHS,
    size=st.integers(1, 5),
    ranks=st.integers(1, 5),
    drop_last=st.booleans(),
    seed=st.integers(0, 99),
    epoch=st.integers(0, 3),
)
def test_distributed_length_grouped_sampler(
    lengths: list[int], size: int, ranks: int, drop_last: bool, seed: int, epoch: int
) -> None:
    """Every rank's part; with too few examples the same assertion."""

    def parts(side: Any) -> Any:
        found = []
        for rank in range(ranks):
            sampler = side.DistributedLengthGroupedSampler(
                size, lengths=lengths, num_replicas=ranks, rank=rank, seed=seed, drop_last=drop_last
            )
            sampler.set_epoch(epoch)
            found.append((list(sampler), len(sampler), sampler.num_samples, sampler.total_size))
        return found

    assert outcome(lambda: parts(samplers)) == outcome(lambda: parts(torch_side))


@pytest.mark.parametrize("name", ["LengthGroupedSampler", "DistributedLengthGroupedSampler"])
@pytest.mark.parametrize("given_as", [{}, {"dataset": [1, 2]}, {"dataset": [{"x": 1}]}])
def test_length_grouped_samplers_refuse_alike(name: str, given_as: dict[str, Any]) -> None:
    """Nothing to measure, or nothing that can be measured."""
    ranks = {"num_replicas": 1, "rank": 0} if name.startswith("Distributed") else {}
    mine = outcome(lambda: getattr(samplers, name)(2, **given_as, **ranks))
    assert mine == outcome(lambda: getattr(torch_side, name)(2, **given_as, **ranks))
    assert mine[0] == "ValueError"


@given(count=st.integers(0, 40), size=st.none() | st.integers(1, 6), ranks=st.integers(1, 5), drop_last=st.booleans())
def test_sharding_samplers(count: int, size: int | None, ranks: int, drop_last: bool) -> None:
    """Three ways to shard a map-style set."""
    dataset = list(range(count))

    def sequential(side: Any, rank: int) -> Any:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            sampler = side.SequentialDistributedSampler(dataset, ranks, rank, size)
            return (
                list(sampler),
                len(sampler),
                sampler.total_size,
                [Said(str(w.message), side is samplers) for w in caught],
            )

    def sharded(side: Any, rank: int) -> Any:
        sampler = side.ShardSampler(dataset, size or 1, drop_last, ranks, rank)
        return list(sampler), len(sampler), sampler.total_num_samples, sampler.total_batch_size

    def looped(side: Any, rank: int) -> Any:
        sampler = side.DistributedSamplerWithLoop(
            dataset, size or 1, num_replicas=ranks, rank=rank, drop_last=drop_last
        )
        sampler.set_epoch(2)
        return list(sampler), len(sampler)

    for way in (sequential, sharded, looped):
        if count == 0 and way is sharded and not drop_last:
            continue  # upstream never returns: it repeats nothing until there is enough
        for rank in range(ranks):
            assert outcome(lambda: way(samplers, rank)) == outcome(lambda: way(torch_side, rank)), (way, rank)  # noqa: B023


class Stream(IterableDataset):
    """Numbers; shuffled by a generator, or by the epoch that it is told, or not at all."""

    def __init__(self, count: int, kind: str):
        self.count, self.kind, self.epoch = count, kind, 0
        if kind == "generator":
            self.generator = torch.Generator()
        if kind == "set_epoch":
            self.set_epoch = lambda epoch: setattr(self, "epoch", epoch)

    def __iter__(self) -> Iterator[int]:
        if self.kind == "generator":
            return iter(torch.randperm(self.count, generator=self.generator).tolist())
        return iter(range(self.epoch, self.count + self.epoch))

    def __len__(self) -> int:
        return self.count


@given(
    count=st.integers(0, 30),
    size=st.integers(1, 5),
    ranks=st.integers(1, 4),
    drop_last=st.booleans(),
    kind=st.sampled_from(["plain", "generator", "set_epoch"]),
)
def test_stream_shards(count: int, size: int, ranks: int, drop_last: bool, kind: str) -> None:
    """Every rank's part over two epochs, its length, and the count of examples read."""

    def passes(side: Any, rank: int) -> Any:
        shard = side.IterableDatasetShard(Stream(count, kind), size, drop_last, ranks, rank, seed=7)
        found: list[Any] = [len(shard)]
        for epoch in (0, 3):
            shard.set_epoch(epoch)
            found += [list(shard), shard.num_examples, shard.epoch]
        return found

    for rank in range(ranks):
        assert passes(samplers, rank) == passes(torch_side, rank)


# -- gathering ---

DTYPES = [torch.float32, torch.float64, torch.int64, torch.bfloat16, torch.float16]


def leaf(rows: int, columns_count: int, rank: int, dtype: torch.dtype, seed: int) -> torch.Tensor:
    """A tensor whose dimension 1, if it has one, is the sequence length."""
    shape = [(), (rows,), (rows, columns_count), (rows, columns_count, 3)][rank]
    return (torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * 50).to(dtype)


@st.composite
def two_batches(draw: st.DrawFn) -> tuple[Any, Any]:
    """Two nested batches of the same nesting, sequence lengths and rows drawn apart."""
    shape = draw(st.sampled_from(["leaf", "tuple", "list", "dict", "mixed"]))
    leaves = []
    for _ in range(3):
        rank, dtype = draw(st.integers(0, 3)), draw(st.sampled_from(DTYPES))
        sizes = [(draw(st.integers(1, 4)), draw(st.integers(1, 5))) for _ in range(2)]
        leaves.append([leaf(*size, rank, dtype, draw(st.integers(0, 99))) for size in sizes])

    def nest(side: int) -> Any:
        a, b, c = (pair[side] for pair in leaves)
        nested = {"leaf": a, "tuple": (a, b), "list": [a, b], "dict": {"x": a, "y": b}}
        return {**nested, "mixed": OrderedDict(x=(a, [b]), y={"z": c})}[shape]

    return nest(0), nest(1)


@given(batches=two_batches(), padding=st.sampled_from([-100, 0]), limit=st.integers(0, 3))
def test_nested_tensors(batches: tuple[Any, Any], padding: int, limit: int) -> None:
    """Detach, measure, numpify, join and cut, as tensors and as arrays."""
    first, second = batches
    for name in ("find_batch_size", "nested_detach", "nested_numpify"):
        assert_equal(getattr(gathering, name)(first), getattr(torch_side, name)(first))
    assert_equal(
        outcome(lambda: gathering.nested_truncate(first, limit)),
        outcome(lambda: torch_side.nested_truncate(first, limit)),
    )
    arrays = [gathering.nested_numpify(batch) for batch in batches]
    for old, new in ((first, second), arrays):
        mine = outcome(lambda: gathering.nested_concat(old, new, padding_index=padding))  # noqa: B023
        assert_equal(mine, outcome(lambda: torch_side.nested_concat(old, new, padding_index=padding)))  # noqa: B023


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ([torch.ones(1)], (torch.ones(1),)),
        (1, 2),
        ({"a": torch.ones(2)}, {"b": torch.ones(2)}),
        ([torch.ones(1), torch.ones(2)], [torch.ones(1)]),
        (torch.tensor(1.0), torch.tensor(2.0)),
    ],
)
def test_joining_refuses_alike(old: Any, new: Any) -> None:
    """Different types, no tensors, another key; a shorter side, and scalars, which are joined."""
    assert_equal(
        outcome(lambda: gathering.nested_concat(old, new)), outcome(lambda: torch_side.nested_concat(old, new))
    )


@pytest.mark.parametrize("nothing", [None, [], {}, "text", 3, (None, [{}]), np.array(2.0)])
def test_batch_size_of_what_has_none(nothing: Any) -> None:
    """None on both sides."""
    assert gathering.find_batch_size(nothing) is torch_side.find_batch_size(nothing) is None


@given(
    ranks=st.integers(1, 4),
    count=st.integers(1, 25),
    size=st.integers(1, 4),
    is_evened=st.booleans(),
    shape=st.sampled_from(["vector", "matrix", "tuple"]),
    seed=st.integers(0, 99),
    forgets_last=st.booleans(),
)
def test_distributed_gatherer(
    ranks: int, count: int, size: int, is_evened: bool, shape: str, seed: int, forgets_last: bool
) -> None:
    """The data set's order is restored from batches of changing width, as the old prediction loop brings them."""
    rng = np.random.default_rng(seed)
    per_rank = -(-count // (ranks * size)) * size if is_evened else -(-count // ranks)
    batches = []
    for start in range(0, per_rank, size):
        rows = ranks * min(size, per_rank - start)
        width = int(rng.integers(1, 5))
        matrix, vector = rng.normal(size=(rows, width)), rng.normal(size=rows)
        batches.append({"vector": vector, "matrix": matrix, "tuple": (matrix, [vector])}[shape])
    batches = batches[:-1] if forgets_last else batches
    results = []
    for side in (gathering, torch_side):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            gatherer = side.DistributedTensorGatherer(ranks, count, make_multiple_of=size if is_evened else None)
        gatherer.add_arrays(None)
        for batch in batches:
            gatherer.add_arrays(batch)
        results.append(gatherer.finalize())
    assert_equal(*results)


def test_distributed_gatherer_refuses_alike() -> None:
    """Rows that cannot be dealt out; and it warns that it is deprecated."""
    errors, messages = [], []
    for side in (gathering, torch_side):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            gatherer = side.DistributedTensorGatherer(3, 6)
        messages.append([Said(str(warning.message), side is gathering) for warning in caught])
        errors.append(outcome(lambda: gatherer.add_arrays(np.zeros(4))))  # noqa: B023
    assert errors[0] == errors[1] and errors[0][0] == "AssertionError"
    assert messages[0] == messages[1]


# -- label smoothing ---


@given(
    sizes=st.tuples(st.integers(1, 4), st.integers(1, 6), st.integers(2, 9)),
    epsilon=st.sampled_from([0.0, 0.1, 0.33, 1.0]),
    shift=st.booleans(),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float64]),
    has_last_dimension=st.booleans(),
    seed=st.integers(0, 999),
    ignored=st.sampled_from([0.0, 0.3, 1.0]),
    is_tuple=st.booleans(),
)
def test_label_smoothing(
    sizes: tuple[int, int, int],
    epsilon: float,
    shift: bool,
    dtype: torch.dtype,
    has_last_dimension: bool,
    seed: int,
    ignored: float,
    is_tuple: bool,
) -> None:
    """Loss and gradient, to the last bit; NaN where every label is ignored."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, sizes[2], sizes[:2], generator=generator)
    labels[torch.rand(sizes[:2], generator=generator) < ignored] = -100
    labels = labels.unsqueeze(-1) if has_last_dimension and not shift else labels
    results = []
    for side in (label_smoothing, torch_side):
        logits = torch.randn(sizes, generator=torch.Generator().manual_seed(seed)).to(dtype).requires_grad_()
        output = (logits,) if is_tuple else {"logits": logits}
        loss = side.LabelSmoother(epsilon=epsilon)(output, labels.clone(), shift_labels=shift)
        loss.backward()
        results.append([loss, logits.grad])
    assert_equal(*results)


# -- metrics ---


@pytest.mark.parametrize("counts", [{}, {"num_samples": 10}, {"num_steps": 3}, {"num_samples": 7, "num_steps": 2}])
@pytest.mark.parametrize("elapsed", [0.0, 0.123456, 12.0])
def test_speed_metrics(counts: dict[str, int], elapsed: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same clock gives the same figures; no time gives no throughput."""
    monkeypatch.setattr(time, "time", lambda: 1000.0 + elapsed)
    mine, theirs = (side.speed_metrics("eval", 1000.0, **counts) for side in (metrics, plain_side))
    assert_equal(mine, theirs)


@given(secs=st.floats(-100, 1e6))
def test_seconds_as_text(secs: float) -> None:
    """The format of log_metrics."""
    assert metrics._secs2timedelta(secs) == torch_side._secs2timedelta(secs)


@pytest.mark.parametrize(
    "value",
    [
        {"a": np.float32(1.5), "b": [np.int64(2), torch.tensor(3)], "c": (torch.tensor([4.0]), "text", None)},
        {"a": torch.ones(2).tolist(), "b": True, "c": {"d": np.bool_(False)}},
        OrderedDict(a=np.float64(0.1)),
    ],
)
def test_metrics_become_plain_numbers(value: Any) -> None:
    """Nested."""
    assert_equal(metrics.denumpify_detensorize(value), plain_side.denumpify_detensorize(value))


def test_memory_tracker_reports_the_same_keys_in_the_same_order() -> None:
    """The figures themselves are the machine's; and an evaluation inside training is not counted apart."""
    pytest.importorskip("psutil")
    keys = []
    for side in (metrics, plain_side):
        watched = Watched(side.TrainerMemoryTracker())
        keys.append([list(watched.train()), list(watched.evaluate()), list(watched.predict())])
        assert outcome(watched.somewhere_else)[0] == "ValueError"
    assert keys[0] == keys[1]
    assert keys[0][0][:2] == ["init_mem_cpu_alloc_delta", "init_mem_cpu_peaked_delta"]


class Watched:
    """Calls the tracker from the methods that the Trainer calls it from."""

    def __init__(self, tracker: Any):
        self.tracker = tracker
        self.tracker.start()
        self.tracker.stop_and_update_metrics()

    def train(self) -> dict[str, Any]:
        self.tracker.start()
        assert self.evaluate() == {}
        figures: dict[str, Any] = {}
        self.tracker.stop_and_update_metrics(figures)
        return figures

    def evaluate(self) -> dict[str, Any]:
        self.tracker.start()
        figures: dict[str, Any] = {}
        self.tracker.stop_and_update_metrics(figures)
        return figures

    def predict(self) -> dict[str, Any]:
        self.tracker.start()
        figures: dict[str, Any] = {}
        self.tracker.stop_and_update_metrics(figures)
        return figures

    def somewhere_else(self) -> None:
        self.tracker.start()


# -- seeds ---


def all_random_states() -> Any:
    """The state of every generator that set_seed seeds."""
    state = np.random.get_state()
    return random.getstate(), (state[1].tolist(), state[2]), torch.get_rng_state().tolist()


@given(seed=st.integers(0, 2**32 - 1))
def test_seeds(seed: int) -> None:
    """The same state everywhere, in the main process and in a worker."""
    for name in ("set_seed", "seed_worker"):
        states = []
        for side in (seeding, plain_side):
            torch.manual_seed(seed)
            getattr(side, name)(seed)
            states.append(all_random_states())
        assert states[0] == states[1]


def test_full_determinism(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same switches and variables."""
    seen = []
    for side in (seeding, plain_side):
        monkeypatch.delenv("CUDA_LAUNCH_BLOCKING", raising=False)
        monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
        try:
            side.enable_full_determinism(3, warn_only=True)
            switches = (
                torch.are_deterministic_algorithms_enabled(),
                torch.is_deterministic_algorithms_warn_only_enabled(),
                torch.backends.cudnn.deterministic,
                torch.backends.cudnn.benchmark,
            )
            variables = os.environ["CUDA_LAUNCH_BLOCKING"], os.environ["CUBLAS_WORKSPACE_CONFIG"]
            seen.append((switches, variables, all_random_states()))
        finally:
            torch.use_deterministic_algorithms(False)
            torch.backends.cudnn.deterministic = False
    assert seen[0] == seen[1]


# -- choices and outputs ---

KINDS = [
    "IntervalStrategy",
    "EvaluationStrategy",
    "HubStrategy",
    "SchedulerType",
    "HPSearchBackend",
    "ShardedDDPOption",
    "FSDPOption",
]


@pytest.mark.parametrize("kind", KINDS)
def test_choices(kind: str) -> None:
    """The same members in the same order, as text the same, and the same error for a word that is none of them."""
    mine, theirs = getattr(choices, kind), getattr(plain_side, kind)
    assert [(m.name, m.value, str(m), f"{m}") for m in mine] == [(m.name, m.value, str(m), f"{m}") for m in theirs]
    assert outcome(lambda: mine("unheard")) == outcome(lambda: theirs("unheard"))
    assert all(member == member.value and hash(member) == hash(member.value) for member in mine)


@pytest.mark.parametrize("name", ["EvalLoopOutput", "PredictionOutput", "TrainOutput", "BestRun"])
def test_output_tuples(name: str) -> None:
    """The same fields, defaults and text."""
    mine, theirs = getattr(outputs, name), getattr(plain_side, name)
    assert (mine._fields, mine._field_defaults) == (theirs._fields, theirs._field_defaults)
    values = list(range(len(mine._fields)))
    assert repr(mine(*values)) == repr(theirs(*values))


@pytest.mark.parametrize("inputs", [None, np.arange(3)])
def test_eval_prediction(inputs: Any) -> None:
    """It unpacks and is indexed alike."""
    seen = []
    for side in (outputs, plain_side):
        prediction = side.EvalPrediction(predictions=np.ones(2), label_ids=np.zeros(2), inputs=inputs)
        seen.append([list(prediction), *(outcome(lambda: prediction[i]) for i in (-1, 0, 1, 2, 3))])  # noqa: B023
        seen[-1].append(outcome(lambda: len(prediction))[0])  # noqa: B023
    assert_equal(*seen)


# -- checkpoints, columns, inspection ---


@pytest.mark.parametrize(
    "names",
    [
        [],
        ["checkpoint-9", "checkpoint-10", "checkpoint-2"],
        ["checkpoint-5", "checkpoint-x", "xcheckpoint-9", "checkpoint-7-old", "checkpoint-"],
        ["other"],
    ],
)
def test_last_checkpoint(names: list[str], tmp_path: Path) -> None:
    """By number, folders only."""
    for name in names:
        (tmp_path / name).mkdir()
    (tmp_path / "checkpoint-99").write_text("a file")
    assert checkpoints.get_last_checkpoint(str(tmp_path)) == plain_side.get_last_checkpoint(str(tmp_path))
    assert checkpoints.PREFIX_CHECKPOINT_DIR == plain_side.PREFIX_CHECKPOINT_DIR


@pytest.mark.parametrize("count", [0, 1, 2, 3])
def test_warnings_are_shown_again(count: int) -> None:
    """Only from two on."""
    seen = []
    for side in (checkpoints, torch_side):
        with warnings.catch_warnings(record=True) as first:
            warnings.simplefilter("always")
            for number in range(count):
                warnings.warn(f"number {number}", [UserWarning, FutureWarning][number % 2], stacklevel=1)
        with warnings.catch_warnings(record=True) as again:
            warnings.simplefilter("always")
            side.reissue_pt_warnings(first)
        seen.append([(str(w.message), w.category) for w in again])
    assert seen[0] == seen[1]


class Listener:
    """A logger that remembers."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def info(self, line: str) -> None:
        self.lines.append(line)


@pytest.mark.parametrize("model_name", [None, "BertModel"])
@pytest.mark.parametrize("description", [None, "training"])
@pytest.mark.parametrize("features", [[{"a": 1, "b": 2}, {"a": 3, "c": 4}], [{"a": 1}, {"b": 2}], [1, 2], []])
def test_columns_are_removed(model_name: str | None, description: str | None, features: list[Any]) -> None:
    """The same examples go to the collator, and an equivalent message is logged, once."""
    seen = []
    for side in (columns, plain_side):
        logger = Listener()
        collator = side.RemoveColumnsCollator(list, ["a"], logger, model_name, description)
        lines = [Said(line, side is columns) for line in logger.lines]
        seen.append(([collator(features), collator(features)], lines))
    assert_equal(seen[0][0], seen[1][0])
    assert seen[0][1] == seen[1][1]


class Layered(nn.Module):
    """Layer norms within and without, a parameter of its own, a shared one, and one that is None."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(3))
        self.register_parameter("absent", None)
        self.body = nn.Sequential(nn.Linear(2, 3), nn.LayerNorm(3), nn.Sequential(nn.LayerNorm(3), nn.Linear(3, 2)))
        self.tied = nn.Linear(2, 3)
        self.tied.weight = self.body[0].weight
        self.body[2][1].weight.requires_grad_(False)


@pytest.mark.parametrize("trainable_only", [False, True])
def test_models_are_inspected_alike(trainable_only: bool) -> None:
    """Counts, names and classes."""
    model = Layered()
    assert inspection.get_model_param_count(model, trainable_only) == torch_side.get_model_param_count(
        model, trainable_only
    )
    for forbidden in ([nn.LayerNorm], [nn.Sequential], [], [nn.LayerNorm, nn.Linear]):
        assert inspection.get_parameter_names(model, forbidden) == torch_side.get_parameter_names(model, forbidden)
    for name in ("Layered", "LayerNorm", "Linear", "Conv2d"):
        assert inspection.get_module_class_from_name(model, name) is torch_side.get_module_class_from_name(model, name)


def test_functions_and_sets_are_inspected_alike() -> None:
    """Open parameters, and lengths that raise."""

    def three(a: int, b: int, c: int = 0) -> None: ...

    for function in (three, functools.partial(three, 1), functools.partial(three, 1, c=2), len):
        assert inspection.number_of_arguments(function) == plain_side.number_of_arguments(function)
    for dataset in ([1], [], iter([]), None, torch.utils.data.DataLoader(Stream(2, "plain"))):
        assert inspection.has_length(dataset) == plain_side.has_length(dataset)


# -- batch size, processes, search ---


@pytest.mark.parametrize("finds", [False, True])
@pytest.mark.parametrize("fails_above", [100, 2, 0])
def test_batch_sizes_are_tried_alike(finds: bool, fails_above: int) -> None:
    """The same sizes in the same order, as a decorator and directly."""
    seen = []
    for side in (batch_size, plain_side):
        tried: list[int] = []

        def work(batch_size: int, extra: int, tried: list[int] = tried) -> int:
            tried.append(batch_size)
            if batch_size > fails_above:
                raise RuntimeError("CUDA out of memory.")
            return batch_size + extra

        direct = side.find_executable_batch_size(work, 4, finds)
        decorated = side.find_executable_batch_size(starting_batch_size=4, auto_find_batch_size=finds)(work)
        seen.append([outcome(lambda: direct(extra=3)), outcome(lambda: decorated(extra=3)), tried])  # noqa: B023
    assert seen[0] == seen[1]


@pytest.mark.parametrize("local_rank", [-1, 0, 1])
def test_process_questions(local_rank: int) -> None:
    """Outside a process group."""
    assert processes.is_main_process(local_rank) == plain_side.is_main_process(local_rank)
    assert outcome(lambda: processes.total_processes_number(local_rank)) == outcome(
        lambda: plain_side.total_processes_number(local_rank)
    )
    seen = []
    for side in (processes, torch_side):

        def block(side: Any = side) -> str:
            with side.torch_distributed_zero_first(local_rank):
                return "inside"

        seen.append(outcome(block))
    assert seen[0] == seen[1]


@given(
    values=st.dictionaries(
        st.sampled_from(
            ["eval_loss", "epoch", "eval_accuracy", "eval_f1", "eval_runtime", "eval_samples_per_second"]
            + ["eval_steps_per_second", "eval_jit_compilation_time", "eval_x_loss", "eval_x_runtime"]
        ),
        st.floats(-10, 10),
    )
)
def test_default_objective(values: dict[str, float]) -> None:
    """The loss alone, or the sum of the rest in the same order; the metrics are left as they were."""
    before = dict(values)
    assert_equal(search_spaces.default_compute_objective(values), plain_side.default_compute_objective(values))
    assert values == before


@pytest.mark.parametrize("backend", ["optuna", "ray", "sigopt", "wandb"])
def test_default_search_spaces(backend: str) -> None:
    """The same space, or the same complaint that the library is missing."""

    class Trial:
        """Writes down what it is asked for."""

        def __init__(self) -> None:
            self.asked: list[Any] = []

        def __getattr__(self, name: str) -> Any:
            return lambda *args, **kwargs: (name, args, kwargs)

    mine, theirs = (
        outcome(lambda: getattr(side, f"default_hp_space_{backend}")(Trial()))  # noqa: B023
        for side in (search_spaces, plain_side)
    )
    assert mine == theirs


# Read next: ../../parts/test_parts.py
