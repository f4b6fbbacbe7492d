"""The report in a real browser, from a file: the slider moves, nothing is fetched, nothing scrolls sideways."""

import json
import shutil

import pandas
import pytest
from test_report import HOSTILE, made, result  # noqa: F401

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed (pip install playwright)")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed (apt-get install chromium)"),
]


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


class Seen:
    """A page that was opened from its file, and what it did."""

    def __init__(self, browser, path, **settings):
        self.page = browser.new_context(**settings).new_page()
        self.said, self.asked = [], []
        self.page.on("console", lambda message: self.said.append(message.text))
        self.page.on("pageerror", lambda error: self.said.append(str(error)))
        self.page.on("dialog", lambda dialog: (self.said.append("dialog"), dialog.dismiss()))
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.page.goto(path.as_uri())

    def clip(self, index: int = 0) -> float:
        """Return how many percent of the restored picture are cut off from the left, as the browser lays it out."""
        clip = self.page.locator(".compare .restored").nth(index).evaluate("e => getComputedStyle(e).clipPath")
        return float(clip.removeprefix("inset(0px 0px 0px ").removesuffix("%)"))


@pytest.fixture
def seen(browser, result):  # noqa: F811
    made(*result)
    return Seen(browser, result[0] / "report.html", viewport={"width": 1280, "height": 900})


def test_the_arrow_keys_move_the_edge_of_the_face_in_focus_and_of_no_other(seen):
    slider = seen.page.locator(".compare input").first
    slider.focus()
    before = seen.clip()
    for _ in range(5):
        seen.page.keyboard.press("ArrowRight")
    assert (before, seen.clip(), seen.clip(1)) == (50, 55, 50)
    assert slider.get_attribute("aria-valuetext") == "55 % LQ input"
    seen.page.keyboard.press("Home")
    assert seen.clip() == 0
    seen.page.keyboard.press("End")
    assert seen.clip() == 100


def test_the_pointer_drags_the_edge_and_the_pixels_change_with_it(seen):
    face = seen.page.locator(".compare").first
    face.scroll_into_view_if_needed()
    box, before = face.bounding_box(), face.screenshot()
    middle = box["y"] + box["height"] / 2
    seen.page.mouse.move(box["x"] + box["width"] / 2, middle)
    seen.page.mouse.down()
    seen.page.mouse.move(box["x"] + box["width"] * 0.2, middle, steps=4)
    seen.page.mouse.up()
    assert 15 < seen.clip() < 25
    assert face.screenshot() != before


def test_the_button_puts_the_ground_truth_on_the_right_and_back(seen):
    figure = seen.page.locator("figure.face").first
    visible = lambda part: figure.locator(part).evaluate("e => getComputedStyle(e).visibility")  # noqa: E731
    button = figure.locator("button.truth")
    assert (visible(".original"), visible(".restored")) == ("hidden", "visible")
    button.focus()
    seen.page.keyboard.press("Enter")
    assert (visible(".original"), visible(".restored")) == ("visible", "hidden")
    assert button.get_attribute("aria-pressed") == "true" and figure.locator(".tag.r").inner_text() == "HQ"
    button.click()
    assert (visible(".original"), visible(".restored")) == ("hidden", "visible")


def test_every_picture_decodes_and_the_page_says_and_fetches_nothing(seen, result):  # noqa: F811
    widths = seen.page.locator("img").evaluate_all("all => all.map(e => e.naturalWidth)")
    assert len(widths) == 84 and all(width == 16 for width in widths)
    seen.page.wait_for_timeout(300)
    assert seen.said == []
    assert [url for url in seen.asked if not url.startswith("data:")] == [(result[0] / "report.html").as_uri()]


def test_the_first_face_is_the_worst_of_the_scores(seen, result):  # noqa: F811
    scores = pandas.read_csv(result[0] / "scores.csv", dtype={"image": str})
    worst = scores[scores["row"] == "LAFR"].set_index("image")["st_lpips_vgg"].idxmax()
    assert seen.page.locator("#worst figure").first.get_attribute("data-stem") == worst
    assert worst in seen.page.locator("#worst figcaption").first.inner_text()


@pytest.mark.parametrize("width", [320, 390, 820])
@pytest.mark.parametrize("names", ["plain", "hostile"])
def test_nothing_scrolls_sideways_on_a_phone_whatever_it_is_called(browser, result, width, names):  # noqa: F811
    folder, record = result
    if names == "hostile":
        record |= {"benchmark": HOSTILE * 3, "not_measured": {"m" * 90: HOSTILE}, "command": "x" * 300}
        record["rows"]["r" * 120] = record["rows"]["LAFR"]
    made(folder, record)
    seen = Seen(browser, folder / "report.html", viewport={"width": width, "height": 800}, has_touch=True)
    assert seen.page.evaluate("document.documentElement.scrollWidth") == width
    assert seen.said == []


def test_a_script_in_a_name_never_runs(browser, result):  # noqa: F811
    folder, record = result
    evil = "<img src=x onerror=alert(1)><script>alert(2)</script>"
    record |= {"benchmark": evil, "not_measured": {evil: evil}, "protocol": evil}
    made(folder, json.loads(json.dumps(record)))
    seen = Seen(browser, folder / "report.html")
    seen.page.wait_for_timeout(300)
    assert seen.said == [] and evil in seen.page.locator("h1").inner_text()
    page = (folder / "report.html").read_text(encoding="utf-8")
    (folder / "report.html").write_text(page.replace("</main>", evil + "</main>"), encoding="utf-8")
    seen = Seen(browser, folder / "report.html")
    seen.page.wait_for_timeout(300)
    assert "dialog" not in seen.said and any("Content Security Policy" in said for said in seen.said)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_stands_out_from_the_page_in_light_and_dark(browser, result, scheme):  # noqa: F811
    made(*result)
    seen = Seen(browser, result[0] / "report.html", color_scheme=scheme)
    for place in ("h1", ".dim", "figcaption small", "td", "summary", "nav a"):
        text = seen.page.locator(place).first.evaluate("e => getComputedStyle(e).color")
        behind = seen.page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert contrast(text, behind) >= 4.5, (scheme, place)  # WCAG 2.2, 1.4.3
    dark = luminance(seen.page.evaluate("getComputedStyle(document.body).backgroundColor")) < 0.2
    assert dark == (scheme == "dark")


def luminance(colour: str) -> float:
    """Return WCAG's relative luminance of `rgb(r, g, b)`."""
    parts = [int(part) / 255 for part in colour.removeprefix("rgb(").removesuffix(")").split(",")]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    """Return WCAG's contrast ratio."""
    light, dark = sorted((luminance(one), luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def test_on_paper_every_face_shows_input_restored_and_original_side_by_side(seen):
    seen.page.emulate_media(media="print")
    boxes = (
        seen.page.locator("#worst .compare")
        .first.locator("img")
        .evaluate_all(
            "all => all.map(e => [e.getBoundingClientRect().left, getComputedStyle(e).visibility,"
            " getComputedStyle(e).clipPath])"
        )
    )
    assert [box[0] for box in boxes] == sorted({box[0] for box in boxes}) and len(boxes) == 3
    assert {tuple(box[1:]) for box in boxes} == {("visible", "none")}
    assert seen.page.locator(".compare input").first.evaluate("e => getComputedStyle(e).display") == "none"
