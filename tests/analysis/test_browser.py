"""The report page in a real browser: headless Chromium, no network."""

import shutil
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from analysis.report import main
from runners.records import PromptRecord
from runners.store import write_point
from tests.analysis.conftest import RECORD
from tests.analysis.trees import TREES, large_trees

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = [
    pytest.mark.browser,
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium: apt-get install chromium"),
]
PROMPTS = [PromptRecord("q/1", "code", 0, 10, 6, 3, True, None), PromptRecord("q/2", "code", 0, 10, 6, 3, True, None)]


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """Three algorithms, one of them with trees of 400 nodes, and a point that failed."""
    folder = tmp_path_factory.mktemp("shown")
    for name, speedup, trees in (("chain", 1.25, TREES), ("eagle2", 2.5, large_trees(400, 12)), ("dyspec", 1.75, None)):
        record = replace(RECORD, algorithm=name, speedup=speedup, prompts=PROMPTS)
        write_point(folder / name, record, None, trees)
    write_point(folder / "bad", replace(RECORD, algorithm="bad", status="failed", reason="memory", speedup=None), None)
    assert main([str(folder)]) == 0
    return folder / "report" / "index.html"


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api", reason="no playwright: pip install playwright")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def shown(browser, report) -> Iterator[Any]:
    """The page, opened; whatever it complains about fails the test."""
    page = browser.new_page(viewport={"width": 1280, "height": 900}, color_scheme="light")
    complaints, requests = [], []
    page.on("console", lambda message: complaints.append(message.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("request", lambda request: requests.append(request.url))
    page.goto(report.as_uri())
    page.evaluate("window.ready")
    yield page
    page.close()
    assert complaints == []
    assert [url for url in requests if not url.startswith(("file:", "data:"))] == []


def methods(page) -> list[str]:
    return page.locator("#points tbody tr td:first-child").all_inner_texts()


def test_the_table_sorts(shown):
    head = shown.locator("#points th button", has_text="speedup")
    head.click()
    assert [name.split()[0] for name in methods(shown)] == ["eagle2", "dyspec", "chain", "bad"]
    head.click()
    assert [name.split()[0] for name in methods(shown)] == ["chain", "dyspec", "eagle2", "bad"], "no figure stays last"
    assert shown.locator("#points th[data-key=speedup_measured]").get_attribute("aria-sort") == "ascending"


def test_the_table_filters(shown):
    shown.locator("#search").fill("eagle2 humaneval")
    assert [name.split()[0] for name in methods(shown)] == ["eagle2"]
    assert shown.locator("#count").inner_text() == "1 of 4 points"
    shown.locator("#search").fill("")
    shown.locator("#filters select[name=status]").select_option("failed")
    assert [name.split()[0] for name in methods(shown)] == ["bad"]


def test_the_inspector_steps_by_keyboard_and_button(shown):
    shown.locator("#left").select_option(label=shown.locator("#left option", has_text="chain").inner_text())
    where = shown.locator("#where")
    assert where.inner_text() == "step 1 of 3"
    assert shown.locator("#panes .node.accepted").count() == 3
    assert shown.locator("#panes .node.bonus").count() == 1
    assert shown.locator("#panes .node.drafted").count() == 1
    shown.locator("#step").focus()
    shown.keyboard.press("ArrowRight")
    assert where.inner_text() == "step 2 of 3"
    assert shown.locator(".answer").inner_text() == "t11t13t14t16t17"
    assert shown.locator(".answer .now").all_inner_texts() == ["t16"]
    shown.keyboard.press("End")
    assert where.inner_text() == "step 3 of 3"
    shown.locator("#back").click()
    assert where.inner_text() == "step 2 of 3"
    shown.keyboard.press("Home")
    shown.keyboard.press("Shift+ArrowRight")
    assert "depth 1, sibling 1, probability 0.5" in shown.locator(".pane .facts").nth(1).inner_text()


def test_play_runs_to_the_end(shown):
    shown.locator("#left").select_option(label=shown.locator("#left option", has_text="chain").inner_text())
    shown.locator("#play").click()
    assert shown.locator("#play").inner_text() == "pause"
    shown.wait_for_function("document.getElementById('where').textContent === 'step 3 of 3'", timeout=10_000)
    shown.wait_for_function("document.getElementById('play').textContent === 'play'", timeout=10_000)


def test_two_algorithms_side_by_side_and_a_large_tree(shown):
    shown.locator("#left").select_option(label=shown.locator("#left option", has_text="chain").inner_text())
    shown.locator("#right").select_option(label=shown.locator("#right option", has_text="eagle2").inner_text())
    panes = shown.locator("#panes .pane")
    panes.nth(1).wait_for()
    assert panes.count() == 2
    assert panes.nth(1).locator(".node").count() == 401
    assert shown.locator("#where").inner_text() == "step 1 of 12"
    boxes = [panes.nth(index).bounding_box() for index in (0, 1)]
    assert boxes[0]["y"] == boxes[1]["y"]
    assert boxes[0]["x"] + boxes[0]["width"] <= boxes[1]["x"]
    assert shown.evaluate("document.documentElement.scrollWidth <= window.innerWidth"), "the page scrolls sideways"
    timed = "const start = performance.now(); showStep(5); return performance.now() - start"
    assert shown.evaluate(f"(() => {{ {timed} }})()") < 1000, "milliseconds"


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_screenshot_is_not_blank(shown, scheme):
    shown.emulate_media(color_scheme=scheme)
    background = shown.evaluate("getComputedStyle(document.body).backgroundColor")
    shade = sum(int(part) for part in background[4:-1].split(",")) / 3
    assert (shade > 200) == (scheme == "light")
    assert len(shown.screenshot(full_page=True)) > 60_000
    shown.keyboard.press("d")
    assert shown.evaluate("getComputedStyle(document.body).backgroundColor") != background
