"""The command line of the microscope: what follows `python -m minitrainer.trace`.

Two kinds of words can follow. A *run* (a scenario's name or a script) is executed and recorded; a *command* works on
recordings or on upstream versions. Nothing heavier than argparse is imported until it is clear what is wanted, so that
`--help` answers at once.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
import traceback
from collections.abc import Sequence

from . import scenarios
from .errors import UsageError

PROGRAM = "python -m minitrainer.trace"

# command -> (module with add_arguments(parser) and main(options), what it does)
COMMANDS = {
    "show": (".commands", "print a recorded trace as a tree"),
    "verify": (".commands", "derive every logged loss again and report any that does not follow"),
    "stats": (".commands", "count what a trace holds, and what recording it cost"),
    "export": (".commands", "write a trace as canonical lines, Markdown, JSON or for Perfetto"),
    "compare": (".compare", "tell what differs between two traces, or between two Trainers in one scenario"),
    "audit": (".audit", "tell whether losses, gradients and sample counts of a run are what they should be"),
    "since": (".history", "walk the milestones of upstream and tell what changed at each"),
    "bisect": (".history", "find the release in which a finding first appears"),
    "upstream": (".upstream", "install, list or remove isolated transformers versions"),
}

EPILOG = """\
examples:
  {program} run_glue
  {program} run_glue --trainer transformers==4.31.0
  {program} run_glue --max_steps 8 --only loss
  {program} run_glue --nproc 2
  {program} my_script.py --its --own arguments
  torchrun --nproc_per_node 2 -m minitrainer.trace my_script.py
  {program} show runs/FOLDER --step 3..5

`{program} WORD --help` tells more about each word."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line and return its exit status: 0 done, 1 a check failed, 2 it could not be done."""
    words = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in words[: _position_of_what(words) + 1] or os.environ.get("MINITRAINER_DEBUG") == "1"
    try:
        return _dispatch(words)
    except UsageError as error:
        if debug:
            traceback.print_exc()
        # One line, whatever the message was made of: a script that reads our stderr can rely on it.
        print("minitrainer.trace: " + " ".join(str(error).split()), file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("minitrainer.trace: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # `… show FILE | head` closed the pipe: that's the reader's right, not an error.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141


def _dispatch(words: list[str]) -> int:
    what = words[_position_of_what(words)] if _position_of_what(words) < len(words) else None
    if what is None:
        if not words or words[-1] in ("-h", "--help"):
            _top_parser().print_help()
            return 0
        raise UsageError("say what to run or to show: a scenario (run_glue), a script, or a command; see --help")
    if what in COMMANDS:
        module = importlib.import_module(COMMANDS[what][0], __package__)
        parser = argparse.ArgumentParser(prog=PROGRAM, allow_abbrev=False, add_help=False)
        parser.add_argument("--debug", action="store_true", help=argparse.SUPPRESS)
        commands = parser.add_subparsers(dest="command", required=True)
        module.add_arguments(commands)
        return module.main(_parse(parser, words))
    if what in scenarios.SCENARIOS or what.endswith(".py"):
        from . import running

        return running.main(what, words[: _position_of_what(words)], words[_position_of_what(words) + 1 :])
    raise UsageError(_unknown(what))


def _position_of_what(words: Sequence[str]) -> int:
    """Index of the first word that is neither an option nor an option's value: the scenario, script or command."""
    takes_value = {"--out", "--trainer", "--environment", "--nproc", "--only", "--step", "--rank"}
    position = 0
    while position < len(words) and words[position].startswith("-"):
        position += 2 if words[position] in takes_value else 1
    return position


def _parse(parser: argparse.ArgumentParser, words: list[str]) -> argparse.Namespace:
    """Parse, with argparse's two-line complaint turned into our one line."""
    parser.exit_on_error = False
    _errors_raise(parser)
    return parser.parse_args(words)


def _errors_raise(parser: argparse.ArgumentParser) -> None:
    """Let `parser` and its subparsers raise UsageError where argparse would print a usage text and exit."""

    def error(message: str) -> None:
        raise UsageError(f"{message} (see {parser.prog} --help)")

    parser.error = error  # type: ignore[assignment,method-assign]
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for subparser in action.choices.values():
                _errors_raise(subparser)


def _unknown(what: str) -> str:
    import difflib

    known = [*scenarios.SCENARIOS, *COMMANDS]
    near = difflib.get_close_matches(what, known, n=1)
    hint = f"did you mean {near[0]}?" if near else f"known are {', '.join(known)}, and any SCRIPT.py"
    return f"{what!r} is no scenario, script or command: {hint}"


def _top_parser() -> argparse.ArgumentParser:
    import shutil
    import textwrap

    indent = max(map(len, [*scenarios.SCENARIOS, *COMMANDS])) + 4
    columns = min(shutil.get_terminal_size().columns, 110)

    def row(name: str, summary: str) -> str:
        lines = textwrap.wrap(summary, columns - indent)
        return f"  {name}".ljust(indent) + ("\n" + " " * indent).join(lines)

    rows = [
        "run and record:",
        *(row(name, summary) for name, summary in scenarios.SCENARIOS.items()),
        row("SCRIPT.py", "any script that uses a Trainer, unchanged, with its own arguments"),
        "",
        "commands:",
        *(row(name, summary) for name, (_, summary) in COMMANDS.items()),
    ]
    return argparse.ArgumentParser(
        prog=PROGRAM,
        usage=f"{PROGRAM} [options] WORD [its arguments]",
        description="Watch transformers.Trainer at work: callbacks, control flags, and where each\n"
        "logged loss comes from.\n\n" + "\n".join(rows),
        epilog=EPILOG.format(program=PROGRAM),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


# Read next: running.py, which executes and records a scenario or a script.
