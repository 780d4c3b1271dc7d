"""A parser for the parts of report.html that the tests look at."""

from html.parser import HTMLParser
from pathlib import Path

from reporting.comparison import Comparison
from reporting.page.build import build_page
from reporting.runs import read_runs


def build(*paths: Path) -> str:
    found, problems = read_runs(paths)
    return build_page(Comparison(found, problems))


class Page(HTMLParser):
    """The parts of a page that the tests look at."""

    def __init__(self, source: str) -> None:
        super().__init__(convert_charrefs=True)
        self.cells: list[tuple[dict[str, str], list[str]]] = []
        self.titles: list[str] = []
        self.paragraphs: dict[str, str] = {}
        self.scripts: list[dict[str, str]] = []
        self.data = ""
        self._in: list[str] = []
        self.feed(source)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = {name: value or "" for name, value in attrs}
        if tag == "td" and "data-metric" in found:
            self.cells.append((found, []))
        if tag == "script":
            self.scripts.append(found)
        self._in.append(f"p.{found.get('class')}" if tag == "p" else tag)

    def handle_endtag(self, tag: str) -> None:
        while self._in and self._in.pop().split(".")[0] != tag:
            pass

    def handle_data(self, data: str) -> None:
        inside = self._in[-1] if self._in else ""
        if inside in ("b", "small") and "td" in self._in:
            self.cells[-1][1].append(data)
        elif inside == "title" and "svg" in self._in:
            self.titles.append(data)
        elif inside == "script" and self.scripts[-1].get("type") == "application/json":
            self.data += data
        for part in self._in:
            if part.startswith("p."):
                self.paragraphs[part[2:]] = self.paragraphs.get(part[2:], "") + data
