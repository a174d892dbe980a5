"""Files of a checkpoint are read without running what they say; a file that is not right gets a clear refusal."""

from __future__ import annotations

import os
import pickle
import random
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors
import torch

from minitrainer.parts.reading import NUMPY_STATE_TYPES, load_safetensors, load_tensors
from tests.saving import subjects


class Command:
    """Unpickled without protection, it runs a command of the system."""

    def __reduce__(self) -> Any:
        return os.system, ("exit 1",)


class Bomb:
    """Leaves a file behind when it is unpickled: the proof that nothing was run is that the file is not there."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return (Path.touch, (self.path,))


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("finished")
    subjects.build(folder, load_best_model_at_end=True, metric_for_best_model="accuracy").train()
    return folder


@pytest.mark.parametrize("name", ["pytorch_model.bin", "optimizer.pt", "scheduler.pt", "rng_state.pth"])
def test_a_tampered_file_runs_nothing_and_is_named(name: str, finished: Path, tmp_path: Path) -> None:
    folder = subjects.copy(finished, tmp_path / "run")
    checkpoint = folder / "checkpoint-3"
    path = checkpoint / name
    torch.save({"payload": Bomb(tmp_path / "ran")}, path)
    tampered = path.read_bytes()
    before = subjects.files_in(folder)

    trainer = subjects.build(folder)
    with pytest.raises(pickle.UnpicklingError) as error:
        trainer.train(resume_from_checkpoint=str(checkpoint))

    message = str(error.value)
    assert str(path) in message
    assert "it names " in message and "which is neither tensor, container nor number" in message
    assert "another checkpoint" in message and "add_safe_globals" in message
    assert "weights_only=False" not in message
    assert not (tmp_path / "ran").exists()
    assert path.read_bytes() == tampered
    assert subjects.files_in(folder) == before


def test_a_tampered_best_model_is_refused_too(finished: Path, tmp_path: Path) -> None:
    trainer = subjects.build(tmp_path / "run")
    folder = subjects.copy(finished / "checkpoint-3", tmp_path / "best")
    torch.save(Bomb(tmp_path / "ran"), folder / "pytorch_model.bin")
    trainer.state.best_model_checkpoint = str(folder)
    with pytest.raises(pickle.UnpicklingError, match="pytorch_model.bin was not loaded"):
        trainer._load_best_model()
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("kept_bytes", [0, 1, 100, 2000])
def test_a_file_cut_short_is_named(kept_bytes: int, finished: Path, tmp_path: Path) -> None:
    path = tmp_path / "optimizer.pt"
    path.write_bytes((finished / "checkpoint-3" / "optimizer.pt").read_bytes()[:kept_bytes])
    with pytest.raises(pickle.UnpicklingError, match="optimizer.pt was not loaded: .*another checkpoint"):
        load_tensors(str(path))


def test_every_single_byte_changed_in_a_random_state_never_runs_anything(finished: Path, tmp_path: Path) -> None:
    """Whatever a flipped byte does, it is an error of ours, or a state that is still plain data."""
    good = (finished / "checkpoint-3" / "rng_state.pth").read_bytes()
    start = good.index(b"data.pkl")
    path = tmp_path / "rng_state.pth"
    refused = 0
    for position in range(start, start + 400):
        changed = bytearray(good)
        changed[position] ^= 0x15
        path.write_bytes(changed)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                load_tensors(str(path), also_allowed=NUMPY_STATE_TYPES)
        except pickle.UnpicklingError as error:
            assert str(path) in str(error)
            refused += 1
    assert refused >= 50


@pytest.mark.parametrize(
    ("content", "kind"),
    [(b"{", ValueError), (b"\xff\xfe", ValueError), (b"[]", TypeError), (b'{"other": 1}', TypeError)],
)
def test_a_damaged_state_is_named(content: bytes, kind: type, finished: Path, tmp_path: Path) -> None:
    folder = subjects.copy(finished, tmp_path / "run")
    path = folder / "checkpoint-3" / "trainer_state.json"
    path.write_bytes(content)
    with pytest.raises(kind, match="trainer_state.json .*resume from another checkpoint"):
        subjects.build(folder).train(resume_from_checkpoint=str(folder / "checkpoint-3"))
    assert path.read_bytes() == content


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe"])
def test_a_damaged_configuration_is_named(content: bytes, finished: Path, tmp_path: Path) -> None:
    folder = subjects.copy(finished, tmp_path / "run")
    (folder / "checkpoint-3" / "config.json").write_bytes(content)
    with pytest.raises(ValueError, match="config.json is damaged .*resume from another checkpoint"):
        subjects.build(folder).train(resume_from_checkpoint=str(folder / "checkpoint-3"))


def test_what_a_file_names_is_said(tmp_path: Path) -> None:
    """Also where torch blocks a whole module and would advise to load the file without protection."""
    path = tmp_path / "optimizer.pt"
    torch.save(Command(), path)
    with pytest.raises(pickle.UnpicklingError, match=rf"names {os.name}.system, which is neither tensor") as error:
        load_tensors(str(path))
    assert "likely succeed" not in str(error.value)


def test_a_damaged_safetensors_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(b"\x10" * 64)
    with pytest.raises(safetensors.SafetensorError, match="model.safetensors was not loaded: .*another checkpoint"):
        load_safetensors(str(path))


def test_a_missing_file_stays_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nothing.pt"):
        load_tensors(str(tmp_path / "nothing.pt"))


class Schedule:
    """A type that a user's own scheduler might keep in its state."""

    steps = 5


def test_a_type_of_ones_own_can_be_admitted(tmp_path: Path) -> None:
    path = str(tmp_path / "scheduler.pt")
    torch.save({"schedule": Schedule()}, path)
    with pytest.raises(pickle.UnpicklingError, match="Schedule, which is neither tensor, container nor number"):
        load_tensors(path)
    with torch.serialization.safe_globals([Schedule]):
        assert load_tensors(path)["schedule"].steps == 5


def test_random_states_come_back_to_the_bit(tmp_path: Path) -> None:
    trainer = subjects.build(tmp_path / "run")
    random.random(), np.random.rand(), torch.rand(1)
    trainer._save_rng_state(str(tmp_path))
    expected = (random.random(), np.random.rand(), torch.rand(3).tolist())
    trainer._load_rng_state(str(tmp_path))
    assert (random.random(), np.random.rand(), torch.rand(3).tolist()) == expected


def test_a_random_state_written_by_numpy_1_is_read(tmp_path: Path) -> None:
    """Its pickle calls numpy's module `numpy.core`; today's says `numpy._core`."""
    path = tmp_path / "rng_state.pth"
    torch.save({"numpy": np.random.get_state()}, path, _use_new_zipfile_serialization=False)
    content = path.read_bytes()
    assert b"numpy._core.multiarray" in content
    path.write_bytes(content.replace(b"numpy._core.multiarray", b"numpy.core.multiarray"))
    state = load_tensors(str(path), also_allowed=NUMPY_STATE_TYPES)["numpy"]
    assert (state[1] == np.random.get_state()[1]).all()  # type: ignore[index]


# Read next: tests/saving/test_checkpoints.py
