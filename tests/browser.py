"""A headless Chromium for tests of pages: that of the system, and no test where it is missing."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright

# Other tests run beside these on the same cores: what is slow is not wrong.
expect.set_options(timeout=30_000)

NAMES = ("chromium", "chromium-browser", "google-chrome")


def find_chromium() -> str | None:
    """The system's Chromium, if it has one."""
    return next((path for name in NAMES if (path := shutil.which(name))), None)


@contextmanager
def open_chromium() -> Iterator[Browser]:
    """Start the system's Chromium, and end it; skip the test where there is none."""
    found = find_chromium()
    if found is None:
        pytest.skip("no Chromium is installed: apt-get install chromium")
    # Its sandbox refuses to run as root, as whom a container's tests do.
    arguments = ["--no-sandbox"] if os.geteuid() == 0 else []
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=found, args=arguments)
        try:
            yield browser
        finally:
            browser.close()


class Watch:
    """What a page says on its console, throws, and asks for, from now on.

    Args:
        page: The page, before it goes anywhere.
    """

    def __init__(self, page: Page) -> None:
        self.complaints: list[str] = []
        self.requests: list[str] = []
        page.on("console", lambda message: self._hear(message.type, message.text))
        page.on("pageerror", lambda error: self.complaints.append(str(error)))
        page.on("request", lambda request: self.requests.append(request.url))

    def _hear(self, kind: str, text: str) -> None:
        if kind in ("error", "warning"):
            self.complaints.append(text)


def find_faint_texts(page: Page) -> list[str]:
    """List visible texts with less contrast than WCAG 2.2 asks for (4.5; large ones 3)."""
    return page.evaluate("""() => {
      const canvas = document.createElement("canvas");
      const context = canvas.getContext("2d", {willReadFrequently: true});
      const read = (color) => {  // any CSS color as [r, g, b, alpha]
        context.clearRect(0, 0, 1, 1);
        context.fillStyle = color;
        context.fillRect(0, 0, 1, 1);
        const [r, g, b, alpha] = context.getImageData(0, 0, 1, 1).data;
        return [r, g, b, alpha / 255];
      };
      const put = (top, alpha, below) =>
        below.map((value, k) => alpha * top[k] + (1 - alpha) * value);
      const paper = (element) => {
        if (!element) return [255, 255, 255, 1];
        const color = read(getComputedStyle(element).backgroundColor);
        return color[3] === 1 ? color : put(color, color[3], paper(element.parentElement));
      };
      const opacity = (element) =>
        element ? getComputedStyle(element).opacity * opacity(element.parentElement) : 1;
      const luminance = (color) => {
        const [r, g, b] = color.slice(0, 3).map((value) => value / 255).map(
          (value) => value <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4);
        return 0.2126 * r + 0.7152 * g + 0.0722 * b;
      };
      const found = [];
      const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
      while (walker.nextNode()) {
        const element = walker.currentNode.parentElement, text = walker.currentNode.data.trim();
        const isShown = element.checkVisibility({visibilityProperty: true, opacityProperty: true});
        if (!text || !isShown || element.closest(":disabled, script, style, option")) continue;
        const style = getComputedStyle(element), size = parseFloat(style.fontSize);
        const color = read(element.closest("svg") ? style.fill : style.color);
        const below = paper(element), seen = put(color, color[3] * opacity(element), below);
        const [light, dark] = [luminance(seen), luminance(below)].sort((one, other) => other - one);
        const contrast = (light + 0.05) / (dark + 0.05);
        const isLarge = size >= 24 || (size >= 18.66 && style.fontWeight >= 700);
        if (contrast < (isLarge ? 3 : 4.5)) found.push(`${contrast.toFixed(2)}: ${text}`);
      }
      return found;
    }""")
