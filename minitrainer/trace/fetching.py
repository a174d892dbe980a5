"""pip, kept on a short lead: what it may touch, what it says meanwhile, and what its failures mean.

Every call installs into a folder that we name, or only reports what it would install. It runs with the user's own
configuration (index, proxy, certificates), except for the settings that say *where* the user's installs go. What pip
prints is read line by line: the packages become progress, and a failure becomes one line that says what to do.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import re
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from .errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator

# Settings for the user's own installs that make no sense for a folder: where to install, and within which bounds.
# PYTHONPATH may hold an older version's folder, when an add runs inside a run.
NOT_FOR_PIP = ("PIP_TARGET", "PIP_PREFIX", "PIP_ROOT", "PIP_CONSTRAINT", "PIP_QUIET", "PIP_REPORT", "PYTHONPATH")


@dataclasses.dataclass(frozen=True)
class Workshop:
    """Where one add works, and the words it needs when something goes wrong."""

    folder: Path  # empty at first, on the same disk as `place`, deleted in the end
    place: Path  # where the versions lie
    what: str  # "transformers 4.31.0 (lock …)"
    again: str  # the command that tries once more
    progress: Progress


class NotOnIndex(UsageError):
    """The index answers, but has no wheel of a package for this Python in the version asked for."""

    def __init__(self, message: str, name: str, offered: list[str], needs_python: str | None) -> None:
        super().__init__(message)
        self.name = name
        self.offered = offered  # the versions that it has
        self.needs_python = needs_python  # ">=3.11.0", when that is why


def install(pins: list[str], folder: Path, workshop: Workshop) -> None:
    """Install the pinned packages into `folder`, and nothing that they ask for.

    Raises:
        UsageError: pip could not; the text says why and what to do.
    """
    requirements = workshop.folder / "requirements.txt"
    requirements.write_text("\n".join(pins) + "\n", encoding="utf-8")
    # Without compiling: the import that follows compiles the tenth of the files that a run needs.
    arguments = ["--no-deps", "--no-compile", "--target", str(folder), "-r", str(requirements)]
    packages_seen = 0
    for line in _pip(arguments, workshop):
        collecting = re.match(r"Collecting ([^=\s]+)==", line)
        if collecting:
            workshop.progress.wait(f"fetching {collecting[1]}", in_pipe=False)
        wheel = re.match(
            r"\s*(?:Downloading|Using cached|Processing) (?:\S*/)?([^/\s]+?)-([^-\s]+)-\S+\.whl(.*)$", line
        )
        if wheel:
            packages_seen += 1
            size = re.search(r"\(([\d.]+ .B)\)", wheel[3])
            package = f"{wheel[1].replace('_', '-')} {wheel[2]}"
            text = f"{packages_seen:2} of {len(pins)}  {package:34}{size[1] if size else '':>9}"
            workshop.progress.line(text.rstrip())
        elif line.startswith("Installing collected packages"):
            workshop.progress.wait(f"unpacking {len(pins)} packages")


def report(arguments: list[str], workshop: Workshop) -> list[dict[str, Any]]:
    """Return the metadata of all that pip would install for `arguments`, whatever is installed here already.

    Raises:
        NotOnIndex: the index has no fitting version of one of the packages.
        UsageError: anything else went wrong.
    """
    file = workshop.folder / "report.json"
    for _ in _pip(["--dry-run", "--ignore-installed", "--report", str(file), *arguments], workshop):
        pass
    return [package["metadata"] for package in json.loads(file.read_text(encoding="utf-8"))["install"]]


def _pip(arguments: list[str], workshop: Workshop) -> Iterator[str]:
    """Run `pip install` and yield what it prints, line by line."""
    temporary = workshop.folder / "tmp"  # pip unpacks there: the right disk, and swept with the workshop
    temporary.mkdir(exist_ok=True)
    surroundings = {name: value for name, value in os.environ.items() if name not in NOT_FOR_PIP}
    surroundings.update(TMPDIR=str(temporary), PIP_USER="0", PIP_REQUIRE_VIRTUALENV="0", PYTHONUNBUFFERED="1")
    command = [*_pip_command(), "install", "--no-input", "--disable-pip-version-check", "--progress-bar", "off"]
    # Wheels only: building an old tokenizers from source needs a Rust compiler and minutes.
    command += ["--only-binary", ":all:", *arguments]
    said: list[str] = []
    child = subprocess.Popen(
        command,
        env=surroundings,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    )
    assert child.stdout is not None
    try:
        for line in child.stdout:
            said.append(line.rstrip())
            retry = re.search(r"Retrying \(Retry\(total=(\d+)", line)
            if retry:
                workshop.progress.wait(f"no answer from the index; tries left: {int(retry[1]) + 1}")
            yield said[-1]
        child.wait()
    finally:
        if child.poll() is None:  # we were interrupted: pip must not go on alone
            child.kill()
            child.wait()
    if child.returncode != 0:
        raise _what_pip_meant(said, workshop)


def _pip_command() -> list[str]:
    """Return how to start pip for this interpreter: the installed one, or the one that Python carries with it."""
    from importlib.util import find_spec

    if find_spec("pip") is not None:
        return [sys.executable, "-m", "pip"]
    with contextlib.suppress(ImportError):
        import ensurepip

        for wheel in sorted(Path(ensurepip.__file__).parent.glob("_bundled/pip-*.whl")):
            return [sys.executable, str(wheel / "pip")]  # a wheel is a zip file, and pip runs from inside one
    raise UsageError(f"pip is not installed for this Python; run `{sys.executable} -m ensurepip` and try again")


def _what_pip_meant(said: list[str], workshop: Workshop) -> UsageError:
    """Turn what a failing pip printed into the error that the user can act on."""
    text = "\n".join(said)
    if "No space left on device" in text or "Disk quota exceeded" in text:
        return disk_full(workshop.place)
    if "Permission denied" in text or "Read-only file system" in text:
        return not_writable(workshop.place)

    # pip names the package that it could not find and the versions that the index has. Of an index that it could not
    # reach it says the same: that it has none. What tells the two apart is whether anything else was found.
    missing = re.search(
        r"Could not find a version that satisfies the requirement ([\w.-]+)(.*?)\s*(?:\(from [^v].*\) )?"
        r"\(from versions: (.*?)\)$",
        text,
        re.MULTILINE,
    )
    offered = [] if missing is None or missing[3] == "none" else missing[3].split(", ")
    tried_again = re.search(r"Retrying \(|Max retries exceeded|Could not fetch URL|Name or service not known", text)
    found_others = re.search(r"^\s*(Downloading|Using cached|Processing) ", text, re.MULTILINE)
    if missing is not None and (offered or found_others) and not tried_again:
        pin = f"{missing[1]} {missing[2].strip(' =')}".rstrip()
        exact = missing[2].strip(" =")
        needs_python = re.search(rf"(?<![\d.]){re.escape(exact)} Requires-Python ([^;\s]+)", text)
        message = (
            f"{workshop.what} can't be added: the index has no {pin} that fits Python {python()} on this machine"
            + (f" (it needs Python {needs_python[1]})" if needs_python else "")
        )
        return NotOnIndex(message, missing[1].lower(), offered, needs_python[1] if needs_python else None)
    if tried_again or missing is not None:
        return UsageError(
            f"the package index can't be reached, so {workshop.what} was not added to {short(workshop.place)}; "
            f"once online, run: {workshop.again}"
        )
    conflict = re.search(r"The conflict is caused by:\s*(.*?)\n\s*\n", text, re.DOTALL)
    if conflict:
        return UsageError(f"{workshop.what} can't be added, its needs conflict: {'; '.join(conflict[1].splitlines())}")
    errors = [line for line in said if line.startswith("ERROR:")]
    return UsageError(f"pip could not install {workshop.what}: {(errors or said or ['it said nothing'])[-1]}")


def disk_full(place: Path) -> UsageError:
    """The error for a disk without room."""
    free = shutil.disk_usage(place).free
    return UsageError(
        f"the disk of {short(place)} is full ({megabytes(free)} free; a version takes about 100 MB, twice that while "
        "it is added): make room, or choose another folder with --dir"
    )


def not_writable(place: Path) -> UsageError:
    """The error for a folder that belongs to someone else."""
    return UsageError(f"{short(place)} can't be written to; choose another folder with --dir")


class Progress:
    """Says what is going on: a line for each thing done, and on a terminal one more that ticks until the next."""

    def __init__(self, stream: IO[str]) -> None:
        self.stream = stream
        self.started = time.monotonic()
        self.waiting_for = ""
        self.is_terminal = stream.isatty()
        self.mutex = threading.Lock()  # two threads write: the one that works and the one that ticks
        self.finished = threading.Event()
        self.ticker = threading.Thread(target=self._tick, daemon=True)

    def __enter__(self) -> Progress:
        if self.is_terminal:
            self.ticker.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.finished.set()
        if self.is_terminal:
            self.ticker.join()
            print("\r\x1b[K", end="", file=self.stream, flush=True)

    def line(self, text: str) -> None:
        """Print what was done, with the seconds since the start."""
        with self.mutex:
            self.waiting_for = ""
            erase = "\r\x1b[K" if self.is_terminal else ""
            print(f"{erase}{self._elapsed()}  {text}", file=self.stream, flush=True)

    def wait(self, text: str, *, in_pipe: bool = True) -> None:
        """Say what is being done now, and for how long, until the next line.

        Args:
            text: what, as in "fetching tqdm".
            in_pipe: say it also where nothing ticks. Not worth a line when the next one follows in a moment.
        """
        with self.mutex:
            if in_pipe and text != self.waiting_for and not self.is_terminal:
                print(f"{self._elapsed()}  {text} …", file=self.stream, flush=True)
            self.waiting_for = text

    def _tick(self) -> None:
        while not self.finished.wait(0.2):
            with self.mutex:
                if self.waiting_for:
                    text = f"{self._elapsed()}  {self.waiting_for} …"[: shutil.get_terminal_size().columns - 1]
                    print(f"\r\x1b[K{text}", end="", file=self.stream, flush=True)

    def _elapsed(self) -> str:
        return f"{time.monotonic() - self.started:6.1f} s"


def python() -> str:
    """Return this interpreter's version as locks and wheels name it: "3.11"."""
    return f"{sys.version_info[0]}.{sys.version_info[1]}"


def megabytes(count_bytes: int) -> str:
    """Write a size."""
    return f"{count_bytes / 1e6:.0f} MB"


def short(path: Path) -> str:
    """Write a path below the home folder with a tilde, as a shell reads it back."""
    try:
        return f"~/{path.relative_to(Path.home())}"
    except (ValueError, RuntimeError):  # elsewhere; or nobody's home
        return str(path)


# Read next: upstream.py, where the folder that pip filled becomes a version at hand.
