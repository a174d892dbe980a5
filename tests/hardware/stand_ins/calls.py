"""What the stand-ins were asked for, in order. Imported by all of them."""

from typing import Any

CALLS: list[str] = []


def note(name: str, **details: Any) -> None:
    """Keep one call, with the details that must not differ."""
    CALLS.append(" ".join([name, *(f"{key}={value}" for key, value in sorted(details.items()))]))
