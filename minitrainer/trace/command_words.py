"""Parses commands that are followed by a scenario or script with arguments of its own."""

from __future__ import annotations

import argparse

from minitrainer.trace.errors import UsageError


def own_options_out_of(options: argparse.Namespace, parser: argparse.ArgumentParser, command: str) -> list[str]:
    """Take a command's own options out of the words in `options.what`, and return the rest.

    Our options may stand before or after the scenario's name. What follows a lone `--` is the scenario's or script's.

    Args:
        options: as parsed so far; the options found are set in it.
        parser: a parser of the command's own options.
        command: its name, for complaints.
    """
    words = options.what
    end = words.index("--") if "--" in words else len(words)

    def error(message: str) -> None:
        raise UsageError(f"{message} (see {command} --help)")

    parser.error = error  # type: ignore[method-assign,assignment]
    later, rest = parser.parse_known_args(words[:end])
    for name, value in vars(later).items():
        if value != parser.get_default(name):
            setattr(options, name, value)
    return [*rest, *words[end + 1 :]]


# Read next: compare.py, one of these commands.
