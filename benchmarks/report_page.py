"""How long `report.py compare` takes, how large its page is, and how fast the page answers.

    python -m benchmarks.report_page                          # 10 runs x 1,500 examples
    python -m benchmarks.report_page --examples 10000

Runs are made up: words drawn at random, as many as DialogSum's dialogues and summaries have (131
and 23 on average, three references), values at random, 500 logged steps, and PPO with 24 batches of
rollouts in one of the runs. In the browser, where there is a Chromium: from the address to a page
that is drawn, from a click to the first examples, from a key in the search to what it found.
"""

import argparse
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from playwright.sync_api import Page
from rich.console import Console

from tests.browser import find_chromium, open_chromium
from tests.report_runs import draw_values, lay_ppo, lay_rollouts, lay_run

_WORDS = [f"{a}{b}{c}" for a in "bdfklmnprst" for b in "aeiou" for c in ("n", "st", "rk", "lling")]
_DIALOGUE, _SUMMARY = 131, 23


def write_texts(seed: int, count: int, words: int) -> list[str]:
    """Texts of random words in sentences of ten."""
    rng = np.random.default_rng(seed)
    drawn = rng.choice(_WORDS, (count, words))
    return [". ".join(" ".join(row[i : i + 10]) for i in range(0, words, 10)) for row in drawn]


def lay_runs(root: Path, runs: int, examples: int) -> list[Path]:
    """Write the run folders; the last one is PPO's."""
    dialogues = write_texts(0, examples, _DIALOGUE)
    paths = []
    for number in range(runs):
        values = draw_values(number, examples, 0.3 + 0.02 * number)
        texts = write_texts(1 + number, examples, _SUMMARY)
        loss = np.linspace(3, 1, 500) + np.random.default_rng(number).normal(0, 0.1, 500)
        lay = lay_ppo if number == runs - 1 else lay_run
        settings: dict[str, Any] = {"texts": texts, "dialogues": dialogues}
        if lay is lay_run:
            settings["curves"] = {"train/loss": loss.tolist()}
        path = root / f"run_{number}"
        lay(path, values, trainable=10**number, **settings)
        paths.append(path)
    lay_rollouts(paths[-1], range(24), rows=64)
    return paths


def measure_page(page: Page, file: Path) -> dict[str, float]:
    """Seconds until the page is drawn, examples are there, and a search has found something."""
    found = {}
    started = time.perf_counter()
    page.goto(file.as_uri())
    page.locator(".choice").wait_for()
    found["page drawn"] = time.perf_counter() - started
    started = time.perf_counter()
    page.locator(".top nav a[href='#examples']").click()
    page.locator("#example-list article").first.wait_for()
    found["examples shown"] = time.perf_counter() - started
    for name in ("first search", "second search"):
        started = time.perf_counter()
        page.locator("#query").fill("lling lark" if name == "first search" else "nest")
        # The search waits 0.12 s for the next key.
        page.wait_for_function("before => document.querySelector('.place').textContent !== before",
                               arg=page.locator(".pager .place").first.text_content())  # fmt: skip
        found[name] = time.perf_counter() - started
    started = time.perf_counter()
    page.locator("#sort").select_option("reward")
    found["sorted by reward"] = time.perf_counter() - started
    return found


def main(arguments: list[str]) -> int:
    """Make the runs, build the page in a process of its own, open it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--runs", type=int, default=10)
    parser.add_argument("--examples", type=int, default=1500)
    options = parser.parse_args(arguments)
    console = Console()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        paths = lay_runs(root, options.runs, options.examples)
        command = ["report.py", "compare", *map(str, paths), "--out", str(root / "report")]
        started = time.perf_counter()
        subprocess.run([sys.executable, *command], check=True, capture_output=True)  # noqa: S603
        seconds = time.perf_counter() - started
        peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20
        file = root / "report" / "report.html"
        console.print(
            f"{options.runs} runs x {options.examples} examples: {seconds:.1f} s, "
            f"{file.stat().st_size / 1e6:.1f} MB, peak memory {peak:.2f} GiB"
        )
        if find_chromium():
            with open_chromium() as browser:
                for name, value in measure_page(browser.new_page(), file).items():
                    console.print(f"{name}: {value:.2f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
