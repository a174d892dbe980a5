"""What the tests in a real browser share: a folder served on this machine, and a headless Chromium."""

from __future__ import annotations

import contextlib
import functools
import http.server
import importlib.util
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


@contextlib.contextmanager
def served(folder: Path) -> Iterator[str]:
    """The address of a folder, while the block runs."""
    handler = functools.partial(_Quiet, directory=str(folder))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()
    server.server_close()


@contextlib.contextmanager
def chromium(what_else: str) -> Iterator[Any]:
    """A headless Chromium; where there is none the test is skipped, and says `what_else` did not happen."""
    if CHROMIUM is None:
        pytest.skip(f"NO CHROMIUM HERE: {what_else} (apt-get install chromium)")
    if importlib.util.find_spec("playwright") is None:
        pytest.skip(f"NO PLAYWRIGHT HERE: {what_else} (pip install '.[browser]')")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as play:
        opened = play.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        yield opened
        opened.close()


# Read next: tests/book/test_site.py
