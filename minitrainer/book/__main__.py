"""`python -m minitrainer.book`: check what pages state, write the generated ones, look at one place.

Exit status: 0 all is well, 1 something is not, 2 it could not be done.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from .errors import BookError
from .pages import CHAPTERS, read_page


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line and return its exit status."""
    parser = argparse.ArgumentParser(prog="python -m minitrainer.book", description=__doc__.split("\n\n")[0])
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    check_parser = commands.add_parser(
        "check", help="check pages: code, traces, claims, questions, names, blocks that run"
    )
    check_parser.add_argument(
        "pages", nargs="*", metavar="PAGE.md", help="pages of chapters/ (default: the whole book)"
    )
    check_parser.add_argument("--no-run", action="store_true", help="leave out what is executed")
    check_parser.add_argument("--slow", action="store_true", help="say which blocks took longest")
    commands.add_parser("write", help="write the generated pages")
    place_parser = commands.add_parser("place", help="say where a piece of code is, its phases and its digest")
    place_parser.add_argument("spec", nargs="+", metavar="FILE.py [NAME] [/ PHASE]")
    options = parser.parse_args(argv)
    try:
        if not CHAPTERS.is_dir():
            raise BookError(
                "the chapters are not part of the installed package: run this in a clone of the repository"
            )
        if options.command == "check":
            return _check(options)
        if options.command == "write":
            return _write()
        return _place(" ".join(options.spec))
    except BookError as error:
        print(f"minitrainer.book: {error}", file=sys.stderr)
        return 2


def _check(options: argparse.Namespace) -> int:
    from . import checking

    began = time.perf_counter()
    if options.pages:
        pages = [read_page(path if path.exists() else CHAPTERS / path.name) for path in map(Path, options.pages)]
        found = checking.check(pages, execute=not options.no_run)
    else:
        found = checking.check_whole(execute=not options.no_run)
    for sentence in found.wrong:
        print(sentence)
    if options.slow:
        for seconds, where in sorted(found.slow, reverse=True)[:12]:
            print(f"{seconds:6.1f} s  {where}")
    looked_at = ", ".join(f"{found.counts[what]} {what}" for what in checking.SUBJECTS if found.counts[what])
    took = time.perf_counter() - began
    verdict = f"{len(found.wrong)} to mend" if found.wrong else "all is well"
    print(f"{verdict}. Looked at {looked_at or 'nothing'}; {took:.0f} s.")
    return 1 if found.wrong else 0


def _write() -> int:
    from . import generated

    for name, changed in generated.write():
        print(f"{'wrote' if changed else 'kept '} chapters/{name}")
    return 0


def _place(spec: str) -> int:
    from . import places

    file, name, phase, _ = places.parse_spec(spec)
    place = places.find(file, name, phase)
    print(f"{place.spec} #{place.digest}    lines {place.first}–{place.last}")
    for one in places.phases(file, name) if name and not phase else ():
        inner = places.find(file, name, one)
        print(f"{inner.spec} #{inner.digest}    lines {inner.first}–{inner.last}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
