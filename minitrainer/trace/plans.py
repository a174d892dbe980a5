"""Which packages a version of transformers needs, pinned: from its frozen lock, or from its own metadata.

A plan is a list of `Requirement`. For the milestones it stands frozen in `locks/`, so that next year's add installs
what this year's did. For any other version pip resolves it from the index's metadata; torch is left out of every
requirement before pip sees it, so that pip can't decide to fetch it.

Three things make a plan differ from what pip alone would do, each because the torch and the Python are given:

- *shared*: numpy, pandas and pyarrow are taken from the environment when they fit;
- *stand-ins*: an old version has no wheel for a new Python: a newer one takes its place and its number;
- *hidden*: an optional package of the environment breaks an older Trainer's import, and is kept out of its sight.
"""

from __future__ import annotations

import dataclasses
import hashlib
import re
import shutil
import sys
from pathlib import Path
from typing import Any, NamedTuple

from . import fetching
from .errors import UsageError
from .fetching import NotOnIndex, Workshop, python

REFERENCE_VERSION = "4.31.0"
LOCKS = Path(__file__).parent / "locks"
OLDEST_VERSION = (4, 31, 0)

# Withdrawn from the index by their authors: pip would still install them when asked for by exact number.
YANKED_VERSIONS = {"4.46.0": "4.46.3", "4.52.0": "4.52.4", "4.57.0": "4.57.6", "5.10.0": "5.10.4"}  # and what to take


class Season(NamedTuple):
    """The companions that a season of transformers was released with and runs well with."""

    since: tuple[int, int]  # the first transformers of the season
    accelerate: str
    tokenizers: str  # the newest in the range that its metadata asks for
    huggingface_hub: str  # the newest of its generation: datasets wants it newer than an old transformers does
    datasets: str


# transformers names no accelerate in its metadata (it is an extra with a lower bound only), so a table has to.
SEASONS = (
    Season((4, 31), "0.21.0", "0.13.3", "0.36.2", "5.0.1"),
    Season((4, 34), "0.23.0", "0.14.1", "0.36.2", "5.0.1"),
    Season((4, 35), "0.25.0", "0.15.2", "0.36.2", "5.0.1"),
    Season((4, 38), "0.27.2", "0.15.2", "0.36.2", "5.0.1"),
    Season((4, 40), "0.29.3", "0.19.1", "0.36.2", "5.0.1"),
    Season((4, 41), "0.30.1", "0.19.1", "0.36.2", "5.0.1"),
    Season((4, 45), "1.1.1", "0.20.3", "0.36.2", "5.0.1"),
    Season((4, 47), "1.2.1", "0.21.4", "0.36.2", "5.0.1"),
    Season((4, 51), "1.6.0", "0.21.4", "0.36.2", "5.0.1"),
    Season((4, 54), "1.9.0", "0.21.4", "0.36.2", "5.0.1"),
    Season((4, 56), "1.10.1", "0.22.2", "0.36.2", "5.0.1"),
    Season((5, 0), "1.12.0", "0.22.2", "1.3.2", "5.0.1"),
    Season((5, 4), "1.13.0", "0.22.2", "1.33.0", "5.0.1"),
    Season((5, 16), "1.15.0", "0.23.3", "1.33.0", "5.2.0"),
)

# The newest version that SEASONS was tried with. After it, pip takes whatever the metadata allows.
NEWEST_TRIED = (5, 24)

# torch and what it stands on: never in a plan, never fetched.
TORCH_FAMILY = re.compile(r"^(torch|torch(vision|audio|data|ao|gen)|functorch|triton|pytorch-.*|nvidia-.*|cuda-.*)$")
COMES_WITH_TORCH = {
    "filelock",
    "jinja2",
    "markupsafe",
    "mpmath",
    "networkx",
    "setuptools",
    "sympy",
    "typing-extensions",
}

# Taken from the environment when it has them in a fitting version. numpy must be the one that torch was loaded with;
# pyarrow and pandas are three quarters of the megabytes and do nothing that a Trainer's numbers depend on.
NEEDED_BY_PANDAS = ("python-dateutil", "pytz", "six", "tzdata")  # some of them, depending on the pandas
SHARED_WHEN_INSTALLED = ("numpy", "pandas", "pyarrow", *NEEDED_BY_PANDAS)

# What takes the place of a tokenizers that has no wheel for a Python newer than it, under the old one's number.
# transformers checks that number at import, in the metadata alone, and the newer code does what the older did.
TOKENIZERS_STAND_IN = "0.22.2"
# 4.42 alone asks for numpy<2, as a precaution that 4.43 lifted. It gets the number, and the numpy that torch uses.
NUMPY_1 = "1.26.4"

# Optional packages of the user's environment that break an older Trainer's import when they are newer than its
# accelerate: (package, accelerate versions below this one cannot have it in sight).
HIDDEN_BELOW_ACCELERATE = {"peft": (1, 0)}


@dataclasses.dataclass(frozen=True)
class Requirement:
    """One pinned package of a plan: one line of a lock."""

    name: str  # normalised: lower case, hyphens
    version: str
    shared_range: str | None = None  # "" or ">=21.0.0": the environment's own will do if it is in this range
    stands_in_for: str | None = None  # the version that its metadata will claim


def canonical(version: str) -> str:
    """Return a version as the index writes it, or refuse what is none."""
    text = version.strip().removeprefix("transformers==").removeprefix("v")
    matched = re.fullmatch(r"(\d+)\.(\d+)(?:\.(\d+))?((?:rc|a|b)\d+)?", text, re.ASCII)
    if matched is None:
        raise UsageError(f"not a version of transformers: {version!r}; write it like {REFERENCE_VERSION}")
    text = f"{int(matched[1])}.{int(matched[2])}.{int(matched[3] or 0)}{matched[4] or ''}"
    if order(text) < OLDEST_VERSION:
        raise UsageError(f"transformers {text} is older than {REFERENCE_VERSION}, the oldest that can be added")
    if text in YANKED_VERSIONS:
        raise UsageError(f"transformers {text} was withdrawn by its authors; take {YANKED_VERSIONS[text]}")
    return text


def order(version: str) -> tuple[int, ...]:
    """Return a version's numbers, for comparison."""
    return tuple(int(number) for number in re.findall(r"\d+", version.partition("-")[0])[:3])


def _nearest(version: str, offered: list[str]) -> str:
    """Return the release just before the one asked for, or the one just after if that is more alike."""
    releases = [plain for plain in offered if re.fullmatch(r"\d+\.\d+\.\d+", plain) and order(plain) >= OLDEST_VERSION]
    wanted = order(version)
    before = max((plain for plain in releases if order(plain) < wanted), key=order, default=REFERENCE_VERSION)
    after = min((plain for plain in releases if order(plain) > wanted), key=order, default=before)
    return after if order(after)[:2] == wanted[:2] != order(before)[:2] else before


def locked_versions() -> list[str]:
    """Return the versions that have a frozen lock, oldest first."""
    return sorted((lock.stem for lock in LOCKS.glob("*.txt")), key=order)


def lock_of(version: str) -> Path | None:
    """Return the path of a version's frozen lock, or None when it has none."""
    lock = LOCKS / f"{version}.txt"
    return lock if lock.exists() else None


def read_lock(lock: Path) -> list[Requirement]:
    """Read a lock's lines that apply to this Python.

    A lock is a requirements file that `pip install --no-deps -r` takes as it is. Two kinds of remark are ours:
    "shared when installed: >=1.17" and "stands in for 0.13.3".

    Raises:
        UsageError: this Python is too old for the version, or the file is no lock.
    """
    plan = []
    for number, line in enumerate(lock.read_text(encoding="utf-8").splitlines(), 1):
        needed = re.match(r"# needs Python >=(\d+)\.(\d+)", line)
        if needed and sys.version_info[:2] < (int(needed[1]), int(needed[2])):
            raise UsageError(
                f"transformers {lock.stem} needs Python {needed[1]}.{needed[2]} or newer; this is Python {python()}"
            )
        statement, _, remark = line.partition("#")
        if not statement.strip():
            continue
        pin, _, marker = statement.partition(";")
        matched = re.fullmatch(r"([A-Za-z0-9._-]+)==(\S+)", pin.strip())
        if matched is None:
            raise UsageError(f"{lock}, line {number}: not a pinned package: {line.strip()}")
        if _marker_holds(marker, f"{lock}, line {number}"):
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


def digest(plan: list[Requirement]) -> str:
    """Return what tells two plans apart."""
    return hashlib.sha256("\n".join(map(repr, plan)).encode()).hexdigest()


def _marker_holds(marker: str, where: str) -> bool:
    """Evaluate the one kind of marker that locks use: comparisons of python_version, joined by "and"."""
    here = sys.version_info[:2]
    for term in filter(None, (term.strip() for term in marker.split(" and "))):
        matched = re.fullmatch(r'python_version\s*(>=|<)\s*"(\d+)\.(\d+)"', term)
        if matched is None:
            raise UsageError(f"{where}: a lock can only ask for python_version, not: {term}")
        bound = (int(matched[2]), int(matched[3]))
        if (here >= bound) != (matched[1] == ">="):
            return False
    return True


def resolve(version: str, workshop: Workshop) -> list[Requirement]:
    """Plan a version that has no lock: its own metadata, and the companions of its season.

    Raises:
        UsageError: the version does not exist, or the index can't be reached.
    """
    season = [season for season in SEASONS if season.since <= order(version)][-1]
    pins = {"accelerate": season.accelerate, "huggingface-hub": season.huggingface_hub, "datasets": season.datasets}
    is_tried = order(version)[:2] <= NEWEST_TRIED
    wanted = {name: f"{name}=={pin}" if is_tried else name for name, pin in pins.items()}

    # -- the heads alone ---
    # accelerate asks for torch, so pip may see what it asks for only line by line.
    workshop.progress.wait(f"asking the index about transformers {version}")
    try:
        heads = fetching.report(["--no-deps", f"transformers=={version}", wanted.pop("accelerate")], workshop)
    except NotOnIndex as error:
        if error.name != "transformers":
            raise
        if error.needs_python:
            raise UsageError(
                f"transformers {version} needs Python {error.needs_python}; this is Python {python()}"
            ) from error
        withdrawn = ", ".join(YANKED_VERSIONS)
        raise UsageError(
            f"there is no transformers {version}; nearest: {_nearest(version, error.offered)} (withdrawn: {withdrawn})"
        ) from error
    transformers, accelerate = sorted(heads, key=lambda package: package["name"] != "transformers")

    # -- everything below them ---
    workshop.progress.wait("resolving what it needs")
    asked = [*_requirements_but_torch(transformers), *_requirements_but_torch(accelerate), *wanted.values()]
    stands_in_for: dict[str, str] = {}
    if any(_name_of(line) == "numpy" and "<2" in line for line in _requirements_but_torch(transformers)):
        stands_in_for["numpy"] = NUMPY_1
    asked = ["numpy" if _name_of(line) == "numpy" else line for line in asked]
    try:
        packages = fetching.report(asked, workshop)
    except NotOnIndex as error:
        if error.name != "tokenizers":
            raise
        stands_in_for["tokenizers"] = season.tokenizers
        asked = [line for line in asked if _name_of(line) != "tokenizers"]
        packages = fetching.report([*asked, f"tokenizers=={TOKENIZERS_STAND_IN}"], workshop)

    packages = [*heads, *packages]
    plan = []
    for package in packages:
        name = _normalised(package["name"])
        if name not in COMES_WITH_TORCH:
            shared_range = _lowest_asked_of(name, packages) if name in SHARED_WHEN_INSTALLED else None
            plan.append(Requirement(name, package["version"], shared_range, stands_in_for.get(name)))
    workshop.progress.line(f"transformers {version}: resolved from its metadata, {len(plan)} packages")
    return sorted(plan, key=lambda requirement: requirement.name)


def _requirements_but_torch(package: dict[str, Any]) -> list[str]:
    """Return what a package asks for, extras and torch left out."""
    asked = [line for line in package.get("requires_dist", []) if not re.search(r"\bextra\s*==", line)]
    return [line for line in asked if not TORCH_FAMILY.match(_name_of(line))]


def _lowest_asked_of(name: str, packages: list[dict[str, Any]]) -> str:
    """Return every lower bound that the plan puts on a shared package, joined: ">=1.17,>=1.22.4".

    Upper bounds don't count: that torch and all Trainers stand on one numpy matters more. Nor do the bounds of what is
    shared itself: the environment's pandas has already agreed with its numpy.
    """
    bounds: set[str] = set()
    for package in packages:
        if _normalised(package["name"]) not in SHARED_WHEN_INSTALLED:
            for line in _requirements_but_torch(package):
                if _name_of(line) == name:
                    bounds.update(re.findall(r">=\s*[\w.]+", line.partition(";")[0]))
    return ",".join(sorted(bounds))


def leave_out_what_is_shared(plan: list[Requirement]) -> tuple[list[Requirement], dict[str, str]]:
    """Drop what the environment already has in a fitting version; return what is left, and what was dropped."""
    left, shared = [], {}
    for requirement in plan:
        if requirement.shared_range is not None and environment_fits(requirement.name, requirement.shared_range):
            shared[requirement.name] = requirement.shared_range
        else:
            left.append(requirement)
    if "pandas" in shared:  # it has what it needs already, or needs less than the plan's pandas
        left = [requirement for requirement in left if requirement.name not in NEEDED_BY_PANDAS]
    return left, shared


def environment_fits(name: str, version_range: str) -> bool:
    from packaging.specifiers import SpecifierSet

    installed = installed_version(name)
    return installed is not None and SpecifierSet(version_range).contains(installed, prereleases=True)


def put_stand_ins(plan: list[Requirement], shared: dict[str, str], folder: Path) -> dict[str, dict[str, str]]:
    """Let a newer package answer to the version that an old transformers insists on.

    Only the metadata says so: the check at import reads nothing else. The completion file keeps the truth.

    Args:
        plan: all of it, with what is shared.
        shared: of this, what the environment gives: there is only metadata to write.
        folder: where the packages were installed.
    """
    stand_ins = {}
    for requirement in plan:
        if requirement.stands_in_for is None:
            continue
        name, claimed = requirement.name, requirement.stands_in_for
        actual = installed_version(name) or requirement.version if name in shared else requirement.version
        for metadata in folder.glob(f"{name}-*.dist-info"):
            shutil.rmtree(metadata)
        metadata = folder / f"{name}-{claimed}.dist-info"
        metadata.mkdir()
        (metadata / "METADATA").write_text(
            f"Metadata-Version: 2.1\nName: {name}\nVersion: {claimed}\n"
            f"Summary: stands in for {claimed}; the code is that of {actual}\n",
            encoding="utf-8",
        )
        stand_ins[name] = {"says": claimed, "is": actual}
    return stand_ins


_HIDING_SCRIPT = '''\
"""Run by Python at start-up in an isolated upstream folder: keeps {names} of the environment out of sight.

An old Trainer imports these when it finds them, and newer ones fail on its accelerate.
"""

import importlib.machinery
import importlib.util
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


def hide_what_breaks(plan: list[Requirement], folder: Path) -> None:
    """Write the start-up file that keeps packages of the environment away from a version they break."""
    accelerate = next(requirement.version for requirement in plan if requirement.name == "accelerate")
    names = tuple(name for name, below in HIDDEN_BELOW_ACCELERATE.items() if order(accelerate) < below)
    if names:
        (folder / "sitecustomize.py").write_text(
            _HIDING_SCRIPT.replace("{names!r}", repr(names)).replace("{names}", ", ".join(names)), encoding="utf-8"
        )


def installed_version(name: str) -> str | None:
    from importlib import metadata

    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _name_of(requirement: str) -> str:
    return _normalised(re.match(r"[A-Za-z0-9._-]*", requirement.strip())[0])  # type: ignore[index]  # always matches


def _normalised(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


# Read next: fetching.py, where pip turns a plan into files.
