"""Makes the atlas: for each milestone and each flow scenario, what an observer sees differ from the milestone before.

    python -m minitrainer.trace.atlas                      make traces/atlas/ anew (`make atlas`)
    python -m minitrainer.trace.atlas --only 4.31.0 5.24.0 one-epoch    these two versions and scenarios, elsewhere

`traces/atlas/VERSION.md` tells in words and numbers, scenario by scenario. `traces/atlas/VERSION/SCENARIO/` holds the
trace behind it, in the portable form, where it differs from that of the milestone before; the first milestone's are
the specification in `traces/`. The scenarios' losses are exact, so the atlas is the same on every machine, byte for
byte.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from minitrainer.trace import plans
from minitrainer.trace.compare import Comparison, compare_runs
from minitrainer.trace.errors import UsageError
from minitrainer.trace.scenarios.flows import FLOWS

MILESTONES = ("4.31.0", "4.36.2", "4.41.2", "4.46.3", "4.49.0", "4.57.6", "5.0.0", "5.3.0", "5.24.0")
"""Versions that make what changed visible. Each has a frozen lock."""

TRACES = Path("traces")


def main(argv: Sequence[str] | None = None) -> int:
    """Make the atlas, or check a part of it."""
    parser = argparse.ArgumentParser(
        prog="python -m minitrainer.trace.atlas", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("--to", type=Path, default=TRACES / "atlas", help="folder; default: %(default)s")
    parser.add_argument("--only", nargs="+", metavar="WORD", help="versions and scenarios; default: all of both")
    options = parser.parse_args(argv)
    words = options.only or []
    versions = [word for word in words if word in MILESTONES] or list(MILESTONES)
    names = [word for word in words if word in FLOWS] or list(FLOWS)
    unknown = [word for word in words if word not in MILESTONES and word not in FLOWS]
    if unknown:
        parser.error(f"{unknown[0]} is neither a milestone ({', '.join(MILESTONES)}) nor a flow scenario")
    print(make(versions, names, options.to))
    return 0


def make(versions: Sequence[str], names: Sequence[str], to: Path) -> str:
    """Record the scenarios with each version and write what differs from one to the next.

    Args:
        versions: milestones; they are taken in order.
        names: flow scenarios.
        to: folder of the atlas. The pages and folders of these versions are replaced.

    Returns:
        What was done, in one line.

    Raises:
        UsageError: a version can't be had. A scenario that a version can't run is a line of its page.
    """
    ordered = sorted(versions, key=plans.order)
    to.mkdir(parents=True, exist_ok=True)
    differing = 0
    with tempfile.TemporaryDirectory() as work:
        before: str | None = None
        for version in ordered:
            print(f"recording {len(names)} scenarios with transformers {version}", file=sys.stderr, flush=True)
            failed = _record(version, names, Path(work) / version)
            if before is not None:
                differing += _write_page(Path(work), before, version, names, failed, to)
            before = version
    _write_index(ordered, to)
    return f"{len(ordered)} versions, {len(names)} scenarios: {differing} differ from the version before, in {to}"


def _record(version: str, names: Sequence[str], folder: Path) -> dict[str, str]:
    """Record the scenarios; return those that failed, with the reason."""
    from minitrainer.trace import specification

    try:
        specification.record(names, folder, "transformers", version)
        return {}
    except UsageError:
        # One scenario that a version can't run must not take the others with it: now one by one.
        shutil.rmtree(folder, ignore_errors=True)
    failed = {}
    for name in names:
        try:
            specification.record([name], folder, "transformers", version)
        except UsageError as error:
            failed[name] = str(error).strip().splitlines()[-1][:300]
    return failed


def _write_page(work: Path, before: str, version: str, names: Sequence[str], failed: dict[str, str], to: Path) -> int:
    """Write the page of a version and the traces behind it; return how many scenarios differ."""
    from minitrainer.trace.render import report
    from minitrainer.trace.render.escape import markdown

    folder = to / version
    shutil.rmtree(folder, ignore_errors=True)
    page = [f"# transformers {version}, seen from {before}", ""]
    companions: dict[str, tuple[str, str]] = {}
    equal: list[str] = []
    sections: list[str] = []
    compared: dict[str, Comparison] = {}
    for name in names:
        if (work / before / name).exists() and (work / version / name).exists():
            comparison = compared[name] = compare_runs(work / before / name, work / version / name)
            companions.update(comparison.versions)
            if comparison.equal:
                equal.append(name)
                continue
            for trace in sorted((work / version / name).glob("rank*.jsonl")):
                (folder / name).mkdir(parents=True, exist_ok=True)
                shutil.copyfile(trace, folder / name / trace.name)
            sections += ["", f"## {name}", "", f"{FLOWS[name].question}. Trace: `{version}/{name}/`", ""]
            for kind, rows in report.rows_of(comparison):
                sections += [f"- *{kind}*: {markdown(said)}" for said, _ in rows]
            sections += [f"- *renamed*: {markdown(finding.subject)}" for finding in comparison.renamed]
        elif name in failed:
            sections += ["", f"## {name}", "", f"This version can't run it: {markdown(failed[name])}"]
    for companion, (left, right) in companions.items():
        if companion != "transformers":
            page += [f"{companion} went from {left} to {right}: what is found may come from it.", ""]
    differing = len(compared) - len(equal)
    page += [f"Of {len(compared)} scenarios {differing} differ. Equal: {', '.join(equal) or 'none'}."]
    (to / f"{version}.md").write_text("\n".join(page + sections) + "\n", encoding="utf-8")
    return differing


def _write_index(versions: Sequence[str], to: Path) -> None:
    lines = ["# The atlas", "", "What an observer of the Trainer sees change from one version to the next:", ""]
    lines += [f"- [{before} to {version}]({version}.md)" for before, version in zip(versions, versions[1:])]
    (to / "README.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    try:
        sys.exit(main())
    except UsageError as error:
        print("minitrainer.trace: " + " ".join(str(error).split()), file=sys.stderr)
        sys.exit(2)

# Read next: ../../traces/README.md, what the recordings show.
