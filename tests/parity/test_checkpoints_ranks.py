"""Checkpoints of two ranks: a file of random states for each, and each side goes on from the other's."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.saving import subjects

pytestmark = pytest.mark.reference

ROOT = Path(__file__).resolve().parents[2]


def launch(folder: Path, side: str, checkpoint: str | None = None) -> list[dict[str, Any]]:
    """Run both ranks; return how each of them ended."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    command += ["-m", "tests.saving.two_ranks", str(folder), side, *([str(folder / checkpoint)] if checkpoint else [])]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    child = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=400)
    assert child.returncode == 0, child.stderr[-3000:]
    ends = [folder / f"end_{side}_{rank}.pt" for rank in range(2)]
    read = [torch.load(path, weights_only=True) for path in ends]
    for path in ends:
        path.unlink()
    return read


def test_two_ranks(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    ends, written = {}, {}
    for side in ("real", "ours"):
        shutil.rmtree(folder, ignore_errors=True)
        ends[side] = launch(folder, side)
        written[side] = subjects.copy(folder, tmp_path / side)
    assert subjects.differences(written["ours"], written["real"]) == []
    assert {"rng_state_0.pth", "rng_state_1.pth"} <= set(subjects.files_in(written["ours"] / "checkpoint-6"))
    for rank in range(2):
        assert torch.equal(ends["ours"][rank]["weights"], ends["real"][rank]["weights"])
        assert ends["ours"][rank]["states"] == ends["real"][rank]["states"]

    for writer, resumer in (("ours", "real"), ("real", "ours")):
        shutil.rmtree(folder)
        subjects.copy(written[writer], folder)
        resumed = launch(folder, resumer, "checkpoint-6")
        for rank in range(2):
            assert torch.equal(resumed[rank]["weights"], ends["real"][rank]["weights"]), (writer, resumer, rank)
            assert resumed[rank]["states"] == ends["real"][rank]["states"]


# Read next: tests/saving/test_checkpoints.py
