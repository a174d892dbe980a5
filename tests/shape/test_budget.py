"""The stated size stays true. Run with `-s` to see the table."""

from __future__ import annotations

from .source import PACKAGE, SUBCLASS_FILES, TRAINER_FILES, code_lines, methods

# Lines that hold code: blanks, comments and docstrings are free, so that nobody saves on them.
BUDGET = {
    "trainer": 190,
    "attributes": 80,
    "loop": 440,
    "setup": 205,
    "data": 150,
    "optimizer": 135,
    "wrapping": 150,
    "step": 100,
    "cadence": 80,
    "evaluation": 375,
    "saving": 270,
    "resuming": 275,
    "reporting": 60,
    "search": 120,
    "hub": 170,
    "seq2seq": 160,
    "question_answering": 280,
}
TOTAL = 3200


def test_every_file_keeps_to_its_budget(capsys) -> None:
    assert set(BUDGET) == set(TRAINER_FILES + SUBCLASS_FILES)
    used = {file: code_lines(PACKAGE / f"{file}.py") for file in BUDGET}
    with capsys.disabled():
        print(f"\n{'file':<20}{'lines of code':>15}{'budget':>8}{'all lines':>11}")
        for file, lines in used.items():
            total = len((PACKAGE / f"{file}.py").read_text(encoding="utf-8").splitlines())
            print(f"{file:<20}{lines:>15}{BUDGET[file]:>8}{total:>11}")
        print(f"{'together':<20}{sum(used.values()):>15}{TOTAL:>8}")
    over = {file: lines for file, lines in used.items() if lines > BUDGET[file]}
    assert not over, f"over their budgets: {over}"
    assert min(used.values()) > 10
    assert sum(used.values()) <= TOTAL


def test_the_loop_is_a_table_of_contents() -> None:
    (loop,) = [method for method in methods() if method.name == "_inner_training_loop"]
    first, *_, last = loop.node.body[1:]  # without the docstring
    assert (last.end_lineno or 0) - first.lineno + 1 <= 60


# Read next: test_reading_order.py
