"""What docstrings state can be checked: which attributes a method writes, which events it fires."""

from __future__ import annotations

import re

from .source import SUBCLASS_FILES, TRAINER_FILES, events, listed, methods, section, source_ranges, writes

ALL = methods(TRAINER_FILES + SUBCLASS_FILES)


def test_every_method_has_a_docstring_and_those_with_effects_say_where_they_come_from() -> None:
    """Small helpers may go without a source; test_upstream.py asks for it of all of upstream's own names."""
    assert len(ALL) >= 100
    for method in ALL:
        assert method.docstring, f"{method.file}.{method.name}"
    effective = [method for method in methods() if writes(method) or events(method)]
    without = [f"{method.file}.{method.name}" for method in effective if not source_ranges(method.docstring)]
    assert not without, f"no `Source:` section: {without}"


def test_writes_names_exactly_what_the_method_writes() -> None:
    wrong = {
        f"{method.file}.{method.name}": (sorted(listed(method.docstring, "Writes")), sorted(writes(method)))
        for method in ALL
        if listed(method.docstring, "Writes") != writes(method)
    }
    assert not wrong, f"`Writes:` and code differ (stated, found): {wrong}"
    assert sum(bool(writes(method)) for method in ALL) >= 25


def test_events_names_exactly_what_the_method_fires() -> None:
    wrong = {
        f"{method.file}.{method.name}": (sorted(listed(method.docstring, "Events")), sorted(events(method)))
        for method in ALL
        if listed(method.docstring, "Events") != events(method)
    }
    assert not wrong, f"`Events:` and code differ (stated, found): {wrong}"
    fired = set().union(*(events(method) for method in ALL))
    assert len(fired) == 13, f"4.31.0 fires 13 events, here are {sorted(fired)}"


def test_public_methods_name_every_argument() -> None:
    for method in ALL:
        if method.name.startswith("_") or method.name == "__init__":
            continue
        arguments = [argument.arg for argument in method.node.args.args if argument.arg != "self"]
        text = section(method.docstring, "Args") or ""
        missing = [argument for argument in arguments if f"{argument}:" not in text]
        assert not missing, f"{method.file}.{method.name}: `Args:` leaves out {missing}"


def test_every_stand_in_for_hardware_says_so() -> None:
    """Code that only runs behind one of these conditions is marked, unless the whole method is mere bookkeeping."""
    marked = [
        method.name
        for method in ALL
        if re.search(r"never run on the hardware|was ever run|never run there", " ".join(method.docstring.split()))
    ]
    assert len(marked) >= 10


# Read next: test_budget.py
