"""The checks of the book. Each says what is wrong, where, and what to write; and each counts what it looked at.

A count of zero fails as an error does: a check that finds nothing to check has lost its subject.
"""

from __future__ import annotations

import ast
import functools
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from urllib.parse import unquote

import yaml

from . import names, places, runs, statements
from .errors import BookError
from .pages import CHAPTERS, DIRECTIVES, ROOT, RUNS, Block, Page, all_pages

LONGEST_CHAPTER = 1600
"""Words of prose in a chapter; what is longer is two chapters."""

NO_EXPERIMENT = frozenset({"index.md"})
"""Pages that need no `## Try it`."""

FILES_WITH_METHODS = (
    "trainer", "loop", "setup", "data", "optimizer", "wrapping", "step", "cadence", "evaluation", "saving", "resuming",
    "reporting", "search", "hub",
)  # fmt: skip


@dataclass
class Findings:
    """What was looked at and what is wrong."""

    counts: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    slow: list[tuple[float, str]] = field(default_factory=list)

    def guard(self, what: str, look: Callable[[], object]) -> None:
        """Count one thing and look at it; what it raises is a finding."""
        self.counts[what] += 1
        try:
            look()
        except BookError as error:
            self.wrong.append(str(error))


SUBJECTS = (
    "pages", "code places", "quoted places", "traces", "derivations", "pictures", "claims", "questions",
    "Python blocks", "compared outputs", "commands", "experiments", "names in prose", "links", "methods",
)  # fmt: skip
"""Every count of a whole check. All of them must be above zero."""


def check(pages: Sequence[Page], *, execute: bool = True) -> Findings:
    """Check pages for themselves; see `check_whole` for what holds between them."""
    found = Findings()
    for page in pages:
        found.counts["pages"] += 1
        _form(page, found)
        _blocks(page, found)
        _statements(page, found)
        _prose(page, found)
    if execute:
        _executed([page for page in pages if not page.is_generated], found)
    return found


def check_whole(execute: bool = True) -> Findings:
    """Check the whole book: every page, and that each method, claim and question has exactly one place."""
    pages = all_pages()
    found = check(pages, execute=execute)
    written = [page for page in pages if not page.is_generated]
    _one_place_each(written, found)
    _methods(written, found)
    _all_there("claim", statements.CLAIMS, _claims_on(written), found)
    numbers = {f"q{n}": words for n, words in statements.asked().items()}
    stated = [
        (f"q{one.number}", page.where(one.heading.line)) for page in written for one in statements.questions(page)[0]
    ]
    _all_there("question", list(numbers), stated, found, numbers)
    from . import generated

    found.wrong += generated.stale()
    executed = ("Python blocks", "compared outputs", "commands")
    subjects = [one for one in SUBJECTS if execute or one not in executed]
    found.wrong += [f"nothing was checked: no {what} anywhere" for what in subjects if not found.counts[what]]
    return found


# -- one page ------------------------------------------------------------------------------------------


def _form(page: Page, found: Findings) -> None:
    """Title, question, length, experiment."""
    titles = [heading for heading in page.headings if heading.level == 1]
    if len(titles) != 1:
        found.wrong.append(f"{page.name}: a page has one title, `# …`, at its top; here are {len(titles)}")
    front = _front_matter(page)
    if not isinstance(front, dict) or not str(front.get("description") or "").strip():
        found.wrong.append(f"{page.name}: begins with front matter: ---, `description: one sentence`, --- (in YAML)")
    lines = page.prose.split("\n")
    for number, (line, following) in enumerate(zip(lines, lines[1:], strict=False), start=1):
        if re.match(r"\|(?: *:?-+:? *\|)+$", following) and re.search(r"\| *\|", line):
            found.wrong.append(f"{page.where(number)}: a column of this table has no name: readers by ear need one")
    ids = Counter(heading.id for heading in page.headings if heading.id)
    found.wrong += [f"{page.name}: the id #{name} stands {n} times" for name, n in ids.items() if n > 1]
    if page.is_generated:
        return
    words = len(re.findall(r"\w[\w'’.-]*", page.prose))
    if words > LONGEST_CHAPTER and not any(heading.id.startswith("q") for heading in page.headings):
        found.wrong.append(f"{page.name}: {words} words of prose, {LONGEST_CHAPTER} at most")
    if page.name not in NO_EXPERIMENT:
        found.counts["experiments"] += 1
        found.wrong += statements.tries(page)


def _front_matter(page: Page) -> object:
    """What stands between the first two `---`, read as YAML; None where it is none."""
    match = re.match(r"---\n(.*?)\n---\n", page.text, re.DOTALL)
    try:
        return yaml.safe_load(match[1]) if match else None
    except yaml.YAMLError:
        return None


def _blocks(page: Page, found: Findings) -> None:
    previous: Block | None = None
    for block in page.blocks:
        where = page.where(block.line)
        if block.kind in DIRECTIVES | RUNS | {"output"} and block.indent:
            found.wrong.append(f"{where}: a {block.kind} block stands at the left margin")
        if block.kind in ("code", "excerpt"):
            for line in block.lines:
                what = "code places" if block.kind == "code" else "quoted places"
                found.guard(what, functools.partial(_bound, page, block, line))
            if not block.lines:
                found.wrong.append(f"{where}: this {block.kind} block names no code")
        elif block.kind in ("trace", "loss", "picture"):
            what = {"trace": "traces", "loss": "derivations", "picture": "pictures"}[block.kind]
            found.guard(what, functools.partial(_rendered, page, block))
        elif block.kind == "output" and (previous is None or previous.kind != "python"):
            found.wrong.append(f"{where}: an output block follows the python block that printed it")
        previous = block


def _bound(page: Page, block: Block, line: str) -> None:
    """Check that a named piece is there and that its tokens are those that the prose was written for."""
    where = page.where(block.line)
    try:
        file, name, phase, digest = places.parse_spec(line)
        place = places.find(file, name, phase)
    except BookError as error:
        raise BookError(f"{where}: {error}") from error
    if digest == place.digest:
        return
    if not digest:
        raise BookError(
            f"{where}: {place.spec} is not bound yet: when the prose fits it, write {place.spec} #{place.digest}"
        )
    raise BookError(
        f"{where}: {place.spec} has changed since the prose was written: read both again, then write "
        f"#{place.digest} in place of #{digest}"
    )


def _rendered(page: Page, block: Block) -> None:
    from . import expand

    try:
        expand.html_of(block)
    except BookError as error:
        raise BookError(f"{page.where(block.line)}: {error}") from error


def _statements(page: Page, found: Findings) -> None:
    for block in page.blocks:
        if block.kind == "claim":
            found.guard("claims", functools.partial(_claim, page, block))
    stated, wrong = statements.questions(page)
    found.counts["questions"] += len(stated)
    found.wrong += wrong


def _claim(page: Page, block: Block) -> None:
    claim = statements.claim(page, block)
    for proof in claim.proofs:
        problem = statements.proof_problem(proof)
        if problem:
            raise BookError(f"{page.where(block.line)}: {claim.label}: {problem}")


def _prose(page: Page, found: Findings) -> None:
    if not page.is_generated:
        looked_at, wrong = names.unknown(page)
        found.counts["names in prose"] += looked_at
        found.wrong += wrong
    for line, target in page.links():
        found.counts["links"] += 1
        problem = _link_problem(page, target)
        if problem:
            found.wrong.append(f"{page.where(line)}: {problem}")


def _link_problem(page: Page, target: str) -> str:
    if re.match(r"https?://|mailto:", target):
        return ""
    path, _, _ = unquote(target).partition("#")
    if path and not (CHAPTERS / path).exists():
        return f"the link {target} leads nowhere: pages lie in one folder, next to this one"
    return ""


# -- what runs -----------------------------------------------------------------------------------------


def _executed(pages: Sequence[Page], found: Findings) -> None:
    try:
        done = runs.run(pages)
    except BookError as error:
        found.wrong.append(str(error))
        return
    results: dict[tuple[str, int], list[runs.Ran]] = {}
    for ran in done:
        results.setdefault((ran.page.name, ran.block.line), []).append(ran)
        found.slow.append((ran.seconds, ran.page.where(ran.block.line)))
    for page in pages:
        for i, block in enumerate(page.blocks):
            ran_here = results.get((page.name, block.line), [])
            if not ran_here:
                continue
            where = page.where(block.line)
            if block.kind == "python":
                found.counts["Python blocks"] += 1
                following = page.blocks[i + 1] if i + 1 < len(page.blocks) else None
                _compare_python(where, ran_here[0], following, found)
            else:
                for (command, lines), ran in zip(runs.commands(page, block), ran_here, strict=True):
                    found.counts["commands"] += 1
                    _compare_command(where, block, command, lines, ran, found)


def _compare_python(where: str, ran: runs.Ran, following: Block | None, found: Findings) -> None:
    expected = following.body.splitlines() if following is not None and following.kind == "output" else None
    if ran.error:
        found.wrong.append(f"{where}: {ran.error}")
        return
    if expected is None:
        if ran.printed.strip():
            found.wrong.append(
                f"{where}: this block prints something: put an ```output block below it\n" + _indented(ran)
            )
        return
    found.counts["compared outputs"] += 1
    if not runs.agrees(expected, ran.printed):
        found.wrong.append(f"{where}: prints something else:\n{runs.difference(expected, ran.printed)}")


def _indented(ran: runs.Ran) -> str:
    return "\n".join("    " + line for line in ran.printed.splitlines()[:40])


def _compare_command(where: str, block: Block, command: str, lines: list[str], ran: runs.Ran, found: Findings) -> None:
    if ran.error:
        found.wrong.append(f"{where}: $ {command}: {ran.error}")
        return
    if block.kind == "console":
        if not runs.agrees(lines, ran.printed):
            found.wrong.append(f"{where}: $ {command} prints something else:\n{runs.difference(lines, ran.printed)}")
        return
    wanted = [line for line in lines if line.strip() and line.strip() != runs.ANY]
    if not wanted:
        found.wrong.append(f"{where}: $ {command}: say what comes out, line by line:\n" + _indented(ran))
        return
    missing = runs.missing_in_order(lines, ran.printed)
    if missing is not None:
        found.wrong.append(f"{where}: $ {command} does not print {missing!r} (in this order):\n" + _indented(ran))


# -- the whole book ------------------------------------------------------------------------------------


def _one_place_each(pages: Sequence[Page], found: Findings) -> None:
    """A piece of code is shown in one `code` block of the book."""
    seen: dict[str, str] = {}
    for page in pages:
        for block in page.blocks:
            if block.kind != "code":
                continue
            for line in block.lines:
                try:
                    file, name, phase, _ = places.parse_spec(line)
                except BookError:
                    continue  # reported with its page
                spec = places.Place(file, name, phase, 0, 0, "").spec
                where = page.where(block.line)
                if spec in seen:
                    found.wrong.append(f"{where}: {spec} has its place at {seen[spec]} already: make this an excerpt")
                seen.setdefault(spec, where)


def methods() -> dict[str, tuple[str, str]]:
    """The 70 methods of 4.31.0's Trainer: name to our file and qualified name, in reading order."""
    from minitrainer.trace.rows import PUBLIC_METHODS

    found: dict[str, tuple[str, str]] = {}
    for file in FILES_WITH_METHODS:
        path = f"minitrainer/{file}.py"
        for owner in ast.parse((ROOT / path).read_text(encoding="utf-8")).body:
            if isinstance(owner, ast.ClassDef) and (owner.name.endswith("Mixin") or owner.name == "Trainer"):
                for node in owner.body:
                    if isinstance(node, ast.FunctionDef) and node.name in PUBLIC_METHODS:
                        found[node.name] = (path, f"{owner.name}.{node.name}")
    lost = sorted(PUBLIC_METHODS - set(found))
    if lost or len(found) != 70:
        raise BookError(f"the Trainer has {len(found)} of upstream's 70 methods, not {', '.join(lost)}")
    return found


def method_places(pages: Sequence[Page]) -> dict[str, list[tuple[Page, Block]]]:
    """Where each of the 70 methods is shown whole: in one block, or phase by phase on one page."""
    shown: dict[tuple[str, str, str], list[tuple[Page, Block]]] = {}
    for page in pages:
        for block in page.blocks:
            for line in block.lines if block.kind == "code" else ():
                try:
                    file, name, phase, _ = places.parse_spec(line)
                except BookError:
                    continue
                shown.setdefault((file, name, phase), []).append((page, block))
    found: dict[str, list[tuple[Page, Block]]] = {}
    for method, (file, name) in methods().items():
        whole = list(shown.get((file, name, ""), []))
        parts = places.phases(file, name)
        for page in pages:
            on_page = [one for phase in parts for one in shown.get((file, name, phase), []) if one[0] is page]
            if parts and len({id(one[1]) for one in on_page}) and all(
                any(one[0] is page for one in shown.get((file, name, phase), [])) for phase in parts
            ):  # fmt: skip
                whole.append(on_page[0])
        found[method] = whole
    return found


def _methods(pages: Sequence[Page], found: Findings) -> None:
    where = method_places(pages)
    found.counts["methods"] += len(where)
    spots = methods()
    for method, shown in where.items():
        file, name = spots[method]
        if not shown:
            parts = places.phases(file, name)
            phased = f" (or all its phases: {', '.join(parts)})" if parts else ""
            found.wrong.append(f"no page shows the method {method}: a code block with {file} {name}{phased}")
        elif len(shown) > 1:
            spelled = ", ".join(page.where(block.line) for page, block in shown)
            found.wrong.append(f"the method {method} is shown whole {len(shown)} times: {spelled}")


def _claims_on(pages: Sequence[Page]) -> list[tuple[str, str]]:
    return [
        (block.body.strip().split(" ")[0], page.where(block.line))
        for page in pages
        for block in page.blocks
        if block.kind == "claim"
    ]


def _all_there(
    what: str, wanted: Sequence[str], stated: Sequence[tuple[str, str]], found: Findings,
    words: dict[str, str] | None = None,
) -> None:  # fmt: skip
    where: dict[str, list[str]] = {}
    for label, place in stated:
        where.setdefault(label, []).append(place)
    for label in wanted:
        spots = where.pop(label, [])
        if not spots:
            text = f" ({words[label]})" if words else ""
            found.wrong.append(f"{what} {label} stands nowhere{text}")
        elif len(spots) > 1:
            found.wrong.append(f"{what} {label} stands {len(spots)} times: {', '.join(spots)}")
    found.wrong += [f"{spots[0]}: there is no {what} {label}" for label, spots in where.items()]


# Read next: __main__.py, the command line.
