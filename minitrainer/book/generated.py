"""The pages that a program writes: indexes of methods, claims and questions, the ledger, the differences from upstream,
the API reference, and a page for each recorded run and each milestone.

They are committed like any other page, so that they can be read without building anything; `check` says when one is no
longer what `write` would write.
"""

from __future__ import annotations

import ast
import contextlib
import re
from collections.abc import Callable, Iterator
from pathlib import Path

from minitrainer.trace.ranks import open_run
from minitrainer.trace.render import markdown as trace_markdown
from minitrainer.trace.render import words
from minitrainer.trace.scenarios import SCENARIOS

from . import checking, expand, places, statements
from .errors import BookError
from .pages import CHAPTERS, ROOT, Page, all_pages

NOTE = "<!-- Written by `python -m minitrainer.book write` from {source}: edit that, then write again. -->"

THEMES = {
    "Construction": "__init__ create_accelerator_and_postprocess",
    "Callbacks, state, control": "add_callback pop_callback remove_callback call_model_init",
    "Training": "train _inner_training_loop training_step compute_loss compute_loss_context_manager "
    "autocast_smart_context_manager",
    "Loading": "_load_best_model _load_from_checkpoint _load_optimizer_and_scheduler _load_rng_state "
    "_issue_warnings_after_load",
    "Saving": "_save _save_checkpoint _save_tpu save_metrics save_model save_state _rotate_checkpoints "
    "_sorted_checkpoints _get_output_dir",
    "Log, save, evaluate": "_maybe_log_save_evaluate",
    "Evaluation, prediction": "evaluate predict evaluation_loop prediction_loop prediction_step",
    "Data": "_get_eval_sampler _get_train_sampler get_test_dataloader get_train_dataloader get_eval_dataloader "
    "_remove_unused_columns _get_collator_with_removed_columns _set_signature_columns_if_needed _gather_and_numpify",
    "Optimizer, scheduler": "create_optimizer create_optimizer_and_scheduler create_scheduler "
    "get_optimizer_cls_and_kwargs _get_learning_rate",
    "Devices, inputs": "_move_model_to_device _nested_gather _prepare_input _prepare_inputs _wrap_model "
    "ipex_optimize_model torch_jit_model_eval",
    "Bookkeeping": "store_flos is_local_process_zero is_world_process_zero floating_point_ops num_examples log "
    "log_metrics metrics_format",
    "Hyperparameter search": "hyperparameter_search _hp_search_setup _tune_save_checkpoint _report_to_hp_search",
    "Hub": "_push_from_checkpoint create_model_card _add_sm_patterns_to_gitignore init_git_repo push_to_hub",
}
"""The 70 methods by what they are for."""


def written() -> dict[str, str]:
    """Every generated page: file name to its text."""
    pages = [page for page in all_pages() if not page.is_generated]
    made: dict[str, Callable[[], str]] = {
        "methods.md": lambda: _methods(pages),
        "claims.md": lambda: _claims(pages),
        "questions.md": lambda: _questions(pages),
        "ledger.md": _ledger,
        "differences.md": _differences,
        "api.md": _api,
        "traces.md": _traces,
    }
    texts = {name: make() for name, make in made.items()}
    for folder in trace_folders():
        texts[f"trace-{folder.name}.md"] = _trace(folder)
    for report in atlas_reports():
        texts[f"atlas-{report.stem}.md"] = _atlas(report)
    return texts


def write() -> Iterator[tuple[str, bool]]:
    """Write them; hand out each name and whether it changed. A page that nothing stands for any more is removed."""
    texts = written()
    for name, text in sorted(texts.items()):
        path = CHAPTERS / name
        changed = not path.exists() or path.read_text(encoding="utf-8") != text
        if changed:
            path.write_text(text, encoding="utf-8")
        yield name, changed
    for page in all_pages():
        if page.is_generated and page.name not in texts:
            page.path.unlink()
            yield page.name, True


def stale() -> list[str]:
    """Say which generated pages are no longer what `write` would write."""
    texts = written()
    there = {page.name: page.text for page in all_pages() if page.is_generated}
    wrong = [name for name in sorted({*texts, *there}) if texts.get(name) != there.get(name)]
    return [f"{name} is out of date: run `python -m minitrainer.book write`" for name in wrong]


def _page(title: str, description: str, source: str, lines: list[str]) -> str:
    head = ["---", f'description: "{description}"', "---", "", f"# {title}", "", NOTE.format(source=source), ""]
    return "\n".join([*head, *lines]).rstrip() + "\n"


# -- indexes -------------------------------------------------------------------------------------------


def _methods(pages: list[Page]) -> str:
    spots, where = checking.methods(), checking.method_places(pages)
    lines = [
        "The 70 methods of the Trainer of 4.31.0, each with the one place where it is shown whole and explained.",
        "Any of them can be overridden in a subclass.",
        "",
    ]
    for theme, listed in THEMES.items():
        lines += [f"## {theme}", "", "| method | what it does | explained in |", "| --- | --- | --- |"]
        for method in listed.split():
            file, name = spots[method]
            shown = where[method]
            link = "–"
            if shown:
                page, block = shown[0]
                file_, name_, phase, _ = places.parse_spec(block.lines[0])
                anchor = expand.anchor_of(places.find(*places.parse_spec(_line_of(block.lines, name))[:3]))
                link = f"[{_title(page)}]({page.name}#{anchor})"
            lines.append(f"| `{method}` | {_cell(_summary(file, name))} | {link} |")
        lines.append("")
    return _page("Index of methods", "Each of the 70 methods of the Trainer, and where it is explained.",
                 "the code blocks of all chapters", lines)  # fmt: skip


def _line_of(lines: list[str], name: str) -> str:
    return next((line for line in lines if places.parse_spec(line)[1] == name), lines[0])


def _title(page: Page) -> str:
    return next((heading.text for heading in page.headings if heading.level == 1), page.path.stem).replace("`", "")


def _summary(file: str, name: str) -> str:
    owner, _, method = name.partition(".")
    for node in ast.parse((ROOT / file).read_text(encoding="utf-8")).body:
        if isinstance(node, ast.ClassDef) and node.name == owner:
            for inner in node.body:
                if isinstance(inner, ast.FunctionDef) and inner.name == method:
                    text = (ast.get_docstring(inner) or "").split("\n\n")[0]
                    return " ".join(text.split())
    return ""


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def _claims(pages: list[Page]) -> str:
    found = []
    for page in pages:
        for block in page.blocks:
            if block.kind == "claim":
                with contextlib.suppress(BookError):  # reported with its page
                    found.append(statements.claim(page, block))
    found.sort(key=lambda one: int(one.label[1:]))
    counts = {verdict: sum(one.verdict == verdict for one in found) for verdict in statements.VERDICTS}
    said = {
        "holds": "hold",
        "imprecise": "are imprecise",
        "wrong": "are wrong",
        "answered": "was a question, answered",
    }
    tally = ", ".join(f"{n} {said[verdict]}" for verdict, n in counts.items())
    lines = [
        "An article of August 2023 explains how `transformers.Trainer` 4.31.0 works. These are its claims, each held "
        "against recorded runs of the real 4.31.0.",
        "",
        f"**{len(found)} claims: {tally}.** The number leads to the run that shows it.",
        "",
    ]
    for verdict, title in (
        ("wrong", "What the article had wrong"),
        ("imprecise", "What it said imprecisely"),
        ("answered", "What it asked, answered"),
        ("holds", "What holds"),
    ):
        lines += [f"## {title}", "", "| claim | the article | in |", "| --- | --- | --- |"]
        for one in found:
            if one.verdict == verdict:
                link = f"{one.page.name}#{one.label.lower()}"
                article = _cell(" ".join(one.article.split()))
                lines.append(f"| [{one.label}]({link}) | {article} | [{_title(one.page)}]({one.page.name}) |")
        lines.append("")
    return _page("Index of claims", "Which claims of the article hold, and which it had wrong.",
                 "the claim blocks of all chapters", lines)  # fmt: skip


def _questions(pages: list[Page]) -> str:
    found = sorted((one for page in pages for one in statements.questions(page)[0]), key=lambda one: one.number)
    head = ["---", "description: What users ask about the Trainer, with the answer for 4.31.0 and for today.",
            "search:", "  exclude: true", "---", "", "# Index of questions", "",
            NOTE.format(source="the headings of all chapters"), ""]  # fmt: skip
    lines = [
        "Real questions from issues, forums and other pages, the most asked first. Each answer says what 4.31.0 does "
        "and what the newest release does, with the run that shows it.",
        "",
    ]
    for one in found:
        lines.append(f"{one.number}. [{_linkable(one.heading.text)}]({one.page.name}#{one.heading.id})")
    return "\n".join([*head, *lines]).rstrip() + "\n"


def _linkable(text: str) -> str:
    return re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", text).replace("[", "\\[").replace("]", "\\]")


# -- from the code -------------------------------------------------------------------------------------


def _ledger() -> str:
    path = ROOT / "minitrainer" / "attributes.py"
    text = path.read_text(encoding="utf-8")
    owner = next(node for node in ast.parse(text).body if isinstance(node, ast.ClassDef))
    banners = {
        number: match[1]
        for number, line in enumerate(text.splitlines(), start=1)
        if (match := re.match(r"\s*# -- (.+?) -{3,}", line))
    }
    lines = [
        "Every attribute of a Trainer: what it means, its type, and which methods write it. The Trainer is made of "
        "many mixins that share one `self`; here one sees who sets what. A test reads the syntax trees of all files "
        "and keeps this list complete and the writers true.",
        "",
    ]
    theme, shown = "", 0
    body = owner.body
    for i, node in enumerate(body):
        if not (isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)):
            continue
        following = body[i + 1] if i + 1 < len(body) else None
        said = ""
        if isinstance(following, ast.Expr) and isinstance(following.value, ast.Constant):
            said = " ".join(str(following.value.value).split())
        above = [title for number, title in sorted(banners.items()) if number < node.lineno]
        if above and above[-1] != theme:
            theme = above[-1]
            lines += ["", f"## {theme[0].upper()}{theme[1:]}", "", "| attribute | type | meaning | written by |",
                      "| --- | --- | --- | --- |"]  # fmt: skip
        meaning, _, writers = said.partition("Written by:")
        by = ", ".join(f"`{one.strip()}`" for one in writers.strip().rstrip(".").split(",") if one.strip())
        kind = ast.unparse(node.annotation)
        lines.append(f"| `{node.target.id}` | `{_cell(kind)}` | {_cell(meaning.strip())} | {by or '–'} |")
        shown += 1
    lines[0] = f"{shown} attributes. " + lines[0]
    return _page("The attribute ledger", "Every attribute of the Trainer: meaning, unit and writers.",
                 "minitrainer/attributes.py", lines)  # fmt: skip


_SECTION = re.compile(r"^(?:Args|Returns|Raises|Writes|Events|Source|Leaves out|Attributes|Yields|Requires|You get):")


def _notes(title: str) -> Iterator[tuple[str, str, str]]:
    """Every `Leaves out:` section, or paragraph from `**Beware` or `**Differs` on, of a docstring: file, name, text."""
    for path in sorted((ROOT / "minitrainer").glob("*.py")) + sorted((ROOT / "minitrainer" / "parts").glob("*.py")):
        file = path.relative_to(ROOT).as_posix()
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for name, node in _documented(tree, ""):
            docstring = ast.get_docstring(node) or ""
            if title == "Leaves out":
                text = _section(docstring, title)
                if text:
                    yield file, name, text
                continue
            for paragraph in re.split(r"\n[ \t]*\n", docstring):
                flat = " ".join(paragraph.split())
                if f"**{title}" in flat:
                    yield file, name, flat[flat.index(f"**{title}") :]


def _section(docstring: str, title: str) -> str:
    """What a docstring says after `title:`, up to the next section or blank line."""
    said: list[str] = []
    for line in docstring.splitlines():
        if line.strip().startswith(f"{title}:"):
            said.append(line.strip().removeprefix(f"{title}:"))
        elif said and (not line.strip() or re.match(r"\s*[A-Z][\w ]*:(?:\s|$)", line)):
            break
        elif said:
            said.append(line)
    return " ".join(" ".join(said).split())


def _documented(tree: ast.AST, prefix: str) -> Iterator[tuple[str, ast.Module | ast.ClassDef | ast.FunctionDef]]:
    if isinstance(tree, ast.Module):
        yield "", tree
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, (ast.ClassDef, ast.FunctionDef)):
            yield prefix + node.name, node
            yield from _documented(node, prefix + node.name + ".")


def _differences() -> str:
    left_out, on_purpose, beware = list(_notes("Leaves out")), list(_notes("Differs")), list(_notes("Beware"))
    lines = [
        "minitrainer behaves as 4.31.0 does, to the last bit; tests compare the two. What it leaves out is code that "
        "nothing can reach any more, or that the package's own requirements make idle. What 4.31.0 gets wrong is "
        "kept, and named where it happens, but for what stands under *Different on purpose*. The chapter "
        "[What 4.31.0 gets wrong](flaws.md) shows the runs.",
        "",
        "## Left out",
        "",
        f"{len(left_out)} branches, as the docstrings say:",
        "",
        "| where | what, and why |",
        "| --- | --- |",
    ]
    for file, name, text in left_out:
        lines.append(f"| `{name}`<br>`{file}` | {_cell(text)} |")
    lines += ["", "## Different on purpose", "",
              f"{len(on_purpose)} places where 4.31.0 goes on and ours refuses, as the docstrings say:", "",
              "| where | what 4.31.0 does, and what ours does |", "| --- | --- |"]  # fmt: skip
    for file, name, text in on_purpose:
        shown = re.sub(r"^\*\*Differs from 4\.31\.0:\*\*\s*", "", text)
        lines.append(f"| {f'`{name}`<br>' if name else ''}`{file}` | {_cell(shown)} |")
    lines += ["", "## Kept, and worth knowing", "",
              f"{len(beware)} places where a reader may stumble, as the docstrings say:", "",
              "| where | beware |", "| --- | --- |"]  # fmt: skip
    for file, name, text in beware:
        shown = re.sub(
            r"^\*\*Beware:?\*\*:?\s*|^\*\*Beware ([^*]*?):?\*\*\s*",
            lambda m: (m[1] or "").capitalize() + (": " if m[1] else ""),
            text,
        )
        lines.append(f"| {f'`{name}`<br>' if name else ''}`{file}` | {_cell(shown)} |")
    lines += ["", "## Between versions of transformers", "",
              "The package works with transformers 4.31.0 to the newest. What differs between them stands in "
              "`minitrainer/compat.py`:", "", "| function | what it hides |", "| --- | --- |"]  # fmt: skip
    tree = ast.parse((ROOT / "minitrainer" / "compat.py").read_text(encoding="utf-8"))
    for node in tree.body:
        if isinstance(node, ast.FunctionDef) and not node.name.startswith("_"):
            first = " ".join((ast.get_docstring(node) or "").split("\n\n")[0].split())
            lines.append(f"| `{node.name}` | {_cell(first)} |")
    description = "What minitrainer leaves out of 4.31.0, what it keeps, and where versions differ."
    return _page("Differences from upstream", description, "docstrings in minitrainer/", lines)


API = (
    ("Trainer", ("minitrainer.trainer.Trainer",)),
    ("Its methods, file by file", tuple(
        f"minitrainer.{file}.{owner}" for file, owner in (
            ("loop", "LoopMixin"), ("setup", "SetupMixin"), ("data", "DataMixin"), ("optimizer", "OptimizerMixin"),
            ("wrapping", "WrappingMixin"), ("step", "StepMixin"), ("cadence", "CadenceMixin"),
            ("evaluation", "EvaluationMixin"), ("saving", "SavingMixin"), ("resuming", "ResumingMixin"),
            ("reporting", "ReportingMixin"), ("search", "SearchMixin"), ("hub", "HubMixin"),
        ))),
    ("Trainers for sequences and answers", ("minitrainer.seq2seq", "minitrainer.question_answering")),
    ("Arguments", ("minitrainer.arguments.TrainingArguments", "minitrainer.arguments.Seq2SeqTrainingArguments")),
    ("Callbacks", ("minitrainer.callbacks",)),
    ("Trace", ("minitrainer.trace.trace",)),
)  # fmt: skip


def _api() -> str:
    lines = ["What the docstrings say, with every argument, result, error, attribute written and event fired.", ""]
    for title, names in API:
        lines += [f"## {title}", ""]
        for name in names:
            lines += [f"::: {name}", ""]
    return _page("API reference", "The Trainer's public classes and methods, from their docstrings.",
                 "docstrings in minitrainer/", lines)  # fmt: skip


# -- from the traces -----------------------------------------------------------------------------------


def trace_folders() -> list[Path]:
    """Folders of the specification, each one recorded run."""
    return sorted(path.parent for path in (ROOT / "traces").glob("*/rank0.jsonl"))


def atlas_reports() -> list[Path]:
    """The atlas, one report a milestone, in the order of versions."""
    found = [path for path in (ROOT / "traces" / "atlas").glob("*.md") if path.stem[0].isdigit()]
    return sorted(found, key=lambda path: [int(part) for part in path.stem.split(".")])


def _what(name: str) -> str:
    scenario = SCENARIOS.get(name)
    return " ".join(str(getattr(scenario, "help", scenario) or "").split()) if scenario else ""


def _traces() -> str:
    lines = [
        "What the real transformers 4.31.0 does, recorded and committed. The tests record each of them again, from "
        "the real one and from ours, and compare byte for byte. Every row of every page can be linked to.",
        "",
        "| run | what it shows | ranks | rows |",
        "| --- | --- | --- | --- |",
    ]
    for folder in trace_folders():
        run = open_run(folder)
        rows = sum(sum(1 for _ in reading) for reading in run.readings.values())
        lines.append(
            f"| [{folder.name}](trace-{folder.name}.md) | {_what(folder.name)} | {run.world_size} | {rows:,} |"
        )
    lines += ["", "## The same runs on later versions", ""]
    lines += ["What an observer of the Trainer sees change from one milestone to the next, in all of these runs:", ""]
    for report in atlas_reports():
        title = report.read_text(encoding="utf-8").splitlines()[0].removeprefix("# ")
        lines.append(f"- [{title}](atlas-{report.stem}.md)")
    return _page("Recorded runs", "All recorded runs of the real 4.31.0, and the atlas of later versions.",
                 "traces/", lines)  # fmt: skip


def _trace(folder: Path) -> str:
    run = open_run(folder)
    text = re.sub(r"(?m)^\| (Trainer \d+) \|  \|$", r"| \1 | value |", trace_markdown.page_of(run))
    text = re.sub(r"(?m)^(\| (?:flag|at step) \|)  \|", r"\1 what |", text)
    head, _, rest = text.partition("## What happened\n")
    _, _, after = rest.partition("\n## ")
    lines = head.split("\n", 1)[1].strip().splitlines()
    what = _what(folder.name)
    if what:
        lines = [f"*{what[0].upper()}{what[1:]}.*", "", *lines]
    path = folder.relative_to(ROOT).as_posix()
    lines += ["", "## What happened", ""]
    for rank in run.readings:
        if run.world_size > 1:
            lines += [f"### Rank {rank}", ""]
        lines += [f"```trace\n{path} --rank {rank}\n```", ""]
    if run.world_size > 1:
        lines += ["## Ranks side by side: the losses", "", f"```trace\n{path} --only loss --side-by-side\n```", ""]
    if after:
        lines += ["## " + after.strip()]
    lines += ["", "## Look at it yourself", "", "```text",
              f"python -m minitrainer.trace show {path}", f"python -m minitrainer.trace {folder.name}", "```"]  # fmt: skip
    version = ", ".join(words.versions(run.first.head)[:1])
    return _page(folder.name, f"A recorded run with {version}.", path + "/", lines)


def _atlas(report: Path) -> str:
    first, *rest = report.read_text(encoding="utf-8").splitlines()
    lines = [re.sub(r"Trace: `[^`]*`", "", line).rstrip() for line in rest]
    return _page(first.removeprefix("# "), f"What changed in the Trainer up to {report.stem}, seen in twenty runs.",
                 f"traces/atlas/{report.name}", lines)  # fmt: skip


# Read next: checking.py, which holds all of it against the repository.
