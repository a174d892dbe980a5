"""The book as it stands: every check passes, and each says how much it looked at."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest

from minitrainer.book import checking, generated, names, pages, statements


def _book(*words: str) -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, "-m", "minitrainer.book", *words]
    return subprocess.run(argv, cwd=pages.ROOT, capture_output=True, text=True, timeout=900, check=False)


@pytest.mark.slow
def test_the_whole_book_passes_and_nothing_is_left_unchecked() -> None:
    done = _book("check", "--slow")
    assert done.returncode == 0, done.stdout + done.stderr
    counts = {
        what: int(number) for number, what in re.findall(r"(\d+) ([A-Za-z ]+?)(?:,|;)", done.stdout.splitlines()[-1])
    }
    assert set(checking.SUBJECTS) <= set(counts), sorted(set(checking.SUBJECTS) - set(counts))
    assert (counts["methods"], counts["claims"], counts["questions"]) == (70, 42, 54)
    assert counts["experiments"] >= 30 and counts["commands"] >= counts["experiments"]
    assert counts["code places"] >= 70 and counts["traces"] >= 60
    assert counts["Python blocks"] >= 30 and counts["compared outputs"] >= 30
    assert counts["names in prose"] >= 900 and counts["links"] >= 200
    print(done.stdout)


def test_the_lists_are_whole() -> None:
    assert list(statements.asked()) == list(range(1, 55))
    assert len(statements.CLAIMS) == 42 and len(checking.methods()) == 70
    listed = [method for methods in generated.THEMES.values() for method in methods.split()]
    assert sorted(listed) == sorted(checking.methods())


def test_a_foreign_name_is_really_foreign() -> None:
    """A name that stands in the list although the code or a trace holds it would hide that it is misspelled."""
    foreign = names.FOREIGN.read_text(encoding="utf-8").splitlines()
    for line in foreign:
        if line.strip() and not line.startswith("#"):
            name, gap, where = line.partition("  ")
            assert name.strip() and gap and len(where.split()) >= 2, f"say where {name!r} is from"


def test_wrong_use_gets_one_line() -> None:
    done = _book("check", "no-such-page.md")
    assert done.returncode == 2 and len(done.stderr.strip().splitlines()) == 1
    assert "no-such-page.md" in done.stderr
    done = _book("place", "minitrainer/loop.py", "LoopMixin.trane")
    assert done.returncode == 2 and len(done.stderr.strip().splitlines()) == 1


def test_one_page_is_quick_to_ask_about() -> None:
    done = _book("place", "minitrainer/loop.py", "LoopMixin.train")
    assert done.returncode == 0 and "/ head #" in done.stdout and "/ loop #" in done.stdout


def test_a_check_that_finds_nothing_to_check_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty folder of chapters is no success."""
    monkeypatch.setattr(checking, "all_pages", list)
    monkeypatch.setattr(generated, "stale", list)
    found = checking.check_whole(execute=False)
    for what in ("pages", "code places", "traces", "claims", "questions", "names in prose", "links"):
        assert f"nothing was checked: no {what} anywhere" in found.wrong
    assert "claim C30 stands nowhere" in found.wrong


# Read next: test_site.py
