"""Runs the blocks of many pages in one process: each page in a fork of it, in an empty folder.

    python -m minitrainer.book.jobs JOBS.json RESULTS.json

Importing torch and transformers takes seconds; a fork takes none and can't harm the next page. This process must not
start threads before it forks: it imports, and computes nothing.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import shlex
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]

TRACE = ["python", "-m", "minitrainer.trace"]


def main(jobs_path: str, results_path: str) -> int:
    """Run all jobs and write what each printed; see `run_page` for their form."""
    jobs = json.loads(Path(jobs_path).read_text(encoding="utf-8"))
    _import_what_pages_need()
    workers = max(1, min(int(os.environ.get("MINITRAINER_BOOK_WORKERS", "2")), os.cpu_count() or 1))
    waiting = list(enumerate(jobs))
    running: dict[int, tuple[int, Path]] = {}
    results: list[Any] = [None] * len(jobs)
    with tempfile.TemporaryDirectory(prefix="minitrainer-book-") as folder:
        while waiting or running:
            while waiting and len(running) < workers:
                number, job = waiting.pop(0)
                answer = Path(folder) / f"{number}.json"
                running[_fork(job, answer)] = (number, answer)
            pid, status = os.wait()
            if pid not in running:
                continue
            number, answer = running.pop(pid)
            if answer.exists():
                results[number] = json.loads(answer.read_text(encoding="utf-8"))
            else:
                results[number] = {"error": f"the process ended with status {status} and no answer", "blocks": []}
    Path(results_path).write_text(json.dumps(results), encoding="utf-8")
    return 0


def _import_what_pages_need() -> None:
    warnings.simplefilter("ignore")
    os.environ["PYTHONPATH"] = os.pathsep.join(
        [*filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep)), str(ROOT)]
    )
    import transformers
    from transformers import Trainer  # noqa: F401  the class is lazy: this loads it

    import minitrainer.trace.cli
    import minitrainer.trace.running
    import minitrainer.trainer  # noqa: F401

    transformers.utils.logging.set_verbosity_error()
    with contextlib.suppress(Exception):
        transformers.utils.logging.disable_progress_bar()


def _fork(job: dict[str, Any], answer: Path) -> int:
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid:
        return pid
    status = 1
    try:
        result = run_page(job)
        part = answer.with_suffix(".part")
        part.write_text(json.dumps(result), encoding="utf-8")
        part.rename(answer)
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(status)


def run_page(job: dict[str, Any]) -> dict[str, Any]:
    """Run one page's blocks in order.

    Args:
        job: `{"page": name, "blocks": [{"kind": "python" or "command", "text": …, "line": …}]}`.

    Returns:
        `{"blocks": [{"printed": text, "error": text or "", "seconds": number}], "error": ""}`; blocks after a failed
        Python block are left out.
    """
    done: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="minitrainer-page-") as folder:
        os.chdir(folder)
        # Commands name committed traces as a reader in the repository would.
        for name in ("traces", "chapters"):
            os.symlink(ROOT / name, name)
        namespace: dict[str, Any] = {"__name__": "__main__"}
        for block in job["blocks"]:
            began = time.perf_counter()
            if block["kind"] == "python":
                printed, error = _run_python(block["text"], f"{job['page']} (line {block['line']})", namespace)
            else:
                printed, error = _run_command(block["text"])
            done.append({"printed": printed, "error": error, "seconds": round(time.perf_counter() - began, 2)})
            if error and block["kind"] == "python":
                break
        os.chdir(ROOT)
    return {"blocks": done, "error": ""}


def _run_python(text: str, name: str, namespace: dict[str, Any]) -> tuple[str, str]:
    printed = io.StringIO()
    try:
        with contextlib.redirect_stdout(printed):
            exec(compile(text, name, "exec"), namespace)
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            raise
        lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == name]
        where = f"line {lines[-1]} of the block: " if lines else ""
        return printed.getvalue(), f"{where}{type(error).__name__}: {error}"
    return printed.getvalue(), ""


def _run_command(line: str) -> tuple[str, str]:
    """Run one command line; its output and its errors together, as a reader sees them."""
    words = shlex.split(line)
    if words[:3] == TRACE:
        return _run_trace(words[3:])
    if words and words[0] in ("python", "torchrun"):
        module = ["-m", "torch.distributed.run"] if words[0] == "torchrun" else []
        words = [sys.executable, *module, *words[1:]]
    try:
        finished = subprocess.run(
            words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=120, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return "", f"{type(error).__name__}: {error}"
    return finished.stdout, ""


def _run_trace(words: list[str]) -> tuple[str, str]:
    """The same as `python -m minitrainer.trace WORDS` in a process of its own, without the imports."""
    with tempfile.TemporaryFile() as file:
        sys.stdout.flush()
        pid = os.fork()
        if pid == 0:
            status = 1
            try:
                os.dup2(file.fileno(), 1)
                os.dup2(file.fileno(), 2)
                sys.stdout = open(1, "w", encoding="utf-8", closefd=False)
                sys.stderr = open(2, "w", encoding="utf-8", closefd=False)
                sys.argv = ["minitrainer.trace", *words]
                from minitrainer.trace.cli import main as trace

                status = trace(words)
            except SystemExit as stop:
                status = stop.code if isinstance(stop.code, int) else 1
            except BaseException:
                traceback.print_exc()
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(status)
        os.waitpid(pid, 0)
        file.seek(0)
        return file.read().decode("utf-8", "replace"), ""


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))

# Read next: tables.py, which lays a trace out as HTML.
