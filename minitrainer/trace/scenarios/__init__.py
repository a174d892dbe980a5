"""Scenarios: complete training programs, each a few seconds long, that show a Trainer at work.

A scenario is data, a model and arguments, nothing else. Which Trainer runs it is the caller's choice:

    from minitrainer.trace import scenarios
    import transformers

    scenarios.load("run_glue").main(transformers, ["--max_steps", "20", "--output_dir", "out"])

`library` is any module that offers `Trainer`, `TrainingArguments`, `set_seed` and their relatives by upstream's names:
`transformers` from 4.31.0 on, or `minitrainer`. No scenario knows that it is being watched.

This file stays light (no torch), so that the command line can list the scenarios at once.
"""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import ModuleType

from ..errors import UsageError
from .flows import FLOWS

DATA_FOLDER = Path(__file__).parent / "data"
"""The texts, the tokenizer and the model configs that come with the package; `LICENSES.md` there names the sources."""

SCENARIOS = {
    "run_glue": "classify sentences (SST-2's form) or pairs of them (MRPC's form) with a small BERT",
    "run_summarization": "turn a restaurant's facts into a sentence: encoder, decoder and generation (Seq2SeqTrainer)",
    "run_qa": "find a question's answer in a paragraph, and make text of it again (QuestionAnsweringTrainer)",
}
"""Every scenario with what it does, in one line."""

SCENARIOS |= {name: flow.question for name, flow in FLOWS.items()}

RANKS = {name: flow.ranks for name, flow in FLOWS.items() if flow.ranks > 1}
"""Scenarios that are about several processes, and how many."""


def program(name: str) -> Callable[[ModuleType, list[str]], int]:
    """Return the function that runs the scenario `name`: it takes the library and the command line's words.

    Raises:
        UsageError: There is no scenario of that name.
    """
    if name in FLOWS:
        from . import scripted

        return partial(scripted.run, name)
    return load(name).main


def load(name: str) -> ModuleType:
    """Import the scenario `name`; its `main(library, argv)` runs it and returns the exit status.

    Raises:
        UsageError: There is no scenario of that name.
    """
    if name not in SCENARIOS:
        near = difflib.get_close_matches(name, SCENARIOS, n=1)
        hint = f"did you mean {near[0]}?" if near else "there are: " + ", ".join(SCENARIOS)
        raise UsageError(f"no scenario is called {name!r}; {hint}")
    return importlib.import_module(f".{name}", __name__)


# Read next: run_glue.py, the one to begin with.
