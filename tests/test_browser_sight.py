"""What a rater sees and hears of the study's page, in a real browser."""

import json

import pytest

from browser import ARMED, DESKTOP, PHONE, begin, opened
from study import make_study

pytestmark = pytest.mark.slow
# As the page has it, between a browser's bars.
SCREENS = {"laptop": (1366, 600), "phone": (390, 664), "small": (360, 560), "sideways": (740, 340)}


@pytest.mark.parametrize("screen", SCREENS)
def test_a_question_is_in_sight_and_every_button_large_enough_for_a_finger(
    chromium, a_study, screen
):
    width, height = SCREENS[screen]
    options = DESKTOP if screen == "laptop" else PHONE
    options = options | dict(viewport=dict(width=width, height=height))
    with opened(chromium, (a_study[0] / "index.html").as_uri(), **options) as (
        _,
        page,
        _asked,
    ):
        begin(page)  # the guide is long, and was scrolled down
        for _ in range(2):
            page.wait_for_selector(ARMED)
            for part in page.query_selector_all("#question, #text, #trial img, #trial button"):
                box = part.bounding_box()
                assert box["x"] >= 0 and box["x"] + box["width"] <= width
                assert box["y"] >= 0 and box["y"] + box["height"] <= height
                assert part.evaluate("x => x.tagName") != "BUTTON" or box["height"] >= 44
            page.click("[data-answer=left]")


TEXTS = """() => {
  const clear = (c) => c === "rgba(0, 0, 0, 0)";
  const light = (c) => c.match(/[0-9.]+/g).slice(0, 3).map((x) => x / 255)
    .map((x) => (x <= 0.03928 ? x / 12.92 : ((x + 0.055) / 1.055) ** 2.4))
    .reduce((sum, x, i) => sum + [0.2126, 0.7152, 0.0722][i] * x, 0);
  const own = (e) => [...e.childNodes].some((n) => n.nodeType === 3 && n.data.trim());
  return [...document.querySelectorAll("body *")]
    .filter((e) => own(e) && e.checkVisibility({ checkVisibilityCSS: true }) && !e.disabled)
    .map((e) => {
      let under = e;
      while (clear(getComputedStyle(under).backgroundColor)) under = under.parentElement;
      const style = getComputedStyle(e);
      const two = [light(style.color), light(getComputedStyle(under).backgroundColor)];
      const ratio = (Math.max(...two) + 0.05) / (Math.min(...two) + 0.05);
      return [e.textContent.slice(0, 30), parseFloat(style.fontSize), ratio];
    });
}"""


@pytest.mark.parametrize("options", [PHONE, DESKTOP], ids=["phone", "desktop"])
def test_every_text_can_be_read(chromium, a_study, options):
    """The contrast of WCAG 2.2, 1.4.3 (AA), and no letters below 14 pixels."""
    seen = set()
    with opened(chromium, (a_study[0] / "index.html").as_uri(), **options) as (
        _,
        page,
        _asked,
    ):
        steps = ["#agree", "#begin", "#start", "[data-answer=left]", "#help", "#start"]
        for step in [None, *steps, None]:
            if step:
                page.click(step)
            page.wait_for_timeout(400)  # the animation's end
            for text, size, ratio in page.evaluate(TEXTS):
                seen.add(text)
                assert ratio >= 4.5, (text, ratio)
                assert size >= 14, (text, size)
        page.evaluate("while (state.answers.length < total()) answer('left') || arm(true)")
        page.wait_for_selector("#done:not([hidden])")
        assert all(ratio >= 4.5 and size >= 14 for _, size, ratio in page.evaluate(TEXTS))
    assert {"Begin", "Start", "Left", "Cannot tell", "Pair 1 of 12"} <= seen


@pytest.mark.parametrize("size, options", [((16, 16), PHONE), ((600, 500), DESKTOP)])
def test_magnification_is_whole_on_any_screen(chromium, tmp_path, size, options):
    folder, key = make_study(tmp_path, size=size, prompts=6)
    with opened(chromium, (folder / "index.html").as_uri(), **options) as (_, page, _asked):
        begin(page)
        page.wait_for_selector(ARMED)
        ratio, widths = page.evaluate(
            "[devicePixelRatio, [left, right].map((x) => x.getBoundingClientRect().width)]"
        )
    factors = [width * ratio / key["plan"]["size"][0] for width in widths]
    assert factors[0] == factors[1]
    whole = factors[0] if factors[0] >= 1 else 1 / factors[0]
    assert whole == pytest.approx(round(whole), abs=0.01)


def test_what_a_screen_reader_is_told_says_nothing_of_the_methods(chromium, a_study):
    with opened(chromium, (a_study[0] / "index.html").as_uri(), **DESKTOP) as (
        context,
        page,
        _,
    ):
        begin(page)
        page.wait_for_selector(ARMED)
        told = page.locator("#trial").aria_snapshot()
        page.evaluate("question.onfocus = () => { window.focused = true; }")
        for _ in range(3):  # a new question gets the focus anew, so that it is read out
            page.evaluate("window.focused = false")
            page.keyboard.press("ArrowLeft")
            page.wait_for_selector(ARMED)
            assert page.evaluate("[document.activeElement.id, focused]") == ["question", True]
        nodes = context.new_cdp_session(page).send("Accessibility.getFullAXTree")["nodes"]
        said = [[n.get(k, {}).get("value") for k in ("role", "description")] for n in nodes]
        (description,) = (text for role, text in said if role == "heading")
        assert page.inner_text("#text") in description  # the text is read out with the question
        told += page.locator("#trial").aria_snapshot() + json.dumps(said)
    for name in ("left picture", "right picture", "Which is the better picture?"):
        assert name in told
    assert ".png" not in told
