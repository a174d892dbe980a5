"""Starts the ranks of a run on this machine with torchrun, and leaves out torchrun's own traceback when one of them fails.

What failed stands above it, in the rank's own words, and below it comes the line of `running.py` that says where each
rank stopped. torchrun's log still names the rank that ended first, with its exit status or signal.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from torch.distributed import run
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError


def main(argv: Sequence[str] | None = None) -> int:
    """Run torchrun with `argv`; return 0, or 1 where a rank failed."""
    try:
        run.main(argv)
    except ChildFailedError:
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())

# Read next: worker.py, which runs as each rank.
