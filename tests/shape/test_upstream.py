"""Against the installed 4.31.0: names, signatures, the ranges that docstrings point at, and nothing copied."""

from __future__ import annotations

import ast
import inspect
from pathlib import Path

import pytest

from .source import (
    PACKAGE,
    SUBCLASS_FILES,
    TRAINER_FILES,
    Method,
    methods,
    normal_lines,
    source_ranges,
    texts,
    word_runs,
)
from .test_reading_order import MOST_JUMPS_BACK, jumps_back

pytestmark = pytest.mark.reference

LONGEST_EQUAL_RUN = 5
# Methods that upstream's class body imports from another file.
IMPORTED = {"_get_learning_rate", "log_metrics", "metrics_format", "save_metrics", "save_state"}


def upstream_folder() -> Path:
    import transformers

    return Path(transformers.__file__).parent


def real_names() -> dict[str, object]:
    from transformers import Trainer

    return {name: value for name, value in vars(Trainer).items() if callable(value) or isinstance(value, staticmethod)}


def parameters(function: object) -> list[tuple[str, object, object]]:
    signature = inspect.signature(function)  # type: ignore[arg-type]
    return [(parameter.name, parameter.kind, parameter.default) for parameter in signature.parameters.values()]


def test_all_70_methods_have_upstreams_names_and_signatures() -> None:
    from transformers import Trainer as Real

    from minitrainer import Trainer as Ours

    names = {name for name in real_names() if not name.startswith("__") or name == "__init__"}
    assert len(names) == 70
    for name in sorted(names):
        assert hasattr(Ours, name), f"{name} is missing"
        assert parameters(getattr(Ours, name)) == parameters(getattr(Real, name)), name


def test_the_subclass_has_upstreams_names_and_signatures() -> None:
    from transformers import Seq2SeqTrainer as Real

    from minitrainer import Seq2SeqTrainer as Ours

    names = [name for name, value in vars(Real).items() if callable(value) or isinstance(value, staticmethod)]
    assert len(names) >= 5
    for name in names:
        assert parameters(getattr(Ours, name)) == parameters(getattr(Real, name)), name


def test_source_points_at_the_definition() -> None:
    checked = 0
    names = real_names()
    for method in methods():
        if method.name in names:
            lines, first = inspect.getsourcelines(
                inspect.unwrap(getattr(names[method.name], "__func__", names[method.name]))
            )
            text = "".join(lines)
            last = first + len(text.rstrip("\n").split("\n")) - 1
            file = (
                Path(inspect.getsourcefile(names[method.name]) or "").name
                if not isinstance(names[method.name], staticmethod)
                else "trainer.py"
            )
            assert (file, first, last) in source_ranges(method.docstring), (method.name, file, first, last)
            checked += 1
    assert checked == 70


def test_a_phase_points_into_upstreams_files() -> None:
    for method in methods(TRAINER_FILES + SUBCLASS_FILES):
        for file, first, last in source_ranges(method.docstring):
            path = upstream_folder() / file
            if path.is_file():  # the example trainers stand in upstream's repository, not in its package
                assert 1 <= first <= last <= len(path.read_text(encoding="utf-8").split("\n")), (method.name, file)


def test_upstreams_own_order_turns_back_more_often() -> None:
    tree = ast.parse((upstream_folder() / "trainer.py").read_text(encoding="utf-8"))
    (owner,) = [node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == "Trainer"]
    found = [Method("trainer", "Trainer", node.name, node) for node in owner.body if isinstance(node, ast.FunctionDef)]
    assert len(found) == 70 - len(IMPORTED)
    assert len(jumps_back(found)) == 42 > 2 * MOST_JUMPS_BACK


def test_no_six_lines_in_a_row_are_upstreams() -> None:
    seen: dict[tuple[str, ...], str] = {}
    length = LONGEST_EQUAL_RUN + 1
    upstream_files = [
        "trainer.py", "trainer_callback.py", "trainer_utils.py", "trainer_pt_utils.py", "training_args.py",
        "training_args_seq2seq.py", "trainer_seq2seq.py", "integrations.py", "hyperparameter_search.py",
        "optimization.py", "modeling_utils.py", "deepspeed.py", "utils/notebook.py", "utils/import_utils.py",
        "utils/generic.py",
    ]  # fmt: skip
    for name in upstream_files:
        lines = normal_lines((upstream_folder() / name).read_text(encoding="utf-8"))
        for start in range(len(lines) - length + 1):
            window = tuple(text for _, text in lines[start : start + length])
            seen.setdefault(window, f"{name}:{lines[start][0]}")
    assert len(seen) > 5000

    copied, looked_at = [], 0
    for path in sorted(PACKAGE.glob("*.py")) + sorted((PACKAGE / "parts").glob("*.py")):
        lines = normal_lines(path.read_text(encoding="utf-8"))
        for start in range(len(lines) - length + 1):
            looked_at += 1
            window = tuple(text for _, text in lines[start : start + length])
            if window in seen:
                copied.append(f"{path.name}:{lines[start][0]} = {seen[window]}")
    assert not copied, copied
    assert looked_at > 3000


# Six words in a row of a message are a sentence of upstream's; of prose, where phrases are common goods, eight are.
SENTENCE, PROSE = 6, 8
# What has to be upstream's, and why.
INTERFACE = {
    "Total train batch size (w. parallel, distributed & accumulation)": "the label of a figure, which scripts look for",
    "width: | px; height:20px; vertical-align: middle;": "HTML that a test compares, byte for byte",
    "def on_log(self, args, state, control, logs=None, **kwargs):": "the signature that an override must have",
}


def test_no_sentence_is_upstreams() -> None:
    """Messages, docstrings and comments, against every string and comment of the installed 4.31.0, models apart."""
    theirs: dict[int, set[tuple[str, ...]]] = {SENTENCE: set(), PROSE: set()}
    for path in upstream_folder().rglob("*.py"):
        if "models" not in path.parts:
            for _, words, _ in texts(path.read_text(encoding="utf-8")):
                for length, runs in theirs.items():
                    runs |= word_runs(words, length)
    assert min(len(runs) for runs in theirs.values()) > 50_000

    copied, looked_at, excused = [], 0, set()
    for path in sorted(PACKAGE.glob("*.py")) + sorted((PACKAGE / "parts").glob("*.py")):
        for line, words, is_prose in texts(path.read_text(encoding="utf-8")):
            for entry in INTERFACE:
                if entry in words:
                    excused.add(entry)
                    words = words.replace(entry, "|")
            length = PROSE if is_prose else SENTENCE
            looked_at += bool(word_runs(words, length))
            same = word_runs(words, length) & theirs[length]
            if same:
                copied.append(f"{path.name}:{line}: {' … '.join(' '.join(run) for run in sorted(same)[:3])}")
    assert not copied, copied
    assert looked_at > 1000
    assert excused == set(INTERFACE), "an excuse without use"


# Read next: ../parity/compare.py
