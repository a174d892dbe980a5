"""Joins the files of one run: which ranks there are, which are missing, and their losses side by side.

A rank is known from the header of its file, never from the file's name. A rank that is missing or stopped early is a
finding to be shown; what the other ranks recorded is as good as before.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from itertools import zip_longest
from pathlib import Path

from minitrainer.trace import events, lossmath
from minitrainer.trace.errors import UsageError
from minitrainer.trace.rows import Reading, read

SUFFIXES = (".rows", ".jsonl")
"""Endings of trace files in a run's folder: recordings, then canonical files. Other files there are left alone."""


class Run:
    """The files of one run, one a rank.

    Attributes:
        path: the folder or the single file.
        readings: rank to its file, in rank order.
        world_size: ranks that the run had, as its headers say.
        findings: one sentence for each thing that is not as it should be.
    """

    def __init__(self, path: Path, readings: dict[int, Reading], findings: list[str]):
        self.path = path
        self.readings = readings
        self.findings = findings
        self.world_size = max(reading.head.world_size for reading in readings.values())

    @property
    def first(self) -> Reading:
        """The lowest rank that is here."""
        return next(iter(self.readings.values()))

    @property
    def missing(self) -> list[int]:
        return [rank for rank in range(self.world_size) if rank not in self.readings]


def open_run(path: str | os.PathLike[str]) -> Run:
    """Open a trace file, or all trace files of a run's folder.

    Raises:
        UsageError: there is no trace here, or the only file is unusable. In a folder with several files an unusable
            one becomes a finding.
    """
    path = Path(path)
    if not path.is_dir():
        reading = read(path)
        run = Run(path, {reading.head.rank: reading}, [])
        return run
    try:
        files = sorted(file for file in path.iterdir() if file.suffix in SUFFIXES and file.is_file())
    except OSError as error:
        raise UsageError(f"{path} can't be read: {error.strerror}") from error
    recordings = [file for file in files if file.suffix == ".rows"]
    # A canonical file beside the recording it was made from is the same rank a second time.
    files = recordings or files
    if not files:
        raise UsageError(f"{path} holds no trace (no file that ends in {' or '.join(SUFFIXES)})")
    readings: dict[int, Reading] = {}
    findings: list[str] = []
    unusable: list[UsageError] = []
    for file in files:
        try:
            reading = read(file)
        except UsageError as error:
            unusable.append(error)
            continue
        rank = reading.head.rank
        if rank in readings:
            # A launcher that starts failed ranks again leaves a file of each attempt: the last one counts.
            reading, other = sorted((reading, readings[rank]), key=_attempt, reverse=True)
            findings.append(f"rank {rank} stands in two files: {reading.path.name} is read, {other.path.name} is not")
        readings[rank] = reading
    if not readings:
        raise unusable[0]
    findings += [f"left out: {error}" for error in unusable]
    run = Run(path, dict(sorted(readings.items())), findings)
    run.findings += _disagreements(run)
    return run


def _attempt(reading: Reading) -> int:
    restarts = (reading.head.process or {}).get("restarts", 0)
    return restarts if type(restarts) is int else 0


def _disagreements(run: Run) -> list[str]:
    findings = [f"rank {rank} of {run.world_size} left no file here" for rank in run.missing]
    sizes = {reading.head.world_size for reading in run.readings.values()}
    if len(sizes) > 1:
        findings.append(f"the files disagree about the number of ranks: {sorted(sizes)}")
    versions = [reading.head.versions for reading in run.readings.values()]
    differing = sorted({name for one in versions for name in one if one[name] != versions[0].get(name)})
    if differing:
        findings.append(f"the ranks ran different versions of {', '.join(differing)}")
    launchers = {
        str(reading.head.process["launcher"])
        for reading in run.readings.values()
        if reading.head.process and reading.head.process.get("launcher") is not None
    }
    if len(launchers) > 1:
        findings.append("the files come from different launches")
    return findings


def ending(reading: Reading) -> list[str]:
    """Say how a file ends, after it was iterated over; nothing for one that was recorded to its end."""
    sentences = []
    if not reading.complete:
        sentence = f"rank {reading.head.rank}: incomplete, the trace stops after {reading.rows:,} rows"
        if reading.torn_bytes:
            sentence += f" (and {reading.torn_bytes} bytes of a row that was being written)"
        scopes = reading.open_scopes
        opened = ", ".join(f"{scope.owner}.{scope.name}" if scope.kind == "call" else scope.name for scope in scopes)
        sentences.append(f"{sentence}; open when it stopped: {opened or 'nothing'}")
    elif reading.end is not None:
        if reading.gap:
            sentences.append(f"rank {reading.head.rank}: {reading.gap}")
        if reading.end.dropped:
            sentences.append(
                f"rank {reading.head.rank}: {reading.end.dropped:,} rows could not be written and are missing"
            )
    return sentences


def joined_losses(run: Run) -> Iterator[dict[int, lossmath.Found]]:
    """The losses of all ranks side by side: the n-th of each rank together, rank to loss.

    Ranks log together, so the n-th loss of one rank is the n-th of the others. Where a rank has stopped it is left
    out from there on.
    """
    streams = {rank: lossmath.losses_of(reading) for rank, reading in run.readings.items()}
    for together in zip_longest(*streams.values()):
        row = {rank: found for rank, found in zip(streams, together, strict=True) if found is not None}
        yield from _by_identity(row)


def _by_identity(row: dict[int, lossmath.Found]) -> Iterator[dict[int, lossmath.Found]]:
    """Split a row whose members are not the same loss (one rank lost some rows): each group stands for itself."""
    groups: dict[tuple[str, int, bool], dict[int, lossmath.Found]] = {}
    for rank, found in row.items():
        # A `Log` that no record explains is never a peer of one that is explained.
        unexplained = isinstance(found.record, events.Log)
        groups.setdefault((found.key, found.step, unexplained), {})[rank] = found
    yield from groups.values()


def derivations_of_logs(run: Run) -> Iterator[tuple[dict[int, lossmath.Found], dict[int, lossmath.Derivation]]]:
    """Derive every loss on every rank that is here: for each log, rank to loss and rank to derivation."""
    for row in joined_losses(run):
        derived = {}
        for rank, found in row.items():
            peers = [other for peer, other in row.items() if peer != rank]
            derived[rank] = lossmath.derive(found, rank, run.world_size, peers)
        yield row, derived


def derivations(run: Run) -> Iterator[tuple[int, lossmath.Derivation]]:
    """Derive every loss of every rank that is here: (rank, derivation), the ranks of one log one after the other."""
    for _, derived in derivations_of_logs(run):
        yield from derived.items()


# Read next: render/tree.py, which makes a tree of one rank's rows.
