"""The web page in a real browser, as a visitor uses it, at desktop and phone width."""

import os
import shutil
import subprocess
import threading
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lafr.models.restorer import Restorer
from lafr.photos.demo import Limits, running
from lafr.photos.demo.examples import installed_examples
from lafr.photos.detectors import YuNet
from lafr.photos.restorer import PhotoRestorer

pytest.importorskip("gradio", reason="Gradio is missing: pip install 'lafr[demo]'")
playwright = pytest.importorskip("playwright.sync_api", reason="no driver of browsers: pip install playwright")
BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(BROWSER is None, reason="no Chromium found: install Debian's package chromium"),
]

DESKTOP, PHONE = (1280, 900), (390, 844)
WAIT = 60_000  # milliseconds


@pytest.fixture(scope="module")
def examples():
    from test_demo import RECIPE

    return installed_examples(RECIPE)


@pytest.fixture(scope="module")
def photo(examples, tmp_path_factory):
    path = tmp_path_factory.mktemp("photos") / "my aunt & <me>.png"
    examples["Astronaut"]().save(path)
    return path


@pytest.fixture(scope="module")
def address(examples):
    photo_restorer = PhotoRestorer(Restorer.from_pretrained("mini"), YuNet())
    with running(photo_restorer, limits=Limits(megabytes=2), examples=examples) as address:
        yield address


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def visit(browser, address):
    """Open the page as a new visitor; whatever it asks of others, and each error in its console, fails the test."""
    contexts, outside, errors = [], [], []

    def request(asked):
        if not asked.url.startswith((address, "data:", "blob:")):
            outside.append(asked.url)

    def open_page(size=DESKTOP):
        phone = size == PHONE
        context = browser.new_context(
            viewport={"width": size[0], "height": size[1]}, is_mobile=phone, has_touch=phone, accept_downloads=True
        )
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(WAIT)
        page.on("request", request)
        page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.goto(address)
        page.wait_for_selector("#restore")
        return page

    open_page.errors = errors
    yield open_page
    for context in contexts:
        context.close()
    assert outside == []
    assert errors == []


def send(page, path, name=None, kind="image/png"):
    chosen = path if name is None else {"name": name, "mimeType": kind, "buffer": path}
    page.set_input_files("#upload input[type=file]", chosen)


def said(page, words):
    page.wait_for_function("words => document.querySelector('#status').innerText.includes(words)", arg=words)
    return page.inner_text("#status")


def restored(page):
    """Press the button and wait for pictures other than those that were there."""
    old = page.locator("#view img").last.get_attribute("src") if page.locator("#view img").count() else ""
    page.click("#restore")
    page.wait_for_function(
        """old => { const images = [...document.querySelectorAll('#view .compare img')];
        return images.length == 2 && images[1].src != old && images.every(image => image.naturalWidth); }""",
        arg=old,
    )


def drag(page, touch):
    """Move the slider a quarter to the left, by mouse or finger; return where "after" began and begins, in percent."""

    def begins():
        clip = page.locator("#view img").last.evaluate("image => getComputedStyle(image).clipPath")
        return float(clip.rstrip(")%").rpartition(" ")[2])

    wrap = page.locator("#view .compare")
    wrap.scroll_into_view_if_needed()
    page.wait_for_timeout(700)  # the page scrolls smoothly
    before, box = begins(), wrap.bounding_box()
    y, path = box["y"] + box["height"] / 2, [box["x"] + box["width"] * part for part in (0.5, 0.45, 0.35, 0.25)]
    if touch:
        finger = page.context.new_cdp_session(page)
        for kind, x in zip(("touchStart", "touchMove", "touchMove", "touchMove"), path, strict=True):
            finger.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": [{"x": x, "y": y}]})
        finger.send("Input.dispatchTouchEvent", {"type": "touchEnd", "touchPoints": []})
    else:
        page.mouse.move(path[0], y)
        page.mouse.down()
        for x in path[1:]:
            page.mouse.move(x, y)
        page.mouse.up()
    return before, begins()


def downloaded(page) -> Image.Image:
    with page.expect_download() as waiting:
        page.click("#download")
    return Image.open(BytesIO(waiting.value.path().read_bytes()))


@pytest.mark.parametrize("size", [DESKTOP, PHONE], ids=["desktop", "phone"])
def test_a_visitor_uploads_restores_compares_and_downloads(visit, photo, size):
    page = visit(size)
    send(page, str(photo))
    page.wait_for_selector("#upload .file-preview")
    preview = page.locator("#view .photo img")  # at once
    assert preview.evaluate("image => [image.naturalWidth, image.naturalHeight]") == [512, 512]
    restored(page)
    assert said(page, "1 of 1 face restored")
    assert page.locator("#faces li.restored img").count() == 2
    if size == PHONE:  # the result stands below the controls there, and is brought up
        page.wait_for_function("document.querySelector('#view').getBoundingClientRect().bottom < innerHeight")
    assert drag(page, touch=size == PHONE) == (pytest.approx(50, abs=1), pytest.approx(25, abs=2))
    picture = downloaded(page)
    given, got = np.asarray(Image.open(photo), int), np.asarray(picture, int)
    assert got.shape == given.shape
    changed = np.argwhere(np.abs(got - given).max(2) > 0)
    assert len(changed) and changed.min(0).min() > 0 and changed.max(0)[0] < 260  # the face alone: it ends above there
    width, inner = page.evaluate("[document.documentElement.scrollWidth, window.innerWidth]")
    assert width <= inner == size[0]  # nothing sticks out to the side
    if size == PHONE:
        assert page.locator("#restore").bounding_box()["height"] >= 38  # for a thumb


def test_bad_files_read_what_is_wrong_and_the_next_good_one_is_restored(visit, photo):
    page = visit()
    page.click("#restore")
    assert said(page, "choose a photo first")
    send(page, b"<html>no photo</html>", "holiday_[1].png")
    page.wait_for_selector("#upload .file-preview")
    page.click("#restore")
    assert "Not restored: 'holiday_[1].png' is not an image" in said(page, "is not an image")
    assert page.locator("#download").count() == 0 and page.locator("#view img").count() == 0
    page.click("#upload [aria-label='Clear']")
    send(page, str(photo))
    page.wait_for_selector("#upload .file-preview")
    restored(page)


def test_an_upload_over_the_limit_is_refused_with_a_word(visit):
    page = visit()
    send(page, np.random.default_rng(0).bytes(3_000_000), "large.png")
    page.wait_for_selector(".toast-body")
    assert 'maximum allowed size of 2.0 Mb: "large.png"' in page.inner_text(".toast-body")
    visit.errors.clear()  # the browser notes the refusal in its console


def test_more_fidelity_changes_less_of_the_photo(visit, photo):
    page = visit()
    send(page, str(photo))
    page.wait_for_selector("#upload .file-preview")
    page.click("#settings button")
    changes = []
    for fidelity in "0", "1":
        page.fill("#fidelity input[type=number]", fidelity)
        page.keyboard.press("Tab")
        restored(page)
        changes.append(np.abs(np.asarray(downloaded(page), int) - np.asarray(Image.open(photo), int)).mean())
    assert changes[1] < changes[0]


def test_two_visitors_at_once_each_get_their_own_photo(browser, address, examples, tmp_path):
    """Each in a browser of its own, driven from a thread of its own."""
    got = {}

    def use(label):
        photo = examples[label]()
        photo.save(tmp_path / f"{label}.png")
        with playwright.sync_playwright() as driver:
            own = driver.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
            page = own.new_page()
            page.set_default_timeout(WAIT)
            page.goto(address)
            page.wait_for_selector("#restore")
            send(page, str(tmp_path / f"{label}.png"))
            page.wait_for_selector("#upload .file-preview")
            page.click("#settings button")
            page.check("#force input")
            start.wait()
            page.click("#restore")
            said(page, "restored")
            got[label] = (photo.size, downloaded(page).size)
            own.close()

    start = threading.Barrier(2)
    visitors = [threading.Thread(target=use, args=(label,)) for label in ("Astronaut", "Grace Hopper")]
    for visitor in visitors:
        visitor.start()
    for visitor in visitors:
        visitor.join()
    assert set(got) == {"Astronaut", "Grace Hopper"}
    assert got["Astronaut"][0] != got["Grace Hopper"][0]
    assert all(sent == received for sent, received in got.values())


def test_the_keyboard_moves_the_edge_enlarges_the_result_and_opens_a_face(visit, photo):
    page = visit()
    send(page, str(photo))
    page.wait_for_selector("#upload .file-preview")
    page.focus("#restore")
    page.keyboard.press("Enter")
    said(page, "1 of 1 face restored")
    assert page.get_attribute("#status [role]", "role") == "status"  # spoken when it changes
    slider, figure = page.locator("#view input"), page.locator("#view .compare")
    slider.focus()
    for _ in range(20):
        page.keyboard.press("ArrowLeft")
    assert slider.get_attribute("aria-valuetext") == "30 % before, 70 % after"
    assert page.locator("#view img").last.evaluate("i => getComputedStyle(i).clipPath") == "inset(0px 0px 0px 30%)"
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    assert figure.bounding_box()["height"] == pytest.approx(DESKTOP[1], abs=1)
    page.keyboard.press("Escape")
    assert figure.bounding_box()["height"] < 0.8 * DESKTOP[1]
    face = page.locator(".faces img").first
    small = face.bounding_box()["width"]
    page.focus(".faces summary")
    page.keyboard.press("Enter")
    assert face.bounding_box()["width"] > 3 * small
    page.click("#settings button")
    page.fill("#fidelity input[type=number]", "1")
    restored(page)  # another result: the edge stays where it was put
    assert page.locator("#view img").last.evaluate("i => getComputedStyle(i).clipPath") == "inset(0px 0px 0px 30%)"


def test_the_progress_names_each_face(visit, examples, tmp_path):
    examples["Two people"]().save(tmp_path / "two.png")
    page = visit()
    page.evaluate("""() => { window.heard = []; const spoken = document.querySelector("#view [role=status]");
        new MutationObserver(() => heard.push(spoken.textContent)).observe(spoken, {childList: true}); }""")
    send(page, str(tmp_path / "two.png"))
    page.wait_for_selector("#upload .file-preview")
    restored(page)
    assert list(filter(None, page.evaluate("heard"))) == ["Looking for faces", "Face 1 of 2", "Face 2 of 2"]


@pytest.fixture(scope="module")
def axe(tmp_path_factory):
    """axe-core, a checker of accessibility, as npm has it; from the file that LAFR_AXE names where that is set."""
    if "LAFR_AXE" in os.environ:
        return Path(os.environ["LAFR_AXE"]).read_text("utf-8")
    folder = tmp_path_factory.mktemp("axe")
    if shutil.which("npm") is None:
        pytest.skip("npm is missing, which fetches axe-core; or name its axe.min.js in LAFR_AXE")
    fetched = subprocess.run(["npm", "pack", "axe-core@4"], cwd=folder, capture_output=True, text=True, timeout=120)
    if fetched.returncode:
        pytest.skip(f"npm has no axe-core: {fetched.stderr.strip()[-200:]}")
    shutil.unpack_archive(next(folder.glob("*.tgz")), folder)
    return (folder / "package/axe.min.js").read_text("utf-8")


@pytest.mark.parametrize("size", [DESKTOP, PHONE], ids=["desktop", "phone"])
def test_axe_finds_no_barrier_in_any_state_of_the_page(visit, photo, axe, size):
    page, found = visit(size), {}

    def check(state):
        page.evaluate(axe)
        violations = page.evaluate("axe.run()")["violations"]
        found[state] = [(v["impact"], v["id"], v["nodes"][0]["html"]) for v in violations]

    check("start")
    page.click("#settings button")
    send(page, str(photo))
    page.wait_for_selector("#view .photo img")
    check("preview and settings")
    restored(page)
    page.locator(".faces summary").first.click()
    page.wait_for_selector("#download")
    check("result with an open face")
    page.click(".enlarge")
    check("enlarged result")
    page.keyboard.press("Escape")
    page.click("#upload [aria-label='Clear']")
    send(page, b"<html>", "notes.txt", "text/plain")  # chosen all the same
    page.wait_for_selector(".toast-body")
    check("message")
    assert [state for state, violations in found.items() if violations] == [], found
