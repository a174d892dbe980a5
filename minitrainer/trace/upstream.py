"""Any upstream version of transformers in an isolated folder, sharing the torch that is already installed.

Two Trainers can only be compared fairly when nothing but the Trainer differs: one interpreter, one torch, one NumPy.
So a version is not given a virtual environment of its own. Its packages go into one folder, `run_in` puts that folder
first on the path of a child process, and everything the folder does not hold is found where it always was:

    ~/.cache/minitrainer/upstream/
        4.31.0-cpython-311/            one version, for one Python
            transformers/  accelerate/  tokenizers/  huggingface_hub/  datasets/  …
            minitrainer-upstream.json  written last: without it the folder does not count

What goes in comes from a frozen lock (`locks/4.31.0.txt`) for the milestones. Any other version is resolved from its
own metadata, with the accelerate of its season (`SEASONS`). pip never sees the name torch: the requirements of
transformers, accelerate and datasets are read one by one, and torch is left out before anything is resolved.

The folder is built under another name beside the final one, tried out (does this transformers import on this
torch?), and only then renamed: an install that was interrupted leaves nothing that could be taken for a whole one.

Nothing here imports torch, transformers or rich, so the command line's `--help` stays quick.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from .errors import UsageError

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator, Mapping, Sequence

REFERENCE_VERSION = "4.31.0"
OLDEST_VERSION = (4, 31, 0)

# Withdrawn from the index by their authors: pip would still install them when asked for by exact number.
YANKED_VERSIONS = {"4.46.0": "4.46.3", "4.52.0": "4.52.4", "4.57.0": "4.57.6", "5.10.0": "5.10.4"}  # and what to take

# The other versions that each season of transformers was released with and runs well with. transformers itself names
# no accelerate in its metadata (it is an extra with a lower bound only), so nothing but a table can tell.
# (first version of the season, accelerate, tokenizers, huggingface_hub, datasets)
SEASONS = (
    ((4, 31), "0.21.0", "0.13.3", "0.36.2", "5.0.1"),
    ((4, 34), "0.23.0", "0.14.1", "0.36.2", "5.0.1"),
    ((4, 35), "0.25.0", "0.15.2", "0.36.2", "5.0.1"),
    ((4, 38), "0.27.2", "0.15.2", "0.36.2", "5.0.1"),
    ((4, 40), "0.29.3", "0.19.1", "0.36.2", "5.0.1"),
    ((4, 41), "0.30.1", "0.19.1", "0.36.2", "5.0.1"),
    ((4, 45), "1.1.1", "0.20.3", "0.36.2", "5.0.1"),
    ((4, 47), "1.2.1", "0.21.4", "0.36.2", "5.0.1"),
    ((4, 51), "1.6.0", "0.21.4", "0.36.2", "5.0.1"),
    ((4, 54), "1.9.0", "0.21.4", "0.36.2", "5.0.1"),
    ((4, 56), "1.10.1", "0.22.2", "0.36.2", "5.0.1"),
    ((5, 0), "1.12.0", "0.22.2", "1.3.2", "5.0.1"),
    ((5, 4), "1.13.0", "0.22.2", "1.33.0", "5.0.1"),
    ((5, 16), "1.15.0", "0.23.3", "1.33.0", "5.2.0"),
)

# The newest version that SEASONS was tried with. After it, pip takes whatever the metadata allows.
NEWEST_TRIED = (5, 24)

# torch and what it stands on: never in a plan, never fetched.
TORCH_FAMILY = re.compile(r"^(torch|torch(vision|audio|data|ao|gen)|functorch|triton|pytorch-.*|nvidia-.*|cuda-.*)$")
COMES_WITH_TORCH = (
    "filelock",
    "jinja2",
    "markupsafe",
    "mpmath",
    "networkx",
    "setuptools",
    "sympy",
    "typing-extensions",
)

# Taken from the environment when it has them in a fitting version. numpy must be the one that torch was loaded with;
# pyarrow and pandas are three quarters of the megabytes and do nothing that a Trainer's numbers depend on.
SHARED_WHEN_INSTALLED = ("numpy", "pandas", "pyarrow", "python-dateutil", "pytz", "six", "tzdata")

# What a lock cannot give on a Python that is newer than it: the version that takes the place, under the old version's
# name. transformers checks these versions by metadata at import, and the newer code does what the older did.
STAND_INS = {"tokenizers": "0.22.2", "numpy": "2.2.6"}

# Optional packages of the user's environment that break an older Trainer's import when they are newer than its
# accelerate: (package, accelerate versions below this one cannot have it in sight).
HIDDEN_BELOW_ACCELERATE = {"peft": (1, 0)}

# Resuming reads the optimizer's and the random generators' state with `torch.load`; since torch 2.6 that refuses
# everything but plain tensors, which these versions did not yet allow for.
NEEDS_FULL_TORCH_LOAD_BELOW = (4, 47)

COMPLETION_FILE = "minitrainer-upstream.json"
COMMAND = "python -m minitrainer.trace upstream"
REPORTED_VERSIONS = ("transformers", "accelerate", "tokenizers", "huggingface_hub", "datasets", "torch", "numpy")
LOCKS = Path(__file__).parent / "locks"


@dataclasses.dataclass(frozen=True)
class Upstream:
    """One version at hand: a whole folder and what its completion file says."""

    version: str
    folder: Path
    python: str  # "3.11"
    packages: dict[str, str]  # what the folder holds, by name
    shared: dict[str, str]  # what it takes from the environment, by name, and in which range
    stand_ins: dict[str, dict[str, str]]  # {"tokenizers": {"says": "0.13.3", "is": "0.22.2"}}
    lock_digest: str | None  # of the frozen lock; None for a version that was resolved
    bytes: int
    added: str  # UTC, ISO 8601


@dataclasses.dataclass(frozen=True)
class Finished:
    """What came of a child process that `run_in` ran to its end."""

    returncode: int
    stdout: str | None  # None unless captured
    stderr: str | None
    versions: dict[str, str]  # read by a child in the same surroundings, not taken from the lock
    upstream: Upstream


# -- the commands -----------------------------------------------------------------------------------


def add_arguments(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declare `upstream add`, `upstream list` and `upstream remove`."""
    upstream = commands.add_parser(
        "upstream",
        help="install, list or remove isolated transformers versions",
        description="Any release of transformers since 4.31.0 in a folder of its own, sharing the installed torch.",
    )
    what = upstream.add_subparsers(dest="upstream_command", metavar="{add,list,remove}")
    add_parser = what.add_parser("add", help="install one version into a folder of its own")
    add_parser.add_argument("version", metavar="VERSION", help="such as 4.31.0; any release since then")
    list_parser = what.add_parser("list", help="show the versions at hand, and those with a frozen lock")
    remove_parser = what.add_parser("remove", help="delete a version's folder")
    remove_parser.add_argument("version", metavar="VERSION", help="a version that `list` shows")
    for parser in (add_parser, list_parser, remove_parser):
        parser.add_argument(
            "--dir",
            metavar="DIR",
            help="where the versions lie (default: $MINITRAINER_UPSTREAM_DIR, else minitrainer/upstream in your cache)",
        )


def main(options: argparse.Namespace) -> int:
    """Carry out the parsed command and return the exit status.

    Raises:
        UsageError: the version can't be had, or was asked for wrongly; its text is one line.
    """
    command = getattr(options, "upstream_command", None)
    if command is None:
        raise UsageError(f"say what to do with upstream versions: {COMMAND} add VERSION, list, or remove VERSION")
    directory = Path(options.dir) if options.dir else None
    if command == "add":
        upstream = add(options.version, directory)
        print(
            f"transformers {upstream.version} is at hand: accelerate {upstream.packages['accelerate']}, "
            f"{_megabytes(upstream.bytes)}, in {_short(upstream.folder)}"
        )
    elif command == "list":
        print("\n".join(_listing(directory)))
    else:
        for folder in remove(options.version, directory):
            print(f"removed {_short(folder)}")
    return 0


def _listing(directory: Path | None) -> Iterator[str]:
    """Yield the lines of `upstream list`, at most 80 columns wide."""
    place = upstream_directory(directory)
    rows = [("version", "Python", "accelerate", "tokenizers", "datasets", "size", "from")]
    seen = set()
    for folder in sorted(_version_folders(place), key=lambda folder: (_order(folder.name), folder.name)):
        upstream = _read_completion(folder)
        if upstream is None:
            rows.append((folder.name.partition("-")[0], "?", "", "", "", "", "not whole: add it again"))
            continue
        if upstream.python == _python():
            seen.add(upstream.version)
        tokenizers = upstream.packages.get("tokenizers", "")
        if "tokenizers" in upstream.stand_ins:
            tokenizers += " *"
        origin = "lock" if upstream.lock_digest else "metadata"
        if _why_stale(upstream) is not None and upstream.python == _python():
            origin = f"older {origin}: add it again"
        accelerate, datasets = upstream.packages.get("accelerate", ""), upstream.packages.get("datasets", "")
        size = _megabytes(upstream.bytes)
        rows.append((upstream.version, upstream.python, accelerate, tokenizers, datasets, size, origin))

    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    yield f"in {_short(place)}:"
    if len(rows) == 1:
        yield "  nothing yet"
    else:
        for row in rows:
            yield "  " + "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
    if any("*" in row[3] for row in rows):
        yield "  * stands in for an older tokenizers that this Python has no wheel of"
    missing = [version for version in locked_versions() if version not in seen]
    if missing:
        yield f"not added yet, with a frozen lock ({COMMAND} add VERSION):"
        yield "  " + "  ".join(missing)


# -- adding -----------------------------------------------------------------------------------------


def add(version: str, directory: Path | str | None = None) -> Upstream:
    """Install one version into its folder, or find at once that it is there.

    The user's environment is only read. Progress goes to the standard error stream, one line a package.

    Args:
        version: such as "4.31.0" or "transformers==4.31.0".
        directory: where the versions lie; see `upstream_directory`.

    Raises:
        UsageError: the version is none that can be had, torch is missing, the index can't be reached, the disk is
            full, or this transformers does not import on this Python and torch. Nothing is left behind.
    """
    version = _canonical(version)
    place = upstream_directory(directory)
    upstream = _read_completion(_folder_of(version, place))
    if upstream is not None and _why_stale(upstream) is None:
        return upstream

    torch_version = _installed_version("torch")
    if torch_version is None:
        raise UsageError("torch is not installed in this environment; upstream versions share it, so install it first")
    with _clear_about_files(place), _only_one_add_at_a_time(version, place):
        # While we waited, the add that we waited for may have done our work.
        upstream = _read_completion(_folder_of(version, place))
        if upstream is not None and _why_stale(upstream) is None:
            return upstream
        # Built on the same disk as its final place, so that the last step is one rename.
        workshop = Path(tempfile.mkdtemp(prefix=f".adding-{_folder_of(version, place).name}-", dir=place))
        try:
            return _build(version, place, workshop, torch_version)
        finally:
            shutil.rmtree(workshop, ignore_errors=True)


def _build(version: str, place: Path, workshop: Path, torch_version: str) -> Upstream:
    """Do the work of `add` inside `workshop`, an empty folder beside the final one."""
    with _Progress(f"transformers {version}") as progress:
        # -- plan: every package, pinned ------------------------------------------------------------
        lock = lock_of(version)
        if lock is not None:
            plan = _read_lock(lock.read_text(encoding="utf-8"), str(lock))
            progress.line(f"frozen lock {lock.name}")
        else:
            plan = resolve(version, place, workshop, progress)
        plan, shared = _leave_out_what_is_shared(plan)
        for requirement in plan:
            if TORCH_FAMILY.match(requirement.name):
                raise UsageError(f"the plan for transformers {version} names {requirement.name}: refused to fetch it")
        from_here = [name for name in shared if name in ("numpy", "pandas", "pyarrow")]
        progress.line(f"shared: torch {torch_version}" + "".join(f", {n} {_installed_version(n)}" for n in from_here))

        # -- fetch and unpack -----------------------------------------------------------------------
        folder = workshop / "whole"
        requirements = workshop / "requirements.txt"
        requirements.write_text("".join(f"{r.name}=={r.version}\n" for r in plan), encoding="utf-8")
        _pip_install(version, place, requirements, len(plan), folder, workshop, progress)
        stand_ins = _put_stand_ins(plan, folder)
        for name, stand_in in stand_ins.items():
            progress.line(f"{name} {stand_in['is']} stands in for {stand_in['says']}: no wheel for Python {_python()}")
        _hide_what_breaks(plan, folder)

        # -- try it ---------------------------------------------------------------------------------
        progress.wait(f"importing its Trainer on torch {torch_version}")
        _try_import(version, folder, torch_version)
        progress.line(f"its Trainer imports on torch {torch_version}")

        # -- complete: the file first, then the name ------------------------------------------------
        upstream = Upstream(
            version=version,
            folder=_folder_of(version, place),
            python=_python(),
            packages={requirement.name: requirement.version for requirement in plan},
            shared=shared,
            stand_ins=stand_ins,
            lock_digest=_digest(lock) if lock is not None else None,
            bytes=sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()),
            added=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        )
        _write_completion(upstream, folder)
        if upstream.folder.exists():  # stale, or without its completion file: out of the way first
            upstream.folder.rename(workshop / "replaced")
        folder.rename(upstream.folder)
        progress.line("whole")
        return upstream


def remove(version: str, directory: Path | str | None = None) -> list[Path]:
    """Delete a version's folders, for whichever Python they were made, and return them.

    Raises:
        UsageError: there is none.
    """
    version = _canonical(version)
    place = upstream_directory(directory)
    folders = [folder for folder in _version_folders(place) if folder.name.partition("-")[0] == version]
    if not folders:
        raise UsageError(f"transformers {version} is not in {_short(place)}; what is there: {COMMAND} list")
    with _clear_about_files(place):
        for folder in folders:
            # Renamed first: a removal that is interrupted must not leave half a folder under a whole one's name.
            doomed = Path(tempfile.mkdtemp(prefix=f".removing-{folder.name}-", dir=place))
            folder.rename(doomed / "whole")
            shutil.rmtree(doomed)
    return folders


# -- running ----------------------------------------------------------------------------------------


def run_in(
    version: str,
    argv: Sequence[str],
    *,
    env: Mapping[str, str | None] | None = None,
    capture: bool = False,
    timeout: float | None = None,
    cwd: Path | str | None = None,
    directory: Path | str | None = None,
    add_if_missing: bool = False,
    resume_own_checkpoints: bool = False,
) -> Finished:
    """Run this interpreter in a child process in which `import transformers` gives that version.

    minitrainer itself can be imported there too, on top of that version. The child may start further processes
    (`torch.distributed.run`): they inherit its surroundings.

    Args:
        version: a version at hand, such as "4.31.0".
        argv: what follows the interpreter: `["-m", "torch.distributed.run", …]`, `["script.py", "--flag"]`.
        env: variables set for the child on top of this process's own; a value of None takes a variable away.
        capture: collect the output as text instead of letting it through.
        timeout: seconds after which the child and all it started are killed.
        cwd: the child's working folder.
        directory: where the versions lie; see `upstream_directory`.
        add_if_missing: add the version first if need be, instead of refusing.
        resume_own_checkpoints: the child will resume from a checkpoint that it, or an earlier run of yours, wrote.
            Versions before 4.47 can't under torch 2.6 or newer unless `torch.load` may unpickle anything
            again; that permission is given to this child alone, and to none that did not ask. Never use it
            with a checkpoint from elsewhere.

    Raises:
        UsageError: the version is not at hand, another transformers stands before it on the path, or time ran out.
    """
    upstream = add(version, directory) if add_if_missing else find(version, directory)
    surroundings = environment(upstream)
    if resume_own_checkpoints and _order(upstream.version) < NEEDS_FULL_TORCH_LOAD_BELOW:
        surroundings["TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"] = "1"
    for name, value in (env or {}).items():
        if value is None:
            surroundings.pop(name, None)
        else:
            surroundings[name] = value
    versions = _versions_in(upstream, surroundings, argv, cwd)

    # A session of its own when there is a limit, so that what the child started can be killed with it. Otherwise the
    # child stays in ours: Ctrl-C at the terminal reaches all of it at once.
    child = subprocess.Popen(
        [sys.executable, *argv],
        env=surroundings,
        cwd=cwd,
        stdout=subprocess.PIPE if capture else None,
        stderr=subprocess.PIPE if capture else None,
        text=True,
        errors="replace",
        start_new_session=timeout is not None,
    )
    try:
        stdout, stderr = child.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        raise UsageError(
            f"the run on transformers {upstream.version} took longer than {timeout:g} s and was stopped"
        ) from None
    finally:
        if child.poll() is None:
            _kill(child, with_session=timeout is not None)
    return Finished(child.returncode, stdout, stderr, versions, upstream)


def find(version: str, directory: Path | str | None = None) -> Upstream:
    """Return the version's folder if it is whole and made for this Python.

    Raises:
        UsageError: it is not; the text names the command that adds it.
    """
    version = _canonical(version)
    place = upstream_directory(directory)
    command = f"{COMMAND} add {version}" + (f" --dir {_short(place)}" if directory is not None else "")
    upstream = _read_completion(_folder_of(version, place))
    if upstream is None:
        found = [_read_completion(folder) for folder in _version_folders(place)]
        others = sorted({other.python for other in found if other is not None and other.version == version})
        for_python = f" for Python {_python()}, only for {' and '.join(others)}" if others else ""
        raise UsageError(
            f"transformers {version} is not at hand in {_short(place)}{for_python}; add it with: {command}"
        )
    why_stale = _why_stale(upstream)
    if why_stale is not None:
        raise UsageError(f"transformers {version} is at hand but {why_stale}; renew it with: {command}")
    return upstream


def reference_environment(directory: Path | str | None = None) -> Path:
    """Return the folder of the reference version, 4.31.0, adding it first when it is missing.

    The folder alone, as PYTHONPATH of a child process, gives that version; `environment` gives the rest as well.
    """
    return add(REFERENCE_VERSION, directory).folder


def environment(upstream: Upstream) -> dict[str, str]:
    """Return this process's variables, changed so that a child finds `upstream` first and minitrainer with it."""
    paths = [str(upstream.folder)]
    root = Path(__file__).resolve().parents[2]
    # An installed minitrainer is found anyway; putting its site-packages on PYTHONPATH would let it shadow the
    # standard library.
    if root.name not in ("site-packages", "dist-packages"):
        paths.append(str(root))
    # A folder of another version, inherited from a run inside a run, would lend its packages to this one.
    inherited = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    paths += [path for path in inherited if path and path not in paths and not (Path(path) / COMPLETION_FILE).exists()]
    surroundings = dict(os.environ)
    surroundings["PYTHONPATH"] = os.pathsep.join(paths)
    surroundings.pop("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", None)
    # The Trainer is torch's. An old transformers that finds a new TensorFlow or JAX in the environment imports it,
    # which takes long and often fails.
    surroundings.update(USE_TORCH="1", USE_TF="0", USE_FLAX="0")
    return surroundings


_VERSIONS_SCRIPT = """
import importlib.metadata as metadata, importlib.util, json, platform, sys
sys.path[0] = sys.argv[1]
found = {"python": platform.python_version()}
for name in sys.argv[2:]:
    try:
        spec = importlib.util.find_spec(name)
        found[name] = [metadata.version(name), (spec.origin or "") if spec else ""]
    except metadata.PackageNotFoundError:
        found[name] = None
print(json.dumps(found))
"""


def _versions_in(
    upstream: Upstream, surroundings: dict[str, str], argv: Sequence[str], cwd: Path | str | None
) -> dict[str, str]:
    """Ask a child, in the surroundings of the run to come, which versions it finds and where."""
    # Python puts the script's folder before PYTHONPATH, or the working folder for -m and -c.
    first = str(Path(argv[0]).parent) if argv and not argv[0].startswith("-") else ""
    answer = subprocess.run(
        [sys.executable, "-c", _VERSIONS_SCRIPT, first, *REPORTED_VERSIONS],
        env=surroundings, cwd=cwd, capture_output=True, text=True, check=False,
    )  # fmt: skip
    if answer.returncode != 0:
        raise UsageError(f"Python does not start with transformers {upstream.version}: {_last_line(answer.stderr)}")
    versions = {}
    for name, found in json.loads(answer.stdout.splitlines()[-1]).items():
        if name == "python":
            versions[name] = found
        elif found is not None:
            versions[name], origin = found
            if name in upstream.packages and not Path(origin).is_relative_to(upstream.folder):
                raise UsageError(
                    f"{_short(Path(origin).parent)} stands before the {name} of transformers {upstream.version} "
                    "on the child's path: run from another folder"
                )
    for name, stand_in in upstream.stand_ins.items():
        versions[name] = stand_in["is"]
    return versions


# -- what goes into a folder ------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Requirement:
    """One pinned package of a plan: one line of a lock."""

    name: str  # normalised: lower case, hyphens
    version: str
    shared_range: str | None = None  # "" or ">=21.0.0": the environment's own will do if it is in this range
    stands_in_for: str | None = None  # the version that its metadata will claim


def locked_versions() -> list[str]:
    """Return the versions that have a frozen lock, oldest first."""
    return sorted((lock.stem for lock in LOCKS.glob("*.txt")), key=_order)


def lock_of(version: str) -> Path | None:
    """Return the path of a version's frozen lock, or None when it has none."""
    lock = LOCKS / f"{version}.txt"
    return lock if lock.exists() else None


def _read_lock(text: str, name: str) -> list[Requirement]:
    """Read a lock's lines that apply to this Python.

    A lock is a requirements file that `pip install --no-deps -r` takes as it is. Two kinds of remark are ours:
    "shared when installed: >=1.17" and "stands in for 0.13.3".
    """
    plan = []
    for number, line in enumerate(text.splitlines(), 1):
        needed = re.match(r"# needs Python >=\s*(\d+)\.(\d+)", line)
        if needed and sys.version_info[:2] < (int(needed[1]), int(needed[2])):
            raise UsageError(
                f"transformers {Path(name).stem} needs Python {needed[1]}.{needed[2]} or newer; this is {_python()}"
            )
        statement, _, remark = line.partition("#")
        if not statement.strip():
            continue
        pin, _, marker = statement.partition(";")
        matched = re.fullmatch(r"([A-Za-z0-9._-]+)==(\S+)", pin.strip())
        if matched is None:
            raise UsageError(f"{name}, line {number}: not a pinned package: {line.strip()}")
        if not _marker_holds(marker.strip()):
            continue
        shared = re.search(r"shared when installed:(.*)", remark)
        stands_in = re.search(r"stands in for (\S+)", remark)
        plan.append(
            Requirement(
                _normalised(matched[1]),
                matched[2],
                shared_range=shared[1].strip().removeprefix("any") if shared else None,
                stands_in_for=stands_in[1] if stands_in else None,
            )
        )
    return plan


def _marker_holds(marker: str) -> bool:
    """Evaluate the one kind of marker that locks use: comparisons of python_version, joined by "and"."""
    here = sys.version_info[:2]
    for term in filter(None, (term.strip() for term in marker.split(" and "))):
        matched = re.fullmatch(r"python_version\s*(==|>=|<)\s*['\"](\d+)\.(\d+)['\"]", term)
        if matched is None:
            raise UsageError(f"a lock can only ask for python_version, not: {term}")
        there = (int(matched[2]), int(matched[3]))
        if not {"==": here == there, ">=": here >= there, "<": here < there}[matched[1]]:
            return False
    return True


def resolve(version: str, place: Path, workshop: Path, progress: _Progress) -> list[Requirement]:
    """Plan a version that has no lock: its own metadata, and the companions of its season.

    Args:
        version: the transformers to plan for.
        place: named in what is raised.
        workshop: a folder for pip's temporary files.
        progress: told what is going on.

    Raises:
        UsageError: the version does not exist, or the index can't be reached.
    """
    progress.wait("asking the index for its metadata")
    _, accelerate, tokenizers, hub, datasets = [season for season in SEASONS if season[0] <= _order(version)[:2]][-1]
    pins = {"accelerate": f"=={accelerate}", "huggingface-hub": f"=={hub}", "datasets": f"=={datasets}"}
    if _order(version)[:2] > NEWEST_TRIED:
        pins = dict.fromkeys(pins, "")
    # The two that may ask for torch, alone first: what they require is then resolved without it.
    heads = [f"transformers=={version}", "accelerate" + pins["accelerate"]]
    report = _pip_report(version, place, workshop, progress, ["--no-deps", *heads])
    wanted = ["datasets" + pins["datasets"], "huggingface-hub" + pins["huggingface-hub"]]
    for package in report:
        wanted += [f"{package['name']}=={package['version']}"] if package["name"] != "accelerate" else []
        wanted += _requirements_but_torch(package) if package["name"] == "accelerate" else []
    accelerate_pin = next(package["version"] for package in report if package["name"] == "accelerate")

    progress.wait("resolving what it needs")
    claims: dict[str, str] = {}
    try:
        packages = _pip_report(version, place, workshop, progress, wanted)
    except _NoWheel as missing:
        # -- this Python is too new: stand-ins ------------------------------------------------------
        if missing.name not in STAND_INS:
            raise
        claims[missing.name] = tokenizers if missing.name == "tokenizers" else "1.26.4"
        transformers = next(package for package in report if package["name"] == "transformers")
        others = [r for r in _requirements_but_torch(transformers) if _name_of(r) != missing.name]
        wanted = [r for r in wanted if not r.startswith("transformers==") and _name_of(r) != missing.name]
        wanted += [*others, f"{missing.name}=={STAND_INS[missing.name]}"]
        packages = [*_pip_report(version, place, workshop, progress, wanted), transformers]

    plan = [Requirement("accelerate", accelerate_pin)]
    for package in packages:
        name = _normalised(package["name"])
        if name in COMES_WITH_TORCH or TORCH_FAMILY.match(name):
            continue
        shared_range = _range_asked_of(name, [*packages, *report]) if name in SHARED_WHEN_INSTALLED else None
        if name in claims:
            shared_range = None
        plan.append(Requirement(name, package["version"], shared_range, claims.get(name)))
    progress.line(f"resolved from its metadata: {len(plan)} packages, accelerate {accelerate_pin}")
    return sorted(plan, key=lambda requirement: requirement.name)


def _requirements_but_torch(package: dict[str, Any]) -> list[str]:
    """Return what a package asks for, extras and torch left out."""
    asked = [line for line in package.get("requires_dist", []) if not re.search(r"\bextra\s*==", line)]
    return [line for line in asked if not TORCH_FAMILY.match(_name_of(line))]


def _range_asked_of(name: str, packages: list[dict[str, Any]]) -> str:
    """Return every bound that the plan puts on a shared package, joined: ">=1.17,<2.0".

    Only the bounds of what the folder will hold count: the environment's pandas has already agreed with its numpy.
    """
    bounds: set[str] = set()
    for package in packages:
        if _normalised(package["name"]) in SHARED_WHEN_INSTALLED:
            continue
        for line in _requirements_but_torch(package):
            if _name_of(line) == name:
                found = re.findall(r"(?:===|[<>=!~]=|[<>])\s*[\w.*]+", line.partition(";")[0])
                bounds.update(bound.replace(" ", "") for bound in found)
    return ",".join(sorted(bounds))


def _leave_out_what_is_shared(plan: list[Requirement]) -> tuple[list[Requirement], dict[str, str]]:
    """Drop what the environment already has in a fitting version; return what is left, and what was dropped."""
    left, shared = [], {}
    for requirement in plan:
        if requirement.shared_range is not None and _environment_fits(requirement.name, requirement.shared_range):
            shared[requirement.name] = requirement.shared_range
        else:
            left.append(requirement)
    return left, shared


def _environment_fits(name: str, version_range: str) -> bool:
    from packaging.specifiers import SpecifierSet

    installed = _installed_version(name)
    return installed is not None and SpecifierSet(version_range).contains(installed, prereleases=True)


def _put_stand_ins(plan: list[Requirement], folder: Path) -> dict[str, dict[str, str]]:
    """Let a newer package answer to the version that an old transformers insists on.

    Only the metadata says so: the check at import reads nothing else. The completion file keeps the truth.
    """
    stand_ins = {}
    for requirement in plan:
        if requirement.stands_in_for is None:
            continue
        name, claimed = requirement.name, requirement.stands_in_for
        for metadata in folder.glob(f"{name}-*.dist-info"):
            shutil.rmtree(metadata)
        metadata = folder / f"{name}-{claimed}.dist-info"
        metadata.mkdir()
        (metadata / "METADATA").write_text(
            f"Metadata-Version: 2.1\nName: {name}\nVersion: {claimed}\n"
            f"Summary: stands in for {claimed}; the code is that of {requirement.version}\n",
            encoding="utf-8",
        )
        stand_ins[name] = {"says": claimed, "is": requirement.version}
    return stand_ins


_HIDING_SCRIPT = '''\
"""Run by Python at start-up in an isolated upstream folder: keeps {names} of the environment out of sight.

An old Trainer imports these when it finds them, and newer ones fail on its accelerate.
"""

import importlib.machinery
import sys

HIDDEN = {names!r}


class WithoutTheHidden(importlib.machinery.PathFinder):
    @classmethod
    def find_spec(cls, fullname, path=None, target=None):
        return None if fullname.partition(".")[0] in HIDDEN else super().find_spec(fullname, path, target)


sys.meta_path[:] = [WithoutTheHidden if f is importlib.machinery.PathFinder else f for f in sys.meta_path]

# The environment may have a sitecustomize of its own, which this one stands before: run it too.
here = __spec__.origin.rpartition("/")[0]
own = WithoutTheHidden.find_spec("sitecustomize", [p for p in sys.path if p.rstrip("/") != here.rstrip("/")])
if own is not None and own.origin != __spec__.origin:
    own.loader.exec_module(importlib.util.module_from_spec(own))
'''


def _hide_what_breaks(plan: list[Requirement], folder: Path) -> None:
    """Write the start-up file that keeps packages of the environment away from a version they break."""
    accelerate = next(requirement.version for requirement in plan if requirement.name == "accelerate")
    names = tuple(name for name, below in HIDDEN_BELOW_ACCELERATE.items() if _order(accelerate) < below)
    if names:
        (folder / "sitecustomize.py").write_text(
            _HIDING_SCRIPT.replace("{names!r}", repr(names)).replace("{names}", ", ".join(names)), encoding="utf-8"
        )


def _try_import(version: str, folder: Path, torch_version: str) -> None:
    """Import the Trainer from the new folder in a child; raise one clear line if that fails."""
    trial = Upstream(version, folder, _python(), {}, {}, {}, None, 0, "")
    script = (
        "import transformers, accelerate, datasets, tokenizers, huggingface_hub; "
        "from transformers import Trainer, TrainingArguments; import transformers.trainer; "
        f"assert Trainer is transformers.trainer.Trainer; assert transformers.__version__ == {version!r}"
    )
    with tempfile.TemporaryDirectory(dir=folder.parent) as empty:  # nothing there to shadow what is imported
        tried = subprocess.run(
            [sys.executable, "-c", script], env=environment(trial), cwd=empty,
            capture_output=True, text=True, check=False,
        )  # fmt: skip
    if tried.returncode != 0:
        raise UsageError(
            f"transformers {version} does not import on Python {_python()} with torch {torch_version}: "
            f"{_last_line(tried.stderr)}"
        )


# -- pip --------------------------------------------------------------------------------------------


class _NoWheel(UsageError):
    """The index answers, but has no wheel of `name` for this Python in the version asked for."""

    def __init__(self, name: str, message: str) -> None:
        super().__init__(message)
        self.name = name


def _pip_install(
    version: str, place: Path, requirements: Path, count: int, folder: Path, workshop: Path, progress: _Progress
) -> None:
    """Install the pinned requirements, and nothing that they ask for, into `folder`."""
    fetched = 0
    for line in _pip(
        ["--no-deps", "--no-compile", "--target", str(folder), "-r", str(requirements)],
        version, place, workshop, progress,
    ):  # fmt: skip
        wheel = re.match(
            r"\s*(?:Downloading|Using cached|Processing) (?:\S*/)?([^/\s]+?)-([^-\s]+)-\S+\.whl(.*)$", line
        )
        if wheel:
            fetched += 1
            name, size = f"{wheel[1].replace('_', '-')} {wheel[2]}", re.search(r"\(([\d.]+ .B)\)", wheel[3])
            progress.line(f"{fetched:2} of {count}  {name:34}{size[1] if size else '':>9}".rstrip())
        elif line.startswith("Installing collected packages"):
            progress.wait(f"unpacking {count} packages")
    if not (folder / "transformers").is_dir():
        raise UsageError(f"pip said that all went well, but {_short(folder)} has no transformers in it")


def _pip_report(
    version: str, place: Path, workshop: Path, progress: _Progress, arguments: list[str]
) -> list[dict[str, Any]]:
    """Return the metadata of everything that pip would install for `arguments`, whatever is installed here."""
    report = workshop / "report.json"
    for _ in _pip(
        ["--dry-run", "--ignore-installed", "--report", str(report), *arguments], version, place, workshop, progress
    ):
        pass
    return [package["metadata"] for package in json.loads(report.read_text(encoding="utf-8"))["install"]]


def _pip(arguments: list[str], version: str, place: Path, workshop: Path, progress: _Progress) -> Iterator[str]:
    """Run `pip install` and yield what it prints, line by line; turn what went wrong into one clear line."""
    temporary = workshop / "tmp"  # pip unpacks there: the same disk as the final place, and swept with the workshop
    temporary.mkdir(exist_ok=True)
    surroundings = {name: value for name, value in os.environ.items() if name not in _NOT_FOR_PIP}
    surroundings.update(TMPDIR=str(temporary), PIP_USER="0", PIP_REQUIRE_VIRTUALENV="0", PYTHONUNBUFFERED="1")
    # Wheels only: building an old tokenizers from source needs a Rust compiler and minutes.
    command = [*_pip_command(), "install", "--no-input", "--disable-pip-version-check", "--progress-bar", "off"]
    command += ["--only-binary", ":all:", *arguments]
    said: list[str] = []
    child = subprocess.Popen(
        command, env=surroundings, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace",
        stdin=subprocess.DEVNULL,
    )  # fmt: skip
    assert child.stdout is not None
    try:
        for line in child.stdout:
            said.append(line.rstrip())
            retry = re.search(r"Retrying \(Retry\(total=(\d+)", line)
            if retry:
                progress.wait(f"the index does not answer; pip tries {int(retry[1]) + 1} more times")
            yield line.rstrip()
        child.wait()
    finally:
        if child.poll() is None:
            _kill(child, with_session=False)
    if child.returncode != 0:
        raise _what_pip_meant(said, version, place)


# Settings for the user's own installs that make no sense for a folder: where to install, and within which bounds.
_NOT_FOR_PIP = ("PIP_TARGET", "PIP_PREFIX", "PIP_ROOT", "PIP_CONSTRAINT", "PIP_QUIET", "PIP_REPORT", "PYTHONPATH")


def _pip_command() -> list[str]:
    """Return how to start pip for this interpreter: the installed one, or the one that Python carries with it."""
    from importlib.util import find_spec

    if find_spec("pip") is not None:
        return [sys.executable, "-m", "pip"]
    with contextlib.suppress(ImportError):
        import ensurepip

        for wheel in sorted(Path(ensurepip.__file__).parent.glob("_bundled/pip-*.whl")):
            return [sys.executable, str(wheel / "pip")]  # a wheel is a zip file, and pip runs from one
    raise UsageError(f"pip is not installed for this Python: run {Path(sys.executable).name} -m ensurepip, then again")


def _what_pip_meant(said: list[str], version: str, place: Path) -> UsageError:
    """Turn what a failing pip printed into the error that the user can act on."""
    text = "\n".join(said)
    lock = lock_of(version)
    what = f"transformers {version}" + (f" (lock {lock})" if lock else "")
    again = f"{COMMAND} add {version}" + ("" if place == upstream_directory() else f" --dir {_short(place)}")
    if "No space left on device" in text or "Disk quota exceeded" in text:
        return _disk_full(place)
    if "Permission denied" in text or "Read-only file system" in text:
        return UsageError(f"{_short(place)} can't be written to; choose another folder with --dir")

    # pip names the package that it could not find, and which versions of it the index has.
    missing = re.search(
        r"Could not find a version that satisfies the requirement ([\w.-]+)(.*?)\s*(?:\(from [^v].*\) )?"
        r"\(from versions: (.*?)\)$",
        text,
        re.MULTILINE,
    )
    offered = [] if missing is None or missing[3] == "none" else missing[3].split(", ")
    unreachable = re.search(r"Retrying \(|Max retries exceeded|Could not fetch URL|Name or service not known", text)
    found_something = re.search(r"^Collecting ", text.partition("ERROR:")[0], re.MULTILINE) and len(offered) > 0
    if missing is not None:
        name = _name_of(missing[1])
        pin = f"{name} {missing[2].strip(' =')}".rstrip()
        if name == "transformers" and offered:
            too_old = re.search(rf"{re.escape(version)} Requires-Python (\S+)", text)
            if too_old:
                return UsageError(f"transformers {version} needs Python {too_old[1]}; this is Python {_python()}")
            return UsageError(
                f"there is no transformers {version}; nearest: {_nearest(version, offered)} "
                f"(withdrawn by their authors: {', '.join(YANKED_VERSIONS)})"
            )
        if found_something and not unreachable:
            return _NoWheel(
                name, f"{what} can't be added: the index has no {pin} that fits Python {_python()} on this machine"
            )
    if unreachable or missing is not None:
        return UsageError(
            f"the package index can't be reached, so {what} was not added to {_short(place)}; run once online: {again}"
        )
    conflict = re.search(r"The conflict is caused by:\s*(.*?)\n\s*\n", text, re.DOTALL)
    if conflict:
        return UsageError(f"{what} can't be added, its needs conflict: {'; '.join(conflict[1].split(chr(10)))}")
    errors = [line for line in said if line.startswith("ERROR:")]
    return UsageError(f"pip could not install {what}: {(errors or said or ['it said nothing'])[-1]}")


# -- folders ----------------------------------------------------------------------------------------


def upstream_directory(directory: Path | str | None = None) -> Path:
    """Return the folder that holds the versions.

    Args:
        directory: an explicit choice. Otherwise MINITRAINER_UPSTREAM_DIR, and otherwise `minitrainer/upstream` in the
            user's cache (XDG_CACHE_HOME or ~/.cache).
    """
    if directory is None:
        directory = os.environ.get("MINITRAINER_UPSTREAM_DIR")
    if directory:
        return Path(directory).expanduser().absolute()
    cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(cache).expanduser().absolute() / "minitrainer" / "upstream"


def _folder_of(version: str, place: Path) -> Path:
    """Name the folder after the version and the interpreter: compiled packages fit one Python only."""
    return place / f"{version}-{sys.implementation.cache_tag}{getattr(sys, 'abiflags', '')}"


def _version_folders(place: Path) -> list[Path]:
    if not place.is_dir():
        return []
    return [folder for folder in place.iterdir() if re.match(r"\d+\.\d+\.\d+\w*-\w", folder.name) and folder.is_dir()]


def _write_completion(upstream: Upstream, folder: Path) -> None:
    record = dataclasses.asdict(upstream)
    del record["folder"]  # the folder may be moved with the cache
    with open(folder / COMPLETION_FILE, "w", encoding="utf-8") as file:
        json.dump(record, file, indent=2)
        file.flush()
        os.fsync(file.fileno())  # on the disk before the rename: after a power cut too, the name means whole


def _read_completion(folder: Path) -> Upstream | None:
    """Return what the folder's completion file says, or None when the folder is not whole."""
    try:
        record = json.loads((folder / COMPLETION_FILE).read_text(encoding="utf-8"))
        return Upstream(folder=folder, **record)
    except (OSError, ValueError, TypeError):
        return None


def _why_stale(upstream: Upstream) -> str | None:
    """Say why a whole folder no longer fits, or None if it does."""
    lock = lock_of(upstream.version)
    if (_digest(lock) if lock is not None else None) != upstream.lock_digest:
        return "was made from another lock"
    for name, version_range in upstream.shared.items():
        if not _environment_fits(name, version_range):
            return f"relies on this environment's {name}, which is gone or no longer fits"
    return None


def _digest(lock: Path) -> str:
    return hashlib.sha256(lock.read_bytes()).hexdigest()


@contextlib.contextmanager
def _only_one_add_at_a_time(version: str, place: Path) -> Iterator[None]:
    """Hold the version's lock file. Where files can't be locked, two adds both work, and the last rename wins."""
    place.mkdir(parents=True, exist_ok=True)
    name = _folder_of(version, place).name
    with open(place / f".lock-{name}", "w", encoding="utf-8") as file:
        locked = False
        with contextlib.suppress(ImportError, OSError):
            import fcntl

            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                print(f"another process is adding transformers {version}; waiting for it", file=sys.stderr)
                fcntl.flock(file, fcntl.LOCK_EX)
            locked = True
        if locked:  # so whatever an earlier add left is nobody's
            for leftover in place.glob(f".adding-{name}-*"):
                shutil.rmtree(leftover, ignore_errors=True)
        yield


@contextlib.contextmanager
def _clear_about_files(place: Path) -> Iterator[None]:
    """Turn what the file system refuses into one clear line."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise _disk_full(place) from error
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise UsageError(f"{_short(place)} can't be written to; choose another folder with --dir") from error
        if error.errno in (errno.ENOTDIR, errno.EEXIST):
            raise UsageError(f"{_short(place)} is not a folder; choose another with --dir") from error
        raise


def _disk_full(place: Path) -> UsageError:
    free = shutil.disk_usage(place).free
    return UsageError(
        f"the disk of {_short(place)} is full ({_megabytes(free)} free; one version takes about 100 MB, "
        "twice that while it is added): make room or choose another folder with --dir"
    )


# -- small things -----------------------------------------------------------------------------------


class _Progress:
    """Says what is going on: a line for each thing done, and on a terminal one more that ticks until the next."""

    def __init__(self, title: str, stream: IO[str] | None = None) -> None:
        self.stream = stream if stream is not None else sys.stderr
        self.title = title
        self.started = time.monotonic()
        self.waiting_for = ""
        self.is_terminal = self.stream.isatty()
        self.mutex = threading.Lock()
        self.finished = threading.Event()
        self.ticker = threading.Thread(target=self._tick, daemon=True)

    def __enter__(self) -> _Progress:
        print(self.title, file=self.stream, flush=True)
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

    def wait(self, text: str) -> None:
        """Say what is being done now, and for how long, until the next line."""
        with self.mutex:
            if text != self.waiting_for and not self.is_terminal:
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


def _canonical(version: str) -> str:
    """Return a version as the index writes it, or refuse what is none."""
    text = version.strip().removeprefix("transformers==").removeprefix("v")
    matched = re.fullmatch(r"(\d+)\.(\d+)(?:\.(\d+))?((?:rc|a|b)\d+)?", text)
    if matched is None:
        raise UsageError(f"not a version of transformers: {version!r}; write it like {REFERENCE_VERSION}")
    text = f"{int(matched[1])}.{int(matched[2])}.{int(matched[3] or 0)}{matched[4] or ''}"
    if _order(text) < OLDEST_VERSION:
        raise UsageError(f"transformers {text} is older than {REFERENCE_VERSION}, the oldest that can be added")
    if text in YANKED_VERSIONS:
        raise UsageError(f"transformers {text} was withdrawn by its authors; take {YANKED_VERSIONS[text]}")
    return text


def _order(version: str) -> tuple[int, ...]:
    """Return a version's numbers, for comparison."""
    return tuple(int(number) for number in re.findall(r"\d+", version.partition("-")[0])[:3])


def _nearest(version: str, offered: list[str]) -> str:
    """Return the released version nearest to the one asked for: of the same series if there is one."""
    wanted = _order(version)
    released = [v for v in offered if re.fullmatch(r"\d+\.\d+\.\d+", v) and _order(v) >= OLDEST_VERSION]

    def distance(candidate: str) -> tuple[int, ...]:
        return tuple(abs(there - here) for there, here in zip(_order(candidate), wanted, strict=True))

    return min(released, key=distance, default=REFERENCE_VERSION)


def _installed_version(name: str) -> str | None:
    from importlib import metadata

    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _name_of(requirement: str) -> str:
    return _normalised(re.match(r"[A-Za-z0-9._-]*", requirement.strip())[0])  # type: ignore[index]  # always matches


def _normalised(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _python() -> str:
    return f"{sys.version_info[0]}.{sys.version_info[1]}"


def _megabytes(count: int) -> str:
    return f"{count / 1e6:.0f} MB"


def _short(path: Path) -> str:
    """Write a path below the home folder with a tilde."""
    try:
        return f"~/{path.relative_to(Path.home())}"
    except (ValueError, RuntimeError):
        return str(path)


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else "it said nothing"


def _kill(child: subprocess.Popen[str], *, with_session: bool) -> None:
    """Kill a child, with everything in its session if it leads one, and wait until it is gone."""
    with contextlib.suppress(ProcessLookupError):
        if with_session:
            os.killpg(child.pid, signal.SIGKILL)
        else:
            child.kill()
    child.wait()


# Read next: scenarios/run_glue.py, which is what usually runs in such a folder.
