"""What happens in the output folder: its files are listed when a method that writes or removes has returned.

Listing is a walk over names and sizes; no file is opened, nothing is written, and no process-wide hook is needed.
Rank 0 reports for all ranks; a file that carries a rank's number (`rng_state_1.pth`) is reported by that rank alone,
because only it knows for sure that the file is there already.
"""

from __future__ import annotations

import os
import re
from typing import Any, NamedTuple

MOST_FILES = 10_000
"""An output folder with more files than this (somebody's home folder) is not listed."""

_EVENT_FILE = re.compile(r"events\.out\.tfevents.*$")
_RANK_FILE = re.compile(r"rng_state_(\d+)\.pth$")


class Change(NamedTuple):
    """A file that appeared or changed (action "write"), or went (action "remove")."""

    action: str
    path: str
    size: int | None


class OutputFolder:
    """The files of one output folder as they were when it was last looked at."""

    def __init__(self, folder: str, rank: int):
        self.folder = os.path.abspath(folder)
        self.rank = rank
        self.too_large = False
        self._seen = self._list()

    def changes(self) -> list[Change]:
        """What changed since the last look: removals first, each in the order of the paths."""
        if self.too_large:
            return []
        now = self._list()
        before, self._seen = self._seen, now
        removed = [Change("remove", path, None) for path in sorted(before.keys() - now.keys())]
        written = [Change("write", path, now[path][0]) for path in sorted(now) if before.get(path) != now[path]]
        return removed + written

    def _list(self) -> dict[str, tuple[int, int, int]]:
        """Relative path to size, time of change and inode."""
        files: dict[str, tuple[int, int, int]] = {}
        pending: list[tuple[str, str]] = [(self.folder, "")]
        while pending:
            folder, prefix = pending.pop()
            try:
                with os.scandir(folder) as entries:
                    for entry in entries:
                        path = prefix + entry.name
                        if entry.is_dir(follow_symlinks=False):
                            pending.append((entry.path, path + "/"))
                        elif _EVENT_FILE.search(path) or path.endswith(".rows"):
                            continue  # TensorBoard names them after clock and host, and they grow in between
                        elif self._is_ours(path):
                            status = entry.stat(follow_symlinks=False)
                            files[path] = (status.st_size, status.st_mtime_ns, status.st_ino)
            except OSError:
                continue  # not there yet, or removed while it was listed
            if len(files) > MOST_FILES:
                self.too_large = True
                return {}
        return files

    def _is_ours(self, path: str) -> bool:
        numbered = _RANK_FILE.search(path)
        return int(numbered.group(1)) == self.rank if numbered else self.rank == 0


def checkpoint_name(path: Any) -> str:
    """Last part of a checkpoint's path, for a record."""
    return os.path.basename(os.path.normpath(str(path)))


# Read next: collectives.py, what the ranks say to each other.
