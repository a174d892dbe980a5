"""attributes.py says the truth: every attribute once, and exactly the methods that write it."""

from __future__ import annotations

import ast
import re

from .source import PACKAGE, SUBCLASS_FILES, TRAINER_FILES, methods, writes


def read_ledger() -> dict[str, tuple[str, set[str]]]:
    """Attribute name to its meaning and its writers, as attributes.py states them."""
    tree = ast.parse((PACKAGE / "attributes.py").read_text(encoding="utf-8"))
    (owner,) = [node for node in tree.body if isinstance(node, ast.ClassDef)]
    ledger: dict[str, tuple[str, set[str]]] = {}
    for entry, note in zip(owner.body, owner.body[1:], strict=False):
        if isinstance(entry, ast.AnnAssign) and isinstance(entry.target, ast.Name):
            name = entry.target.id
            assert name not in ledger, f"{name} stands twice in the ledger"
            assert isinstance(note, ast.Expr) and isinstance(note.value, ast.Constant), f"{name} has no docstring"
            text = " ".join(str(note.value.value).split())
            meaning, separator, writers = text.partition(" Written by: ")
            assert separator, f"{name}: the docstring does not end with 'Written by: …'"
            ledger[name] = (meaning, {writer.strip() for writer in writers.rstrip(".").split(",")})
    return ledger


def found_writers() -> dict[str, set[str]]:
    """Attribute name to the methods that assign or delete it, as the syntax trees show them."""
    found: dict[str, set[str]] = {}
    for method in methods(TRAINER_FILES + SUBCLASS_FILES):
        inherits_name = method.file in SUBCLASS_FILES
        writer = f"{method.owner}.{method.name}" if inherits_name else method.name
        for path in writes(method):
            if "." not in path:
                found.setdefault(path, set()).add(writer)
    return found


def test_every_attribute_stands_in_the_ledger_and_nothing_else() -> None:
    ledger, found = read_ledger(), found_writers()
    assert set(ledger) == set(found)
    assert len(ledger) >= 55  # upstream's own number; a check that looks at nothing must not pass


def test_the_writers_are_the_ones_that_the_code_has() -> None:
    ledger, found = read_ledger(), found_writers()
    wrong = {name: (writers, found[name]) for name, (_, writers) in ledger.items() if writers != found.get(name)}
    assert not wrong, "ledger and code differ (stated, found): " + repr(wrong)


def test_every_meaning_is_a_sentence() -> None:
    for name, (meaning, _) in read_ledger().items():
        assert re.match(r"[A-Z`].*\.$", meaning), f"{name}: {meaning!r}"


def test_the_mixins_have_no_init_and_no_super_and_define_no_name_twice() -> None:
    seen: dict[str, str] = {}
    for method in methods():
        assert not (method.name == "__init__" and method.owner != "Trainer"), method.owner
        assert "super()" not in ast.unparse(method.node), f"{method.owner}.{method.name}"
        assert method.name not in seen, f"{method.name} is defined in {seen[method.name]} and in {method.owner}"
        seen[method.name] = method.owner
    assert len(seen) >= 70


# Read next: test_docstrings.py
