"""Finds the first difference between two Observations and says it in a few lines.

Equality is of bits and of types: 1 and 1.0 differ, 0.0 and -0.0 differ, NaN equals NaN. There are no tolerances.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .observation import Failure, Observation

CONTEXT_ENTRIES = 4  # how much of the common timeline a message shows before the difference

# -- the comparison --------------------------------------------------------------------------------------------------


def first_difference(real: Observation, ours: Observation) -> str | None:
    """Compare two observations in the order in which a reader wants to know.

    Args:
        real: From the reference.
        ours: From the library under test.

    Returns:
        None if they are equal; otherwise a message: where, both values, and what happened just before.
    """
    improved = improved_failure(real, ours)
    if improved is not None:
        return improved or None  # an empty text: another message than upstream's was meant, and fits
    if (found := timeline_difference(real.timeline, ours.timeline)) is not None:
        return found
    parts = (("left after phase", real.final, ours.final), ("file", real.files, ours.files))
    for title, left, right in parts + (("printed line", real.stdout, ours.stdout),):
        for path, mine, yours in differences(left, right):
            return f"{title} {path} differs\n  real: {show(mine)}\n  ours: {show(yours)}"
    return None


def timeline_difference(real: list[dict[str, Any]], ours: list[dict[str, Any]]) -> str | None:
    """The first entry that differs, with the entries before it."""
    for at in range(max(len(real), len(ours))):
        left = real[at] if at < len(real) else None
        right = ours[at] if at < len(ours) else None
        if left is not None and right is not None:
            found = entry_difference(left, right)
            if found is None:
                continue
        else:
            found = "one side ends here"
        before = "\n".join(f"    {summary(entry)}" for entry in real[max(0, at - CONTEXT_ENTRIES) : at])
        return (
            f"timeline entry {at} differs: {found}\n  both, before:\n{before}\n"
            f"  real: {summary(left)}\n  ours: {summary(right)}"
        )
    return None


def entry_difference(left: dict[str, Any], right: dict[str, Any]) -> str | None:
    """What differs between two entries at the same place, or None."""
    if left["kind"] == right["kind"] == "failure":
        return failure_difference(left["failure"], right["failure"])
    for path, mine, yours in differences(left, right):
        return f"{path}: real {show(mine)}, ours {show(yours)}"
    return None


# -- values ----------------------------------------------------------------------------------------------------------

MISSING = "<missing>"


def differences(left: Any, right: Any, path: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Yield every place at which two plain values differ: path, left, right."""
    if isinstance(left, dict) and isinstance(right, dict):
        yield from mapping_differences(left, right, path)
    elif isinstance(left, list) and isinstance(right, list):
        for at in range(max(len(left), len(right))):
            mine = left[at] if at < len(left) else MISSING
            yours = right[at] if at < len(right) else MISSING
            yield from differences(mine, yours, f"{path}[{at}]")
    elif not same(left, right):
        yield path, left, right


def mapping_differences(left: dict, right: dict, path: str) -> Iterator[tuple[str, Any, Any]]:
    """Differences of two dicts: entries first, then their order."""
    for key in [*left, *(key for key in right if key not in left)]:
        yield from differences(left.get(key, MISSING), right.get(key, MISSING), f"{path}.{key}" if path else str(key))
    if list(left) != list(right) and set(left) == set(right):
        yield f"{path} (order of entries)", list(left), list(right)


def same(left: Any, right: Any) -> bool:
    """Whether two leaves are equal to the bit, type included."""
    if type(left) is not type(right):
        return False
    # repr of a float gives back its very bits, and tells -0.0 from 0.0 and NaN from a number
    return repr(left) == repr(right) if isinstance(left, float) else left == right


def show(value: Any) -> str:
    """A value, shortened."""
    text = str(value) if not isinstance(value, str) else repr(value)
    return text if len(text) <= 300 else text[:300] + " …"


def summary(entry: dict[str, Any] | None) -> str:
    """One timeline entry in one line."""
    if entry is None:
        return "nothing more"
    indent = "  " * entry["depth"]
    kind = entry["kind"]
    if kind == "event":
        flags = "".join("x" if flag else "." for flag in entry["before"])
        after = "".join("x" if flag else "." for flag in entry.get("after", []))
        state = entry["state"]
        return f"{indent}{entry['event']} flags {flags}->{after} step {state['global_step']} epoch {state['epoch']}"
    if kind == "method":
        return f"{indent}{entry['method']}()"
    if kind == "forward":
        return f"{indent}forward training={entry['training']} {show(entry['inputs'])}"
    return f"{indent}{kind} " + show({key: value for key, value in entry.items() if key not in ("kind", "depth")})


# -- failures --------------------------------------------------------------------------------------------------------


def failure_difference(real: Failure, ours: Failure) -> str | None:
    """Whether two exceptions are equivalent.

    The class must be the same. An exception of shared code (torch, accelerate, a model, a test's callback) must carry
    the same text. One of the Trainer's own is worded afresh in ours, and must name the same arguments and values.
    """
    if real.kind != ours.kind:
        return f"exception {real} against {ours}"
    if real.raised_in == "trainer" or ours.raised_in == "trainer":
        missing = left_out(real.message, ours.message)
        if missing:
            return f"the message leaves out {sorted(missing)}: real {real.message!r}, ours {ours.message!r}"
        return None
    if real.message != ours.message:
        return f"exception text: real {real.message!r}, ours {ours.message!r}"
    return None


def left_out(real: str, ours: str) -> set[str]:
    """What the real message names and ours, in words of its own, does not: nothing, if the two are equivalent."""
    return named_things(real) - named_things(ours)


class Said:
    """What one side says: equal to the same words, and to words of the other side that name all that the real one's do.

    Args:
        text: The message.
        is_ours: Whether our library says it.
    """

    def __init__(self, text: str, is_ours: bool) -> None:
        self.text, self.is_ours = text, is_ours

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Said) or self.text == other.text:
            return isinstance(other, Said)
        real, ours = (other, self) if self.is_ours else (self, other)
        return ours.is_ours and not real.is_ours and not left_out(real.text, ours.text)

    def __repr__(self) -> str:
        return f"{'ours' if self.is_ours else 'real'}: {self.text!r}, which names {sorted(named_things(self.text))}"


def said_by(error: BaseException) -> tuple[str, Said]:
    """The class of an exception, and what it says; whose it is, the innermost frame tells."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    file = "" if trace is None else trace.tb_frame.f_code.co_filename
    return type(error).__name__, Said(str(error), is_ours="transformers" not in Path(file).parts)


def named_things(message: str) -> set[str]:
    """The names and values that a message gives: identifiers with an underscore, flags, values after a colon, paths.

    Leading dashes are dropped: `--save_steps` and `save_steps` name the same argument.
    """
    message = re.sub(r"\b(save_steps)(?=\d)", r"\1 ", message)  # a space that 4.31.0 forgets
    names = re.findall(r"[A-Za-z]\w*_\w+|--[a-z]\w+|\w+(?:[/-]\w+)*/\w+(?:[/-]\w+)*", message)
    values = re.findall(r"(?:: |=|found |not )\[?(-?\d+(?:\.\d+)?)", message)
    return {word.lstrip("-") for word in names} | set(values)


# Where 4.31.0 fails late or obscurely, ours may say it better: (class and pattern of upstream's, class and pattern of
# ours, whether ours comes earlier).
IMPROVED: tuple[tuple[str, str, str, str, bool], ...] = (
    ("NameError", "^name 'xm' is not defined$", "ImportError", "tpu_metrics_debug.*torch_xla", False),
)


def improved_failure(real: Observation, ours: Observation) -> str | None:
    """Judge a pair of failures of which ours is a deliberate improvement.

    Returns:
        None where no improvement applies; an empty text where one applies and all before it is equal; otherwise the
        difference before it.
    """
    left, right = last_failure(real), last_failure(ours)
    if left is None or right is None:
        return None
    for kind, pattern, our_kind, our_pattern, earlier in IMPROVED:
        if left.kind != kind or right.kind != our_kind or not re.search(pattern, left.message):
            continue
        if not re.search(our_pattern, right.message) or left == right:
            continue
        common = ours.timeline[: first_failure_at(ours)]
        if not earlier and len(common) != first_failure_at(real):
            return f"the improved failure {right} comes at another moment than {left}"
        return timeline_difference(real.timeline[: len(common)], common) or ""
    return None


def last_failure(observation: Observation) -> Failure | None:
    """The last exception of a run."""
    failures = [entry["failure"] for entry in observation.timeline if entry["kind"] == "failure"]
    return failures[-1] if failures else None


def first_failure_at(observation: Observation) -> int:
    """Where in the timeline the first exception stands."""
    return next(at for at, entry in enumerate(observation.timeline) if entry["kind"] == "failure")


# Read next: tests/parity/test_properties.py
