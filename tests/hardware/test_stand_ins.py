"""Code for hardware and libraries that are not here, run on stand-ins by both Trainers.

A stand-in is a small package of the library's name that computes on the CPU and keeps every call that it gets. It
shows that both Trainers ask the same things of it, in the same order, and come to the same numbers. It shows nothing
about the hardware.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from .program_cases import STAND_INS

HERE = Path(__file__).parent
ROOT = HERE.parents[1]

pytestmark = pytest.mark.reference


@pytest.mark.parametrize(("package", "version", "environment", "cases"), STAND_INS, ids=lambda value: str(value)[:20])
def test_both_trainers_ask_the_same_of_a_stand_in(
    package: str, version: str, environment: dict[str, str], cases: list[str], tmp_path: Path
) -> None:
    told = run(package, version, environment, cases, tmp_path)
    assert set(told) == {(case, library) for case in cases for library in ("minitrainer", "transformers")}
    for case in cases:
        ours, real = told[case, "minitrainer"], told[case, "transformers"]
        assert (ours.pop("trainer"), real.pop("trainer")) == ("minitrainer.trainer", "transformers.trainer")
        for name in real:
            assert ours.get(name) == real[name], (case, name)
        assert set(ours) == set(real), case
        assert "error" not in real, (case, real["error"])
        assert real["calls"] or "fused" in case or "syncfree" in case, f"{case}: the stand-in was never asked"


def run(
    package: str, version: str, environment: dict[str, str], cases: list[str], tmp_path: Path
) -> dict[tuple[str, str], dict[str, Any]]:
    """What both libraries told of each case, run one after the other in one child process."""
    packages = tmp_path / "packages"
    packages.mkdir()
    shutil.copy(HERE / "stand_ins" / "calls.py", packages)
    shutil.copytree(HERE / "stand_ins" / package, packages / package)
    metadata = packages / f"{package}-{version}.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: {version}\n")

    import transformers

    child = subprocess.run(
        [sys.executable, str(HERE / "program.py"), str(tmp_path / "output"), *cases],
        capture_output=True,
        text=True,
        timeout=400,
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join(map(str, (packages, Path(transformers.__file__).parents[1], ROOT))),
            "OMP_NUM_THREADS": "1",
            "CUDA_VISIBLE_DEVICES": "",
            "WANDB_DISABLED": "true",
            # The real Trainer cannot read its own checkpoints with a torch of today without it.
            "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD": "1",
            **environment,
        },
    )
    lines = [line for line in child.stdout.splitlines() if line.startswith("TOLD ")]
    assert lines, child.stdout[-2000:] + child.stderr[-4000:]
    told = [json.loads(line.removeprefix("TOLD ")) for line in lines]
    return {(one.pop("case"), one.pop("library")): one for one in told}


# Read next: program.py
