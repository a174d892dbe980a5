"""Any upstream version of transformers in an isolated folder, sharing the torch that is already installed.

Two Trainers can only be compared fairly when nothing but the Trainer differs: one interpreter, one torch, one NumPy.
So a version is not given a virtual environment of its own. Its packages go into one folder, `run_in` puts that folder
first on the path of a child process, and everything the folder does not hold is found where it always was:

    ~/.cache/minitrainer/upstream/
        4.31.0-cpython-311/            one version, for one Python
            transformers/  accelerate/  tokenizers/  huggingface_hub/  datasets/  …
            minitrainer-upstream.json  written last: without it the folder does not count

Which packages go in is the business of `plans.py`, fetching them that of `fetching.py`. The folder is built under
another name beside the final one, tried out (does this transformers import on this torch?), and only then renamed: an
install that was interrupted leaves nothing that could be taken for a whole one.

Nothing here imports torch, transformers or rich, so the command line's `--help` stays quick.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import IO, TYPE_CHECKING

from . import fetching, plans
from .errors import UsageError
from .fetching import megabytes, python, short
from .plans import REFERENCE_VERSION

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator, Mapping, Sequence

# Resuming reads the optimizer's and the random generators' state with `torch.load`; since torch 2.6 that refuses
# everything but plain tensors, which these versions did not yet allow for.
NEEDS_FULL_TORCH_LOAD_BELOW = (4, 47)

COMPLETION_FILE = "minitrainer-upstream.json"
COMMAND = "python -m minitrainer.trace upstream"
REPORTED_VERSIONS = ("transformers", "accelerate", "tokenizers", "huggingface_hub", "datasets", "torch", "numpy")


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


# -- the commands ---


def add_arguments(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declare `upstream add`, `upstream list`, `upstream run` and `upstream remove`."""
    upstream = commands.add_parser(
        "upstream",
        help="install, list, run or remove isolated transformers versions",
        description="Any release of transformers since 4.31.0 in a folder of its own, sharing the installed torch.",
    )
    what = upstream.add_subparsers(dest="upstream_command", metavar="{add,list,run,remove}")
    add_parser = what.add_parser("add", help="install one version into a folder of its own")
    add_parser.add_argument("version", metavar="VERSION", help="such as 4.31.0; any release since then")
    list_parser = what.add_parser("list", help="show the versions at hand, and those with a frozen lock")
    run_parser = what.add_parser("run", help="run Python with one version on top, adding it first if need be")
    run_parser.add_argument("version", metavar="VERSION", help="such as 4.31.0")
    run_parser.add_argument(
        "argv", metavar="…", nargs="...", help="what follows the interpreter: SCRIPT.py, -m MODULE"
    )
    run_parser.add_argument(
        "--trust-checkpoints",
        action="store_true",
        help="let a version before 4.47 unpickle what it resumes from: for checkpoints of your own",
    )
    remove_parser = what.add_parser("remove", help="delete a version's folder")
    remove_parser.add_argument("version", metavar="VERSION", help="a version that `list` shows")
    for parser in (add_parser, list_parser, run_parser, remove_parser):
        parser.add_argument(
            "--dir",
            metavar="DIR",
            help="where the versions lie (default: $MINITRAINER_UPSTREAM_DIR, else minitrainer/upstream in the cache)",
        )


def main(options: argparse.Namespace) -> int:
    """Carry out the parsed command and return the exit status.

    Raises:
        UsageError: the version can't be had, or was asked for wrongly; its text is one line.
    """
    command = getattr(options, "upstream_command", None)
    if command is None:
        raise UsageError(f"say what to do: {COMMAND} add VERSION, list, run VERSION SCRIPT.py, or remove VERSION")
    directory = Path(options.dir) if options.dir else None
    if command == "add":
        upstream = add(options.version, directory, progress_to=sys.stdout)
        print(
            f"transformers {upstream.version} is at hand: accelerate {upstream.packages['accelerate']}, "
            f"{megabytes(upstream.bytes)}, in\n{short(upstream.folder)}"
        )
    elif command == "list":
        print("\n".join(_listing(directory)))
    elif command == "run":
        if not options.argv:
            raise UsageError(f"say what to run on transformers {options.version}: SCRIPT.py, or -m MODULE")
        return run_in(
            options.version,
            options.argv,
            directory=directory,
            add_if_missing=True,
            resume_own_checkpoints=options.trust_checkpoints,
        ).returncode
    else:
        for folder in remove(options.version, directory):
            print(f"removed {short(folder)}")
    return 0


def _listing(directory: Path | None) -> Iterator[str]:
    """Yield the lines of `upstream list`, at most 80 columns wide."""
    place = upstream_directory(directory)
    rows = [("version", "Python", "accelerate", "tokenizers", "datasets", "size", "from")]
    usable_here = set()
    for folder in sorted(_version_folders(place), key=lambda folder: (plans.order(folder.name), folder.name)):
        upstream = _read_completion(folder)
        if upstream is None:
            rows.append((folder.name.partition("-")[0], "?", "", "", "", "", "not whole: add again"))
            continue
        origin = "lock" if upstream.lock_digest else "metadata"
        if upstream.python == python():
            usable_here.add(upstream.version)
            if _why_stale(upstream) is not None:
                origin = "stale: add again"
        accelerate, tokenizers, datasets = (
            upstream.packages.get(name, "") + (" *" if name in upstream.stand_ins else "")
            for name in ("accelerate", "tokenizers", "datasets")
        )
        size = megabytes(upstream.bytes)
        rows.append((upstream.version, upstream.python, accelerate, tokenizers, datasets, size, origin))

    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    if len(rows) == 1:
        yield f"nothing in {short(place)} yet"
    else:
        yield f"in {short(place)}:"
        for row in rows:
            yield "  " + "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
    if any("*" in row[3] for row in rows):
        yield "  * stands in for an older version that has no wheel for this Python"
    missing = [version for version in plans.locked_versions() if version not in usable_here]
    if missing:
        yield "not added yet, with a frozen lock:"
        yield "  " + "  ".join(missing)
        yield f"add one, or any other since {REFERENCE_VERSION}: {COMMAND} add VERSION"


# -- adding ---


def add(version: str, directory: Path | str | None = None, *, progress_to: IO[str] | None = None) -> Upstream:
    """Install one version into its folder, or find at once that it is there.

    The user's environment is only read.

    Args:
        version: such as "4.31.0" or "transformers==4.31.0".
        directory: where the versions lie; see `upstream_directory`.
        progress_to: where to say what is going on, one line a package; the standard error stream by default.

    Raises:
        UsageError: the version is none that can be had, torch is missing, the index can't be reached, the disk is
            full, or this transformers does not import on this Python and torch. No half-made folder stays behind.
    """
    version = plans.canonical(version)
    place = upstream_directory(directory)
    upstream = _read_completion(_folder_of(version, place))
    if upstream is not None and _why_stale(upstream) is None:
        return upstream

    torch_version = plans.installed_version("torch")
    if torch_version is None:
        raise UsageError("torch is not installed in this environment; upstream versions share it, so install it first")
    with _clear_about_files(place), _only_one_add_at_a_time(version, place):
        # While we waited, the add that we waited for may have done our work.
        upstream = _read_completion(_folder_of(version, place))
        if upstream is not None and _why_stale(upstream) is None:
            return upstream
        # Built on the same disk as its final place, so that the last step is one rename.
        folder = Path(tempfile.mkdtemp(prefix=f".adding-{_folder_of(version, place).name}-", dir=place))
        try:
            with fetching.Progress(progress_to or sys.stderr) as progress:
                lock = plans.lock_of(version)
                what = f"transformers {version}" + (f" (lock {lock})" if lock else "")
                again = _command_to_add(version, place)
                return _build(version, fetching.Workshop(folder, place, what, again, progress), torch_version)
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def _build(version: str, workshop: fetching.Workshop, torch_version: str) -> Upstream:
    """Do the work of `add` in the workshop's folder, which is empty and lies beside the final one."""
    progress = workshop.progress

    # -- plan: every package, pinned ---
    lock = plans.lock_of(version)
    if lock is not None:
        whole_plan = plans.read_lock(lock)
        progress.line(f"transformers {version}: frozen lock, {len(whole_plan)} packages")
    else:
        whole_plan = plans.resolve(version, workshop)
    plan, shared = plans.leave_out_what_is_shared(whole_plan)
    for requirement in plan:
        if plans.TORCH_FAMILY.match(requirement.name):
            raise UsageError(f"the plan for {workshop.what} names {requirement.name}, which must be shared: refused")
    big = [f"{name} {plans.installed_version(name)}" for name in ("numpy", "pandas", "pyarrow") if name in shared]
    progress.line("shared: " + ", ".join([f"torch {torch_version}", *big]))

    # -- fetch and unpack ---
    folder = workshop.folder / "whole"
    fetching.install([f"{requirement.name}=={requirement.version}" for requirement in plan], folder, workshop)
    stand_ins = plans.put_stand_ins(whole_plan, shared, folder)
    for name, stand_in in stand_ins.items():
        why = "torch stands on it" if name in shared else f"no wheel for Python {python()}"
        progress.line(f"{name} {stand_in['is']} stands in for {stand_in['says']}: {why}")
    plans.hide_what_breaks(plan, folder)

    # -- try it ---
    progress.wait(f"importing its Trainer on torch {torch_version}")
    _try_import(version, folder, torch_version)
    progress.line(f"its Trainer imports on torch {torch_version}")

    # -- complete: the file first, then the name ---
    upstream = Upstream(
        version=version,
        folder=_folder_of(version, workshop.place),
        python=python(),
        packages={requirement.name: requirement.version for requirement in plan},
        shared=shared,
        stand_ins=stand_ins,
        lock_digest=plans.digest(whole_plan) if lock is not None else None,
        bytes=sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()),
        added=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    )
    _write_completion(upstream, folder)
    if upstream.folder.exists():  # stale, or without its completion file: out of the way first
        upstream.folder.rename(workshop.folder / "replaced")
    folder.rename(upstream.folder)
    progress.line("complete")
    return upstream


def remove(version: str, directory: Path | str | None = None) -> list[Path]:
    """Delete a version's folders, for whichever Python they were made, and return them.

    Raises:
        UsageError: there is none.
    """
    version = plans.canonical(version)
    place = upstream_directory(directory)
    folders = [folder for folder in _version_folders(place) if folder.name.partition("-")[0] == version]
    if not folders:
        raise UsageError(f"transformers {version} is not in {short(place)}; what is there: {COMMAND} list")
    with _clear_about_files(place):
        for folder in folders:
            # Renamed first: a removal that is interrupted must not leave half a folder under a whole one's name.
            doomed = Path(tempfile.mkdtemp(prefix=f".removing-{folder.name}-", dir=place))
            folder.rename(doomed / "whole")
            shutil.rmtree(doomed)
    return folders


# -- running ---


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
    """Run this interpreter in a child process where `import transformers` gives that version.

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
        UsageError: the version is not at hand, something else would be imported in its place, or time ran out.
    """
    upstream = add(version, directory) if add_if_missing else find(version, directory)
    surroundings = child_environment(upstream.folder, (env or {}).get("PYTHONPATH"))
    if resume_own_checkpoints and plans.order(upstream.version) < NEEDS_FULL_TORCH_LOAD_BELOW:
        surroundings["TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"] = "1"
    for name, value in (env or {}).items():
        if name == "PYTHONPATH":
            continue  # already there, behind ours
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
    version = plans.canonical(version)
    place = upstream_directory(directory)
    command = _command_to_add(version, place)
    upstream = _read_completion(_folder_of(version, place))
    if upstream is None:
        found = [_read_completion(folder) for folder in _version_folders(place)]
        others = sorted({other.python for other in found if other is not None and other.version == version})
        for_python = f" for Python {python()}, only for {' and '.join(others)}" if others else ""
        raise UsageError(
            f"transformers {version} is not at hand in {short(place)}{for_python}; add it with: {command}"
        )
    why_stale = _why_stale(upstream)
    if why_stale is not None:
        raise UsageError(f"transformers {version} is at hand but {why_stale}; renew it with: {command}")
    return upstream


def reference_environment(directory: Path | str | None = None) -> Path:
    """Return the folder of the reference version, 4.31.0, adding it first when it is missing.

    The folder alone, as PYTHONPATH of a child process, gives that version; `child_environment` gives the rest as well.
    """
    return add(REFERENCE_VERSION, directory).folder


def child_environment(folder: Path, pythonpath: str | None = None) -> dict[str, str]:
    """Return this process's variables, changed so that a child finds a version's folder first, then minitrainer.

    Args:
        folder: a version's folder.
        pythonpath: what comes after the two; this process's own PYTHONPATH by default.
    """
    paths = [str(folder)]
    root = Path(__file__).resolve().parents[2]
    # An installed minitrainer is found anyway; putting its site-packages on PYTHONPATH would place them before the
    # standard library.
    if root.name not in ("site-packages", "dist-packages"):
        paths.append(str(root))
    inherited = os.environ.get("PYTHONPATH", "") if pythonpath is None else pythonpath
    for path in filter(None, inherited.split(os.pathsep)):
        # A run inside a run inherits another version's folder, which would lend its packages to this one.
        if path not in paths and not (Path(path) / COMPLETION_FILE).exists():
            paths.append(path)
    surroundings = dict(os.environ)
    surroundings["PYTHONPATH"] = os.pathsep.join(paths)
    surroundings.pop("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", None)  # never by inheritance
    # The Trainer is torch's. An old transformers that finds a new TensorFlow or JAX in the environment imports it,
    # which takes long and often fails.
    surroundings.update(USE_TORCH="1", USE_TF="0", USE_FLAX="0")
    return surroundings


_VERSIONS_SCRIPT = """
import importlib.metadata as metadata, importlib.util, json, platform, sys
if not getattr(sys.flags, "safe_path", False):
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
            if name.replace("_", "-") in upstream.packages and not Path(origin).is_relative_to(upstream.folder):
                raise UsageError(
                    f"{short(Path(origin).parent)} would be imported instead of the {name} that belongs to "
                    f"transformers {upstream.version}: run from another folder"
                )
    for name, stand_in in upstream.stand_ins.items():
        # What is shared may have been upgraded since the add.
        versions[name] = (name in upstream.shared and plans.installed_version(name)) or stand_in["is"]
    return versions


def _try_import(version: str, folder: Path, torch_version: str) -> None:
    """Import the Trainer from the new folder in a child; raise one clear line if that fails."""
    script = (
        "import transformers, accelerate, datasets, tokenizers, huggingface_hub; "
        "from transformers import Trainer, TrainingArguments; import transformers.trainer; "
        f"assert Trainer is transformers.trainer.Trainer; assert transformers.__version__ == {version!r}"
    )
    with tempfile.TemporaryDirectory(dir=folder.parent) as empty:  # nothing there to shadow what is imported
        tried = subprocess.run(
            [sys.executable, "-c", script], env=child_environment(folder), cwd=empty,
            capture_output=True, text=True, check=False,
        )  # fmt: skip
    if tried.returncode != 0:
        raise UsageError(
            f"transformers {version} does not import on Python {python()} with torch {torch_version}: "
            f"{_last_line(tried.stderr)}"
        )


# -- folders ---


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
    lock = plans.lock_of(upstream.version)
    if (plans.digest(plans.read_lock(lock)) if lock is not None else None) != upstream.lock_digest:
        return "was made from another lock"
    for name, version_range in upstream.shared.items():
        if not plans.environment_fits(name, version_range):
            return f"relies on this environment's {name}, which is gone or no longer fits"
    return None


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
            raise fetching.disk_full(place) from error
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise fetching.not_writable(place) from error
        raise UsageError(
            f"{short(place)} can't be used: {error.strerror or error}; choose another with --dir"
        ) from error


# -- small things ---


def _command_to_add(version: str, place: Path) -> str:
    return f"{COMMAND} add {version}" + ("" if place == upstream_directory() else f" --dir {short(place)}")


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


# Read next: plans.py, which says what goes into a folder.
