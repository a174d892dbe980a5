"""Says whether every logged loss of a run follows from its recorded numbers."""

from __future__ import annotations

from collections import Counter

from minitrainer.trace.lossmath import Derivation
from minitrainer.trace.ranks import Run, derivations, ending
from minitrainer.trace.render.escape import printable
from minitrainer.trace.render.words import counted, exact

MOST_FAILURES = 20
"""Losses that do not follow and are told one by one; the others are counted."""


class Verdict:
    """The outcome of a verification.

    Attributes:
        looked_at: logged losses by name.
        links: links of their derivations, each one operation of the Trainer computed again.
        failures: one sentence for each loss that does not follow, at most `MOST_FAILURES` of them.
        failed: how many do not follow.
        notes: what was taken on trust.
        lacking: logged losses that could not be derived, by what was lacking for it.
        findings: what is wrong with the files (a rank without a file, a cut trace).
    """

    def __init__(self) -> None:
        self.looked_at: Counter[str] = Counter()
        self.links = 0
        self.failures: list[str] = []
        self.failed = 0
        self.notes: Counter[str] = Counter()
        self.lacking: Counter[str] = Counter()
        self.findings: list[str] = []

    def take(self, rank: int, derivation: Derivation) -> None:
        """Take the derivation of the next logged loss into account."""
        if derivation.lacking:
            self.lacking[f"{derivation.key}: {derivation.lacking}"] += 1
            return
        self.looked_at[derivation.key] += 1
        self.links += len(derivation.links)
        self.notes.update(derivation.notes)
        if not derivation.follows:
            self._fail(_failure(rank, derivation))

    def close(self, run: Run) -> None:
        """Take the files into account, after all of them were read to their end."""
        self.findings = [*run.findings, *(line for reading in run.readings.values() for line in ending(reading))]
        for reading in run.readings.values():
            if reading.gap:
                # Rows were taken out or put in after the recording: what is left proves nothing.
                self._fail(ending(reading)[0])

    def _fail(self, sentence: str) -> None:
        self.failed += 1
        if len(self.failures) < MOST_FAILURES:
            self.failures.append(sentence)

    @property
    def passed(self) -> bool:
        """True if all logged losses follow. A trace without any shows nothing, and does not pass."""
        return not self.failed and bool(self.looked_at)

    def lines(self) -> list[str]:
        """Return the outcome for people."""
        lines = [f"does not follow: {failure}" for failure in self.failures]
        if self.failed > len(self.failures):
            lines.append(f"… and {self.failed - len(self.failures):,} more")
        for lacking, count in self.lacking.items():
            lines.append(f"not derived: {printable(lacking)}" + (f" ({count} times)" if count > 1 else ""))
        for note, count in self.notes.items():
            lines.append(f"note: {note}" + (f" ({count} times)" if count > 1 else ""))
        lines += [f"note: {finding}" for finding in self.findings]
        if not self.looked_at:
            return [*lines, "nothing verified: this trace holds no logged loss"]
        kinds = ", ".join(f"{count:,} {printable(key)}" for key, count in self.looked_at.items())
        total = sum(self.looked_at.values())
        outcome = "all follow" if self.passed else f"{self.failed:,} of {total:,} do not follow"
        lines.append(
            f"{counted(total, 'logged value')} derived again ({kinds}), {counted(self.links, 'link')}: {outcome}"
        )
        return lines


def verify(run: Run) -> Verdict:
    """Derive every logged loss of every rank again, with the ranks of one log joined."""
    verdict = Verdict()
    for rank, derivation in derivations(run):
        verdict.take(rank, derivation)
    verdict.close(run)
    return verdict


def _failure(rank: int, derivation: Derivation) -> str:
    where = f"rank {rank}, step {derivation.step}: {printable(derivation.key)} {exact(derivation.logged)}"
    broken = derivation.broken
    if broken is None:
        return f"{where}, which no recorded number leads to"
    if broken.derived is None:
        return f"{where}, because {printable(broken.what)} can't be derived: {broken.how}"
    return (
        f"{where}, because {printable(broken.what)} is recorded as {exact(broken.recorded)} and comes out as "
        f"{exact(broken.derived)} ({broken.how})"
    )


# Read next: statistics.py, which counts what a trace holds.
