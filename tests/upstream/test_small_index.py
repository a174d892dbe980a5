"""Adding, finding and removing versions, and all that can go wrong meanwhile; with the real pip, on a small index."""

from __future__ import annotations

import errno
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import sysconfig
import threading
import time
from pathlib import Path

import pytest

from minitrainer.trace import fetching, plans, upstream
from minitrainer.trace.errors import UsageError

from .small_index import only_this_index, write_small_index, write_transformers, write_wheel

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session")
def index(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("index")
    write_small_index(folder)
    return folder


@pytest.fixture
def place(index, tmp_path, monkeypatch) -> Path:
    """An empty folder for versions, in surroundings where pip sees nothing but the small index."""
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    for name, value in only_this_index(index).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("MINITRAINER_UPSTREAM_DIR", str(tmp_path / "upstream"))
    return tmp_path / "upstream"


@pytest.fixture
def added(place, index, tmp_path_factory) -> upstream.Upstream:
    """A version at hand: added once in the session, then copied."""
    original = tmp_path_factory.getbasetemp() / "added-once"
    if not original.exists():
        upstream.add("4.56.2", original.parent / "being-added", progress_to=io.StringIO())
        (original.parent / "being-added").rename(original)
    shutil.copytree(original, place)
    return upstream.find("4.56.2")


def trace(*words: str, **popen) -> subprocess.Popen[str]:
    """Start the command line in the surroundings of the test."""
    return subprocess.Popen(
        [sys.executable, "-m", "minitrainer.trace", *words],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **popen,
    )


def snapshot(folder: Path) -> dict[str, tuple[int, int]]:
    """Every file below a folder with its size and time, but for what Python itself caches there."""
    return {
        str(file): (file.stat().st_size, file.stat().st_mtime_ns)
        for file in folder.rglob("*")
        if file.is_file() and "__pycache__" not in file.parts
    }


def leftovers(place: Path) -> list[str]:
    """What stands beside the versions, lock files apart."""
    return [entry.name for entry in place.iterdir() if entry.name.startswith(".") and entry.name[:6] != ".lock-"]


# -- adding ---


def test_add_resolves_installs_tries_and_completes(place):
    said = io.StringIO()
    before = snapshot(Path(sysconfig.get_path("purelib")))
    new = upstream.add("transformers==4.56.2", progress_to=said)
    assert snapshot(Path(sysconfig.get_path("purelib"))) == before, "the user's environment was touched"

    assert new.folder == place / f"4.56.2-{sys.implementation.cache_tag}"
    assert new.packages["accelerate"] == "1.10.1", "the season's"
    assert new.packages["tokenizers"] == "0.22.2"
    assert new.lock_digest is None
    assert set(new.shared) == {"numpy"}
    # The index has a torch 999 with companions, and accelerate asks for torch: none of it was taken.
    assert set(new.packages) == {
        *("accelerate", "datasets", "huggingface-hub", "psutil", "tokenizers", "tqdm", "transformers")
    }
    assert not (new.folder / "torch").exists()
    assert leftovers(place) == []

    lines = said.getvalue().splitlines()
    for name in new.packages:
        assert any(f"  {name} {new.packages[name]}" in line for line in lines), name
    assert all(line[:6].strip().replace(".", "").isdigit() and line[6:9] == " s " for line in lines), "no elapsed time"
    assert max(map(len, lines)) <= 80


def test_what_was_added_is_found_at_once(added, place, monkeypatch):
    monkeypatch.setattr(subprocess, "Popen", None)  # nothing may be started
    started = time.perf_counter()
    again = upstream.add("4.56.2")
    assert time.perf_counter() - started < 0.5
    assert again == added


def test_the_folder_alone_on_the_path_gives_the_version(added):
    script = "import transformers, accelerate; print(transformers.__version__, accelerate.__file__)"
    child = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, "PYTHONPATH": str(added.folder)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert child.stdout.split() == ["4.56.2", str(added.folder / "accelerate" / "__init__.py")]


def test_a_tokenizers_without_a_wheel_gets_a_stand_in(place):
    said = io.StringIO()
    new = upstream.add("4.33.3", progress_to=said)
    assert new.stand_ins == {"tokenizers": {"says": "0.13.3", "is": "0.22.2"}}
    assert "tokenizers 0.22.2 stands in for 0.13.3: no wheel for Python" in said.getvalue()
    record = json.loads((new.folder / upstream.COMPLETION_FILE).read_text(encoding="utf-8"))
    assert record["stand_ins"]["tokenizers"]["is"] == "0.22.2"

    # The metadata claims the old number, which is all that the old version's check reads; the report tells the truth.
    script = "import importlib.metadata as m; print(m.version('tokenizers'))"
    done = upstream.run_in("4.33.3", ["-c", script], capture=True)
    assert done.stdout.strip() == "0.13.3"
    assert done.versions["tokenizers"] == "0.22.2"
    assert "0.22.2 *" in "\n".join(upstream._listing(None))


def test_an_old_accelerate_does_not_see_a_new_peft(place, tmp_path):
    upstream.add("4.33.3", progress_to=io.StringIO())
    elsewhere = tmp_path / "elsewhere"
    (elsewhere / "peft").mkdir(parents=True)
    (elsewhere / "peft" / "__init__.py").touch()
    (elsewhere / "other.py").touch()
    (elsewhere / "sitecustomize.py").write_text("import sys; sys.own_start_up_ran = True\n", encoding="utf-8")
    script = (
        "import importlib.util as u, sys; "
        "print(u.find_spec('peft') is None, u.find_spec('other') is not None, sys.own_start_up_ran)"
    )
    done = upstream.run_in("4.33.3", ["-c", script], env={"PYTHONPATH": str(elsewhere)}, capture=True)
    assert done.stdout.split() == ["True", "True", "True"], done.stderr


def test_a_stale_folder_is_refused_by_find_and_renewed_by_add(added, monkeypatch, tmp_path):
    locks = tmp_path / "locks"
    locks.mkdir()
    pins = [f"{name}=={version}" for name, version in added.packages.items() if name != "tqdm"]
    (locks / "4.56.2.txt").write_text(
        "\n".join(pins) + "\nnumpy==2.4.6  # shared when installed: any\n", encoding="utf-8"
    )
    monkeypatch.setattr(plans, "LOCKS", locks)
    with pytest.raises(UsageError, match="was made from another lock; renew it with: .* upstream add 4.56.2$"):
        upstream.find("4.56.2")
    renewed = upstream.add("4.56.2", progress_to=io.StringIO())
    assert renewed.lock_digest == plans.digest(plans.read_lock(locks / "4.56.2.txt"))
    assert "tqdm" not in renewed.packages
    assert not (renewed.folder / "tqdm").exists()
    assert leftovers(renewed.folder.parent) == []
    assert upstream.find("4.56.2") == renewed


def test_a_folder_that_relies_on_what_is_gone_is_stale(added, monkeypatch):
    record = json.loads((added.folder / upstream.COMPLETION_FILE).read_text(encoding="utf-8"))
    record["shared"] = {"no-such-package": ">=1"}
    (added.folder / upstream.COMPLETION_FILE).write_text(json.dumps(record), encoding="utf-8")
    with pytest.raises(UsageError, match="relies on this environment's no-such-package, which is gone"):
        upstream.find("4.56.2")


def test_another_pythons_folder_is_not_used(added):
    other = added.folder.with_name("4.56.2-cpython-39")
    added.folder.rename(other)
    record = json.loads((other / upstream.COMPLETION_FILE).read_text(encoding="utf-8"))
    (other / upstream.COMPLETION_FILE).write_text(json.dumps({**record, "python": "3.9"}), encoding="utf-8")
    with pytest.raises(UsageError, match=r"not at hand in .* for Python 3\.\d+, only for 3\.9; add it with: "):
        upstream.find("4.56.2")
    assert upstream.add("4.56.2", progress_to=io.StringIO()).folder != other
    assert other.exists()


def test_two_adds_at_once_do_not_collide(place):
    first, second = (trace("upstream", "add", "4.56.2") for _ in range(2))
    outcomes = [child.communicate(timeout=120) for child in (first, second)]
    assert [first.returncode, second.returncode] == [0, 0], outcomes
    assert all("transformers 4.56.2 is at hand" in stdout for stdout, _ in outcomes)
    assert sum("another process is adding transformers 4.56.2; waiting" in stderr for _, stderr in outcomes) == 1
    # One of them worked, the other found its work.
    assert sum("complete" in stdout for stdout, _ in outcomes) == 1
    assert leftovers(place) == []
    upstream.find("4.56.2")


@pytest.mark.parametrize("moment", ["fetching", "unpacked"])
def test_an_interrupted_add_is_never_taken_for_a_whole_one(place, moment):
    """Killed without a chance to clean up, at two moments: the version is not at hand, and the next add succeeds."""
    child = trace("upstream", "add", "4.56.2", start_new_session=True)
    deadline = time.monotonic() + 60
    seen = {"fetching": ".adding-*/report.json", "unpacked": ".adding-*/whole/transformers"}[moment]
    while not list(place.glob(seen)):
        assert child.poll() is None, child.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.005)
    os.killpg(child.pid, signal.SIGKILL)
    child.communicate()
    assert leftovers(place) != [], "it was killed too late to prove anything"

    with pytest.raises(UsageError, match="not at hand"):
        upstream.find("4.56.2")
    assert "nothing in" in "\n".join(upstream._listing(None))
    new = upstream.add("4.56.2", progress_to=io.StringIO())
    assert upstream.run_in("4.56.2", ["-c", "import transformers"], capture=True).returncode == 0
    assert leftovers(place) == [], "what the killed one left is still there"
    assert new == upstream.find("4.56.2")


def test_ctrl_c_leaves_nothing(place):
    def heed_interrupts() -> None:
        """What a shell starts in the background, a test run too, ignores the signal, and so do its children."""
        signal.signal(signal.SIGINT, signal.SIG_DFL)

    for _ in range(5):  # on a busy machine the install may be done before the signal arrives: then try again
        child = trace("upstream", "add", "4.56.2", preexec_fn=heed_interrupts)
        deadline = time.monotonic() + 60
        while not list(place.glob(".adding-*/report.json")):
            assert child.poll() is None, child.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.005)
        child.send_signal(signal.SIGINT)
        _, stderr = child.communicate(timeout=60)
        if child.returncode != 0:
            break
        upstream.remove("4.56.2")
    assert child.returncode == 130
    assert "Traceback" not in stderr
    assert leftovers(place) == []
    assert upstream._version_folders(place) == []


def test_a_folder_without_its_completion_file_does_not_count(added):
    (added.folder / upstream.COMPLETION_FILE).unlink()
    with pytest.raises(UsageError, match="not at hand"):
        upstream.find("4.56.2")
    assert "not whole: add again" in "\n".join(upstream._listing(None))
    upstream.add("4.56.2", progress_to=io.StringIO())
    upstream.find("4.56.2")


@pytest.mark.parametrize("content", ["", "{", "[]", '{"version": "4.56.2"}', "\x00\x01"])
def test_a_damaged_completion_file_does_not_count(added, content):
    (added.folder / upstream.COMPLETION_FILE).write_text(content, encoding="utf-8")
    with pytest.raises(UsageError, match="not at hand"):
        upstream.find("4.56.2")


def test_a_version_that_does_not_import_is_not_completed(place, index, tmp_path, monkeypatch):
    broken = tmp_path / "broken-index"
    shutil.copytree(index, broken)
    write_wheel(broken, "datasets", "5.0.1", files={"__init__.py": "raise ImportError('datasets needs a moon')\n"})
    monkeypatch.setenv("PIP_FIND_LINKS", str(broken))
    with pytest.raises(
        UsageError, match=r"4\.56\.2 does not import on Python .* with torch .*: .*datasets needs a moon"
    ):
        upstream.add("4.56.2", progress_to=io.StringIO())
    assert upstream._version_folders(place) == []
    assert leftovers(place) == []


def test_what_a_shared_pandas_does_without_is_not_added(monkeypatch):
    """pandas needs tzdata on some systems only: an environment whose pandas does without is not given one."""
    plan = [plans.Requirement(name, "1.0", shared_range="") for name in ("numpy", "pandas", "tzdata")]
    there = {"numpy": "2.4", "pandas": "3.0"}
    monkeypatch.setattr(plans, "installed_version", there.get)
    assert plans.leave_out_what_is_shared(plan) == ([], {"numpy": "", "pandas": ""})
    del there["pandas"]
    left, shared = plans.leave_out_what_is_shared(plan)
    assert ([requirement.name for requirement in left], shared) == (["pandas", "tzdata"], {"numpy": ""})


# -- what can't be had ---


def test_a_version_that_does_not_exist_names_the_nearest(place):
    with pytest.raises(UsageError) as caught:
        upstream.add("4.56.9", progress_to=io.StringIO())
    assert str(caught.value) == (
        "there is no transformers 4.56.9; nearest: 4.56.2 (withdrawn: 4.46.0, 4.52.0, 4.57.0, 5.10.0)"
    )
    assert leftovers(place) == []


def test_an_index_without_a_companion_names_it(place, index, tmp_path, monkeypatch):
    poor = tmp_path / "poor-index"
    shutil.copytree(index, poor)
    (poor / "datasets-5.0.1-py3-none-any.whl").unlink()
    write_wheel(poor, "datasets", "1.0")
    monkeypatch.setenv("PIP_FIND_LINKS", str(poor))
    with pytest.raises(
        UsageError, match=r"^transformers 4\.56\.2 can't be added: the index has no datasets 5\.0\.1 that fits"
    ):
        upstream.add("4.56.2", progress_to=io.StringIO())


def test_a_version_for_a_newer_python_says_which(place, index, tmp_path, monkeypatch):
    newer = tmp_path / "newer-index"
    newer.mkdir()
    write_transformers(newer, "4.56.1")
    write_transformers(newer, "4.56.2")
    # A find-links folder can't say "Requires-Python"; a page of links can, as a real index does.
    links = [
        f'<a href="{f.as_uri()}" data-requires-python="&gt;={3}.{99 if "4.56.2" in f.name else 8}">{f.name}</a>'
        for f in newer.iterdir()
    ]
    (newer / "links.html").write_text("\n".join(links), encoding="utf-8")
    monkeypatch.setenv("PIP_FIND_LINKS", f"{(newer / 'links.html').as_uri()} {index}")
    (index_without := tmp_path / "rest").mkdir()
    for wheel in index.glob("*.whl"):
        if not wheel.name.startswith("transformers"):
            shutil.copy(wheel, index_without)
    monkeypatch.setenv("PIP_FIND_LINKS", f"{(newer / 'links.html').as_uri()} {index_without}")
    with pytest.raises(UsageError, match=r"^transformers 4\.56\.2 needs Python >=3\.99; this is Python 3\.\d+$"):
        upstream.add("4.56.2", progress_to=io.StringIO())


@pytest.mark.parametrize("version", ["4.31.0", "4.40.2"])
@pytest.mark.parametrize("how", ["no index at all", "nobody answers"])
def test_an_unreachable_index_is_named_with_what_to_do(place, version, how, monkeypatch, tmp_path):
    (tmp_path / "nothing").mkdir()
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "nothing"))
    if how == "nobody answers":
        monkeypatch.delenv("PIP_NO_INDEX")
        monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")  # the discard port: nobody listens
        monkeypatch.setenv("PIP_RETRIES", "1")
    with pytest.raises(UsageError) as caught:
        upstream.add(version, progress_to=io.StringIO())
    lock = f" (lock {plans.lock_of(version)})" if version == "4.31.0" else ""
    assert str(caught.value) == (
        f"the package index can't be reached, so transformers {version}{lock} was not added to {place}; "
        f"once online, run: python -m minitrainer.trace upstream add {version}"
    )
    assert leftovers(place) == []


def test_a_full_disk_is_one_clear_line(place, tmp_path, monkeypatch):
    """On a real disk of two megabytes where this user may mount one; elsewhere pip's own message stands for it."""
    small = tmp_path / "small-disk"
    small.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=2m", "none", str(small)], capture_output=True, check=False
    )
    try:
        if mounted.returncode == 0:
            (small / "ballast").write_bytes(bytes(1_990_000))
            with pytest.raises(
                UsageError, match="^the disk of .* is full .*: make room, or choose another folder with --dir$"
            ):
                upstream.add("4.56.2", small / "upstream", progress_to=io.StringIO())
            assert upstream._version_folders(small / "upstream") == []
        else:

            def full(*_, **__):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

            monkeypatch.setattr(upstream, "_write_completion", full)
            with pytest.raises(
                UsageError, match="^the disk of .* is full .*: make room, or choose another folder with --dir$"
            ):
                upstream.add("4.56.2", progress_to=io.StringIO())
            assert upstream._version_folders(place) == []
            assert leftovers(place) == []
    finally:
        if mounted.returncode == 0:
            subprocess.run(["umount", str(small)], check=True)


def test_what_pip_says_of_a_full_disk_is_understood(tmp_path):
    """pip may be the one that meets the full disk; this is its message."""
    with fetching.Progress(io.StringIO()) as progress:
        workshop = fetching.Workshop(tmp_path, tmp_path, "transformers 4.31.0", "the command", progress)
        said = ["ERROR: Could not install packages due to an OSError: [Errno 28] No space left on device", ""]
        assert "is full" in str(fetching._what_pip_meant(said, workshop))
        said = ["ERROR: Could not install packages due to an OSError: [Errno 13] Permission denied: 'x'"]
        assert "can't be written to; choose another folder with --dir" in str(fetching._what_pip_meant(said, workshop))
        said = ["Collecting a", "ERROR: the moon is not available"]
        assert str(fetching._what_pip_meant(said, workshop)) == (
            "pip could not install transformers 4.31.0: ERROR: the moon is not available"
        )


def test_a_folder_that_is_a_file_is_one_clear_line(place, tmp_path):
    (tmp_path / "a-file").touch()
    for directory in (tmp_path / "a-file", tmp_path / "a-file" / "below"):
        with pytest.raises(UsageError, match="a-file.* can't be used: .*; choose another with --dir$"):
            upstream.add("4.56.2", directory, progress_to=io.StringIO())


def test_without_torch_nothing_is_added(place, monkeypatch):
    real = plans.installed_version
    monkeypatch.setattr(plans, "installed_version", lambda name: None if name == "torch" else real(name))
    with pytest.raises(UsageError, match="^torch is not installed in this environment"):
        upstream.add("4.56.2")
    assert not place.exists()


def test_pip_comes_from_python_itself_when_it_is_not_installed(monkeypatch):
    import importlib.util

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    command = fetching._pip_command()
    assert "ensurepip" in command[-1]
    shown = subprocess.run([*command, "--version"], capture_output=True, text=True, check=True)
    assert shown.stdout.startswith("pip ")


# -- running ---


def test_run_in_refuses_what_is_not_at_hand(place):
    with pytest.raises(UsageError) as caught:
        upstream.run_in("4.56.2", ["-c", ""])
    assert str(caught.value) == (
        f"transformers 4.56.2 is not at hand in {place}; add it with: python -m minitrainer.trace upstream add 4.56.2"
    )


def test_run_in_gives_the_version_and_minitrainer_beside_it(added, tmp_path):
    script = (
        "import transformers, minitrainer, sys; print(transformers.__version__, minitrainer.__file__); sys.exit(7)"
    )
    done = upstream.run_in("4.56.2", ["-c", script], capture=True, cwd=tmp_path)
    assert done.returncode == 7
    assert done.stdout.split() == ["4.56.2", str(ROOT / "minitrainer" / "__init__.py")]
    assert done.upstream == added
    import platform
    from importlib import metadata

    assert done.versions == {
        "python": platform.python_version(),
        "transformers": "4.56.2",
        "accelerate": "1.10.1",
        "tokenizers": "0.22.2",
        "huggingface_hub": "0.36.2",
        "datasets": "5.0.1",
        "torch": metadata.version("torch"),
        "numpy": metadata.version("numpy"),
    }


def test_run_in_runs_a_script_with_its_arguments_and_lets_output_through(added, tmp_path, capfd):
    (tmp_path / "script.py").write_text("import sys; print(sys.argv[1:], file=sys.stderr)\n", encoding="utf-8")
    done = upstream.run_in("4.56.2", [str(tmp_path / "script.py"), "--flag", "value"])
    assert (done.returncode, done.stdout, done.stderr) == (0, None, None)
    assert capfd.readouterr().err == "['--flag', 'value']\n"


def test_variables_are_laid_over_our_own(added, monkeypatch, tmp_path):
    monkeypatch.setenv("KEPT", "kept")
    monkeypatch.setenv("TAKEN_AWAY", "there")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    script = (
        "import os; print([os.environ.get(n) for n in ('KEPT', 'TAKEN_AWAY', 'NEW')]); print(os.environ['PYTHONPATH'])"
    )
    done = upstream.run_in("4.56.2", ["-c", script], env={"TAKEN_AWAY": None, "NEW": "new"}, capture=True)
    variables, path = done.stdout.splitlines()
    assert variables == "['kept', None, 'new']"
    assert path.split(os.pathsep) == [str(added.folder), str(ROOT), str(tmp_path)]


def test_a_run_inside_a_run_does_not_inherit_the_other_version(place):
    upstream.add("4.56.1", progress_to=io.StringIO())
    upstream.add("4.56.2", progress_to=io.StringIO())
    inner = (
        "from minitrainer.trace import upstream; "
        "script = 'import transformers, sys; print(transformers.__version__, sys.path)'; "
        "print(upstream.run_in('4.56.1', ['-c', script], capture=True).stdout)"
    )
    done = upstream.run_in("4.56.2", ["-c", inner], capture=True)
    assert done.stdout.startswith("4.56.1 "), done.stderr
    assert "4.56.2-" not in done.stdout


def test_torch_may_unpickle_freely_only_when_asked_and_only_where_needed(place, monkeypatch):
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")  # not even when we have it ourselves
    script = "import os; print(os.environ.get('TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD'))"
    for version, needs_it in (("4.33.3", True), ("4.56.2", False)):
        upstream.add(version, progress_to=io.StringIO())
        assert upstream.run_in(version, ["-c", script], capture=True).stdout == "None\n"
        asked = upstream.run_in(version, ["-c", script], capture=True, resume_own_checkpoints=True)
        assert asked.stdout == ("1\n" if needs_it else "None\n")


def test_a_run_that_takes_too_long_is_stopped_with_all_it_started(added, tmp_path):
    script = (
        "import subprocess, sys, time\n"
        f"child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])\n"
        f"open({str(tmp_path / 'pid')!r}, 'w').write(str(child.pid))\n"
        "time.sleep(60)\n"
    )
    started = time.monotonic()
    with pytest.raises(UsageError, match=r"^the run on transformers 4\.56\.2 took longer than 5 s and was stopped$"):
        upstream.run_in("4.56.2", ["-c", script], timeout=5)
    assert time.monotonic() - started < 30
    grandchild = int((tmp_path / "pid").read_text())
    deadline = time.monotonic() + 10
    while Path(f"/proc/{grandchild}").exists() and "(zombie)" not in Path(f"/proc/{grandchild}/status").read_text():
        assert time.monotonic() < deadline, "the grandchild lives on"
        time.sleep(0.05)


def test_what_would_be_imported_in_its_place_is_refused(added, tmp_path):
    (tmp_path / "transformers").mkdir()
    (tmp_path / "transformers" / "__init__.py").touch()
    (tmp_path / "script.py").touch()
    with pytest.raises(UsageError, match="transformers would be imported instead of the transformers that belongs to"):
        upstream.run_in("4.56.2", ["-c", ""], cwd=tmp_path)
    with pytest.raises(UsageError, match="run from another folder"):
        upstream.run_in("4.56.2", [str(tmp_path / "script.py")])


def test_run_in_adds_what_is_missing_when_asked(place):
    done = upstream.run_in("4.56.2", ["-c", "import transformers"], capture=True, add_if_missing=True)
    assert done.returncode == 0
    assert upstream.find("4.56.2").folder.parent == place


# -- the commands ---


def test_the_commands_from_add_to_remove(place):
    def run(*words: str) -> tuple[int, str, str]:
        child = trace("upstream", *words)
        stdout, stderr = child.communicate(timeout=120)
        return child.returncode, stdout, stderr

    status, stdout, stderr = run("list")
    assert (status, stderr) == (0, "")
    assert stdout.splitlines()[0] == f"nothing in {place} yet"
    assert "4.31.0  4.36.2" in stdout

    status, stdout, stderr = run("add", "4.56.2")
    assert (status, stderr) == (0, "")
    assert stdout.splitlines()[-2].startswith("transformers 4.56.2 is at hand: accelerate 1.10.1, ")
    assert stdout.splitlines()[-1] == str(place / f"4.56.2-{sys.implementation.cache_tag}")

    status, stdout, stderr = run("list")
    row = stdout.splitlines()[2].split()
    assert row[:5] == ["4.56.2", plans.python(), "1.10.1", "0.22.2", "5.0.1"]
    assert row[-1] == "metadata"

    assert run("run", "4.56.2", "-c", "import transformers; print(transformers.__version__)") == (0, "4.56.2\n", "")
    assert run("run", "4.56.2", "-c", "raise SystemExit(5)") == (5, "", "")

    status, stdout, stderr = run("remove", "4.56.2")
    assert (status, stderr) == (0, "")
    assert stdout.startswith("removed ")
    assert upstream._version_folders(place) == []
    assert leftovers(place) == []


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ([], "say what to do"),
        (["add"], "the following arguments are required: VERSION"),
        (["add", "newest"], "not a version of transformers: 'newest'"),
        (["add", "4.30.2"], "older than 4.31.0"),
        (["add", "4.46.0"], "withdrawn by its authors; take 4.46.3"),
        (["add", "4.56.9"], "nearest: 4.56.2"),
        (["remove", "4.56.2"], "is not in"),
        (["run", "4.56.2"], "say what to run"),
        (["run", "newest", "x.py"], "not a version"),
        (["frobnicate"], "invalid choice: 'frobnicate'"),
    ],
)
def test_wrong_use_is_one_line_and_exit_status_2(place, words, says):
    child = trace("upstream", *words)
    _, stderr = child.communicate(timeout=60)
    assert child.returncode == 2
    assert len(stderr.splitlines()) == 1, stderr
    assert says in stderr


def test_importing_the_module_imports_nothing_heavy():
    script = (
        "import sys, minitrainer.trace.upstream; "
        "print([m for m in ('torch', 'numpy', 'rich', 'transformers', 'accelerate', 'packaging') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


# -- progress ---


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


def test_on_a_terminal_one_line_ticks_and_is_erased():
    stream = Terminal()
    with fetching.Progress(stream) as progress:
        progress.wait("unpacking 33 packages")
        deadline = time.monotonic() + 10
        while stream.getvalue().count("unpacking") < 3:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        progress.line("done")
    assert "\n" not in stream.getvalue().partition("done")[0], "the ticking line left a trail"
    assert stream.getvalue().endswith("done\n\r\x1b[K")
    assert threading.active_count() < 50


def test_in_a_pipe_each_thing_is_said_once():
    stream = io.StringIO()
    with fetching.Progress(stream) as progress:
        for _ in range(3):
            progress.wait("unpacking 33 packages")
        progress.line("done")
    assert [line[10:] for line in stream.getvalue().splitlines()] == ["unpacking 33 packages …", "done"]
    assert "\x1b" not in stream.getvalue()


# Read next: test_real_versions.py
