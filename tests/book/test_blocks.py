"""What blocks become: rows of a trace that can be linked to, derivations, pictures; and blocks that run."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import markdown
import pytest

from minitrainer.book import checking, expand, pages, pictures, runs, tables
from minitrainer.trace import events
from minitrainer.trace.ranks import open_run

TRACES = sorted(path.parent.name for path in (pages.ROOT / "traces").glob("*/rank0.jsonl"))


class _Elements(HTMLParser):
    """Start tags with their attributes, and whether every tag is closed."""

    VOID = frozenset({"path", "rect", "br"})

    def __init__(self, text: str):
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.opened: list[str] = []
        self.feed(text)
        self.close()
        assert not self.opened, f"never closed: {self.opened}"

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attributes)))
        if tag not in self.VOID:
            self.opened.append(tag)

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attributes)))

    def handle_endtag(self, tag: str) -> None:
        assert self.opened.pop() == tag

    def values(self, name: str) -> list[str]:
        return [str(attributes[name]) for _, attributes in self.found if name in attributes]


def _html(*asked: str, ids: tables.Ids | None = None) -> _Elements:
    return _Elements(tables.trace_html(tables.request(list(asked)), ids))


# -- rows ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", TRACES)
def test_every_row_that_says_something_can_be_linked_to(name: str) -> None:
    """Every record but those that only close another one has an element with its row's number in its id."""
    path = f"traces/{name}"
    run = open_run(pages.ROOT / path)
    silent = (events.Head, events.Return, events.EventEnd, events.CallbackEnd, events.End)
    for rank, reading in run.readings.items():
        elements = _html(path, "--rank", str(rank))
        ids = elements.values("id")
        assert len(ids) == len(set(ids))
        prefix = f"{tables.slug(path)}-r{rank}-" if run.world_size > 1 else f"{tables.slug(path)}-"
        wanted = {f"{prefix}{n}" for n, record in enumerate(reading, start=1) if not isinstance(record, silent)}
        assert len(wanted) > 50
        missing = sorted(wanted - set(ids))
        assert not missing, f"{name}: {len(missing)} rows can't be linked to: {missing[:5]}"


def test_a_row_shown_twice_on_a_page_has_two_ids() -> None:
    ids = tables.Ids()
    first, second = (_html("traces/one-epoch", ids=ids).values("id") for _ in range(2))
    assert "one-epoch-54" in first and "one-epoch-54--2" in second
    assert not set(first) & set(second)


def test_links_of_rows_lead_to_rows() -> None:
    elements = _html("traces/log-evaluate-save-same-step")
    ids = set(elements.values("id"))
    links = [href.removeprefix("#") for href in elements.values("href") if href.startswith("#")]
    assert len(links) > 100 and set(links) <= ids


def test_repeated_steps_are_folded_and_still_there() -> None:
    """run_glue logs at every 25th of its 50 steps: a handful of them stand unfolded."""
    text = tables.trace_html(tables.request(["traces/run_glue", "--only", "callbacks"]))
    assert len(re.findall(r'id="run-glue-step-\d+"', text)) == 50
    assert "steps 11–40" in text and "again, 3 times" in text
    folds: list[bool] = []
    unfolded = 0
    for match in re.finditer(r"<details( open)?>|</details>|id=\"run-glue-step-\d+\"", text):
        if match[0].startswith("<details"):
            folds.append(not match[1])
        elif match[0] == "</details>":
            folds.pop()
        elif not any(folds):
            unfolded += 1
    assert 0 < unfolded < 10


def test_flags_have_their_shape_and_their_author() -> None:
    text = tables.trace_html(tables.request(["traces/log-evaluate-save-same-step", "--only", "flags"]))
    for flag, shape in (("should_log", "●"), ("should_evaluate", "▲"), ("should_save", "■")):
        assert f'<i aria-hidden="true">{shape}</i>{flag}</span>' in text
    assert "DefaultFlowCallback.on_step_end" in text and "CallbackHandler.on_log" in text


def test_derivations_know_the_other_ranks() -> None:
    text = tables.trace_html(tables.request(["traces/two-ranks-uneven", "--only", "loss", "--rank", "1"]))
    assert text.count("✓ follows") >= 5
    assert "does not follow" not in text and "to derive it" not in text


def test_ranks_stand_side_by_side_row_for_row() -> None:
    text = tables.trace_html(tables.request(["traces/two-ranks-uneven", "--only", "loss", "--side-by-side"]))
    rows = re.findall(r"<tr.*?</tr>", text)
    assert len(rows) > 10
    together = [row for row in rows if 'id="two-ranks-uneven-r0-92"' in row]
    assert len(together) == 1 and 'id="two-ranks-uneven-r1-92"' in together[0]
    assert any("0.5625" in row and "0.1875" in row and "differs" in row for row in rows)


def test_within_shows_one_call_alone() -> None:
    text = tables.trace_html(tables.request(["traces/two-eval-sets", "--within", "evaluation_loop"]))
    assert "evaluation_loop" in text and "training_step" not in text


def test_the_derivation_in_sentences() -> None:
    text = tables.loss_html("traces/two-ranks-uneven", 2)
    assert "0.65625" in text and "rounded to 4 digits and logged: 0.6562" in text


def test_what_a_trace_says_is_text(tmp_path: Path) -> None:
    """A class or a log key may be named like markup."""
    folder = tmp_path / "traces" / "evil"
    folder.mkdir(parents=True)
    lines = (pages.ROOT / "traces" / "one-epoch" / "rank0.jsonl").read_text(encoding="utf-8")
    evil = "<img src=x onerror=alert(1)>"
    (folder / "rank0.jsonl").write_text(lines.replace("PrinterCallback", evil), encoding="utf-8")
    text = tables.trace_html(tables.request(["traces/evil"]), root=tmp_path)
    assert "&lt;img" in text and "<img" not in text


# -- pictures --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", TRACES)
def test_pictures_are_drawn_from_any_trace(name: str) -> None:
    drawn = 0
    for what in ("flag-life", "walk", "loss"):
        figure = ElementTree.fromstring(
            pictures.picture_html([what, f"traces/{name}"]).replace(" data-search-exclude", "")
        )
        svg = figure.find("svg")
        assert svg is not None and svg.get("role") == "img"
        title, description = svg.find("title"), svg.find("desc")
        assert title is not None and title.text and description is not None and description.text
        _, _, width, height = map(float, str(svg.get("viewBox")).split())
        for text in svg.iter("text"):
            assert 0 <= float(str(text.get("x"))) <= width and 0 <= float(str(text.get("y"))) <= height
        assert "#" not in re.sub(
            r'id="[^"]*"|#[\w-]+-(?:title|desc)', "", ElementTree.tostring(svg, encoding="unicode")
        ), "colours are the style sheet's"
        drawn += 1
    assert drawn == 3


def test_the_life_of_a_flag_is_as_long_as_recorded() -> None:
    """One bar for each flag that was raised, from its raising down to its lowering."""
    text = pictures.picture_html(["flag-life", "traces/log-evaluate-save-same-step"])
    assert len(re.findall(r'class="p-bar f-(?:log|evaluate|save)"', text)) == 3
    order = [text.index(f">{flag} lowered<") for flag in ("should_log", "should_evaluate", "should_save")]
    assert order == sorted(order)


def test_the_loss_picture_holds_the_recorded_numbers() -> None:
    text = pictures.picture_html(["loss", "traces/two-ranks-uneven", "--step", "2"])
    for number in ("0.625", "0.6875", "0.65625", "0.6562"):
        assert f">{number}<" in text


# -- the extension ---------------------------------------------------------------------------------------


def _converted(text: str) -> str:
    extensions = ["minitrainer.book.extension", "md_in_html", "attr_list", "tables", "pymdownx.superfences"]
    return markdown.markdown(text, extensions=extensions)


def test_directives_are_expanded_and_other_fences_left_alone() -> None:
    made = _converted(
        "# A\n\n```code\nminitrainer/step.py StepMixin.training_step\n```\n\n"
        "````text\n```code\nminitrainer/step.py StepMixin.training_step\n```\n````\n\n"
        "```trace\ntraces/one-epoch --only flags\n```\n"
    )
    assert made.count('<figure class="place"') == 1 and made.count('<figure class="trace"') == 1
    assert "```code" in made and 'id="training_step"' in made


def test_line_numbers_are_true() -> None:
    made = expand.html_of(pages.Block("code", (), "minitrainer/step.py StepMixin.training_step", 1, 3))
    numbers = [int(number) for number in re.findall(r'<span class="normal">\s*(\d+)</span>', made)]
    source = (pages.ROOT / "minitrainer" / "step.py").read_text(encoding="utf-8").splitlines()
    assert "def training_step(" in source[numbers[0] - 1]
    assert numbers == list(range(numbers[0], numbers[-1] + 1)) and len(numbers) > 20


def test_a_claim_is_a_box_with_its_anchor() -> None:
    made = _converted(
        "```claim\nC30 wrong\nThe article: an average.\nRecorded, on two ranks: *not* so.\n"
        "Proof: traces/two-ranks-uneven\n```\n"
    )
    assert (
        'id="c30"' in made and "<em>not</em>" in made and "trace-two-ranks-uneven" in made and "On two ranks:" in made
    )


# -- blocks that run -------------------------------------------------------------------------------------


def _checked(text: str) -> checking.Findings:
    page = pages.parse("---\ndescription: x.\n---\n\n# A\n\n" + text, Path("runs.md"))
    found = checking.check([page])
    found.wrong = [one for one in found.wrong if "`try`" not in one]
    return found


def test_blocks_run_and_what_they_print_is_compared() -> None:
    """One page with everything, because a child process takes seconds to begin."""
    text = """
```python
from pathlib import Path
import transformers

a = 20
Path("made.txt").write_text("made here")
```

```python
print(a + 1, transformers.__version__ == "4.31.0")
```

```output
21 False
```

```python
for n in range(5):
    print("line", n)
```

```output
line 0
…
line 4
```

```python reference
import transformers
print(transformers.__version__)
```

```output
4.31.0
```

```console
$ cat made.txt
made here
$ python -m minitrainer.trace verify traces/one-epoch
…
```

```try
$ python -m minitrainer.trace show traces/one-epoch --only flags
should_log raised
should_log lowered
```

```python
print("something")
```

```python
print(2)
```

```output
3
```

```console
$ cat made.txt
made elsewhere
```

```try
$ python -m minitrainer.trace show traces/one-epoch --only flags
should_training_stop raised
should_log raised
```

```python
1 / 0
```
"""
    found = _checked(text)
    assert len(found.wrong) == 5, found.wrong
    printed, other, console, order, raised = found.wrong
    assert "prints something: put an ```output block below it" in printed
    assert "prints something else" in other and "-3" in other and "+2" in other
    assert "$ cat made.txt prints something else" in console
    assert "does not print 'should_log raised' (in this order)" in order
    assert "line 1 of the block: ZeroDivisionError: division by zero" in raised
    assert found.counts["Python blocks"] == 7 and found.counts["commands"] == 5
    assert found.counts["compared outputs"] == 4


@pytest.mark.parametrize(
    ("expected", "printed", "same"),
    [
        (["a", "b"], "a\nb\n", True),
        (["a"], "a\nb\n", False),
        (["a", "…", "d"], "a\nb\nc\nd\n", True),
        (["a", "…", "d"], "a\nd\n", True),
        (["…", "c"], "a\nb\n", False),
        (["a.c"], "abc\n", False),
        ([], "", True),
    ],
)
def test_any_lines(expected: list[str], printed: str, same: bool) -> None:
    assert runs.agrees(expected, printed) is same


# Read next: test_whole_book.py
