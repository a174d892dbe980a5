"""Run a scenario or a script under observation: here, in an isolated upstream version, on one process or several.

The command line's process decides *where* the run happens and starts it; `worker.py` is what runs there. One process
in this environment needs no child at all: the worker's function is called directly.
"""

from __future__ import annotations

import argparse
import os
import socket
import subprocess
import sys
import time
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path

from . import scenarios
from .errors import UsageError
from .scenarios.flows import FLOWS

DEFAULT_TRAINER = "minitrainer"


@dataclass(frozen=True)
class Place:
    """Where a run happens.

    Attributes:
        library: the module that offers the Trainer: "minitrainer" or "transformers".
        version: the isolated transformers version to run in; None for the environment of this process.
    """

    library: str
    version: str | None


def main(what: str, options_before: list[str], words: list[str]) -> int:
    """Run `what` (a scenario's name or a script's path) under observation and show the trace.

    Args:
        what: a name in `scenarios.SCENARIOS`, or a path that ends in ".py".
        options_before: our own options that stood before it.
        words: what stood after it. After a script all of them are the script's. After a scenario ours are taken out
            and the rest goes to the scenario, which takes every field of its library's TrainingArguments.

    Returns:
        The run's exit status: 0, 2 for what could not be done, or what a script or a failed rank left with.
    """
    is_scenario = what in scenarios.SCENARIOS
    parser = _parser(what, is_scenario)
    if is_scenario:
        options, rest = parser.parse_known_args(options_before + words)
    else:
        options, rest = parser.parse_args(options_before), words
        if not Path(what).is_file():
            raise UsageError(f"there is no script {what}")
        if options.trainer and options.trainer.partition("==")[0] == "minitrainer":
            raise UsageError("a script brings its own Trainer: to trace ours, let it import from minitrainer")

    place = _place(options.trainer or DEFAULT_TRAINER, options.environment)
    out = _trace_folder(options.out, Path(what).stem)
    command = [
        *("--out", str(out), "--library", place.library),
        *(("--scenario", what) if is_scenario else ("--script", str(Path(what).resolve()))),
        *(["--collectives"] if options.collectives else []),
        "--",
        *rest,
    ]
    began = time.perf_counter()
    with _progress(options, out):
        status = _start(
            command, place, _processes(what, options.nproc), options.trust_checkpoints or _resumes_its_own(what)
        )
    if status == 0 or any(out.glob("rank*.rows")):
        _report(out, options, time.perf_counter() - began)
    if status not in (0, 2) and os.environ.get("RANK", "0") == "0":
        _say_what_failed(out, status)
    return status


def _parser(what: str, is_scenario: bool) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m minitrainer.trace " + (what if is_scenario else "[options] SCRIPT.py"),
        description=scenarios.SCENARIOS.get(what, "Run a script unchanged and record every Trainer that it builds."),
        epilog=(
            "Any other --flag goes to the scenario, which takes every field of the library's TrainingArguments:\n"
            f"  python -m minitrainer.trace {what} --logging_steps 10 --gradient_accumulation_steps 2\n"
            f"  python -m minitrainer.trace {what} --help-all      every flag, with its help (loads the library)"
            if is_scenario
            else "Options of the trace stand before the script; everything after it is the script's own."
        ),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
        usage=None if is_scenario else "python -m minitrainer.trace [options] SCRIPT.py [its arguments]",
    )
    where = parser.add_argument_group("which Trainer, and where")
    where.add_argument(
        "--trainer",
        metavar="WHICH",
        help="minitrainer, transformers (the installed one) or transformers==VERSION, which runs in an isolated "
        "folder (see: upstream add). Default: " + (DEFAULT_TRAINER if is_scenario else "whatever the script imports"),
    )
    where.add_argument(
        "--environment",
        metavar="VERSION",
        help="run in the isolated folder of this transformers version, whichever Trainer is watched",
    )
    ranks = scenarios.RANKS.get(what, 1)
    where.add_argument(
        "--nproc",
        type=_count,
        metavar="N",
        help=f"number of processes (ranks), started by torchrun. Default: {ranks}; under torchrun or accelerate launch "
        "as many as they have started",
    )
    where.add_argument(
        "--trust-checkpoints",
        action="store_true",
        help="let a version before 4.47 resume: it unpickles whatever the checkpoint holds, so be sure of it",
    )
    where.add_argument(
        "--out", type=Path, metavar="FOLDER", help="where the trace goes. Default: a new folder under runs/"
    )
    where.add_argument(
        "--collectives",
        action="store_true",
        help="record what the ranks exchange too: kind, size, group and caller of every collective",
    )
    view = parser.add_argument_group("what is shown afterwards (everything is recorded anyway)")
    view.add_argument(
        "--only",
        metavar="WHAT",
        default="callbacks",
        help="callbacks, flags, loss, calls, files, collectives (with commas between), or everything. Default: %(default)s",
    )
    view.add_argument("--step", metavar="FIRST..LAST", help="only these steps, for example 3..5 or 7")
    view.add_argument("--rank", type=int, metavar="R", help="only this rank")
    view.add_argument(
        "--live",
        action="store_true",
        help="show one line of progress while it records (a process of its own reads the recording: the run is not "
        "slowed); a script with a bar of its own needs none",
    )
    view.add_argument("--quiet", action="store_true", help="show nothing but where the trace is")
    parser.add_argument("--debug", action="store_true", help="show the stack of an error")
    parser.error = _usage_error(parser)  # type: ignore[method-assign,assignment]
    return parser


def _usage_error(parser: argparse.ArgumentParser):
    def error(message: str) -> None:
        raise UsageError(f"{message} (see {parser.prog} --help)")

    return error


def _count(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"takes a whole number from 1, not {text!r}")
    return int(text)


# -- where -----------------------------------------------------------------------


def _place(trainer: str, environment: str | None) -> Place:
    library, _, version = trainer.partition("==")
    if library not in ("minitrainer", "transformers"):
        raise UsageError(f"--trainer takes minitrainer, transformers or transformers==VERSION, not {trainer!r}")
    if version and library == "minitrainer":
        raise UsageError("minitrainer has one version here: --environment VERSION runs it on another transformers")
    if version and environment and version != environment:
        raise UsageError(f"--trainer {trainer} and --environment {environment} contradict each other")
    wanted = version or environment
    if wanted is None or wanted == _installed_transformers():
        return Place(library, None)
    return Place(library, wanted)


def _installed_transformers() -> str | None:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("transformers")
    except PackageNotFoundError:
        return None


def _trace_folder(asked: Path | None, name: str) -> Path:
    """Make the folder for the trace; all ranks of one launch must come to the same one."""
    launched = int(os.environ.get("WORLD_SIZE", "1")) > 1
    if asked is not None:
        other = f"rank{os.environ.get('RANK', '0')}.rows" if launched else "rank*.rows"
        if any(asked.glob(other)):
            raise UsageError(f"{asked} holds a trace already: name another --out, or remove it first")
        return _made(asked)
    # The launcher's own start is the one moment that all ranks of a machine agree on without talking.
    began = time.time()
    if launched:
        import psutil  # comes with accelerate

        began = psutil.Process(os.getppid()).create_time()
    stamped = Path("runs") / f"{name}-{time.strftime('%Y%m%d-%H%M%S', time.localtime(began))}"
    if launched:
        return _made(stamped)
    for attempt in range(1000):
        folder = Path(f"{stamped}-{attempt}") if attempt else stamped
        if not folder.exists():
            return _made(folder)
    raise UsageError("can't find a free name under runs/; --out FOLDER names another place")


def _made(folder: Path) -> Path:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"can't make {folder}: {error.strerror}; --out FOLDER names another place") from error
    return folder


# -- starting --------------------------------------------------------------------


def _processes(what: str, asked: int | None) -> int:
    """How many processes to start."""
    launched = int(os.environ.get("WORLD_SIZE", "1")) > 1
    # A launcher (torchrun, accelerate) around us has set the ranks up; more of them inside each would be a mistake.
    if launched and asked is not None and asked > 1:
        raise UsageError("--nproc can't be used under a launcher, which has set the number of processes already")
    return asked or (1 if launched else scenarios.RANKS.get(what, 1))


def _start(command: list[str], place: Place, nproc: int, trusts_checkpoints: bool) -> int:
    """Run the worker with `command` and return its exit status."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # small models on few cores: threads would only wait
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    if nproc == 1 and place.version is None:
        from . import worker

        return worker.main(command)
    launcher = ["-m", "minitrainer.trace.worker"]
    if nproc > 1:
        launcher = [
            *("-m", "minitrainer.trace.launching", "--nproc_per_node", str(nproc)),
            *("--master_addr", "127.0.0.1", "--master_port", str(_free_port())),
            *("-m", "minitrainer.trace.worker"),
        ]
    if place.version is None:
        environment = dict(os.environ)
        # The child must find this very package also where it is run from a source folder.
        root = str(Path(__file__).resolve().parents[2])
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, [root, environment.get("PYTHONPATH")]))
        return subprocess.run([sys.executable, *launcher, *command], env=environment, check=False).returncode
    from . import upstream

    return upstream.run_in(
        place.version, launcher + command, add_if_missing=True, resume_own_checkpoints=trusts_checkpoints
    ).returncode


def _resumes_its_own(what: str) -> bool:
    """Whether the scenario goes on from a checkpoint that it wrote itself a moment before."""
    flow = FLOWS.get(what)
    return flow is not None and any(action.startswith("resume") for action in flow.actions)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _progress(options: argparse.Namespace, out: Path) -> AbstractContextManager[None]:
    """What shows the progress while the run goes on."""
    if not options.live or os.environ.get("RANK", "0") != "0":
        return nullcontext()
    from .render import live

    return live.watching(out)


# -- afterwards --------------------------------------------------------------------


def _report(out: Path, options: argparse.Namespace, seconds: float) -> None:
    # Under a launcher every rank comes here: one of them speaks.
    if os.environ.get("RANK", "0") != "0":
        return
    if not options.quiet:
        from . import commands

        only = None if options.only == "everything" else options.only
        commands.show(out, only=only, step=options.step, rank=options.rank)
    print(f"\ntrace of {seconds:.1f} s in {out}")
    print(f"everything it holds: python -m minitrainer.trace show {out}")


def _say_what_failed(out: Path, status: int) -> None:
    """Close a failed run with one line: the ranks' own complaints, mixed above, seldom name the one that began it."""
    from . import ranks
    from .render.side_by_side import how_a_run_failed

    try:
        how = how_a_run_failed(ranks.open_run(out))
    except UsageError:
        return  # nothing was recorded, so nothing can be said
    if how:
        print(f"minitrainer.trace: the run failed (status {status}): {how}", file=sys.stderr)


# Read next: worker.py, which runs in the place chosen here.
