"""The site: built strictly, complete without a network, and looked at in a real browser.

One build for all tests of this file. The tests marked `browser` need a Chromium (`apt-get install chromium`); where
there is none they are skipped, and say so.
"""

from __future__ import annotations

import importlib.util
import os
import re
import resource
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from minitrainer.book import pages, statements
from tests.browsing import chromium, served

pytestmark = pytest.mark.slow

MAIN_PAGES = (
    "index.html", "loop.html", "loss.html", "flags.html", "run_glue.html", "questions.html", "claims.html",
    "trace-two-ranks-uneven.html",
)  # fmt: skip


class Site:
    """A built site: its folder, what the builder said, and the seconds of processor time that it took."""

    def __init__(self, folder: Path):
        self.folder = folder
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        argv = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
        environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
        done = subprocess.run(argv, cwd=pages.ROOT, env=environment, capture_output=True, text=True, check=False)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        self.seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        self.said = done.stdout + done.stderr
        assert done.returncode == 0, self.said

    @property
    def html(self) -> list[Path]:
        return sorted(self.folder.glob("*.html"))


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Site:
    return Site(tmp_path_factory.mktemp("site"))


# -- without a browser -----------------------------------------------------------------------------------


def test_it_builds_strictly_and_in_time(site: Site) -> None:
    assert "WARNING" not in site.said, site.said
    assert site.seconds < 60
    assert len(site.html) >= 60


def test_every_page_is_in_the_navigation(site: Site) -> None:
    settings = (pages.ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    listed = re.findall(r"^\s+- (?:[^:\n]+: )?([\w.-]+\.md)$", settings, re.MULTILINE)
    there = [page.name for page in pages.all_pages()]
    assert len(there) >= 60 and sorted(listed) == sorted(there)


def test_nothing_is_fetched_from_elsewhere(site: Site) -> None:
    """Addresses may be linked to; nothing may be loaded from one."""
    looked_at = 0
    for path in [*site.html, *site.folder.rglob("*.css")]:
        text = path.read_text(encoding="utf-8")
        loaded = re.findall(r"<(?:script|img|iframe|source)\b[^>]*?\bsrc=\"?([^\" >]+)", text)
        loaded += re.findall(r"<link\b[^>]*?\bhref=\"?([^\" >]+)", text)
        loaded += re.findall(r"(?:url\(|@import )[\"']?([^\"')]+)", text) if path.suffix == ".css" else []
        looked_at += len(loaded)
        outside = [one for one in loaded if re.match(r"(?:https?:)?//", one) and "w3.org" not in one]
        assert not outside, f"{path.name} loads {outside}"
    assert looked_at > 300


def test_only_settings_that_every_builder_of_the_format_knows() -> None:
    settings = (pages.ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    assert not re.search(r"^(?:hooks|INHERIT):|gen-files|macros|!!python", settings, re.MULTILINE)
    named = settings.split("plugins:")[1].split("markdown_extensions:")[0]
    plugins = re.findall(r"^  - ([\w-]+):?(?: +#.*)?$", named, re.MULTILINE)
    assert plugins == ["search", "offline", "mkdocstrings"]


def test_links_between_rows_and_pages_lead_somewhere(site: Site) -> None:
    """Also those that the builder doesn't see, because our own extension writes them."""
    shown = [path for path in site.html if path.name != "404.html"]
    anchors = {path.name: set(re.findall(r"\bid=\"?([^\" >]+)", path.read_text(encoding="utf-8"))) for path in shown}
    looked_at = 0
    for path in shown:
        text = path.read_text(encoding="utf-8")
        for href in re.findall(r"<a\b[^>]*?\bhref=\"?([^\" >]+)", text):
            if re.match(r"[a-z]+:", href):
                continue
            name, _, anchor = href.partition("#")
            target = name or path.name
            looked_at += 1
            assert target in anchors or (site.folder / target).exists(), f"{path.name}: {href}"
            if anchor and target in anchors and not anchor.startswith("__"):
                assert anchor in anchors[target], f"{path.name}: {href}"
    assert looked_at > 5000


# -- in a browser ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def address(site: Site) -> Iterator[str]:
    with served(site.folder) as address:
        yield address


@pytest.fixture(scope="module")
def browser():
    """A headless Chromium."""
    with chromium("the site was not looked at in a browser") as opened:
        yield opened


def _open(browser, address: str, *, scheme: str = "light", width: int = 1280):
    """A page on which every complaint of the browser and every failed request is collected."""
    context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
    page = context.new_page()
    page.complaints = []
    page.on("console", lambda said: page.complaints.append(said.text) if said.type in ("error", "warning") else None)
    page.on("pageerror", lambda error: page.complaints.append(str(error)))

    def failed(request) -> None:
        if request.failure != "net::ERR_ABORTED":  # what was still loading when we went on to the next page
            page.complaints.append(f"{request.failure}: {request.url}")

    def asked(request) -> None:
        if not request.url.startswith((address, "data:", "blob:")):
            page.complaints.append(f"asks elsewhere: {request.url}")

    def answered(response) -> None:
        if response.status >= 400:
            page.complaints.append(f"{response.status}: {response.url}")

    page.on("requestfailed", failed)
    page.on("request", asked)
    page.on("response", answered)
    return page


@pytest.mark.browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_no_page_complains_or_overflows_on_a_phone(site: Site, address: str, browser, scheme: str) -> None:
    page = _open(browser, address, scheme=scheme, width=390)
    wrong = []
    # The dark is the light in other colours: the main pages are enough.
    looked_at = [path for path in site.html if scheme == "light" or path.name in MAIN_PAGES]
    for path in looked_at:
        page.goto(address + path.name)
        page.wait_for_load_state("load")
        wide = page.evaluate("document.documentElement.scrollWidth")
        if wide > 390:
            widest = page.evaluate(
                "Array.from(document.querySelectorAll('article *')).filter(one => one.getBoundingClientRect().right > 391)"
                ".slice(0, 3).map(one => one.outerHTML.slice(0, 90))"
            )
            wrong.append(f"{path.name} is {wide} pixels wide: {widest}")
        wrong += [f"{path.name}: {said}" for said in page.complaints]
        page.complaints.clear()
        if path.name == "loop.html":
            ground = page.evaluate("getComputedStyle(document.body).backgroundColor")
            light = sum(map(int, re.findall(r"\d+", ground)[:3])) > 384
            assert light is (scheme == "light"), ground
    page.context.close()
    assert len(looked_at) >= len(MAIN_PAGES)
    assert not wrong, "\n".join(wrong)


@pytest.mark.browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_on_the_main_pages(address: str, browser, scheme: str) -> None:
    spec = importlib.util.find_spec("axe_playwright_python")
    assert spec is not None and spec.origin is not None, "pip install '.[browser]'"
    axe = Path(spec.origin).with_name("axe.min.js").read_text(encoding="utf-8")
    page = _open(browser, address, scheme=scheme)
    wrong = []
    rules = 0
    # In the dark only the colours differ.
    only = "" if scheme == "light" else ", runOnly: ['color-contrast']"
    names = MAIN_PAGES if scheme == "light" else ("loop.html", "flags.html", "claims.html")
    for name in names:
        page.goto(address + name)
        page.wait_for_timeout(150)  # colours fade in
        page.evaluate(axe)
        found = page.evaluate(f"axe.run(document, {{resultTypes: ['violations']{only}}})")
        rules += len(found["passes"])
        for one in found["violations"]:
            nodes = "; ".join(f"{node['target']}: {node['failureSummary']}" for node in one["nodes"][:3])
            wrong.append(f"{name}: {one['id']} ({len(one['nodes'])} times): {' '.join(nodes.split())}")
    page.context.close()
    assert rules >= (20 if scheme == "light" else 1) * len(names)
    assert not wrong, "\n".join(wrong)


@pytest.mark.browser
def test_a_link_to_a_folded_row_opens_it(address: str, browser) -> None:
    page = _open(browser, address)
    page.goto(address + "trace-run_glue.html")
    folded = page.evaluate(
        "Array.from(document.querySelectorAll('figure.trace details:not([open]) li[id]')).map(row => row.id).pop()"
    )
    assert folded
    page.goto(address + f"trace-run_glue.html#{folded}")
    page.wait_for_timeout(200)
    box = page.locator(f"[id='{folded}']").bounding_box()
    assert box is not None and 0 <= box["y"] < 900
    page.context.close()


@pytest.mark.browser
def test_everything_can_be_reached_with_the_keyboard(address: str, browser) -> None:
    """The search, a folded call, a row's own link, a wide piece of code."""
    page = _open(browser, address)
    page.goto(address + "loop.html")
    page.keyboard.press("s")  # the theme's key for the search
    page.wait_for_timeout(300)
    assert page.evaluate("document.activeElement.matches('.md-search__input')")
    page.keyboard.press("Escape")
    page.goto(address + "loop.html")
    summary = page.locator("figure.trace details > summary").first
    was_open = summary.evaluate("one => one.parentElement.open")
    summary.focus()
    page.keyboard.press("Enter")
    assert summary.evaluate("one => one.parentElement.open") is not was_open
    seen: set[str] = set()
    page.goto(address + "loop.html")
    for _ in range(120):
        page.keyboard.press("Tab")
        seen |= set(
            page.evaluate(
                """() => {
                    const one = document.activeElement;
                    const found = ['a.n', 'summary', '.headerlink', '.md-nav__link', 'figure.place pre', '.md-skip'];
                    return found.filter(kind => one.matches(kind));
                }"""
            )
        )
    assert {"a.n", "summary", ".md-nav__link"} <= seen, seen
    wide = page.evaluate(
        "Array.from(document.querySelectorAll('figure.place .code pre')).filter(one => one.scrollWidth > one.clientWidth)"
        ".map(one => one.tabIndex)"
    )
    assert wide and set(wide) == {0}
    page.context.close()


@pytest.mark.browser
def test_the_toggle_changes_the_colours_and_stays(address: str, browser) -> None:
    page = _open(browser, address)
    page.goto(address + "index.html")
    page.locator("label[title='Switch to dark mode']").click()
    page.wait_for_timeout(200)
    assert page.evaluate("document.body.dataset.mdColorScheme") == "slate"
    page.goto(address + "loop.html")
    assert page.evaluate("document.body.dataset.mdColorScheme") == "slate"
    page.context.close()


@pytest.mark.browser
def test_the_search_also_answers_where_the_site_is_opened_as_files(site: Site, browser) -> None:
    page = _open(browser, site.folder.as_uri())
    page.goto((site.folder / "loop.html").as_uri())
    page.locator(".md-search__input").click()
    page.wait_for_function(
        "document.querySelector('.md-search-result__meta').textContent === 'Type to start searching'"
    )
    page.fill(".md-search__input", statements.asked()[1])
    page.keyboard.press("End")
    page.wait_for_selector(".md-search-result__item a[href$='#q1']", state="attached")
    assert not page.complaints
    page.context.close()


@pytest.mark.browser
def test_the_search_finds_each_question_by_its_users_words(address: str, browser) -> None:
    """Within the first three hits of the site's own search."""
    page = _open(browser, address)
    page.goto(address + "index.html")
    page.locator(".md-search__input").click()
    page.wait_for_function(
        "document.querySelector('.md-search-result__meta').textContent === 'Type to start searching'"
    )
    lost = {}
    asked = statements.asked()
    for number, words in asked.items():
        page.fill(".md-search__input", words)
        page.keyboard.press("End")  # the theme searches when a key goes up
        hits = []
        for _ in range(20):  # it answers in a tenth of a second, on a busy machine later
            page.wait_for_timeout(50)
            hits = page.evaluate(
                """() => Array.from(document.querySelectorAll('.md-search-result__item')).slice(0, 3).map(item =>
                    Array.from(item.querySelectorAll(':scope > a')).map(link => new URL(link.href).hash))"""
            )
            if any(f"#q{number}" in hit for hit in hits):
                break
        if not any(f"#q{number}" in hit for hit in hits):
            lost[number] = (words, hits)
    page.context.close()
    assert len(asked) == 54
    assert not lost, f"{len(lost)} not found: " + "\n".join(f"q{n}: {what}" for n, what in lost.items())


# Read next: minitrainer/book/__init__.py
