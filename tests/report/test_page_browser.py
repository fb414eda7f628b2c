"""The report in a real browser: nothing fetched, nothing broken, usable by hand and on a phone."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from report_cases import measured_run

pytest.importorskip("playwright", reason="playwright is missing: pip install playwright")
from playwright.sync_api import Browser, Page, expect, sync_playwright

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
BROWSER = next((path for name in BROWSERS if (path := shutil.which(name))), None)
pytestmark = pytest.mark.skipif(
    BROWSER is None,
    reason=f"no browser ({', '.join(BROWSERS)}) is installed: apt-get install chromium",
)
ARGUMENTS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
    "--disable-background-networking", "--disable-component-update",
]  # fmt: skip


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report of a small measured run."""
    return measured_run(tmp_path_factory.getbasetemp()) / "report.html"


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """A headless browser."""
    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=BROWSER, args=ARGUMENTS)
        yield opened
        opened.close()


@pytest.fixture
def page(browser: Browser, report: Path) -> Iterator[Page]:
    """The report, open from disk; the test fails on any console message, error or request."""
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    opened = context.new_page()
    wrong: list[str] = []
    address = report.as_uri()
    opened.on("console", lambda message: wrong.append(message.text))
    opened.on("pageerror", lambda error: wrong.append(str(error)))
    opened.on(
        "request",
        lambda request: (
            None if request.url.startswith(("data:", address)) else wrong.append(request.url)
        ),
    )
    opened.goto(address)
    yield opened
    context.close()
    assert wrong == []


def column(page: Page, caption: str, index: int) -> list[str]:
    """The texts of a column of the table of that caption."""
    table = page.locator("table", has=page.locator("caption", has_text=caption)).first
    return list(table.locator(f"tbody tr > :nth-child({index + 1})").all_inner_texts())


def test_the_report_renders_and_every_figure_loads(page: Page) -> None:
    assert "CRATE-MAE report" in page.title()
    assert page.locator("h1").inner_text() == "small"
    widths = page.evaluate("Array.from(document.images, (image) => image.naturalWidth)")
    assert len(widths) == 8
    assert all(width > 100 for width in widths)
    styled = page.evaluate("getComputedStyle(document.querySelector('.numbers')).display")
    assert styled == "grid", "the policy lets the style in"


@pytest.mark.parametrize("by", ["click", "Enter", "Space"])
def test_a_table_sorts_by_click_and_by_key(page: Page, by: str) -> None:
    caption = "Images told apart by frozen features"
    heads = page.locator("table", has=page.locator("caption", has_text=caption)).locator(
        "th[scope=col]"
    )
    names = [text.strip() for text in heads.all_inner_texts()]
    at = names.index("accuracy")
    head, button = heads.nth(at), heads.nth(at).locator("button")
    before = column(page, caption, at)
    for order, rising in (("ascending", True), ("descending", False)):
        if by == "click":
            button.click()
        else:
            button.focus()
            page.keyboard.press(by)
        assert head.get_attribute("aria-sort") == order
        shares = [float(text.split("%")[0]) for text in column(page, caption, at)]
        assert shares == sorted(shares, reverse=not rising)
        assert sorted(column(page, caption, at)) == sorted(before)
    heads.nth(0).locator("button").click()
    assert head.get_attribute("aria-sort") is None, "one column at a time"
    assert column(page, caption, 0) == sorted(column(page, caption, 0), key=str.lower)


def test_numbers_sort_as_numbers(page: Page) -> None:
    caption = "Files of the run"
    page.locator("table", has=page.locator("caption", has_text=caption)).locator("button").nth(
        1
    ).click()
    sizes = [int(text.replace(",", "")) for text in column(page, caption, 1)]
    assert sizes == sorted(sizes)
    assert len({len(str(size)) for size in sizes}) > 1, "text order would differ"


@pytest.mark.parametrize("width", [320, 390, 768, 1600])
def test_no_width_scrolls_sideways(page: Page, width: int) -> None:
    page.set_viewport_size({"width": width, "height": 844})
    page.evaluate("document.querySelectorAll('details').forEach((item) => { item.open = true; })")
    assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_a_command_can_be_copied(page: Page) -> None:
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    block = page.locator(".code", has_text="Make this page again")
    block.locator("button").click()
    expect(block.locator("button")).to_have_text("Copied")
    assert page.evaluate("navigator.clipboard.readText()") == block.locator("code").inner_text()


def luminance(colour: str) -> float:
    """Relative luminance of "rgb(r, g, b)" as WCAG defines it."""
    channels = [int(part) / 255 for part in colour.strip("rgb()").split(",")[:3]]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_stands_out_in_both_schemes(page: Page, scheme: str) -> None:
    page.emulate_media(color_scheme="dark" if scheme == "dark" else "light")
    colours = page.evaluate("""() => {
      const ground = (element) => {
        const colour = getComputedStyle(element).backgroundColor;
        const none = colour === "rgba(0, 0, 0, 0)";
        return none && element.parentElement ? ground(element.parentElement) : colour;
      };
      const texts = "p, li, h1, h2, h3, dt, dd, th, td, a:not(.skip), figcaption, summary, code";
      return Array.from(document.querySelectorAll(texts), (element) =>
        [element.tagName, getComputedStyle(element).color, ground(element)]);
    }""")
    assert len(colours) > 100
    for name, ink, paper in colours:
        high, low = sorted((luminance(ink), luminance(paper)), reverse=True)
        assert (high + 0.05) / (low + 0.05) >= 4.5, (name, ink, paper)
    paper = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (luminance(paper) < 0.1) == (scheme == "dark")


def test_it_reads_without_script_and_prints_whole(
    browser: Browser, page: Page, report: Path
) -> None:
    context = browser.new_context(java_script_enabled=False)
    bare = context.new_page()
    bare.goto(report.as_uri())
    assert bare.locator("section").count() == 9
    assert bare.locator("button").count() == 0, "nothing to press that would do nothing"
    context.close()
    page.evaluate("window.dispatchEvent(new Event('beforeprint'))")
    assert page.locator("details:not([open])").count() == 0
    assert len(page.pdf()) > 10_000
    page.set_viewport_size({"width": 700, "height": 1000})
    page.emulate_media(media="print", color_scheme="dark")
    assert page.evaluate("document.documentElement.scrollWidth") <= 700, "cut off on paper"
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
