"""What pages state and must prove: claims of the article, answers to users' questions, and the experiments.

A claim is a block: its number and verdict, what the article says, what a run shows, and the proof. A question is a
heading in the user's words with the id `q1`; below it an answer for 4.31.0 and one for today, and a proof.
"""

from __future__ import annotations

import ast
import re
from dataclasses import dataclass
from pathlib import Path

from .errors import BookError
from .pages import ROOT, Block, Heading, Page

CLAIMS = [f"C{n}" for n in range(1, 43)]
VERDICTS = ("holds", "imprecise", "wrong", "answered")
LABELS = ("The article", "Recorded", "Proof")

QUESTIONS_FILE = Path(__file__).with_name("questions.txt")

PROVING = frozenset({"trace", "loss", "picture", "python", "console", "try", "claim"})
"""Blocks below a question that prove its answer."""

_LABEL = re.compile(r"^(The article|Recorded|Proof)((?:,[^:]*)?):")
_QUESTION_ID = re.compile(r"q([1-9]\d?)")
_OLD = re.compile(r"\*\*4\.31\.0:?\*\*:?")
_NEW = re.compile(r"\*\*Today \(5\.24\.0\):?\*\*:?")
_PROOF_LINE = re.compile(r"^(?:[-*] )?\*{0,2}Proof:\*{0,2} +(.+?)\.?$", re.MULTILINE)


@dataclass(frozen=True)
class Claim:
    """One claim: the label ("C30"), the verdict, and its three texts in Markdown; `proofs` are paths."""

    label: str
    verdict: str
    article: str
    recorded: str
    proofs: tuple[str, ...]
    page: Page
    block: Block


@dataclass(frozen=True)
class Question:
    """One answered question: its number, the heading in the user's words, the answer's text, its proofs."""

    number: int
    heading: Heading
    page: Page
    proofs: tuple[str, ...]


def asked() -> dict[int, str]:
    """All questions that the book answers: number to the user's words."""
    found = {}
    for line in QUESTIONS_FILE.read_text(encoding="utf-8").splitlines():
        if line.strip() and not line.startswith("#"):
            number, _, words = line.partition(" ")
            found[int(number)] = words.strip()
    return found


def claim(page: Page, block: Block) -> Claim:
    """Read a claim block.

    Raises:
        BookError: a part is missing, or the verdict is none of the four.
    """
    where = page.where(block.line)
    first, _, rest = block.body.strip().partition("\n")
    label, _, verdict = first.strip().partition(" ")
    verdict = verdict.strip()
    if label not in CLAIMS or verdict not in VERDICTS:
        raise BookError(f"{where}: a claim begins with its number and verdict, `C30 wrong`: {', '.join(VERDICTS)}")
    parts: dict[str, list[str]] = {}
    current = ""
    for line in rest.splitlines():
        begun = _LABEL.match(line)
        if begun:
            current = begun[1]
            if current in parts:
                raise BookError(f"{where}: {label} says `{current}:` twice")
            parts[current] = [" ".join(f"{_addition(begun[2])}{line[begun.end() :]}".split())]
        elif current:
            parts[current].append(line)
        elif line.strip():
            raise BookError(f"{where}: {label}: the second line begins with `The article:`")
    missing = [one for one in LABELS if not " ".join(parts.get(one, [])).strip()]
    if missing:
        raise BookError(f"{where}: {label} lacks {' and '.join(f'`{one}:`' for one in missing)}")
    proofs = _proofs(" ".join(parts["Proof"]))
    texts = {one: "\n".join(parts[one]).strip() for one in LABELS}
    return Claim(label, verdict, texts["The article"], texts["Recorded"], proofs, page, block)


def _addition(text: str) -> str:
    """What stands between a label and its colon: `Recorded, on two H100:` gives "On two H100: "."""
    said = text.strip(" ,")
    return f"{said[0].upper()}{said[1:]}: " if said else ""


def questions(page: Page) -> tuple[list[Question], list[str]]:
    """Read the questions that a page answers, and say what their answers lack."""
    found: list[Question] = []
    wrong: list[str] = []
    lines = page.prose.split("\n")
    for heading in page.headings:
        match = _QUESTION_ID.fullmatch(heading.id)
        if not match:
            continue
        where = f"{page.where(heading.line)}: question {match[1]}"
        first, last = page.section(heading)
        text = "\n".join(lines[first - 1 : last])
        if not _OLD.search(text):
            wrong.append(f"{where}: no answer for the reference: write **4.31.0:** …")
        if not _NEW.search(text):
            wrong.append(f"{where}: no answer for today: write **Today (5.24.0):** …")
        proofs = tuple(proof for line in _PROOF_LINE.findall(text) for proof in _proofs(line))
        blocks = [block for block in page.blocks if first <= block.line <= last and block.kind in PROVING]
        if not proofs and not blocks:
            wrong.append(f"{where}: no proof: put a trace, loss, python or console block below it, or `Proof: PATH`")
        wrong += [f"{where}: {problem}" for proof in proofs if (problem := proof_problem(proof))]
        found.append(Question(int(match[1]), heading, page, proofs))
    return found, wrong


def _proofs(text: str) -> tuple[str, ...]:
    cleaned = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", text.replace("`", ""))
    return tuple(part.strip().rstrip(".") for part in re.split(r",| and ", cleaned) if part.strip())


def proof_problem(proof: str) -> str:
    """What is wrong with a proof's path: a folder of traces, a file, or `tests/x/test_y.py::test_z`; "" for nothing."""
    path, _, test = proof.partition("::")
    if not re.fullmatch(r"[\w./+-]+", path):
        return f"{proof!r} is no path: a proof is traces/NAME, or tests/PATH.py::test_name"
    target = (ROOT / path).resolve()
    if not target.is_relative_to(ROOT) or not target.exists():
        return f"its proof {path} is not there"
    if path.startswith("traces/") and target.is_dir() and not any(target.glob("rank*.jsonl")):
        return f"its proof {path} holds no trace"
    if test:
        name = test.partition("[")[0].rpartition("::")[2]
        tree = ast.parse(target.read_text(encoding="utf-8"))
        if not any(isinstance(node, ast.FunctionDef) and node.name == name for node in ast.walk(tree)):
            return f"its proof: {path} holds no {name}"
    return ""


def tries(page: Page) -> list[str]:
    """Say what is wrong with a chapter's experiment: exactly one, at the end, under `## Try it`."""
    blocks = [block for block in page.blocks if block.kind == "try"]
    headings = [heading for heading in page.headings if heading.level == 2]
    if len(blocks) != 1:
        return [f"{page.name}: a chapter ends with one `try` block, here are {len(blocks)}"]
    if not headings or headings[-1].text != "Try it" or blocks[0].line < headings[-1].line:
        return [
            f"{page.where(blocks[0].line)}: the `try` block stands under `## Try it`, the last part of the chapter"
        ]
    return []


# Read next: runs.py, which executes the experiments.
