"""A chapter is bound to its code by name and phase: what changes is found, what doesn't is left alone."""

from __future__ import annotations

from pathlib import Path

import pytest

from minitrainer.book import checking, pages, places
from minitrainer.book.errors import BookError

SOURCE = '''\
"""A module."""

LIMIT = 3


class Loop:
    """Runs."""

    def run(self, count):
        """Run `count` times."""
        total = 0

        # -- first half ---
        for i in range(count):
            if i > 1:
                total += i  # a reason
        label = f"{total:>{LIMIT}} of {count!r}"

        # -- second half ---
        return total, label

    def twice(self):
        text = """
# -- no banner, a line of text ---
"""
        return text

    def twice(self):
        return 2
'''


@pytest.fixture
def at(tmp_path: Path):
    """Write the source, changed by one replacement, and find a piece of it."""

    def find(name: str, phase: str = "", old: str = "", new: str = "") -> places.Place:
        assert not old or SOURCE.count(old) == 1, old
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        folder.mkdir()
        (folder / "loop.py").write_text(SOURCE.replace(old, new) if old else SOURCE, encoding="utf-8")
        return places.find("loop.py", name, phase, root=folder)

    return find


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("  # a reason", "  # another reason"),
        ("        total = 0\n", "\n        total  =  0\n\n"),
        ("range(count)", "range(\n            count\n        )"),
        ('"""A module."""', '"""Another docstring, of the module."""'),
    ],
)
def test_comments_and_layout_keep_the_digest(at, old: str, new: str) -> None:
    assert at("Loop.run").digest == at("Loop.run", "", old, new).digest


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("i > 1", "i > 2"),
        ("total += i", "total -= i"),
        ("                total += i", "            total += i"),
        ("{total:>{LIMIT}}", "{total:<{LIMIT}}"),
        (" of {count!r}", " von {count!r}"),
        ("Run `count` times.", "Run `count` + 1 times."),
    ],
)
def test_a_changed_token_changes_the_digest(at, old: str, new: str) -> None:
    changed = SOURCE.replace(old, new)
    if old == "                total += i":
        changed = changed.replace("            if i > 1:\n", "            i > 1\n")
        old, new = "            if i > 1:\n                total += i", "            i > 1\n            total += i"
    assert at("Loop.run").digest != at("Loop.run", "", old, new).digest


def test_a_change_is_found_in_its_phase_and_in_no_other(at) -> None:
    change = ("return total, label", "return label, total")
    assert at("Loop.run", "second half").digest != at("Loop.run", "second half", *change).digest
    for phase in ("head", "first half"):
        assert at("Loop.run", phase).digest == at("Loop.run", phase, *change).digest


def test_a_phase_moved_out_of_a_block_is_a_change(at) -> None:
    """The same tokens, one indentation less: another program."""
    moved = at("Loop.run", "first half", "        label = f", "            label = f")
    assert at("Loop.run", "first half").digest != moved.digest


def test_phases_are_all_of_the_piece(at) -> None:
    whole = at("Loop.run")
    parts = [at("Loop.run", phase) for phase in ("head", "first half", "second half")]
    assert parts[0].first == whole.first and parts[-1].last == whole.last
    for before, after in zip(parts[:-1], parts[1:], strict=True):
        assert before.last < after.first <= before.last + 2
    assert (at("LIMIT").first, at("LIMIT").last) == (3, 3)


@pytest.mark.parametrize(
    ("name", "phase", "says"),
    [
        ("Loop.walk", "", "holds no Loop.walk"),
        ("run", "", "do you mean Loop.run"),
        ("Loop.twice", "", "2 times"),
        ("Loop.run", "third half", "has no phase 'third half'; its phases: head, first half, second half"),
        ("LIMIT", "head", "has no phases"),
    ],
)
def test_what_names_nothing_or_two_things_is_refused(at, name: str, phase: str, says: str) -> None:
    with pytest.raises(BookError, match=says):
        at(name, phase)


def test_a_banner_is_unique_in_its_piece(at) -> None:
    with pytest.raises(BookError, match="2 banners 'first half'"):
        at("Loop.run", "first half", "# -- second half ---", "# -- first half ---")


def test_a_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BookError, match="is not there"):
        places.find("nowhere.py", root=tmp_path)


def test_every_python_gives_the_same_digest(at) -> None:
    """A constant: newer Pythons cut an f-string into tokens of its own, and must come to the same."""
    assert at("Loop.run", "first half").digest == "3ffe13ee"


# -- what a page says about a piece ----------------------------------------------------------------------


def _findings(text: str) -> list[str]:
    head = "---\ndescription: A page.\n---\n\n# A page\n\n"
    page = pages.parse(head + text, Path("made_up.md"))
    return [one for one in checking.check([page], execute=False).wrong if "`try`" not in one]


def test_a_bound_piece_passes_a_stale_one_says_what_to_write() -> None:
    digest = places.find("minitrainer/step.py", "StepMixin.training_step").digest
    spec = "minitrainer/step.py StepMixin.training_step"
    assert _findings(f"```code\n{spec} #{digest}\n```\n") == []
    (stale,) = _findings(f"```code\n{spec} #00000000\n```\n")
    assert stale.startswith("made_up.md:7: ") and spec in stale
    assert f"write #{digest} in place of #00000000" in stale
    (unbound,) = _findings(f"```code\n{spec}\n```\n")
    assert f"write {spec} #{digest}" in unbound


@pytest.mark.parametrize(
    ("block", "says"),
    [
        ("```code\nminitrainer/step.py StepMixin.no_such_method\n```\n", "holds no StepMixin.no_such_method"),
        ("```code\n```\n", "names no code"),
        ("```code\nlines 3 to 5 of step.py\n```\n", "names no code: write"),
        ("```trace\ntraces/no-such-run\n```\n", "traces/no-such-run"),
        ("```trace\ntraces/one-epoch --step 99\n```\n", "holds nothing of any kind in step 99..99"),
        ("```trace\ntraces/one-epoch --rank 1\n```\n", "holds no rank 1"),
        ("```trace\ntraces/one-epoch --only colours\n```\n", "--only takes"),
        ("```trace\ntraces/one-epoch --side-by-side\n```\n", "the trace of one rank"),
        ("```trace\ntraces/../pyproject.toml\n```\n", "is no committed trace"),
        ("```loss\ntraces/one-epoch --step 3\n```\n", "no training loss was logged at step 3; there are logs at 2, 4"),
        ("```picture\nsunset traces/one-epoch\n```\n", "a picture block reads"),
        ("```claim\nC99 wrong\n```\n", "a claim begins with its number and verdict"),
        ("```claim\nC30 doubtful\n```\n", "a claim begins with its number and verdict"),
        ("```claim\nC30 wrong\nThe article: a.\n```\n", "C30 lacks `Recorded:` and `Proof:`"),
        (
            "```claim\nC30 wrong\nThe article: a.\nRecorded: b.\nProof: traces/nowhere\n```\n",
            "its proof traces/nowhere is not there",
        ),
        (
            "```claim\nC30 wrong\nThe article: a.\nRecorded: b.\nProof: tests/book/test_binding.py::test_none\n```\n",
            "holds no test_none",
        ),
        ("### Why? { #q1 }\n\n**4.31.0:** so.\n\n```loss\ntraces/one-epoch\n```\n", "no answer for today"),
        ("### Why? { #q1 }\n\n**4.31.0:** so. **Today (5.24.0):** so.\n", "no proof"),
        ("```output\nx\n```\n", "an output block follows the python block"),
        ("See `on_coffee_break`.\n", "there is no event on_coffee_break"),
        ("See `should_sleep`.\n", "there is no name should_sleep"),
        ("Give `--make_coffee`.\n", "there is no flag --make_coffee"),
        ("Call `make_coffee()`.\n", "there is no method make_coffee"),
        ("It writes `coffee.json`.\n", "there is no file coffee.json"),
        ("Go [there](nowhere.md).\n", "the link nowhere.md leads nowhere"),
    ],
)
def test_what_is_not_there_is_found(block: str, says: str) -> None:
    found = _findings(block)
    assert len(found) == 1 and says in found[0], found


def test_true_names_pass() -> None:
    text = (
        "`on_step_end`, `should_log`, `--logging_steps`, `_maybe_log_save_evaluate`, `trainer_state.json`, "
        "`TrainerControl`, `Trainer.train()`, `gradient_accumulation_steps=4`, `optimizer.pt`, `num_items_in_batch`\n"
    )
    assert _findings(text) == []


def test_a_fence_that_never_closes_is_refused() -> None:
    with pytest.raises(BookError, match="made_up.md:3: this fence is never closed"):
        pages.parse("# A page\n\n```code\nminitrainer/step.py\n", Path("made_up.md"))
    with pytest.raises(BookError, match="never closed"):
        pages.parse("````text\n```\n", Path("made_up.md"))


def test_a_method_shown_twice_or_in_part_is_no_place() -> None:
    spec = "minitrainer/cadence.py CadenceMixin.log"
    digest = places.find(*spec.split()).digest
    page = pages.parse(f"# A\n\n```code\n{spec} #{digest}\n```\n\n```code\n{spec} #{digest}\n```\n", Path("twice.md"))
    found = checking.Findings()
    checking._one_place_each([page], found)
    assert len(found.wrong) == 1 and "has its place at twice.md:3 already" in found.wrong[0]
    phased = "minitrainer/loop.py LoopMixin.train"
    for wanted, count in ((places.phases(*phased.split()), 1), (["head", "model"], 0)):
        body = "\n".join(f"{phased} / {phase}" for phase in wanted)
        page = pages.parse(f"# A\n\n```code\n{body}\n```\n", Path("phases.md"))
        assert len(checking.method_places([page])["train"]) == count


# Read next: test_blocks.py
