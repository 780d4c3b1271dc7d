"""The page in a real browser: what people do there ends in the file, and nothing else happens."""

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("playwright", reason="playwright is not installed")
from playwright.sync_api import Browser, Page, expect

from collecting.samples import Sample
from tests.browser import Watch, find_faint_texts, open_chromium
from tests.collecting.samples import (
    Project,
    make_sample,
    make_samples,
)

pytestmark = pytest.mark.browser

Open = Callable[..., Any]
LAPTOP: dict[str, Any] = {"viewport": {"width": 1280, "height": 800}}
PHONE: dict[str, Any] = {
    "viewport": {"width": 390, "height": 844}, "has_touch": True, "is_mobile": True,
}  # fmt: skip


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    with open_chromium() as browser:
        yield browser


@pytest.fixture
def project(tmp_path: Path) -> Iterator[Project]:
    project = Project(tmp_path)
    yield project
    if project.server is not None:
        project.server.__exit__()


@pytest.fixture
def open_page(chromium: Browser, project: Project) -> Iterator[Open]:
    """Opens the page as one annotator in a browser window of their own; no error goes unseen."""
    opened: list[tuple[Page, Watch]] = []
    dialogs: list[str] = []

    def open_page(name: str | None = "ann", **settings: Any) -> Page:
        context = chromium.new_context(**(LAPTOP | {"reduced_motion": "reduce"} | settings))
        context.set_default_timeout(30_000)
        page = context.new_page()
        opened.append((page, Watch(page)))
        page.on("dialog", lambda dialog: dialogs.append(dialog.message))
        assert project.server is not None
        page.goto(project.server.url)
        if name is not None:
            page.get_by_label("Name").fill(name)
            page.get_by_role("button", name="Begin").click()
            page.get_by_role("button", name="Close").click()
            page.locator("#cards .card").first.wait_for()
        return page

    yield open_page
    for page, watch in opened:
        page.context.close()
        # What a server that was killed, or refuses a request, has the browser say.
        assert [text for text in watch.complaints if "Failed to load resource" not in text] == []
        assert all(url.startswith(("http://127.0.0.1:", "data:,")) for url in watch.requests)
    assert dialogs == []


def texts(page: Page) -> list[str]:
    return page.locator("#cards .text").all_inner_texts()


def ranks(page: Page) -> dict[str, str]:
    """Each usable text with the rank that its card shows."""
    badges = page.locator("#cards .badge").all_inner_texts()
    return dict(zip(texts(page), badges, strict=True))


def card(page: Page, text: str) -> Any:
    return page.locator(".card").filter(has_text=text)


def expect_status(page: Page, text: str) -> None:
    expect(page.get_by_role("status")).to_contain_text(text)


def order_by_keys(page: Page, wanted: list[str]) -> None:
    for place, text in enumerate(wanted, start=1):
        card(page, text).focus()
        page.keyboard.press(str(place))
    assert texts(page) == wanted


def test_rank_tie_toxic_unusable_skip_and_change(open_page: Open, project: Project) -> None:
    project.serve(make_samples(2))
    page = open_page()
    assert sorted(texts(page)) == ["a0", "b0", "c0", "d0"]
    assert page.get_by_text("0 of 2 done").is_visible()
    # By keys alone: c, then a and d tied, b unusable; a is toxic.
    order_by_keys(page, ["c0", "a0", "d0", "b0"])
    card(page, "d0").focus()
    page.keyboard.press("t")
    page.keyboard.press("ArrowUp")
    page.keyboard.press("x")
    card(page, "b0").focus()
    page.keyboard.press("u")
    assert page.locator("#unusable-cards .text").all_inner_texts() == ["b0"]
    assert page.locator("#cards .badge").all_inner_texts() == ["1", "2", "2"]
    page.keyboard.press("Enter")
    expect_status(page, "Saved.")
    (row,) = project.rows()
    assert row["completions"] == ["a0", "b0", "c0", "d0"]
    assert row["ranks"] == [2, None, 1, 2]
    assert row["toxic"] == [True, False, False, False]
    assert row["annotator"] == "ann"
    assert row["seconds"] >= 0
    # The next one is skipped, and that was all.
    page.keyboard.press("s")
    page.get_by_role("heading", name="All done").wait_for()
    assert page.get_by_text("2 of 2 done, 1 skipped").is_visible()
    assert project.rows()[1]["skipped"] is True
    # Back to the first: it stands there as it was saved, and is changed by mouse.
    page.get_by_role("button", name="Look at your last answer").click()
    page.get_by_text("You skipped this").wait_for()
    page.get_by_role("button", name="Back").click()
    page.get_by_text("Saved before").wait_for()
    assert ranks(page) == {"c0": "1", "a0": "2", "d0": "2"}
    card(page, "b0").get_by_role("button", name="Unusable").click()
    card(page, "c0").get_by_role("button", name="Move down").click()
    page.locator("#cards li").filter(has_text="b0").get_by_role("button", name="Tie with").click()
    page.get_by_role("button", name="Save change").click()
    page.get_by_text("You skipped this").wait_for()
    row = project.rows()[2]
    assert (row["id"], row["ranks"], row["toxic"]) == ("s0", [1, 2, 2, 1], [True] + [False] * 3)


def test_steps_and_ties(open_page: Open, project: Project) -> None:
    """A step goes past all of a tie, or out of it; between two that are tied one joins them."""
    project.serve(make_samples(1))
    page = open_page()

    def press(text: str, *keys: str) -> dict[str, str]:
        card(page, text).focus()
        for key in keys:
            page.keyboard.press(key)
        return ranks(page)

    order_by_keys(page, ["a0", "b0", "c0", "d0"])
    assert press("c0", "t") == {"a0": "1", "b0": "2", "c0": "2", "d0": "3"}
    assert press("a0", "Shift+ArrowDown") == {"b0": "1", "c0": "1", "a0": "2", "d0": "3"}
    assert press("d0", "2") == {"b0": "1", "d0": "1", "c0": "1", "a0": "2"}
    assert press("b0", "Shift+ArrowUp") == {"b0": "1", "d0": "2", "c0": "2", "a0": "3"}
    assert press("a0", "t") == {"b0": "1", "d0": "2", "c0": "2", "a0": "2"}
    assert press("a0", "Shift+ArrowDown") == {"b0": "1", "d0": "2", "c0": "2", "a0": "3"}
    assert press("d0", "u") == {"b0": "1", "c0": "2", "a0": "3"}  # who was joined heads the rest
    assert press("d0", "u", "t", "x") == {"b0": "1", "c0": "2", "a0": "3", "d0": "3"}
    assert press("b0", "t") == {"b0": "1", "c0": "2", "a0": "3", "d0": "3"}  # nothing is above it


def test_drag_by_mouse(open_page: Open, project: Project) -> None:
    project.serve(make_samples(1))
    page = open_page()
    first, second, third, fourth = texts(page)
    box = card(page, first).bounding_box()
    below = card(page, third).bounding_box()
    page.mouse.move(box["x"] + 150, box["y"] + 20)
    page.mouse.down()
    page.mouse.move(box["x"] + 150, below["y"] + below["height"] - 5, steps=5)
    page.keyboard.press("Escape")  # rather not
    page.mouse.up()
    assert texts(page) == [first, second, third, fourth]
    page.mouse.move(box["x"] + 150, box["y"] + 20)
    page.mouse.down()
    page.mouse.move(box["x"] + 150, below["y"] + below["height"] - 5, steps=5)
    page.mouse.up()
    assert texts(page) == [second, third, first, fourth]
    page.get_by_role("button", name="Save and continue").click()
    page.get_by_role("heading", name="All done").wait_for()
    (row,) = project.rows()
    said = dict(zip(row["completions"], row["ranks"], strict=True))
    assert said == {second: 1, third: 2, first: 3, fourth: 4}


def test_drag_by_finger_on_a_phone(open_page: Open, project: Project) -> None:
    project.serve(make_samples(1))
    page = open_page(**PHONE)
    assert page.evaluate("document.documentElement.scrollWidth") == 390
    first, second, third, fourth = texts(page)
    touch = page.context.new_cdp_session(page)

    def swipe(start: Any, end: Any) -> None:
        middle = {
            side: box[side] + box[size] / 2
            for box, side, size in ((start, "x", "width"), (start, "y", "height"))
        }
        way = end["y"] + end["height"] - 4 - middle["y"]
        touch.send("Input.dispatchTouchEvent", {"type": "touchStart", "touchPoints": [middle]})
        for step in range(1, 9):
            point = middle | {"y": middle["y"] + way * step / 8}
            touch.send("Input.dispatchTouchEvent", {"type": "touchMove", "touchPoints": [point]})
        touch.send("Input.dispatchTouchEvent", {"type": "touchEnd", "touchPoints": []})

    # A finger on a text scrolls; on the grip it takes the card along.
    page.locator("#cards").scroll_into_view_if_needed()
    swipe(card(page, second).locator(".text").bounding_box(), card(page, first).bounding_box())
    assert texts(page) == [first, second, third, fourth]
    page.wait_for_timeout(300)  # until the scrolling has come to rest
    swipe(card(page, first).locator(".grip").bounding_box(), card(page, second).bounding_box())
    expect(page.locator("#cards .text").first).to_have_text(second)
    assert texts(page) == [second, first, third, fourth]


def test_reload_in_the_middle_and_a_server_that_dies(open_page: Open, project: Project) -> None:
    port = project.serve(make_samples(2)).port
    page = open_page()
    wanted = ["d0", "b0", "a0", "c0"]
    order_by_keys(page, wanted)
    page.keyboard.press("t")
    page.reload()
    page.locator("#cards .card").first.wait_for()
    assert texts(page) == wanted
    # The server is killed; nothing is confirmed, and nothing is lost.
    assert project.server is not None
    project.server.process.kill()
    project.server.process.wait()
    page.get_by_role("button", name="Save and continue").click()
    expect_status(page, "Not saved: the server does not answer")
    assert project.rows() == []
    assert texts(page) == wanted
    assert page.locator(".card:focus").count() == 1  # and the keys go on working
    project.serve(make_samples(2), port=port)
    page.get_by_role("button", name="Save and continue").click()
    expect_status(page, "Saved.")
    (row,) = project.rows()
    assert row["ranks"] == [3, 2, 3, 1]
    # Where the page itself cannot be had, it says so and goes on later.
    project.server.process.kill()
    project.server.process.wait()
    page.get_by_role("button", name="Back").click()
    page.get_by_role("heading", name="The page cannot continue").wait_for()
    project.serve(make_samples(2), port=port)
    page.get_by_role("button", name="Try again").click()
    page.get_by_text("Saved before").wait_for()
    assert ranks(page) == {"d0": "1", "b0": "2", "a0": "3", "c0": "3"}
    page.reload()  # and stays at what is looked at
    page.get_by_text("Saved before").wait_for()


def test_instructions_have_lists_and_bold_terms(open_page: Open, project: Project) -> None:
    project.serve(make_samples(1))
    page = open_page()
    page.get_by_role("button", name="Instructions").click()
    terms = page.locator("#instructions strong").all_inner_texts()
    assert [term for term in terms if term][:5] == [
        "true:", "complete:", "short and clear:", "civil:", "Tie:"
    ]  # fmt: skip
    expect(page.locator("#instructions ol li")).to_have_count(4)


HOSTILE = [
    "<script>window.hacked = 1; alert(1)</script>",
    '<img src=x onerror="window.hacked = 1">',
    '"><svg/onload=window.hacked=1> &lt;b&gt; <b>bold</b>',
    "javascript:alert(1) {{7*7}} ${window.hacked=1} \u202eright to left\u202c",
    "</article></li></ol><iframe src='javascript:parent.hacked=1'></iframe>",
]


def test_text_is_shown_as_text_whatever_it_contains(open_page: Open, project: Project) -> None:
    tags = "".join(HOSTILE)
    sample = Sample(
        f"<i>{tags}", f"#Person1#: {tags}\n{HOSTILE[1]}: {tags}", (), tuple(HOSTILE), ()
    )
    instructions = project.samples.with_name("i.txt")
    instructions.write_text(f"{tags}\n\n{tags}")
    project.serve([sample, make_sample(1)], "--instructions", str(instructions))
    page = open_page(None)
    name = "<img src=x onerror=alert(1)>"
    page.get_by_label("Name").fill(name)
    page.get_by_role("button", name="Begin").click()
    expect(page.locator("#instructions")).to_contain_text(tags)
    assert page.locator("#instructions").inner_text() == f"{tags}\n\n{tags}"
    page.get_by_role("button", name="Close").click()
    expect(page.locator(".card")).to_have_count(len(HOSTILE))  # what follows waits for nothing
    assert page.locator("#change-name").inner_text() == name
    contents = page.locator(".card .text").evaluate_all("all => all.map(one => one.textContent)")
    assert sorted(contents) == sorted(HOSTILE)
    assert (
        page.locator("#dialogue").evaluate(
            "box => [...box.children].map(line => line.textContent).join('\\n')"
        )
        == sample.dialogue
    )
    assert page.locator("#item-id").text_content() == sample.id
    inside = page.locator("#task, .bar, dialog").locator("script, img, svg, iframe, b, i")
    assert inside.count() == 0
    page.locator("#cards .card").first.focus()
    page.keyboard.press("1")
    page.keyboard.press("Enter")
    expect_status(page, "Saved.")
    assert page.evaluate("typeof window.hacked") == "undefined"
    (row,) = project.rows()
    assert row["completions"] == HOSTILE
    assert row["dialogue"] == sample.dialogue
    assert (row["id"], row["annotator"]) == (sample.id, name)


def test_an_untouched_order_is_asked_about(open_page: Open, project: Project) -> None:
    project.serve(make_samples(2))
    page = open_page()
    first = texts(page)
    page.get_by_role("button", name="Save and continue").click()
    expect_status(page, "You have changed nothing")
    assert project.rows() == []
    page.get_by_role("button", name="Save and continue").click()
    expect_status(page, "Saved.")
    (row,) = project.rows()
    said = dict(zip(row["completions"], row["ranks"], strict=True))
    assert sorted(said, key=said.__getitem__) == first


def test_samples_that_were_drawn_anew_are_loaded(open_page: Open, project: Project) -> None:
    port = project.serve(make_samples(1)).port
    page = open_page()
    project.server.__exit__()  # type: ignore[union-attr]
    project.serve([make_sample(0, "ef")], port=port)
    page.locator("#cards .card").first.focus()
    page.keyboard.press("2")
    page.keyboard.press("Enter")
    expect_status(page, "The samples have changed")
    assert sorted(texts(page)) == ["e0", "f0"]
    assert project.rows() == []


def test_the_dead_ends_have_a_way_out(open_page: Open, project: Project) -> None:
    project.serve(make_samples(1))
    page = open_page(None)
    page.get_by_label("Name").fill("\u2066")
    page.get_by_role("button", name="Begin").click()
    page.get_by_role("button", name="Close").click()
    assert page.get_by_role("alert").inner_text().startswith("a name has 1 to 64 visible")
    page.get_by_label("Name").fill("ann")
    page.keyboard.press("Enter")
    page.locator("#cards .card").first.wait_for()
    page.get_by_role("button", name="Change annotator").click()
    page.get_by_label("Name").fill("bob")
    page.keyboard.press("Enter")
    page.locator("#cards .card").first.wait_for()
    assert "annotator=bob" in page.url


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("device", [LAPTOP, PHONE], ids=["laptop", "phone"])
def test_everything_has_a_name_and_can_be_read(
    device: dict[str, Any], scheme: str, open_page: Open, project: Project, tmp_path: Path
) -> None:
    project.serve([make_sample(0, ["a long one " * 30, "b", "c", "d"]), make_sample(1)])
    page = open_page(color_scheme=scheme, **device)
    card(page, "b0").get_by_role("button", name="Toxic").click()
    card(page, "c0").get_by_role("button", name="Unusable").click()
    for button in page.locator("button:visible").all():
        assert button.evaluate("one => one.ariaLabel || one.innerText")
    width = device["viewport"]["width"]
    assert page.evaluate("document.documentElement.scrollWidth") == width
    for box in page.locator(".card, .panel:visible, #actions").all():
        place = box.bounding_box()
        assert place["x"] >= 0
        assert place["x"] + place["width"] <= width
    assert find_faint_texts(page) == []
    if folder := os.environ.get("SCREENSHOTS"):
        page.screenshot(path=Path(folder) / f"{width}-{scheme}.png")
    assert json.loads(page.evaluate("JSON.stringify(localStorage)"))["alignsum.annotator"]
