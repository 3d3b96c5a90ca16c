"""The live page in a real browser: whole loops, reloads, a server that ends, 20 at once."""

import time

import pytest

from browser import DESKTOP, PHONE, opened
from dnp.app import drawing
from page import serving
from test_browser_sight import TEXTS

pytestmark = pytest.mark.slow
DRAWN = "#dns img:not([hidden])"
REFUSED = "status of 422"  # what the console says of a sentence beside a field


@pytest.fixture(scope="module")
def one_page(mini):
    with serving(mini) as (port, desk):
        yield f"http://127.0.0.1:{port}/", desk


@pytest.fixture
def a_page(one_page):
    """(its address, its desk), whose queue is empty afterwards too."""
    yield one_page
    for visitor, _ in list(one_page[1].queue):
        one_page[1].stop(visitor)
    while one_page[1].queue:
        time.sleep(0.01)


def draw(page, prompt="a red car", steps="2"):
    page.fill("#look-prompt", prompt)
    page.fill("#look-steps", steps)
    page.press("#look-steps", "Enter")


def shown(page, which):
    """The address of a picture that is in sight, whole."""
    whole = "(x) => { const i = document.querySelector(x); return i.complete && i.naturalWidth; }"
    page.wait_for_function(whole, arg=which)
    return page.get_attribute(which, "src")


def test_the_whole_loop_by_keyboard_alone(chromium, a_page, tmp_path):
    url, desk = a_page
    with opened(chromium, url, **DESKTOP, accept_downloads=True) as (_, page, asked):
        page.wait_for_selector("#look-prompt:focus")
        for key in ("a red car", "Tab", "3", "Tab", "2", "Enter"):
            page.keyboard.type(key) if len(key) > 5 or key.isdigit() else page.keyboard.press(key)
        page.wait_for_selector("#picture-negative:focus")  # the next thing to say
        words = page.input_value("#picture-negative")
        assert f"The captioner says: {words}" == page.inner_text("#captions") and words
        page.keyboard.press("Control+a")
        page.keyboard.type("a green apple")
        page.keyboard.press("Control+Enter")
        after = shown(page, "#picture .after")
        look = shown(page, "#cfg img")
        assert page.get_attribute("#picture .before", "src") == look
        line = page.inner_text("#picture code")
        assert line == (
            'python -m dnp "a red car" --seed 3 --steps 2 --method dnp --negative "a green apple"'
        )
        page.focus("#wipe")
        page.keyboard.press("Home")  # all before
        cut = "getComputedStyle(document.querySelector('#picture .after')).clipPath"
        assert page.evaluate(cut) == "inset(0px 0px 0px 100%)"
        for _ in range(6):
            page.keyboard.press("Tab")
            if page.evaluate("document.activeElement.download || ''"):
                break
        with page.expect_download() as waiting:
            page.keyboard.press("Enter")
        assert waiting.value.suggested_filename == "a-red-car-dnp-3.png"
        saved = tmp_path / "saved.png"
        waiting.value.save_as(saved)
        (draws,) = [v.draws for v in desk.visitors.values() if after.split("/")[1] in v.draws]
        assert saved.read_bytes() == draws[after.split("/")[1]].pictures[0].data
        while not page.evaluate("document.activeElement.closest('#history li:last-child')"):
            page.keyboard.press("Tab")
        page.keyboard.press("Enter")  # back to the look, before the picture
        page.wait_for_selector("#picture .wait:not([hidden])")
        assert page.input_value("#picture-negative") == words and shown(page, "#cfg img") == look
        page.focus("#tab-hand")
        page.keyboard.press("ArrowRight")
        assert page.input_value("#sheet-prompt") == "a red car"
        page.focus("#sheet-steps")
        page.keyboard.press("Control+a")
        page.keyboard.type("1")
        page.keyboard.press("Enter")
        page.wait_for_selector("#sheet-of img:visible", timeout=60000)
        assert page.inner_text("#sheet-of code").endswith("--steps 1 --compare")
    assert asked and all(one.startswith((url, "data:", "blob:")) for one in asked)


@pytest.mark.parametrize("screen", [PHONE, DESKTOP], ids=["phone", "desktop"])
def test_the_labels_of_a_wide_sheet_can_be_read(chromium, a_page, screen):
    with opened(chromium, a_page[0], **screen) as (_, page, _asked):
        page.click("#tab-sheet")
        width = page.evaluate("""async () => {
          const img = document.querySelector("#sheet-of img");
          const sheet = Object.assign(document.createElement("canvas"), { width: 1400 });
          img.src = sheet.toDataURL();
          await new Promise((done) => { img.onload = done; });
          document.querySelector("#sheet-of .whole").hidden = img.hidden = false;
          return img.clientWidth;
        }""")
        assert width == (1400 if screen is PHONE else 1700)  # labels of 14 and of 17 pixels
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


def test_the_whole_loop_by_touch_on_a_phone(chromium, a_page):
    url, _ = a_page
    with opened(chromium, url, **PHONE) as (_, page, asked):
        page.fill("#look-prompt", "a cat")
        page.fill("#look-steps", "2")
        page.tap("#look .primary")
        page.wait_for_selector(DRAWN)
        page.fill("#picture-negative", "something else")
        page.tap("#captions")
        assert page.input_value("#picture-negative") != "something else"
        page.tap("#words summary")
        page.select_option("#picture-rule", "perp_neg")
        assert "right angles" in page.inner_text("#rule-says")
        page.fill("[data-of=picture-s]", "4.5")  # the slider
        assert page.input_value("#picture-s") == "4.5"
        page.fill("[data-of=picture-last]", "1")
        page.tap("#words .primary")
        shown(page, "#picture .after")
        steps = [page.inner_text(x)[:2] for x in ("#look label", "#words h2", "#picture b")]
        assert steps == ["1.", "2.", "3."]  # also when all is drawn
        line = page.inner_text("#picture code")
        assert "--scale 4.5" in line and "--rule perp_neg" in line
        assert "--negative-interval" in line
        page.tap("#maps button >> nth=1")
        assert page.locator("#cfg canvas").is_visible()
        page.tap("#maps button >> nth=1")
        assert not page.locator("#cfg canvas").is_visible()
        page.tap("#history button >> nth=1")
        page.wait_for_selector("#picture .wait:not([hidden])")
        for panel in ("#tab-sheet", "#tab-hand"):
            page.tap(panel)
            assert page.evaluate("document.documentElement.scrollWidth") <= 390
            for button in page.query_selector_all("button, a[download], input, summary"):
                box = button.bounding_box()
                assert box is None or box["height"] >= 44 or "range" in button.get_attribute("type")
    assert all(one.startswith((url, "data:", "blob:")) for one in asked)


def test_two_tabs_share_a_history_and_show_each_its_own(chromium, a_page):
    url, _ = a_page
    with opened(chromium, url, **DESKTOP) as (context, page, _):
        draw(page)
        page.wait_for_selector(DRAWN)
        other = context.new_page()
        other.goto(url)
        assert shown(other, "#cfg img") == shown(page, "#cfg img")
        draw(other, "a blue bird")
        other.wait_for_selector("#history li >> nth=1")
        assert other.inner_text("#cfg code") == 'python -m dnp "a blue bird" --steps 2'
        page.bring_to_front()
        page.wait_for_selector("#history li >> nth=1")
        assert "a red car" in page.inner_text("#cfg code")


def test_a_reload_in_the_middle_of_a_draw_loses_nothing(chromium, a_page):
    url, _ = a_page
    with opened(chromium, url, **DESKTOP) as (_, page, _asked):
        draw(page)
        page.wait_for_selector(DRAWN)
        page.fill("#picture-negative", "my own words")
        first = shown(page, "#cfg img")
        draw(page, "a horse", "40")
        page.wait_for_function("() => document.querySelector('#doing').textContent.includes('80')")
        page.reload()
        assert page.input_value("#look-prompt") == "a horse"
        page.wait_for_selector("#working:not([hidden])")
        assert page.input_value("#picture-negative") == "my own words"
        assert shown(page, "#cfg img") == first  # until the other is there
        page.wait_for_function(
            "() => document.querySelector('#cfg code').textContent.includes('horse')"
        )
        shown(page, "#cfg img")
        page.reload()
        page.wait_for_function(
            "() => document.querySelector('#cfg code').textContent.includes('horse')"
        )
        assert page.locator("#history li").count() == 2


def test_escape_stops_a_draw(chromium, a_page):
    url, desk = a_page
    with opened(chromium, url, **DESKTOP) as (_, page, _asked):
        draw(page, steps="900")
        page.wait_for_function(
            "() => document.querySelector('#doing').textContent.includes('left')"
        )
        page.keyboard.press("Escape")
        page.wait_for_selector("#working", state="hidden")
        assert page.inner_text("#told") == "Stopped." and not desk.queue
        draw(page)
        page.wait_for_selector(DRAWN)


def test_a_server_that_ends_is_told_and_one_that_comes_back_is_used(chromium, mini):
    first = serving(mini)
    port, _ = first.__enter__()
    url, faults = f"http://127.0.0.1:{port}/", ("net::ERR", "status of 403")
    with opened(chromium, url, faults=faults, **DESKTOP) as (_, page, _asked):
        draw(page)
        page.wait_for_selector(DRAWN)
        page.fill("#picture-negative", "kept words")
        first.__exit__(None, None, None)
        page.wait_for_selector("#notice:not([hidden])")
        assert "does not answer. Start it again" in page.inner_text("#notice")
        page.click("#look .primary")
        assert page.input_value("#look-prompt") == "a red car"
        with serving(mini, port=port):
            page.wait_for_selector("#notice", state="hidden", timeout=20000)
            assert page.input_value("#picture-negative") == "kept words"
            draw(page)
            page.wait_for_selector(DRAWN)
            page.close()


@pytest.mark.parametrize(
    "form, field, sentence",
    [
        ({"look-prompt": "  "}, "look-prompt", "no prompt"),
        ({"look-steps": "many"}, "look-steps", "choose a whole number"),
        ({"look-seed": "-1"}, "look-seed", "choose a whole number"),
        ({"look-s_dns": "x"}, "look-s_dns", "give a number"),
    ],
)
def test_a_wrong_setting_is_told_beside_its_field(chromium, a_page, form, field, sentence):
    url, _ = a_page
    with opened(chromium, url, faults=(REFUSED,), **DESKTOP) as (_, page, _asked):
        page.fill("#look-prompt", "a cat")
        page.click("#look summary")
        for name, text in form.items():
            page.fill(f"#{name}", text)
        page.click("#look summary")  # folded: it opens again
        page.click("#look .primary")
        page.wait_for_selector(f"#{field}[aria-invalid=true]:focus")
        assert sentence in page.inner_text(f"#{field}-wrong")
        above = page.locator(f"#{field}").bounding_box()
        below = page.locator(f"#{field}-wrong").bounding_box()
        assert 0 <= below["y"] - above["y"] < 80
        page.keyboard.type("1")
        assert page.locator(".wrong").count() == 0


def test_html_in_a_prompt_is_text(chromium, a_page):
    url, _ = a_page
    evil = """<img src=x onerror="document.title='taken'"></script><b id=evil>a cat</b>"""
    with opened(chromium, url, **DESKTOP) as (_, page, asked):
        draw(page, evil)
        page.wait_for_selector(DRAWN)
        page.fill("#picture-negative", evil)
        page.click("#words .primary")
        shown(page, "#picture .after")
        page.reload()
        page.wait_for_selector("#history li >> nth=1")
        assert page.title() == "DNP by hand" and page.locator("#evil").count() == 0
        assert evil in page.inner_text("#picture code").replace("'\"'\"'", "'")
        assert evil in page.text_content("#history li:last-child")
        assert page.input_value("#look-prompt") == evil
    assert all(one.startswith((url, "data:", "blob:")) and not one.endswith("/x") for one in asked)


def test_20_browsers_that_press_draw_at_once_see_their_places(chromium, a_page, monkeypatch):
    url, desk = a_page
    monkeypatch.setattr(desk.model, "captioner", lambda pictures: ["a quick one"])
    draws, go = drawing.draw, []

    def waits(*args):
        while not go:
            time.sleep(0.01)
        draws(*args)

    monkeypatch.setattr(drawing, "draw", waits)
    contexts = [chromium.new_context(viewport=dict(width=800, height=600)) for _ in range(20)]
    pages = [context.new_page() for context in contexts]
    for page in pages:
        page.goto(url)
        page.fill("#look-prompt", "a cat")
        page.fill("#look-steps", "1")
    for page in pages:
        page.press("#look-prompt", "Enter")
    seen = []
    for page in pages:
        page.wait_for_function("() => document.querySelector('#doing').textContent")
        seen.append(page.inner_text("#doing"))
    go.append(True)
    for page in pages:
        shown(page, "#dns img")
        assert page.locator("#working").is_hidden()
    for context in contexts:
        context.close()
    told = [s.split(": ")[1].split(" draw")[0] for s in seen if s.startswith("In the queue: ")]
    assert sorted(told) == sorted(["one", *map(str, range(2, 20))])
    assert next(s for s in seen if not s.startswith("In the queue")).startswith("Step 1 of 2")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("options", [PHONE, DESKTOP], ids=["phone", "desktop"])
def test_every_text_can_be_read(chromium, a_page, options, scheme):
    """The contrast of WCAG 2.2, 1.4.3 (AA), and no letters below 14 pixels."""
    url, _ = a_page
    with opened(chromium, url, faults=(REFUSED,), **options, color_scheme=scheme) as (_, page, _a):
        seen = set()

        def look():
            for text, size, ratio in page.evaluate(TEXTS):
                seen.add(text)
                assert ratio >= 4.5 and size >= 14, (text, ratio, size)

        look()
        draw(page, "a zebra")
        page.wait_for_selector("#working:not([hidden])")
        look()
        page.wait_for_selector(DRAWN)
        page.click("#words summary")
        page.select_option("#picture-rule", "perp_neg")
        page.click("#maps button >> nth=1")
        page.fill("#picture-s", "x")
        page.click("#words .primary")
        page.wait_for_selector(".wrong")
        look()
        page.click("#tab-sheet")
        look()
    assert {"By hand", "Draw", "zebra", "Save", "History", "Columns"} <= seen


def audit(page, prompt, pictures="2", steps="2"):
    page.fill("#audit-prompt", prompt)
    page.fill("#audit-pictures", pictures)
    page.fill("#audit-steps", steps)
    page.press("#audit-steps", "Enter")


def test_an_audit_by_keyboard_is_told_kept_and_taken_to_the_first_tab(
    chromium, a_page, monkeypatch, tmp_path
):
    url, desk = a_page
    make = desk.audits.make
    follows = {"negative": "an orange <b>crown</b>", "rule": "negative_prompt_two_term", "s": "2"}

    def with_a_habit(*args):  # two pictures find none
        sheet, told = make(*args)
        return sheet, told | {"follows": follows, "against": "A <i>negative</i>."}

    monkeypatch.setattr(desk.audits, "make", with_a_habit)
    evil = "a <b id=evil>crown</b>"
    with opened(chromium, url, **DESKTOP, accept_downloads=True) as (_, page, asked):
        page.fill("#look-prompt", evil)
        page.focus("#tab-hand")
        page.keyboard.press("ArrowLeft")  # round to the last one
        assert page.input_value("#audit-prompt") == evil
        assert "6,400 evaluations" in page.inner_text("#cost")
        audit(page, evil)
        page.wait_for_selector("#found:not([hidden])", timeout=60000)
        shown(page, "#audit-of img")
        assert page.inner_text("#found-title") == f"“{evil}”"
        assert page.inner_text("#verdict li >> nth=0").startswith("brings along: ")
        assert page.locator("#found th").count() == 8 and page.locator("#evil").count() == 0
        assert "--pictures 2 --steps 2" in page.inner_text("#audit-of code")
        assert page.inner_text("#told") == "The audit is finished."
        with page.expect_download() as waiting:
            page.press("#audit-csv", "Enter")
        assert waiting.value.suggested_filename == "a-b-id-evil-crown-b-audit.csv"
        waiting.value.save_as(tmp_path / "a.csv")
        assert (tmp_path / "a.csv").read_text().startswith("comparison,first,second,pictures")
        page.reload()
        page.wait_for_selector("#found:not([hidden])", timeout=60000)
        assert page.input_value("#audit-pictures") == "2" and page.inner_text("#against") == (
            "A <i>negative</i>."
        )
        page.press("#take", "Enter")
        page.wait_for_selector("#picture-negative:focus")
        assert page.input_value("#picture-negative") == follows["negative"]
        assert page.input_value("#picture-rule") == "negative_prompt_two_term"
        assert page.input_value("#look-steps") == "2"
        page.keyboard.press("Control+Enter")
        shown(page, "#picture .after")
        assert "--rule negative_prompt_two_term" in page.inner_text("#picture code")
        page.click("#history li:last-child button")  # back to the audit
        assert page.locator("#found").is_visible() and page.locator("#evil").count() == 0
    assert all(one.startswith((url, "data:", "blob:")) for one in asked)


def test_an_audit_on_a_phone_shows_how_far_it_is_and_ends_at_stop(chromium, a_page):
    url, desk = a_page
    with opened(chromium, url, faults=(REFUSED,), **PHONE) as (_, page, _asked):
        page.tap("#tab-audit")
        audit(page, "a crown", "1")
        page.wait_for_selector("#audit-pictures[aria-invalid=true]:focus")
        assert "choose 2 to" in page.inner_text("#audit-pictures-wrong")
        audit(page, "a crown", "16", "60")
        far = "() => /Audit: [0-9]+ %, about .* left/.test(doing.textContent)"
        page.wait_for_function(far, timeout=60000)
        page.tap("#stop")
        page.wait_for_selector("#working", state="hidden")
        assert not desk.queue and page.locator("#found").is_hidden()
        audit(page, "a crown")
        page.wait_for_selector("#found:not([hidden])", timeout=60000)
        assert page.locator("#follows").is_hidden()
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
        for button in page.query_selector_all("button, a[download], input, summary"):
            box = button.bounding_box()
            assert box is None or box["height"] >= 44 or "range" in button.get_attribute("type")
        for text, size, ratio in page.evaluate(TEXTS):
            assert ratio >= 4.5 and size >= 14, (text, ratio, size)
