"""Versions as people write them, and the frozen locks as files."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

from minitrainer.trace import plans
from minitrainer.trace.errors import UsageError

MILESTONES = ["4.31.0", "4.36.2", "4.41.2", "4.46.3", "4.49.0", "4.57.6", "5.0.0", "5.3.0", "5.5.4", "5.24.0"]
PYTHONS = [(3, 10), (3, 11), (3, 12), (3, 13)]


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("4.31.0", "4.31.0"),
        ("transformers==4.31.0", "4.31.0"),
        ("v4.46.3", "4.46.3"),
        ("4.31", "4.31.0"),
        (" 5.24.0 ", "5.24.0"),
        ("5.0.0rc1", "5.0.0rc1"),
        ("4.031.0", "4.31.0"),
    ],
)
def test_a_version_is_understood_as_people_write_it(written, meant):
    assert plans.canonical(written) == meant


@pytest.mark.parametrize(
    "written", ["", "latest", "4", "4.31.0.1", "4.31.x", "../4.31.0", "4.31.0/..", "-1.2.3", "４.31"]
)
def test_what_is_no_version_is_refused(written):
    with pytest.raises(UsageError, match="not a version of transformers"):
        plans.canonical(written)


@pytest.mark.parametrize("written", ["4.30.2", "4.30", "3.5.1", "0.1.0"])
def test_what_is_older_than_the_reference_is_refused(written):
    with pytest.raises(UsageError, match=r"older than 4\.31\.0"):
        plans.canonical(written)


@pytest.mark.parametrize(("withdrawn", "instead"), list(plans.YANKED_VERSIONS.items()))
def test_a_withdrawn_version_is_refused_with_one_to_take_instead(withdrawn, instead):
    with pytest.raises(UsageError, match=f"{re.escape(withdrawn)} was withdrawn .*; take {re.escape(instead)}"):
        plans.canonical(withdrawn)
    assert plans.canonical(instead) == instead


def test_the_nearest_version_is_one_of_the_same_series():
    offered = ["3.5.1", "4.31.0", "4.46.1", "4.46.3", "4.47.0", "5.0.0", "5.0.0rc1", "5.24.0"]
    assert plans._nearest("4.46.9", offered) == "4.46.3"
    assert plans._nearest("4.46.0", offered) == "4.46.1"
    assert plans._nearest("4.99.0", offered) == "4.47.0"
    assert plans._nearest("6.1.0", offered) == "5.24.0"
    assert plans._nearest("5.0.1", offered) == "5.0.0"


def test_each_milestone_has_a_lock_and_nothing_else_has():
    assert plans.locked_versions() == MILESTONES


@pytest.mark.parametrize("python", PYTHONS)
@pytest.mark.parametrize("version", MILESTONES)
def test_a_lock_is_complete_on_every_python(version, python, monkeypatch):
    monkeypatch.setattr(sys, "version_info", (*python, 0, "final", 0))
    if version == "5.24.0" and python == (3, 10):
        with pytest.raises(
            UsageError, match=r"^transformers 5\.24\.0 needs Python 3\.11 or newer; this is Python 3\.10$"
        ):
            plans.read_lock(plans.lock_of(version))
        return
    plan = plans.read_lock(plans.lock_of(version))
    pins = {requirement.name: requirement.version for requirement in plan}
    assert len(pins) == len(plan), "a package twice"
    assert pins["transformers"] == version
    season = [season for season in plans.SEASONS if season.since <= plans.order(version)][-1]
    assert pins["accelerate"] == season.accelerate
    assert pins["huggingface-hub"] == season.huggingface_hub
    assert pins["datasets"] == season.datasets
    # What an environment with a newer huggingface_hub no longer brings along.
    assert {"httpx", "safetensors", "regex", "pyyaml", "fsspec", "xxhash", "dill"} <= set(pins)
    assert "requests" in pins or version == "5.24.0"
    assert [name for name in pins if plans.TORCH_FAMILY.match(name) or name in plans.COMES_WITH_TORCH] == []
    assert {r.name for r in plan if r.shared_range is not None} >= {"numpy", "pandas", "pyarrow"}

    # A stand-in claims the version that its season asks for, and only where that one has no wheel.
    stand_ins = {r.name: (r.stands_in_for, r.version) for r in plan if r.stands_in_for is not None}
    too_new_for_it = {"4.31.0": (3, 12), "4.41.2": (3, 13)}
    if version in too_new_for_it and python >= too_new_for_it[version]:
        assert stand_ins == {"tokenizers": (season.tokenizers, plans.TOKENIZERS_STAND_IN)}
    else:
        assert stand_ins == {}
        assert pins["tokenizers"] == season.tokenizers


def test_a_lock_says_how_it_was_made():
    for version in MILESTONES:
        head = plans.lock_of(version).read_text(encoding="utf-8").splitlines()[:4]
        assert all(line.startswith("# ") for line in head)
        assert "locks/remake.py" in "".join(head)
    assert (plans.LOCKS / "remake.py").exists()


@pytest.mark.parametrize("line", ["numpy>=1.17", "numpy", "--index-url x", 'a==1 ; sys_platform == "linux"'])
def test_a_damaged_lock_is_refused_with_its_line(line, tmp_path):
    lock = tmp_path / "4.31.0.txt"
    lock.write_text(f"# head\ntransformers==4.31.0\n{line}\n", encoding="utf-8")
    with pytest.raises(UsageError, match=r"4\.31\.0\.txt, line 3"):
        plans.read_lock(lock)


def test_the_digest_changes_with_any_pin_and_not_with_a_comment(tmp_path):
    def digest(text: str) -> str:
        lock = tmp_path / "lock.txt"
        lock.write_text(text, encoding="utf-8")
        return plans.digest(plans.read_lock(lock))

    assert digest("a==1\nb==2\n") == digest("# a remark\na==1\n\nb==2\n")
    assert digest("a==1\nb==2\n") != digest("a==1\nb==3\n")
    assert digest("a==1\n") != digest("a==1  # shared when installed: any\n")


def test_locks_lie_inside_the_package():
    """So that a wheel carries them: the build takes every file below minitrainer/."""
    package = Path(plans.__file__).parent
    assert plans.LOCKS.is_relative_to(package)


# Read next: small_index.py
