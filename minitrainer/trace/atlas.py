"""Makes the atlas: for each milestone and each flow scenario, what an observer sees differ from the milestone before.

    python -m minitrainer.trace.atlas            record everything and make traces/atlas/ anew (`make atlas`)
    python -m minitrainer.trace.atlas --only 4.31.0 4.36.2 --to FOLDER      only these versions
    python -m minitrainer.trace.atlas --pages    write the pages again from the traces that are there

`traces/atlas/VERSION.md` tells in words and numbers, scenario by scenario. `traces/atlas/VERSION/SCENARIO/` holds the
trace behind it, in the portable form, where it differs from that of the milestone before; the first milestone's are
the specification in `traces/`. The scenarios' losses are exact, so the atlas is the same on every machine, byte for
byte.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from minitrainer.trace.compare import compare_runs
from minitrainer.trace.errors import UsageError
from minitrainer.trace.scenarios.flows import FLOWS

MILESTONES = ("4.31.0", "4.36.2", "4.41.2", "4.46.3", "4.49.0", "4.57.6", "5.0.0", "5.3.0", "5.24.0")
"""Versions that make what changed visible. Each has a frozen lock."""

TRACES = Path("traces")


def main(argv: Sequence[str] | None = None) -> int:
    """Make the atlas, or a part of it."""
    parser = argparse.ArgumentParser(
        prog="python -m minitrainer.trace.atlas", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("--to", type=Path, default=TRACES / "atlas", help="folder; default: %(default)s")
    parser.add_argument("--only", nargs="+", metavar="WORD", help="versions and scenarios; default: all of both")
    parser.add_argument("--pages", action="store_true", help="record nothing: write the pages from the traces")
    options = parser.parse_args(argv)
    words = options.only or []
    versions = [word for word in words if word in MILESTONES] or list(MILESTONES)
    names = [word for word in words if word in FLOWS] or list(FLOWS)
    unknown = [word for word in words if word not in MILESTONES and word not in FLOWS]
    if unknown:
        parser.error(f"{unknown[0]} is neither a milestone ({', '.join(MILESTONES)}) nor a flow scenario")
    if not options.pages:
        record(versions, names, options.to)
    differing = write_pages(versions, names, options.to)
    print(f"{len(versions)} versions, {len(names)} scenarios: {differing} differ from the version before them")
    return 0


# -- traces ----------------------------------------------------------------------------------------

FAILED = "failed.json"


def record(versions: Sequence[str], names: Sequence[str], to: Path) -> None:
    """Record the scenarios with each version, and keep what differs from the version before.

    Args:
        versions: milestones, in order. The first is recorded only if it is not the reference, whose traces are the
            specification.
        names: flow scenarios.
        to: folder of the atlas. The traces of these versions and scenarios are replaced.

    Raises:
        UsageError: a version can't be had.
    """
    for i, version in enumerate(versions):
        if version == MILESTONES[0]:
            continue
        print(f"recording {len(names)} scenarios with transformers {version}", file=sys.stderr, flush=True)
        folder = to / version
        with tempfile.TemporaryDirectory() as work:
            failed = _record(version, names, Path(work))
            for name in names:
                shutil.rmtree(folder / name, ignore_errors=True)
                if name in failed:
                    continue
                before = trace_of(versions[i - 1], name, versions, to) if i else None
                if before is None or not compare_runs(before, Path(work) / name).equal:
                    (folder / name).mkdir(parents=True)
                    for trace in sorted((Path(work) / name).glob("rank*.jsonl")):
                        shutil.copyfile(trace, folder / name / trace.name)
        (folder / FAILED).unlink(missing_ok=True)
        if failed:
            folder.mkdir(parents=True, exist_ok=True)
            (folder / FAILED).write_text(json.dumps(failed, indent=1, sort_keys=True) + "\n", encoding="utf-8")


def trace_of(version: str, name: str, versions: Sequence[str], to: Path) -> Path | None:
    """The trace of a scenario on a version: its own, or that of the version before which it equals.

    Returns:
        None where no version so far could run it, or this one could not.
    """
    if name in _failed(version, to):
        return None
    for earlier in reversed(versions[: versions.index(version) + 1]):
        folder = TRACES / name if earlier == MILESTONES[0] else to / earlier / name
        if folder.is_dir():
            return folder
    return None


def _failed(version: str, to: Path) -> dict[str, str]:
    path = to / version / FAILED
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


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


# -- pages -----------------------------------------------------------------------------------------------


def write_pages(versions: Sequence[str], names: Sequence[str], to: Path) -> int:
    """Write the page of each version but the first, and the list of them.

    Returns:
        How many scenarios differ, over all versions.
    """
    to.mkdir(parents=True, exist_ok=True)
    differing = 0
    for before, version in zip(versions, versions[1:], strict=False):
        text, count = page(before, version, versions, names, to)
        (to / f"{version}.md").write_text(text, encoding="utf-8")
        differing += count
    lines = ["# The atlas", "", "What an observer of the Trainer sees change from one version to the next:", ""]
    lines += [f"- [{before} to {after}]({after}.md)" for before, after in zip(versions, versions[1:], strict=False)]
    (to / "README.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return differing


def page(before: str, version: str, versions: Sequence[str], names: Sequence[str], to: Path) -> tuple[str, int]:
    """The page of a version as Markdown, and how many scenarios differ."""
    from minitrainer.trace.render import report
    from minitrainer.trace.render.escape import markdown

    lines = [f"# transformers {version}, seen from {before}", "", f"A is {before}, B is {version}.", ""]
    companions: dict[str, tuple[str, str]] = {}
    equal: list[str] = []
    sections: list[str] = []
    compared = 0
    for name in names:
        left, right = trace_of(before, name, versions, to), trace_of(version, name, versions, to)
        if name in _failed(version, to):
            sections += ["", f"## {name}", "", f"This version can't run it: {markdown(_failed(version, to)[name])}"]
        if left is None or right is None:
            continue
        compared += 1
        if left == right:
            equal.append(name)
            continue
        comparison = compare_runs(left, right)
        companions.update(comparison.versions)
        sections += ["", f"## {name}", "", f"{FLOWS[name].question}. Trace: `{version}/{name}/`", ""]
        for kind, rows in report.rows_of(comparison):
            sections += [f"- *{kind}*: {markdown(said)}" for said, _ in rows]
        sections += [f"- *renamed*: {markdown(finding.subject)}" for finding in comparison.renamed]
    for companion, (old, new) in companions.items():
        if companion != "transformers":
            lines += [f"{companion} went from {old} to {new}: what is found may come from it.", ""]
    lines += [f"Of {compared} scenarios {compared - len(equal)} differ. Equal: {', '.join(equal) or 'none'}."]
    return "\n".join(lines + sections) + "\n", compared - len(equal)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except UsageError as error:
        print("minitrainer.trace: " + " ".join(str(error).split()), file=sys.stderr)
        sys.exit(2)

# Read next: ../../traces/README.md, what the recordings show.
