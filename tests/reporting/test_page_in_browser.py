"""report.html in a real browser: sorting, filters, views and tokens, and nothing from outside."""

import math
from collections.abc import Iterator

import pytest

pytest.importorskip("playwright", reason="playwright is not installed")
from playwright.sync_api import Browser, Page, expect

from common.run_folder import RunFolder, write_lines
from reporting.comparison import Comparison
from reporting.page.build import build_page
from reporting.runs import read_runs
from tests.browser import Watch, find_faint_texts, open_chromium
from tests.reporting.run_folders import draw_values, write_ppo, write_run

pytestmark = pytest.mark.browser

N = 45
UNKNOWN = (3, 11)
"""Examples whose values PPO's run does not have."""
TOUR = ("overview", "training", "examples", "tokens", "runs")


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    with open_chromium() as browser:
        yield browser


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The page of two seeds, another method whose texts are hostile, and PPO with rollouts."""
    root = tmp_path_factory.mktemp("runs")
    texts = [f"Ann asks Ben {i}. <img src=x onerror=boom()>" for i in range(N)]
    paths = [
        write_run(root / "lora_s1", draw_values(1, N, 0.4)),
        write_run(root / "lora_s2", draw_values(2, N, 0.42), seed=2),
        write_run(root / "full_ft", draw_values(3, N, 0.7), method="full_ft", texts=texts),
        write_ppo(root / "ppo", draw_values(4, N, 0.5)),
        root / "missing",
    ]
    rows = RunFolder(root / "ppo").read_predictions()
    for place in UNKNOWN:
        for metric in ("reward", "rouge1", "toxicity"):
            rows[place][metric] = None
    write_lines(RunFolder(root / "ppo").predictions, rows)
    runs, problems = read_runs(paths)
    file = root / "report.html"
    file.write_text(build_page(Comparison(runs, problems)), encoding="utf-8")
    return file.as_uri()


@pytest.fixture
def page(chromium: Browser, report: str) -> Iterator[Page]:
    """The page; whatever a test does with it, it complains of nothing and asks for nothing."""
    opened = chromium.new_page(viewport={"width": 1280, "height": 900})
    watch = Watch(opened)
    opened.goto(report)
    yield opened
    assert watch.complaints == []
    assert {url.partition("#")[0] for url in watch.requests} <= {report, "data:,"}
    opened.close()


def column(page: Page, table: str, number: int) -> list[str]:
    cells = page.locator(f"{table} tbody tr:not(.member) > :nth-child({number}) b")
    return cells.all_text_contents()


def test_views_follow_the_address(page: Page, report: str) -> None:
    for name in TOUR:
        page.locator(f".top nav a[href='#{name}']").click()
        expect(page.locator(f"section#{name}")).to_be_visible()
        assert page.locator("section:visible").count() == 1
        expect(page.locator("[aria-current]")).to_have_attribute("href", f"#{name}")
    page.go_back()
    expect(page.locator("section#tokens")).to_be_visible()
    assert page.url == f"{report}#tokens"


def test_the_first_screen_has_the_answer_and_what_could_not_be_read(page: Page) -> None:
    expect(page.locator(".best")).to_be_in_viewport()
    expect(page.locator(".evidence")).to_be_in_viewport()
    expect(page.locator(".best")).to_contain_text("full_ft summarizes best")
    expect(page.locator(".least")).to_be_in_viewport()
    expect(page.locator(".least")).to_contain_text("lora is the least toxic trained method")
    expect(page.locator("#table tbody th", has_text="★")).to_have_count(1)
    expect(page.locator("#table tbody th", has_text="★")).to_contain_text("full_ft")
    expect(page.locator(".facts")).to_contain_text("tiny")
    expect(page.locator(".problems")).to_contain_text("missing: there is no such folder")


def test_the_table_sorts_by_its_titles(page: Page) -> None:
    title = page.locator("#table thead th", has_text="ROUGE-1")
    place = 1 + page.locator("#table thead th").all_text_contents().index("ROUGE-1")
    title.locator("button").click()
    expect(title).to_have_attribute("aria-sort", "descending")
    shown = [float(text) for text in column(page, "#table", place)]
    assert len(shown) == 3
    assert shown == sorted(shown, reverse=True)
    title.locator("button").press("Enter")
    expect(title).to_have_attribute("aria-sort", "ascending")
    assert [float(text) for text in column(page, "#table", place)] == sorted(shown)
    # If lower is better, the lowest value comes first.
    title = page.locator("#table thead th", has_text="toxicity ↓")
    title.locator("button").click()
    expect(title).to_have_attribute("aria-sort", "ascending")
    # Missing values come last in both directions: only PPO has a KL.
    for _ in range(2):
        page.locator("#table thead th", has_text="KL").locator("button").click()
        first = page.locator("#table tbody tr:not(.member) th").first
        expect(first).to_contain_text("ppo")


def test_a_group_unfolds_into_its_runs_and_keeps_them_when_sorted(page: Page) -> None:
    button = page.locator("#table .expand")
    assert page.locator("#table tr.member:visible").count() == 0
    button.click()
    expect(button).to_have_attribute("aria-expanded", "true")
    page.locator("#table thead th", has_text="run").locator("button").first.click()
    names = page.locator("#table tbody tr:visible th").all_text_contents()
    start = next(i for i, name in enumerate(names) if name.startswith("lora") and "runs" in name)
    assert names[start + 1 : start + 3] == ["lora_s1", "lora_s2"]


def test_another_baseline_shows_its_differences(page: Page) -> None:
    def gap(place: str) -> float:
        table = f".difference[data-baseline='{place}']"
        other = page.locator(f"{table} td[data-metric='rouge1'][data-row='full_ft'] b")
        return float(other.text_content() or "nan")

    chosen = page.locator("#baseline")
    chosen.select_option(label="lora")
    over_lora = gap(chosen.input_value())
    assert over_lora > 0
    chosen.select_option(label="full_ft")
    assert page.locator(".difference:visible").count() == 1
    expect(
        page.locator(".difference:visible td[data-metric='rouge1'][data-row='lora'] b")
    ).to_have_text(f"{-over_lora:.1f}")


def gains(page: Page) -> list[float]:
    shown = page.locator("#example-list h3 small").all_text_contents()
    return [float(text.split()[-1]) for text in shown]


def test_examples_are_sorted_by_gain(page: Page) -> None:
    page.goto(f"{page.url}#examples")
    expect(page.locator("#example-list article")).to_have_count(20)
    expect(page.locator(".pager .place").first).to_have_text("1 to 20 of 45")
    # To begin with, the gain of the best over the baseline, which is the first run here.
    expect(page.locator("#sort-run option:checked")).to_have_text("full_ft")
    expect(page.locator("#sort-other option:checked")).to_have_text("lora_s1")
    for metric in ("reward", "ROUGE-1", "toxicity"):
        page.locator("#sort").select_option(label=metric)
        page.locator("#sort-run").select_option(label="ppo")
        page.locator("#sort-other").select_option(label="full_ft")
        page.locator("#direction").select_option("-1")
        falling = gains(page)
        assert len(falling) == 20
        assert falling == sorted(falling, reverse=True)
        page.locator("#direction").select_option("1")
        assert gains(page) == sorted(gains(page))
        assert gains(page)[0] < falling[-1]
    page.locator(".pager .next").first.click()
    expect(page.locator(".pager .place").first).to_have_text("21 to 40 of 45")
    # What has no value comes last, either way.
    page.locator(".pager .next").first.click()
    expect(page.locator(".pager .place").first).to_have_text("41 to 45 of 45")
    for direction in ("1", "-1"):
        page.locator("#direction").select_option(direction)
        for _ in range(2):
            page.locator(".pager .next").first.click()
        names = page.locator("#example-list article").evaluate_all(
            "all => all.map(e => e.dataset.id)"
        )
        assert set(names[-2:]) == {f"test_{place}" for place in UNKNOWN}


def test_examples_are_filtered_by_text_run_and_names(page: Page) -> None:
    page.goto(f"{page.url}#examples")
    page.locator("#query").fill("The Way 7?")
    expect(page.locator("#example-list article")).to_have_count(1)
    expect(page.locator("#example-list h3")).to_contain_text("test_7")
    texts = page.locator("#example-list [data-run]")
    expect(texts).to_have_count(5)
    page.locator("#shown-runs label", has_text="lora_s1").locator("input").uncheck()
    expect(texts).to_have_count(4)
    # Names that the dialogue does not have are in the texts of lora and ppo.
    for run in ("lora_s2", "ppo"):
        page.locator("#shown-runs label", has_text=run).first.locator("input").uncheck()
    page.locator("#only-names").check()
    expect(page.locator("#example-list article")).to_have_count(0)
    expect(page.locator(".pager .place").first).to_have_text("none")


def test_words_and_names_are_marked_and_texts_are_only_texts(page: Page) -> None:
    page.goto(f"{page.url}#examples")
    first = page.locator("#example-list article").first
    lora = first.locator("[data-run='lora_s1']")
    assert lora.locator("mark.hit").all_text_contents() == ["Ann", "asks", "Ben"]
    assert lora.locator("mark.unknown").all_text_contents() == ["Zorro"]
    hostile = first.locator("[data-run='full_ft'] dd")
    expect(hostile).to_have_text("Ann asks Ben 0. <img src=x onerror=boom()>")
    for run, seed, mean in (("full_ft", 3, 0.7), ("ppo", 4, 0.5)):
        own = {metric: values[0] for metric, values in draw_values(seed, N, mean).items()}
        expect(first.locator(f"[data-run='{run}'] dt small")).to_have_text(
            f"ROUGE-1 {100 * own['rouge1']:.1f} · ROUGE-L {100 * own['rougeL']:.1f} · "
            f"toxicity {100 * own['toxicity']:.1f} · reward {own['reward']:.2f}"
        )
    assert page.locator("#examples img").count() == 0


def test_the_token_view_colors_tokens_and_shows_their_numbers(page: Page) -> None:
    page.goto(f"{page.url}#tokens")
    expect(page.locator("#rollout-batch")).to_have_value("2")  # the last of three
    first = page.locator("#rollout-list article").first
    assert first.locator(".token").all_text_contents() == [" Ann", " asks", ".", "</s>"]
    # By hand: -1 + 1.5, -0.5 + 0.5, -0.25 + 0.75, -2 + 1, whose sum is 0.
    expect(first.locator("h3 small")).to_contain_text("score 1.5000 · KL 0.0000 nats · 4 tokens")

    def colors() -> list[str]:
        return first.locator(".token").evaluate_all("all => all.map(e => e.style.backgroundColor)")

    kl = colors()
    assert kl[0] == kl[2]
    assert kl[0].startswith("rgba(220, 90, 0")
    assert kl[3].startswith("rgba(40, 110, 200")
    assert kl[1].endswith(", 0)")
    # The largest size of the three rollouts' twelve tokens, the second of the third one: 2.
    expect(page.locator("#legend-low")).to_have_text("-2.000")
    expect(page.locator("#legend-high")).to_have_text("2.000")
    first.locator(".token").nth(3).hover()
    tip = page.locator("#tip")
    expect(tip).to_be_visible()
    numbers = dict(line.rsplit(maxsplit=1) for line in tip.inner_text().splitlines()[1:])
    assert {name.strip(): value for name, value in numbers.items()} == {
        "log π": "-2.0000", "log π_ref": "-1.0000", "log π \u2212 log π_ref": "-1.0000",
        "ratio π / π_old": f"{math.exp(0.3):.4f}", "advantage": "1.0000", "value": "0.4000",
        "reward": "2.2000", "return": "1.4000", "entropy": "1.3000",
    }  # fmt: skip
    first.locator("summary", has_text="Numbers").click()
    expect(first.locator("tbody tr").last.locator("td")).to_have_text(list(numbers.values()))
    for measure in ("ratios", "advantage", "value"):
        label = "ratio π / π_old" if measure == "ratios" else measure
        page.locator("#measure").select_option(label=label)
        assert colors() != kl
    page.locator("#measure").select_option(label="ratio π / π_old")
    assert first.locator(".token.clipped").count() == 4  # e^0.3 is beyond 1 + 0.2
    page.locator("#rollout-sort").select_option("score")
    expect(first).to_have_attribute("data-id", "train_9_2")
    page.locator("#rollout-batch").select_option("0")
    expect(first).to_have_attribute("data-id", "train_0_2")


@pytest.mark.parametrize("width", [390, 1280])
def test_nothing_is_wider_than_the_screen(chromium: Browser, report: str, width: int) -> None:
    page = chromium.new_page(viewport={"width": width, "height": 844})
    for name in TOUR:
        page.goto(f"{report}#{name}")
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        # A table that is wider than its box says so.
        for box in page.locator(".scroll:visible").all():
            hidden = box.evaluate("e => e.scrollWidth > e.clientWidth + 1")
            hint = box.locator("xpath=preceding-sibling::p[contains(@class, 'hint')]")
            assert hint.locator("visible=true").count() == int(hidden)
    # No option of a command is broken into two lines, however narrow the column.
    heights = page.locator(".commands dd").first.evaluate(
        "e => { e.style.width = '6em'; return [...e.querySelectorAll('span')]"
        ".filter(word => word.textContent.startsWith('--')).map(word => word.offsetHeight); }"
    )
    assert 0 < max(heights) < 24
    # References fill the row, so that summaries stand side by side below them.
    page.goto(f"{report}#examples")
    texts = page.locator("#example-list .texts").first
    reference = texts.locator(".reference").first.evaluate("e => e.offsetWidth")
    assert reference == texts.evaluate("e => e.clientWidth")
    page.close()


def test_light_dark_and_paper(page: Page, report: str) -> None:
    def colors() -> tuple[str, str]:
        """Those of the paper and of a chart's dot."""
        dot = page.locator("svg use").first.evaluate("e => getComputedStyle(e).fill")
        return page.evaluate("getComputedStyle(document.body).backgroundColor"), dot

    for scheme in ("dark", "light"):
        page.emulate_media(color_scheme=scheme)
        for name in TOUR:
            page.goto(f"{report}#{name}")
            assert find_faint_texts(page) == [], (scheme, name)
    page.goto(report)
    light = colors()
    page.emulate_media(color_scheme="dark")
    assert all(one != other for one, other in zip(colors(), light, strict=True))
    page.locator("#theme").click()
    assert colors() == light
    page.emulate_media(media="print", color_scheme="dark")
    for name in ("overview", "training", "runs"):
        expect(page.locator(f"section#{name}")).to_be_visible()
    expect(page.locator(".top")).to_be_hidden()


def test_without_a_script_all_numbers_are_there(chromium: Browser, report: str) -> None:
    context = chromium.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(report)
    for name in TOUR:
        expect(page.locator(f"section#{name}")).to_be_visible()
    expect(page.locator("#examples noscript p")).to_be_visible()
    context.close()
