"""What compat.py brings for versions that lack it does what 4.31.0's own does."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from minitrainer import compat


def gradients(count: int) -> list[list[torch.Tensor]]:
    """Seven steps' gradients for three parameters; now and then one parameter has none."""
    generator = torch.Generator().manual_seed(count)
    shapes = [(3, 4), (4,), ()]
    return [[torch.randn(shape, generator=generator) for shape in shapes] for _ in range(count)]


def step_through(optimizer_class: Any, options: dict[str, Any]) -> tuple[list[torch.Tensor], dict[str, Any]]:
    parameters = [
        nn.Parameter(torch.linspace(-1, 1, 12).view(3, 4)),
        nn.Parameter(torch.ones(4)),
        nn.Parameter(torch.tensor(0.5)),
    ]
    groups = [{"params": parameters[:1], "weight_decay": 0.1}, {"params": parameters[1:], "weight_decay": 0.0}]
    optimizer = optimizer_class(groups, lr=0.01, no_deprecation_warning=True, **options)
    for number, step in enumerate(gradients(7)):
        for parameter, gradient in zip(parameters, step, strict=True):
            parameter.grad = None if number % 3 == 2 and parameter.dim() == 1 else gradient.clone()
        optimizer.step()
    return [parameter.detach() for parameter in parameters], optimizer.state_dict()


@pytest.mark.reference
@pytest.mark.parametrize("options", [{}, {"correct_bias": False}, {"eps": 1e-3, "betas": (0.5, 0.9)}], ids=str)
def test_adamw_hf_steps_as_4_31_0_does_to_the_bit(options: dict[str, Any]) -> None:
    from transformers import AdamW

    assert compat.AdamW is AdamW
    ours, our_state = step_through(compat._AdamW, options)
    real, real_state = step_through(AdamW, options)
    assert all(torch.equal(one, other) for one, other in zip(ours, real, strict=True))
    assert our_state["param_groups"] == real_state["param_groups"]
    assert our_state["state"].keys() == real_state["state"].keys()
    for number, state in real_state["state"].items():
        for key, value in state.items():
            mine = our_state["state"][number][key]
            assert type(mine) is type(value)
            assert torch.equal(mine, value) if isinstance(value, torch.Tensor) else mine == value


@pytest.mark.parametrize(
    ("options", "message"),
    [({"lr": -1.0}, "learning rate"), ({"betas": (1.0, 0.9)}, "beta"), ({"eps": -1e-9}, "epsilon")],
)
def test_adamw_refuses_what_makes_no_sense(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        compat._AdamW([nn.Parameter(torch.zeros(1))], no_deprecation_warning=True, **options)


def test_adamw_says_that_it_is_deprecated() -> None:
    with pytest.warns(FutureWarning, match="deprecated"):
        compat._AdamW([nn.Parameter(torch.zeros(1))])


def test_adamw_refuses_sparse_gradients() -> None:
    table = nn.Embedding(4, 2, sparse=True)
    optimizer = compat._AdamW(table.parameters(), no_deprecation_warning=True)
    table(torch.tensor([1])).sum().backward()
    with pytest.raises(RuntimeError, match="sparse"):
        optimizer.step()


# -- sharded checkpoints -------------------------------------------------------------------------------


def write_shards(folder: Path, weights: dict[str, Any]) -> None:
    """One file for each weight, and the index."""
    for name, value in weights.items():
        torch.save({name: value}, folder / f"{name}.bin")
    index = {"weight_map": {name: f"{name}.bin" for name in weights}}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))


def test_shards_are_loaded_and_differences_reported(tmp_path: Path) -> None:
    model = nn.Linear(2, 1)
    write_shards(tmp_path, {"weight": torch.full((1, 2), 7.0), "elsewhere": torch.zeros(1)})
    result = compat.load_sharded_checkpoint(model, str(tmp_path), strict=False)
    assert model.weight.tolist() == [[7.0, 7.0]]
    assert (result.missing_keys, result.unexpected_keys) == (["bias"], ["elsewhere"])
    with pytest.raises(RuntimeError, match='Missing key.*"bias"(.|\n)*Unexpected key.*"elsewhere"'):
        compat.load_sharded_checkpoint(model, str(tmp_path))


def test_a_folder_without_an_index_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="holds no index of shards: neither pytorch_model.bin.index.json nor"):
        compat.load_sharded_checkpoint(nn.Linear(1, 1), str(tmp_path))


class Trap:
    """Writes a file where it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return (Path.touch, (self.path,))


def test_a_tampered_shard_is_not_executed(tmp_path: Path) -> None:
    model, sprung = nn.Linear(2, 1), tmp_path / "sprung"
    before = model.weight.clone()
    write_shards(tmp_path, {"weight": Trap(sprung)})
    with pytest.raises(pickle.UnpicklingError):
        compat.load_sharded_checkpoint(model, str(tmp_path), strict=False)
    assert not sprung.exists()
    assert torch.equal(model.weight, before)


# -- what is installed -----------------------------------------------------------------------------------


def test_a_folder_of_a_librarys_name_is_not_the_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("apex", "peft"):
        (tmp_path / name).mkdir()
    monkeypatch.syspath_prepend(str(tmp_path))
    compat._is_installed.cache_clear()
    try:
        assert not compat.is_apex_available()
        assert compat._is_installed("apex")
    finally:
        compat._is_installed.cache_clear()


@pytest.mark.parametrize("text", ["", "{", "[]", '{"other": 1}', "3"])
def test_sagemaker_is_off_unless_it_is_clearly_on(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SM_FRAMEWORK_PARAMS", '{"sagemaker_mpi_enabled": true}')
    monkeypatch.setenv("SM_HP_MP_PARAMETERS", text)
    if text in ("3",):
        with pytest.raises(TypeError):  # as upstream: a number is no set of options
            compat.is_sagemaker_mp_enabled()
    else:
        assert compat.is_sagemaker_mp_enabled() is False


# Read next: test_messages.py
