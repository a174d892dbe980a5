"""A group of workers says of each rank how it ended, also when it had to be killed."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

from .places import LIMIT_SECONDS, Group


def test_a_rank_that_was_killed_and_one_that_failed_are_told_apart(tmp_path: Path) -> None:
    processes = []
    for rank, program in enumerate(("raise SystemExit(3)", "import time; time.sleep(60)", "print('well')")):
        (tmp_path / f"rank{rank}.json").write_text("{}", encoding="utf-8")
        with open(tmp_path / f"output{rank}.txt", "wb") as output:
            processes.append(subprocess.Popen([sys.executable, "-c", program], stdout=output, stderr=output))
    group = Group(tmp_path, processes, deadline=time.monotonic() + 3)
    group.wait()
    group.end()
    failed, killed, well = group.facts()
    assert failed["cut_short"] == f"rank 0 in {tmp_path.name}: ended with 3\n"
    assert killed["cut_short"] == f"rank 1 in {tmp_path.name}: no end within {LIMIT_SECONDS} s\n"
    assert well == {}


# Read next: tests/gpu/facts.py
