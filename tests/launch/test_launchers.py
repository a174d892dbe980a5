"""The same run under each launcher: torchrun on two nodes, accelerate launch, and ours with a rank that dies."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from minitrainer.trace import events, ranks
from minitrainer.trace.render.side_by_side import how_a_run_failed

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
TRACE = ("-m", "minitrainer.trace")
TORCHRUN = ("-m", "torch.distributed.run")

DYING_SCRIPT = """
from pathlib import Path
from tests.launch import programs

trainer = programs.build(Path({folder!r}))
programs.killed_in_mid_step(trainer)
trainer.train()
"""

ENDING_SCRIPT = """
import os
from pathlib import Path
from minitrainer.trace import specification, worker

{run}
threads = [(task / "comm").read_text().strip() for task in Path("/proc/self/task").iterdir()]
Path({out!r}, "threads" + os.environ["RANK"]).write_text(" ".join(sorted(threads)))
"""

ENDS = {
    "worker": "worker.main(['--out', {out!r}, '--library', 'minitrainer', '--scenario', 'two-ranks-uneven', '--'])",
    "specification": "specification._run_here('minitrainer', Path({out!r}), ['two-ranks-uneven'])",
}


def start(*words: str) -> subprocess.Popen[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        [sys.executable, *words],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def free_port() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


def test_two_nodes_of_one_rank(tmp_path: Path) -> None:
    """Two launchers that know each other by an address, as on two machines; each node saves what is its own."""
    port = free_port()
    nodes = [
        start(
            *(*TORCHRUN, "--nnodes", "2", "--node_rank", str(node), "--nproc_per_node", "1"),
            *("--master_addr", "127.0.0.1", "--master_port", port),
            *(*TRACE, "two-ranks-uneven", "--save_strategy", "epoch", "--save_on_each_node"),
            *("--out", str(tmp_path / f"node{node}")),
        )
        for node in range(2)
    ]
    printed = [node.communicate(timeout=240)[0] for node in nodes]
    assert [node.returncode for node in nodes] == [0, 0], printed
    for node in range(2):
        run = ranks.open_run(tmp_path / f"node{node}")
        assert (list(run.readings), run.world_size) == ([node], 2)
        checkpoints = list((tmp_path / f"node{node}" / "output").iterdir())
        assert checkpoints
        for checkpoint in checkpoints:
            names = {file.name for file in checkpoint.iterdir()}
            assert f"rng_state_{node}.pth" in names and f"rng_state_{1 - node}.pth" not in names
            assert {"trainer_state.json", "optimizer.pt"} <= names
    # Side by side in one folder they are one run: the same events, and each logged loss follows from both.
    joined = tmp_path / "joined"
    joined.mkdir()
    for node in range(2):
        (tmp_path / f"node{node}" / f"rank{node}.rows").rename(joined / f"rank{node}.rows")
    checked = start(*TRACE, "verify", str(joined))
    assert "all follow" in checked.communicate(timeout=120)[0] and checked.returncode == 0


def test_accelerate_launch(tmp_path: Path) -> None:
    """It starts the two processes; the trace takes them as they are."""
    launch = start(
        *("-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--num_machines", "1"),
        *("--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", free_port()),
        *(*TRACE, "two-ranks-uneven", "--out", str(tmp_path / "trace")),
    )
    printed = launch.communicate(timeout=240)[0]
    assert launch.returncode == 0, printed
    run = ranks.open_run(tmp_path / "trace")
    assert list(run.readings) == [0, 1] and not run.findings
    logged = [
        [record.logged for record in reading if isinstance(record, events.Loss)] for reading in run.readings.values()
    ]
    assert logged[0] == logged[1] and logged[0]
    assert how_a_run_failed(run) == ""


def test_the_last_line_names_the_rank_that_died(tmp_path: Path) -> None:
    script = tmp_path / "dying.py"
    script.write_text(DYING_SCRIPT.format(folder=str(tmp_path)))
    run = start(*TRACE, "--nproc", "2", "--quiet", "--out", str(tmp_path / "trace"), str(script))
    printed = run.communicate(timeout=240)[0].rstrip().splitlines()
    assert run.returncode == 1
    # The launcher may end the other rank before it has noticed anything: then it was cut off too.
    assert printed[-1].startswith("minitrainer.trace: the run failed (status 1): "), printed[-5:]
    assert "rank 1 was cut off in compute_loss after on_substep_end, 4 steps done" in printed[-1]
    assert "rank 0" in printed[-1]


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="no /proc tells which threads there are")
@pytest.mark.parametrize("where", ENDS)
def test_no_thread_of_the_group_is_left_when_a_rank_ends(where: str, tmp_path: Path) -> None:
    """One that lets go of a tensor while the interpreter ends would end the process with SIGABRT."""
    script = tmp_path / "ending.py"
    script.write_text(ENDING_SCRIPT.format(run=ENDS[where].format(out=str(tmp_path)), out=str(tmp_path)))
    ended = start(*TORCHRUN, "--standalone", "--nproc_per_node", "2", str(script))
    printed = ended.communicate(timeout=240)[0]
    assert ended.returncode == 0, printed
    for rank in range(2):
        threads = (tmp_path / f"threads{rank}").read_text().split()
        assert threads and not [name for name in threads if "gloo" in name]


@pytest.mark.skipif(find_spec("deepspeed") is not None, reason="DeepSpeed is installed")
def test_deepspeed_says_that_it_is_not_there(tmp_path: Path) -> None:
    (tmp_path / "deepspeed.json").write_text("{}")
    run = start(*TRACE, "one-epoch", "--deepspeed", str(tmp_path / "deepspeed.json"), "--out", str(tmp_path / "trace"))
    last = run.communicate(timeout=240)[0].rstrip().splitlines()[-1]
    assert run.returncode == 2
    assert last.startswith("minitrainer.trace: ") and "deepspeed" in last and "not found" in last


# Read next: tests/hardware/test_stand_ins.py
