# SPDX-License-Identifier: Apache-2.0
"""The studio in a real Chromium: a story is typed, watched, played, cancelled, found again."""

import contextlib
import json
import pathlib
import shutil

import pytest

from jaxvid.io.video_file import read_metadata
from tests.studio.conftest import of_size, serving, until
from tests.studio.painter import Held, Slow

CHROMIUM = next((p for p in map(shutil.which, ("chromium", "chromium-browser", "google-chrome")) if p), None)
FLAGS = (
    "--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync --autoplay-policy=no-user-gesture-required"
).split()
RED = "a large red circle stays still on a white background"
BLUE = "a large blue square stays still on a white background"

playwright = pytest.importorskip(
    "playwright.sync_api", reason="playwright is not installed: pip install playwright"
)
pytestmark = pytest.mark.skipif(
    CHROMIUM is None,
    reason="no Chromium is installed: apt-get install chromium (Debian), chromium-browser (Ubuntu)",
)


@pytest.fixture(scope="module")
def toy():
    """Compiled for what the tests ask, so that a page waits for steps only."""
    pipe = of_size(16, 8)
    pipe(story=[(0, RED), (2, BLUE)], seconds=4)
    return pipe


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=FLAGS, timeout=900_000)
        yield browser
        browser.close()


@contextlib.contextmanager
def opened(browser, address, **options):
    """A page of a new profile; a script that fails on it fails the test."""
    context = browser.new_context(accept_downloads=True, **options)
    context.set_default_timeout(900_000)
    page, wrong = context.new_page(), []
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("console", lambda said: wrong.append(said.text) if "Content Security" in said.text else None)
    page.goto(address, wait_until="domcontentloaded")
    comes(page, "document.querySelector('#method').value")
    yield page
    assert not wrong
    context.close()


def comes(page, expression):
    """Waits until JavaScript is true; from here, since the page's own policy forbids it to evaluate text."""
    return until(lambda: page.evaluate(f"Boolean({expression})"))


def type_story(page, seconds, *texts):
    page.fill("#seconds", str(seconds))
    for number, text in enumerate(texts):
        if number:
            page.click("#add")
        page.locator("#lines .text").nth(number).fill(text)


def test_a_story_is_typed_watched_played_and_found_again(browser, toy, tmp_path):
    held = Held(toy)
    with serving(held, tmp_path) as (address, studio), opened(browser, address) as page:
        type_story(page, 4, RED, BLUE)
        page.click("#make")
        page.wait_for_selector("#runs progress")
        page.wait_for_selector("#film img", state="attached")
        held.go.set()
        comes(page, "document.querySelector('#video').readyState >= 2")
        comes(page, "!document.querySelector('#runs li')")  # the reader has looked at it, too
        # it plays, and a click on the strip of verdicts leads it
        page.evaluate("document.querySelector('#video').play()")
        comes(page, "document.querySelector('#video').currentTime > 0.2")
        assert page.evaluate("document.querySelector('#video').duration") == pytest.approx(4, abs=0.2)
        page.wait_for_selector("#verdict i", state="attached")
        assert page.locator("#verdict i").count() == 4
        page.focus("#verdict")
        page.keyboard.press("Home")
        page.keyboard.press("ArrowRight")
        comes(page, "document.querySelector('#verdict').getAttribute('aria-valuenow') === '1'")
        assert "Second 1, asked: a large red circle" in page.inner_text("#detail")
        with page.expect_download() as download:
            page.click("#download")
        (file,) = tmp_path.glob("*.mp4")
        assert pathlib.Path(download.value.path()).read_bytes() == file.read_bytes()
        assert read_metadata(file)["story"] == [[0.0, RED], [2.0, BLUE]]
        assert page.inner_text("#command").startswith("jaxvid generate --story")

        page.reload()
        page.wait_for_selector("#cards li")
        assert page.locator("#lines .text").first.input_value() == RED  # what was typed is still there
        page.click("#cards .open")
        comes(page, "document.querySelector('#video').readyState >= 2")
        assert studio.jobs.snapshot()[0][1][0]["status"] == "done"


def test_a_run_is_found_again_by_a_reload_and_cancelled(browser, toy, tmp_path):
    with serving(Slow(toy, 1.0), tmp_path) as (address, studio), opened(browser, address) as page:
        type_story(page, 4, RED, BLUE)
        page.click("details summary")
        page.fill("#steps", "60")
        page.click("#make")

        def done():  # the click is not yet a run when it returns
            told = studio.jobs.snapshot()[0][1]
            return told[0]["stages"].get("sample", {}).get("done", 0) if told else 0

        until(lambda: done() > 2)
        page.reload()
        page.wait_for_selector("#runs progress")
        comes(page, "document.querySelector('#runs progress').value > 0")
        assert page.inner_text("#result-title") == "Run 1"
        page.click("#runs .cancel")
        comes(page, "document.querySelector('#nothing').textContent.includes('cancelled')")
        assert page.locator("#runs li").count() == 0
        assert studio.jobs.snapshot()[0][1][0]["status"] == "cancelled"
        assert 2 < done() < 60
        assert list(tmp_path.iterdir()) == []


def test_segments_move_by_pointer_and_by_keys(browser, toy, tmp_path):
    with serving(toy, tmp_path) as (address, _), opened(browser, address) as page:
        type_story(page, 10, RED, BLUE, RED)
        starts = lambda: [float(field.input_value()) for field in page.locator("#lines .at").all()]
        assert starts() == [0, 5, 7.5]  # each new one halves the last
        page.locator(".edge").first.focus()
        page.keyboard.press("ArrowLeft")
        assert starts() == [0, 4.5, 7.5]
        page.keyboard.press("Shift+ArrowLeft")
        assert starts() == [0, 4.4, 7.5]
        page.keyboard.press("Alt+ArrowLeft")  # the whole segment
        assert starts() == [0, 3.9, 7.0]
        page.keyboard.press("End")
        assert starts() == [0, 6.5, 7.0]  # as far as its neighbour lets it
        box, edge = page.locator("#track").bounding_box(), page.locator(".edge").first.bounding_box()
        page.mouse.move(edge["x"] + edge["width"] / 2, edge["y"] + 10)
        page.mouse.down()
        page.mouse.move(box["x"] + 0.3 * box["width"], edge["y"] + 10, steps=4)
        page.mouse.up()
        assert starts() == pytest.approx([0, 3, 7], abs=0.11)
        page.mouse.move(box["x"] + 0.5 * box["width"], box["y"] + 20)
        page.mouse.down()
        page.mouse.move(box["x"] + 0.6 * box["width"], box["y"] + 20, steps=4)
        page.mouse.up()
        assert starts() == pytest.approx([0, 4, 8], abs=0.11)
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


def test_what_is_wrong_is_said_and_every_width_has_room(browser, toy, tmp_path):
    view = {"width": 400, "height": 800}
    with serving(toy, tmp_path) as (address, _), opened(browser, address, viewport=view) as page:
        type_story(page, 1000, RED)
        page.click("#make")
        comes(page, "document.querySelector('#error').textContent")
        assert "seconds=1000 is more than the 100 that this checkpoint serves" in page.inner_text("#error")
        for width in (320, 400, 900, 1400):
            page.set_viewport_size({"width": width, "height": 800})
            assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_a_hostile_file_is_text_and_no_page(browser, toy, tmp_path):
    import numpy as np

    from jaxvid.io.video_file import save_video

    recipe = toy.recipe(toy.prepare("<img src=x onerror=alert(1)><script>alert(2)</script>", seconds=1))
    save_video(
        tmp_path / "x'\"<b>.mp4", np.zeros((8, 16, 16, 3), np.uint8), 8, json.loads(json.dumps(recipe))
    )
    with serving(toy, tmp_path) as (address, _), opened(browser, address) as page:
        page.on("dialog", lambda dialog: pytest.fail("a script ran"))
        page.click("#cards .open")
        comes(page, "document.querySelector('#video').readyState >= 2")
        assert "<img src=x" in page.inner_text("#cards .title")
        assert page.locator("#cards script, #told script, #told img").count() == 0
