"""Puts a comparison into words: for the terminal, as JSON, as a Markdown page and as an HTML page.

Every report has the same order: the verdict in one line, the first divergence with the rows before it on both sides,
what is renamed, then the findings by kind, each once. Where more than a few findings of a kind say the same of many
subjects ("is no longer called"), they share one row; JSON keeps them apart.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from minitrainer.trace.findings import KINDS, Finding
from minitrainer.trace.render import escape
from minitrainer.trace.render.escape import printable
from minitrainer.trace.render.words import counted

if TYPE_CHECKING:
    from minitrainer.trace.compare import Comparison, Divergence

SHARED_FROM = {
    "event": 3,
    "callback": 3,
    "log": 3,
    "call": 2,
    "argument": 2,
    "state": 2,
    "gather": 2,
    "file": 2,
    "flag": 3,
}
"""Kind to how many findings of one change share a row. Numbers do where they follow from the same."""

NAMED_IN_A_ROW = 12

# -- words -----------------------------------------------------------------------------------


def verdict(comparison: Comparison) -> str:
    """The result in one line."""
    a, b = comparison.name_a, comparison.name_b
    left_out = f" (left out: {', '.join(comparison.ignored)})" if comparison.ignored else ""
    if comparison.equal:
        places = counted(comparison.blocks, "place")
        return f"equal: nothing differs between A ({a}) and B ({b}) in {places} of the run{left_out}"
    kinds = [kind for kind in KINDS if any(finding.kind == kind for finding in comparison.findings)]
    found = counted(len(comparison.findings), "finding")
    said = "".join(f"{headline}; " for headline in comparison.headlines)
    return f"different: {said}{found} between A ({a}) and B ({b}): {', '.join(kinds)}{left_out}"


def sentence(finding: Finding) -> str:
    """One finding in one line."""
    what = f"{_noun(finding.kind)}{finding.subject}"
    place = f" {finding.place}" if finding.place else ""
    if finding.kind == "argument" and finding.change in ("added", "removed") and not finding.subject.endswith(")"):
        side, value = ("B", finding.value_b) if finding.change == "added" else ("A", finding.value_a)
        return f"{what} is not at its default only in {side}: {_short(value)}"
    if finding.change == "added":
        value = f" ({_short(finding.value_b)})" if finding.value_b is not None else ""
        said = f"new {what}{value}{place}"
    elif finding.change == "removed":
        value = f" ({_short(finding.value_a)})" if finding.value_a is not None else ""
        before = f"; in A it stands {finding.place}" if finding.place else ""
        said = f"{what}{value} is gone{before}"
    elif finding.change == "moved":
        where_a, where_b = _where(finding.value_a), _where(finding.value_b)
        said = f"{what} moved: in A {where_a}, in B {where_b}"
        if where_a == where_b:
            said = f"{what} comes at other steps, {where_a}"
    elif finding.change == "renamed":
        return what
    else:
        said = f"{what}: {_short(finding.value_a)} in A, {_short(finding.value_b)} in B"
    if finding.inside:
        said += f", with {counted(finding.inside, 'row')} inside"
    if finding.numbers is not None and finding.numbers.pairs:
        numbers = finding.numbers
        said += f" (off by up to {numbers.largest_difference:.3g}, {numbers.largest_relative:.3g} of the value)"
    return f"{said}{_recurrence(finding)}{f'. {finding.note}' if finding.note else ''}"


def _noun(kind: str) -> str:
    return {"event": "event ", "callback": "callback ", "flag": "flag ", "file": "file ", "argument": "argument ",
            "state": "state field ", "call": "call of ", "log": "", "gather": "exchange: "}.get(kind, "")  # fmt: skip


def _where(place: Any) -> str:
    return str(place) if isinstance(place, str) and place else _short(place)


def _recurrence(finding: Finding) -> str:
    if finding.kind == "argument":
        return ""
    ranks = f" on {counted(len(finding.ranks), 'rank')}" if len(finding.ranks) > 1 else ""
    if finding.count <= 1:
        return f": once, at step {finding.first_step}{ranks}"
    return f": {finding.count:,} times, from step {finding.first_step} to {finding.last_step}{ranks}"


def _short(value: Any) -> str:
    if isinstance(value, float):
        return repr(value)
    text = printable(value if isinstance(value, str) else json.dumps(value, default=str))
    return text if len(text) <= 80 else text[:79] + "…"


MOST_ROWS = 20

LONGEST_ROW = 4000
"""Characters of one row of a report."""


def rows_of(comparison: Comparison) -> list[tuple[str, list[tuple[str, list[Finding]]]]]:
    """Kind to the rows of the report: each a sentence and the findings it stands for.

    Where there would be more than `MOST_ROWS`, two findings of a kind and change are enough to share a row.
    """
    kinds = list(_rows_of(comparison, SHARED_FROM))
    if sum(len(rows) for _, rows in kinds) > MOST_ROWS:
        kinds = list(_rows_of(comparison, dict.fromkeys(_PLURALS, 2)))
    return kinds


def _rows_of(
    comparison: Comparison, shared_from: dict[str, int]
) -> Iterator[tuple[str, list[tuple[str, list[Finding]]]]]:
    for kind in KINDS:
        mine = [finding for finding in comparison.findings if finding.kind == kind]
        groups: dict[str, list[Finding]] = {}
        for finding in mine:
            groups.setdefault(_group(finding), []).append(finding)
        rows: list[tuple[str, list[Finding]]] = []
        for alike in groups.values():
            if len(alike) >= (2 if alike[0].follows else shared_from.get(kind, len(mine) + 1)):
                rows.append((_shared(alike), alike))
            else:
                rows += [(sentence(finding), [finding]) for finding in alike]
        if rows:
            yield kind, rows


def _group(finding: Finding) -> str:
    """What findings must have in common to share a row."""
    own = finding.subject.rpartition(" (")[2] if finding.subject.endswith(")") and not finding.follows else ""
    # A number with a note (a factor that is recognised) is a result of its own.
    apart = finding.subject if finding.kind == "number" and finding.note else ""
    return f"{finding.change} {own} {finding.follows} {apart}"


_PLURALS = {
    "event": "events",
    "callback": "callbacks",
    "flag": "changes of flags",
    "number": "numbers",
    "log": "log entries",
    "sample": "things about samples",
    "file": "files",
    "argument": "arguments",
    "state": "state fields",
    "call": "calls",
    "gather": "exchanges",
    "error": "exceptions",
    "rng": "random states",
    "run": "things about the run",
    "note": "notes",
}


def _shared(findings: list[Finding]) -> str:
    kind, change = findings[0].kind, findings[0].change
    said = {"added": "new in B", "removed": "gone in B", "moved": "moved", "changed": "changed"}[change]
    what = _PLURALS[kind]
    if findings[0].follows:
        return f"{len(findings)} numbers differ, as {findings[0].follows} alone would make them: " + ", ".join(
            _named(finding, "") for finding in findings
        )
    own = findings[0].subject.rpartition(" (")[2][:-1] if findings[0].subject.endswith(")") else ""
    names = [_named(finding, own) for finding in findings]
    shown = ", ".join(names[:NAMED_IN_A_ROW])
    more = f" and {len(names) - NAMED_IN_A_ROW} more" if len(names) > NAMED_IN_A_ROW else ""
    detail = f" ({own})" if own else ""
    if kind == "argument" and not own and change in ("added", "removed"):
        said = f"are not at their defaults only in {'B' if change == 'added' else 'A'}"
    return f"{len(findings)} {what}{detail} {said}: {shown}{more}"


def _named(finding: Finding, own: str) -> str:
    name = finding.subject.removesuffix(f" ({own})")
    if finding.change == "changed":
        return f"{name} {_short(finding.value_a)} → {_short(finding.value_b)}"
    return f"{name} ×{finding.count:,}" if finding.count > 1 else name


# -- terminal -----------------------------------------------------------------------------------


def lines(comparison: Comparison, show_rows: bool = False) -> Iterator[tuple[str, str]]:
    """The report as lines of text, each with the name of its role."""
    yield verdict(comparison), "head" if comparison.equal else "bad"
    for name, (left, right) in comparison.versions.items():
        yield f"{name}: {left} in A, {right} in B", "dim"
    if len(comparison.versions) > 1 and not comparison.equal:
        yield f"any of {' and '.join(comparison.versions)} may be what a finding comes from", "dim"
    if comparison.timing is not None:
        left_s, right_s = comparison.timing
        yield f"recorded in {left_s:.3g} s in A, {right_s:.3g} s in B", "dim"
    if comparison.first is not None:
        yield "", ""
        yield from _divergence_lines(comparison.first)
    if comparison.renamed:
        yield "", ""
        yield "renamed, and otherwise the same", "head"
        for finding in comparison.renamed:
            yield f"  {sentence(finding)}", ""
    for kind, rows in rows_of(comparison):
        yield "", ""
        yield f"{kind}: {KINDS[kind]}", "head"
        for said, findings in rows:
            yield f"  {printable(said, LONGEST_ROW)}", ""
            if show_rows:
                for finding in findings:
                    for side, row in (("A", finding.row_a), ("B", finding.row_b)):
                        yield f"      {side} {shown(row, LONGEST_ROW) if row else '(has no such row)'}", "dim"


def _divergence_lines(first: Divergence) -> Iterator[tuple[str, str]]:
    yield f"first divergence: rank {first.rank}, after {counted(first.step, 'step')}", "head"
    row_a, row_b = what_differs(first.row_a, first.row_b)
    for side, before, row in (("A", first.before_a, row_a), ("B", first.before_b, row_b)):
        for line in before:
            yield f"  {side}   {shown(line)}", "dim"
        yield f"  {side} > {shown(row) if row is not None else '(has no such row)'}", ""


def shown(row: str, most: int = 400) -> str:
    """A row as it is shown: with room after commas, so that a line can be broken there."""
    try:
        row = json.dumps(json.loads(row), ensure_ascii=False)
    except ValueError:
        pass
    return printable(row, most)


ALWAYS_SHOWN = ("kind", "event", "method", "callback", "flag", "field", "step", "path", "key")


def what_differs(row_a: str | None, row_b: str | None) -> tuple[str | None, str | None]:
    """Of two long rows of one kind, the fields that differ and those that say what the row is about."""
    if row_a is None or row_b is None:
        return row_a, row_b
    left, right = json.loads(row_a), json.loads(row_b)
    if not isinstance(left, dict) or not isinstance(right, dict) or left.get("kind") != right.get("kind"):
        return row_a, row_b
    parts: list[dict[str, Any]] = []
    for mine, other in ((left, right), (right, left)):
        part: dict[str, Any] = {}
        for name, value in mine.items():
            if name in ALWAYS_SHOWN:
                part[name] = value
            elif value != other.get(name):
                against = other.get(name)
                if isinstance(value, dict) and isinstance(against, dict):
                    value = {key: one for key, one in value.items() if one != against.get(key, ...)}
                part[name] = value
        parts.append(part)
    return json.dumps(parts[0]), json.dumps(parts[1])


def print_to_terminal(comparison: Comparison, show_rows: bool = False) -> None:
    from minitrainer.trace.render.terminal import Screen

    screen = Screen()
    for line, role in lines(comparison, show_rows):
        indent = " " * (len(line) - len(line.lstrip()))
        screen.line([(line.strip(), role)], indent, indent + "    ")


def text(comparison: Comparison, show_rows: bool = False) -> str:
    """The report as plain text, as wide as it is."""
    return "\n".join(line for line, _ in lines(comparison, show_rows))


# -- JSON -----------------------------------------------------------------------------------------


def as_json(comparison: Comparison) -> str:
    """The whole comparison as JSON: every finding apart, with its rows."""
    document = {
        "equal": comparison.equal,
        "verdict": verdict(comparison),
        "a": comparison.name_a,
        "b": comparison.name_b,
        "versions": {name: list(pair) for name, pair in comparison.versions.items()},
        "ignored": comparison.ignored,
        "places": comparison.blocks,
        "equal_places": comparison.equal_blocks,
        "first_divergence": None if comparison.first is None else dataclasses.asdict(comparison.first),
        "renamed": [_as_fields(finding) for finding in comparison.renamed],
        "findings": [_as_fields(finding) for finding in comparison.findings],
    }
    if comparison.timing is not None:
        document["seconds"] = list(comparison.timing)
    return json.dumps(document, indent=1, default=str)


def _as_fields(finding: Finding) -> dict[str, Any]:
    fields: dict[str, Any] = {"name": finding.name, "sentence": sentence(finding)}
    for name in ("kind", "change", "subject", "place", "count", "first_step", "last_step", "inside", "note"):
        fields[name] = getattr(finding, name)
    fields["ranks"] = sorted(finding.ranks)
    fields["value_a"], fields["value_b"] = finding.value_a, finding.value_b
    if finding.numbers is not None:
        numbers = finding.numbers
        fields["largest_difference"] = str(numbers.largest_difference)
        fields["largest_relative_difference"] = str(numbers.largest_relative)
    fields["row_a"] = None if finding.row_a is None else json.loads(finding.row_a)
    fields["row_b"] = None if finding.row_b is None else json.loads(finding.row_b)
    return fields


def _heading(kind: str) -> str:
    return f"{KINDS[kind][:1].upper()}{KINDS[kind][1:]} ({kind})"


# -- pages ------------------------------------------------------------------------------------------


def markdown(comparison: Comparison) -> str:
    """The report as a Markdown page."""
    page = [f"# {escape.markdown(comparison.name_a)} and {escape.markdown(comparison.name_b)}", ""]
    page += [escape.markdown(verdict(comparison), LONGEST_ROW) + ".", ""]
    for name, (left, right) in comparison.versions.items():
        page.append(f"- {escape.markdown(name)}: {escape.markdown(left)} in A, {escape.markdown(right)} in B")
    if comparison.first is not None:
        page += ["", "## First divergence", "", "```text"]
        page += [line.replace("```", "'''") for line, _ in _divergence_lines(comparison.first)]
        page += ["```"]
    if comparison.renamed:
        page += ["", "## Renamed, and otherwise the same", ""]
        page += [f"- {escape.markdown(sentence(finding), LONGEST_ROW)}" for finding in comparison.renamed]
    for kind, rows in rows_of(comparison):
        page += ["", f"## {_heading(kind)}", ""]
        for said, findings in rows:
            page.append(f"- {escape.markdown(said, LONGEST_ROW)}")
            for finding in findings[:1] if len(findings) > 1 else findings:
                page += ["", "    ```json"]
                page += [f"    {side}: {(row or 'null').replace('```', '')}" for side, row in _sides(finding)]
                page += ["    ```", ""]
    return "\n".join(page).rstrip("\n") + "\n"


def _sides(finding: Finding) -> list[tuple[str, str | None]]:
    return [
        (side, None if row is None else shown(row, 600)) for side, row in (("A", finding.row_a), ("B", finding.row_b))
    ]


_STYLE = """body{font:16px/1.5 system-ui,sans-serif;max-width:70rem;margin:2rem auto;padding:0 1rem;color:#1b1b1b;
background:#fff}pre{overflow-x:auto;background:#f3f3f3;padding:.6rem;font-size:.85rem}summary{cursor:pointer}
@media (prefers-color-scheme:dark){body{color:#e6e6e6;background:#161616}pre{background:#242424}}"""


def html(comparison: Comparison) -> str:
    """The report as one HTML file that asks for nothing else."""
    title = f"{escape.html(comparison.name_a)} and {escape.html(comparison.name_b)}"
    page = [
        '<!doctype html><html lang="en"><head><meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width,initial-scale=1">',
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">",
        f"<title>{title}</title><style>{_STYLE}</style></head><body><h1>{title}</h1>",
        f"<p><strong>{escape.html(verdict(comparison), LONGEST_ROW)}</strong></p>",
    ]
    for name, (left, right) in comparison.versions.items():
        page.append(f"<p>{escape.html(name)}: {escape.html(left)} in A, {escape.html(right)} in B</p>")
    if comparison.first is not None:
        shown = "\n".join(escape.html(line, LONGEST_ROW) for line, _ in _divergence_lines(comparison.first))
        page.append(f"<h2>First divergence</h2><pre>{shown}</pre>")
    if comparison.renamed:
        page.append("<h2>Renamed, and otherwise the same</h2><ul>")
        page += [f"<li>{escape.html(sentence(finding), LONGEST_ROW)}</li>" for finding in comparison.renamed]
        page.append("</ul>")
    for kind, rows in rows_of(comparison):
        page.append(f"<h2>{escape.html(_heading(kind))}</h2>")
        for said, findings in rows:
            shown = "\n".join(
                f"{side} {escape.html(row or 'no such row', LONGEST_ROW)}"
                for finding in findings
                for side, row in _sides(finding)
            )
            page.append(f"<details><summary>{escape.html(said, LONGEST_ROW)}</summary><pre>{shown}</pre></details>")
    page.append("</body></html>\n")
    return "\n".join(page)


# Read next: ../audit.py, which asks whether the numbers are right and not only whether they are equal.
