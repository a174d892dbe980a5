"""The real thing, from the package index: a locked version and one without a lock, each training two steps."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import sysconfig
from importlib import metadata
from pathlib import Path

import pytest

from minitrainer.trace import upstream

from .test_small_index import snapshot

TWO_STEPS = str(Path(__file__).with_name("two_steps.py"))
LIMIT_SECONDS = 300


def two_steps(version: str, output: Path, *words: str, directory: Path | None = None, **options) -> upstream.Finished:
    """Run two_steps.py on a version, on one thread."""
    return upstream.run_in(
        version,
        [TWO_STEPS, str(output), *words],
        env={"OMP_NUM_THREADS": "1"},
        capture=True,
        timeout=LIMIT_SECONDS,
        cwd=output.parent,
        directory=directory,
        **options,
    )


@pytest.mark.slow
def test_the_reference_trains_saves_and_resumes(tmp_path):
    folder = upstream.reference_environment()
    done = two_steps("4.31.0", tmp_path / "output")
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["steps"] == 2
    assert result["file"] == str(folder / "transformers" / "trainer.py")
    found = {name: done.versions[name] for name in ("transformers", "accelerate", "huggingface_hub", "datasets")}
    assert found == {
        "transformers": "4.31.0",
        "accelerate": "0.21.0",
        "huggingface_hub": "0.36.2",
        "datasets": "5.0.1",
    }
    assert done.versions["torch"] == metadata.version("torch"), "the environment's torch, shared"
    assert (tmp_path / "output" / "checkpoint-2" / "pytorch_model.bin").exists(), "before safetensors, as it was then"

    # Its own checkpoint, which torch refuses to unpickle unless this child is allowed to.
    resumed = two_steps("4.31.0", tmp_path / "output", "resume", resume_own_checkpoints=True)
    assert resumed.returncode == 0, resumed.stderr
    assert json.loads(resumed.stdout.splitlines()[-1])["steps"] == 3


@pytest.mark.slow
def test_the_command_line_resumes_where_the_checkpoint_is_trusted(tmp_path):
    assert two_steps("4.31.0", tmp_path / "output").returncode == 0

    def resumed(*trusting):
        words = ["upstream", "run", *trusting, "4.31.0", TWO_STEPS, str(tmp_path / "output"), "resume"]
        return subprocess.run(
            [sys.executable, "-m", "minitrainer.trace", *words],
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            timeout=LIMIT_SECONDS,
        )

    refused = resumed()
    assert refused.returncode != 0 and "Weights only load failed" in refused.stderr
    done = resumed("--trust-checkpoints")
    assert json.loads(done.stdout.splitlines()[-1])["steps"] == 3, done.stderr


@pytest.mark.slow
def test_a_version_without_a_lock_is_resolved_and_trains(tmp_path):
    said = io.StringIO()
    site_packages = Path(sysconfig.get_path("purelib"))
    before = snapshot(site_packages)
    new = upstream.add("4.40.2", tmp_path / "upstream", progress_to=said)
    done = two_steps("4.40.2", tmp_path / "output", directory=tmp_path / "upstream")
    assert snapshot(site_packages) == before, "the user's environment was touched"

    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["steps"] == 2
    assert Path(result["file"]).is_relative_to(new.folder)
    assert done.versions["transformers"] == "4.40.2"
    assert done.versions["accelerate"] == "0.29.3", "its season's"
    assert new.lock_digest is None
    fetched = [line for line in said.getvalue().splitlines() if " of " in line]
    assert len(fetched) == len(new.packages), said.getvalue()
    names = [line.split()[5] for line in fetched]
    assert not any(name.startswith(("torch", "nvidia", "triton")) for name in names)
    assert max(map(len, said.getvalue().splitlines())) <= 80


# Read next: two_steps.py
