"""The HTML report in a real browser: axe-core finds nothing, and it asks for nothing but itself."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from fabricated import full_run, with_events, with_frames

from wan_trt_core.report.html import write_html

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page, Request

# `pytest suites -m perf` collects this file too, where only the package itself is installed
playwright = pytest.importorskip("playwright.sync_api", reason="needs the extra dev")
axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="needs the extra dev")

BROWSERS = ("chromium", "chromium-browser", "google-chrome")

SEEN_AS: dict[str, dict[str, Any]] = {
    "light": {"color_scheme": "light"},
    "dark": {"color_scheme": "dark"},
    "phone": {"viewport": {"width": 320, "height": 640}, "has_touch": True},
}


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    path = next(filter(None, map(shutil.which, BROWSERS)), None)
    if path is None:
        pytest.skip(f"none of {', '.join(BROWSERS)} is installed; on Debian: apt-get install chromium")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=path)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("html") / "report.html"
    write_html(with_events(with_frames(full_run(), path.parent), path.parent), path)
    return path


class Opened:
    """The report in a tab, with what the browser asked for and complained of."""

    def __init__(self, browser: Browser, report: Path, **seen_as: Any) -> None:
        self.page: Page = browser.new_context(**seen_as).new_page()
        self.requests: list[Request] = []
        self.complaints: list[str] = []
        self.page.on("request", lambda request: self.requests.append(request))
        self.page.on("console", lambda message: self.complaints.append(message.text))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.goto(report.as_uri())

    @property
    def urls(self) -> list[str]:
        return [request.url for request in self.requests]


@pytest.mark.parametrize("seen_as", SEEN_AS)
def test_it_is_accessible_quiet_and_alone(browser: Browser, report: Path, seen_as: str) -> None:
    opened = Opened(browser, report, **SEEN_AS[seen_as])
    opened.page.evaluate("document.querySelectorAll('details').forEach(details => details.open = true)")
    violations = axe.Axe().run(opened.page).response["violations"]
    assert not [(violation["id"], violation["nodes"][0]["html"]) for violation in violations]
    assert not opened.complaints
    assert [url for url in opened.urls if not url.startswith("data:")] == [report.as_uri()]
    width = opened.page.evaluate("[document.documentElement.scrollWidth, innerWidth]")
    assert width[0] <= width[1], "only tables may be wider than the page, and scroll by themselves"
    sizes = opened.page.eval_on_selector_all(
        "svg", "all => all.map(svg => svg.getBoundingClientRect()).map(box => [box.width, box.height])"
    )
    assert sizes and all(width > 200 and height > 60 for width, height in sizes)


def test_the_videos_can_be_played(browser: Browser, report: Path) -> None:
    page = Opened(browser, report).page
    videos = page.locator("video")
    assert videos.count() == 3
    for _ in range(100):
        found = videos.evaluate_all(
            "all => all.map(video => [video.videoWidth, video.videoHeight, video.duration, video.error])"
        )
        if all(width for width, *_ in found):
            break
        page.wait_for_timeout(20)
    assert found == [[48, 32, 0.5, None]] * 3
    stills = page.locator("article img").evaluate_all(
        "all => all.map(image => [image.naturalWidth, image.naturalHeight])"
    )
    assert stills == [[48, 32]] * 3
    page.locator("video").first.focus()
    assert page.evaluate("document.activeElement.tagName") == "VIDEO"


def test_axe_finds_what_is_broken(browser: Browser, report: Path) -> None:
    """The check itself works on this page: its policy lets axe-core run."""
    page = Opened(browser, report).page
    page.evaluate("document.documentElement.removeAttribute('lang')")
    page.evaluate("document.querySelector('.message').style.color = '#e8e8e8'")
    found = {violation["id"] for violation in axe.Axe().run(page).response["violations"]}
    assert {"html-has-lang", "color-contrast"} <= found


def test_its_policy_stops_scripts_and_requests(browser: Browser, report: Path, tmp_path: Path) -> None:
    """Should a name ever break out of its place, the page's policy still holds."""
    broken = tmp_path / "broken.html"
    inject = (
        "<script>window.ran = true</script><img src='https://127.0.0.1:9/x.png' onerror='window.ran = true'>"
    )
    broken.write_text(report.read_text().replace("</main>", f"{inject}</main>"))
    opened = Opened(browser, broken)
    assert opened.page.evaluate("window.ran") is None
    stopped = [request for request in opened.requests if request.url.startswith("https:")]
    assert [request.failure for request in stopped] == ["csp"]
    assert opened.complaints


def test_dark_and_light_differ_in_page_and_charts(browser: Browser, report: Path) -> None:
    def colours(scheme: str) -> list[str]:
        page = Opened(browser, report, color_scheme=scheme).page
        of_page = page.evaluate("getComputedStyle(document.body).backgroundColor")
        of_text = page.evaluate("getComputedStyle(document.querySelector('svg text')).fill")
        return [of_page, of_text]

    light, dark = colours("light"), colours("dark")
    assert all(a != b for a, b in zip(light, dark, strict=True))
    assert light[0] == "rgb(255, 255, 255)"


def test_the_keyboard_reaches_everything(browser: Browser, report: Path) -> None:
    page = Opened(browser, report, viewport={"width": 320, "height": 640}).page
    page.keyboard.press("Tab")
    assert page.locator(":focus").inner_text() == "Skip to the verdicts"
    assert page.locator(":focus").bounding_box()["x"] >= 0  # type: ignore[index]
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "verdicts"
    page.keyboard.press("Tab")
    table = page.locator(":focus")
    assert table.get_attribute("aria-label") == "Table of verdicts"
    page.keyboard.press("ArrowRight")
    for _ in range(100):  # not wait_for_function: the page's policy forbids what that evaluates
        if scrolled := page.evaluate("document.activeElement.scrollLeft > 0"):
            break
        page.wait_for_timeout(20)
    assert scrolled
    page.keyboard.press("Tab")
    name = page.locator(":focus").inner_text()
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.querySelector('h3').innerText").startswith(name)
    passed = []
    while not passed or passed[-1] != "SUMMARY":
        assert len(passed) < 20
        page.keyboard.press("Tab")
        passed.append(page.evaluate("document.activeElement.tagName"))
    assert set(passed) == {"VIDEO", "SUMMARY"}, "the first case's players, each with its controls"
    before = page.evaluate("document.activeElement.parentElement.open")
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.parentElement.open") is not before


def test_it_reads_without_javascript(browser: Browser, report: Path) -> None:
    page = browser.new_context(java_script_enabled=False).new_page()
    page.goto(report.as_uri())
    assert page.get_by_role("table", name="Worst first").get_by_role("row").count() == 1 + len(
        full_run().cases
    )
    assert page.get_by_role("img").count() > 15
    page.get_by_text("Numbers of dit-fp16 (perf)").click()
    assert (
        page.get_by_role("cell", name="layer", exact=False)
        .or_(page.get_by_text("speed-up over eager"))
        .count()
    )
