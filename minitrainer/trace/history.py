"""Finds when a behaviour changed: `since` walks the milestones, `bisect` finds the release.

    python -m minitrainer.trace since 4.31.0 one-epoch
    python -m minitrainer.trace bisect --good 4.44.0 --bad 5.24.0 --finding "number:logged loss" my_script.py

Every version is recorded once, in the folder of the search: an interrupted search goes on where it was when it is given
the same `--out`. A version that can't be had or can't run here is skipped, and the answer says so.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from minitrainer.trace import plans
from minitrainer.trace.compare import Comparison, NoTrace, compare_runs, record
from minitrainer.trace.errors import UsageError
from minitrainer.trace.findings import Finding

LAST_MINOR = {4: 57, 5: 24}

RELEASES = tuple(
    plans.YANKED_VERSIONS.get(f"{major}.{minor}.0", f"{major}.{minor}.0")
    for major, last in LAST_MINOR.items()
    for minor in range(31 if major == 4 else 0, last + 1)
)
"""One release of each minor version, in order: its first, or where that was withdrawn the one to take instead."""

# -- recording a version once ----------------------------------------------------------------------


@dataclass
class Search:
    """The recordings of one scenario or script, a folder for each version.

    Attributes:
        what, words: the scenario or script, and its arguments.
        folder: where the recordings are.
        nproc: number of processes of each run.
        skipped: versions that could not be recorded, and why.
    """

    what: str
    words: list[str]
    folder: Path
    nproc: str | None = None
    skipped: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        identity = json.dumps({"what": self.what, "words": self.words, "nproc": self.nproc})
        note = self.folder / "search.json"
        if note.exists() and note.read_text(encoding="utf-8") != identity:
            raise UsageError(f"{self.folder} holds the search of something else: name another --out")
        note.write_text(identity, encoding="utf-8")

    def trace(self, version: str) -> Path | None:
        """The trace of a version, recorded now if it was not before; None where it can't be had."""
        folder, done = self.folder / version, self.folder / f"{version}.done"
        if done.exists():
            reason = done.read_text(encoding="utf-8")
            if reason:
                self.skipped[version] = reason
            return None if reason else folder
        _remove_unfinished(folder)
        try:
            record(f"transformers=={version}", self.what, self.words, folder, self.nproc)
        except NoTrace as error:
            self.skipped[version] = error.reason
            print(f"skipped {version}: {error.reason}", file=sys.stderr, flush=True)
            # Not written down as done: what could not be fetched today may be had tomorrow.
            return None
        done.write_text("", encoding="utf-8")
        return folder


def _remove_unfinished(folder: Path) -> None:
    """Remove the recording of a run that was interrupted."""
    if folder.exists():
        for file in folder.glob("rank*.rows"):
            file.unlink()


# -- since ------------------------------------------------------------------------------------------


def since(search: Search, first: str) -> list[tuple[str, str, Comparison]]:
    """Compare each milestone from `first` on with the one before it.

    Returns:
        (version, next version, comparison) for each pair that could be compared.
    """
    milestones = [version for version in plans.locked_versions() if plans.order(version) >= plans.order(first)]
    if first not in milestones:
        milestones.insert(0, first)
    compared = []
    before: tuple[str, Path] | None = None
    for version in sorted(milestones, key=plans.order):
        trace = search.trace(version)
        if trace is None:
            continue
        if before is not None:
            compared.append((before[0], version, compare_runs(before[1], trace)))
        before = version, trace
    if not compared:
        raise UsageError(
            f"fewer than two versions could be recorded, {', '.join(search.skipped)} could not: "
            + next(iter(search.skipped.values()), "there is no later milestone")
        )
    return compared


# -- bisect -----------------------------------------------------------------------------------------


@dataclass
class Bisection:
    """The result: the finding is in `bad` and not in `good`, and no release that runs lies between them.

    `between` are the releases between the two that were skipped: one of them may be the first with the finding.
    """

    finding: Finding
    good: str
    bad: str
    comparison: Comparison
    between: list[str]
    tried: int


def bisect(search: Search, good: str, bad: str, wanted: str | None) -> Bisection:
    """Find the first release whose run shows a finding against the run of `good`.

    Args:
        search: what to run, and where the recordings are.
        good, bad: two versions, the older one first.
        wanted: name of the finding ("number:logged loss") or its number in the report; None for the first one.

    Raises:
        UsageError: `good` or `bad` can't be recorded, or don't differ by that finding.
    """
    if plans.order(good) >= plans.order(bad):
        raise UsageError(f"--good {good} must be an earlier version than --bad {bad}")
    traces = {version: search.trace(version) for version in (good, bad)}
    for version, trace in traces.items():
        if trace is None:
            raise UsageError(f"transformers {version} can't be recorded: {search.skipped.get(version, '')}")
    reference, other = traces[good], traces[bad]
    assert reference is not None and other is not None
    comparison = compare_runs(reference, other)
    finding = _chosen(comparison, wanted, good, bad)

    def shows_it(version: str) -> bool | None:
        trace = search.trace(version)
        if trace is None:
            return None
        return any(
            (one.kind, one.change, one.subject) == (finding.kind, finding.change, finding.subject)
            for one in compare_runs(reference, trace).findings
        )

    releases = [version for version in RELEASES if plans.order(good) < plans.order(version) < plans.order(bad)]
    last_good, first_bad, between, tried = narrow(releases, good, bad, shows_it)
    here = search.trace(first_bad)
    there = search.trace(last_good)
    assert here is not None and there is not None
    return Bisection(finding, last_good, first_bad, compare_runs(there, here), between, tried)


def narrow(
    releases: list[str], good: str, bad: str, shows_it: Callable[[str], bool | None]
) -> tuple[str, str, list[str], int]:
    """Binary search over versions, some of which can't tell.

    Args:
        releases: those between `good` and `bad`, in order.
        good, bad: the ends, which are known.
        shows_it: whether a version has the finding; None where it can't be run.

    Returns:
        The last version without it, the first with it, the skipped ones between them, and how many were tried.
    """
    candidates = list(releases)
    skipped: set[str] = set()
    tried = 0
    while usable := [version for version in candidates if version not in skipped]:
        middle = usable[len(usable) // 2]
        answer = shows_it(middle)
        tried += 1
        if answer is None:
            skipped.add(middle)
        elif answer:
            bad = middle
            candidates = candidates[: candidates.index(middle)]
        else:
            good = middle
            candidates = candidates[candidates.index(middle) + 1 :]
    return good, bad, candidates, tried


def _chosen(comparison: Comparison, wanted: str | None, good: str, bad: str) -> Finding:
    findings = comparison.findings
    if not findings:
        raise UsageError(f"nothing differs between {good} and {bad}")
    if wanted is None:
        return findings[0]
    if wanted.isdigit() and 1 <= int(wanted) <= len(findings):
        return findings[int(wanted) - 1]
    for finding in findings:
        if wanted in (finding.name, finding.subject):
            return finding
    names = "; ".join(f"{i}. {finding.name}" for i, finding in enumerate(findings[:30], start=1))
    raise UsageError(f"there is no finding {wanted!r} between {good} and {bad}; there are {names}")


# -- the commands ----------------------------------------------------------------------------------------


def add_arguments(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the two commands to a command line."""
    since_parser = commands.add_parser(
        "since",
        help="walk the milestones of upstream and tell what changed at each",
        usage="python -m minitrainer.trace since [options] VERSION SCENARIO|SCRIPT.py [its arguments]",
        parents=[_options()],
        allow_abbrev=False,
    )
    since_parser.add_argument("what", nargs=argparse.REMAINDER, metavar="VERSION WHAT")
    bisect_parser = commands.add_parser(
        "bisect",
        help="find the release in which a finding first appears",
        usage="python -m minitrainer.trace bisect --good VERSION --bad VERSION [--finding K] [options] "
        "SCENARIO|SCRIPT.py [its arguments]",
        description="Looks at one release of each minor version. The environment of a version is the companions that "
        "it was released with: where accelerate moved at the same place, the answer says so.",
        parents=[_bisect_options()],
        allow_abbrev=False,
    )
    bisect_parser.add_argument("what", nargs=argparse.REMAINDER, metavar="WHAT")


def _options() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="where the traces go, and are found again")
    parser.add_argument("--nproc", metavar="N", help="number of processes of each run")
    return parser


def _bisect_options() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, parents=[_options()])
    parser.add_argument("--good", metavar="VERSION", help="an earlier version, that does not show it")
    parser.add_argument("--bad", metavar="VERSION", help="a later version, that does")
    parser.add_argument("--finding", metavar="K", help="its name (number:logged loss) or number in the report")
    return parser


def main(options: argparse.Namespace) -> int:
    """Run the command that was parsed and return its exit status: 0 nothing changed, 1 something did."""
    from minitrainer.trace.command_words import own_options_out_of

    if options.command == "since":
        words = own_options_out_of(options, _options(), "since")
        if len(words) < 2:
            raise UsageError("since takes a version and a scenario or script, for example: since 4.31.0 one-epoch")
        return _print_since(plans.canonical(words[0]), _search(options, words[1:], "since"))
    words = own_options_out_of(options, _bisect_options(), "bisect")
    if not words or not options.good or not options.bad:
        raise UsageError("bisect takes --good VERSION --bad VERSION and a scenario or script (see bisect --help)")
    good, bad = plans.canonical(options.good), plans.canonical(options.bad)
    return _print_bisection(_search(options, words, "bisect"), good, bad, options.finding)


def _search(options: argparse.Namespace, words: list[str], command: str) -> Search:
    name = Path(words[0]).stem
    return Search(words[0], words[1:], options.out or Path("runs") / f"{command}-{name}", options.nproc)


def _print_since(first: str, search: Search) -> int:
    from minitrainer.trace.render import report
    from minitrainer.trace.render.terminal import Screen

    compared = since(search, first)
    screen = Screen()
    for before, version, comparison in compared:
        screen.text("")
        screen.text(f"{before} to {version}", "head")
        for kind, rows in report.rows_of(comparison):
            for said, _ in rows:
                screen.line([(f"{kind}: {said}", "")], "  ", "      ")
        if comparison.equal:
            screen.text("  nothing differs")
    for version, reason in search.skipped.items():
        screen.text(f"skipped {version}: {reason}", "note")
    screen.text(f"the traces are in {search.folder}", "dim")
    return 0 if all(comparison.equal for _, _, comparison in compared) else 1


def _print_bisection(search: Search, good: str, bad: str, wanted: str | None) -> int:
    from minitrainer.trace.render import report
    from minitrainer.trace.render.terminal import Screen

    result = bisect(search, good, bad, wanted)
    screen = Screen()
    screen.line([(f"{result.finding.name}: first seen in transformers {result.bad}", "head")])
    screen.line([(f"not in {result.good}; {result.tried} releases between {good} and {bad} were tried", "")])
    screen.line([(report.sentence(result.finding), "")], "  ", "      ")
    if result.between:
        screen.line([(f"could not be tried, and may be the first: {', '.join(result.between)}", "note")])
    for name, (left, right) in result.comparison.versions.items():
        if name != "transformers":
            screen.line([(f"{name} moved too, from {left} to {right}: it may be the cause as well", "note")])
    for version, reason in search.skipped.items():
        screen.line([(f"skipped {version}: {reason}", "note")])
    screen.text(f"the traces are in {search.folder}; the same command goes on from them", "dim")
    return 1


# Read next: atlas.py, which keeps what `since` finds for every scenario.
