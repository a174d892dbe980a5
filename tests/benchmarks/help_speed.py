"""How long `python -m minitrainer.trace --help` takes, beside an empty Python and an import of rich.

    python tests/benchmarks/help_speed.py

Prints the median of nine runs of each, in milliseconds. The goal is under 200 ms.
"""

import statistics
import subprocess
import sys
import time

COMMANDS = {
    "empty Python": ["-c", "pass"],
    "--help": ["-m", "minitrainer.trace", "--help"],
    "run_glue --help": ["-m", "minitrainer.trace", "run_glue", "--help"],
    "import rich.tree": ["-c", "import rich.tree"],
    "import torch": ["-c", "import torch"],
}


def milliseconds(words: list[str]) -> float:
    began = time.perf_counter()
    subprocess.run([sys.executable, *words], check=True, stdout=subprocess.DEVNULL)
    return (time.perf_counter() - began) * 1000


if __name__ == "__main__":
    times: dict[str, list[float]] = {name: [] for name in COMMANDS}
    for _ in range(9):  # in turn, so that a busy moment hits all of them
        for name, words in COMMANDS.items():
            times[name].append(milliseconds(words))
    for name, taken in times.items():
        print(f"{name:20} {statistics.median(taken):7.0f} ms   ({min(taken):.0f} to {max(taken):.0f})")
