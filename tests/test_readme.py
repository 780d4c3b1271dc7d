"""README.md shows what the comparison wrote."""

import re
from pathlib import Path

import pytest

from alignsum import __main__ as report
from benchmarks import readme
from tests.report_runs import draw_values, lay_run

ROOT = Path(__file__).parent.parent
PAGE = """# Ours

| run | n | refs |
| --- | ---: | ---: |
| old | 1 | 1 |

![a](docs/pictures/rouge_by_run.png) ![b](docs/pictures/mine.png) [c](plots/tradeoffs.png)

| config | what |
| --- | --- |
| `x.yaml` | y |
"""


@pytest.fixture
def out(tmp_path: Path) -> Path:
    path = lay_run(tmp_path / "run", draw_values(0, 5))
    assert report.main(["compare", str(path), "--out", str(tmp_path / "report")]) == 0
    return tmp_path / "report"


def test_table_and_pictures_are_those_of_the_report(out: Path, tmp_path: Path) -> None:
    page, pictures = tmp_path / "README.md", tmp_path / "docs" / "pictures"
    pictures.mkdir(parents=True)
    page.write_text(PAGE)
    (pictures / "rouge_by_run.png").write_bytes(b"old")
    (pictures / "mine.png").write_bytes(b"mine")
    assert readme.main(["--report", str(out), "--page", str(page)]) == 0
    table = readme.find_table(out / "comparison.md")
    assert "| run | 5 | 2 |" in table
    old = readme.TABLE.search(PAGE)
    assert old
    assert page.read_text() == PAGE.replace(old[0], table)
    drawn = (out / "plots" / "rouge_by_run.png").read_bytes()
    assert (pictures / "rouge_by_run.png").read_bytes() == drawn
    assert (pictures / "mine.png").read_bytes() == b"mine"
    assert not (tmp_path / "plots").exists()


def test_a_page_without_a_table_is_left_alone(
    out: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "README.md"
    page.write_text("# Ours\n")
    assert readme.main(["--report", str(out), "--page", str(page)]) == 2
    assert "README.md has 0 tables" in capsys.readouterr().out.replace("\n", "")
    assert readme.main(["--report", str(tmp_path / "none"), "--page", str(page)]) == 2
    assert page.read_text() == "# Ours\n"


def test_the_readme_has_a_table_to_replace_and_pictures_of_the_report(out: Path) -> None:
    page = ROOT / "README.md"
    assert readme.find_table(page).startswith("| run | n | refs | ROUGE-1 |")
    shown = re.findall(r"\((docs/pictures/\S+?)\)", page.read_text(encoding="utf-8"))
    assert "docs/pictures/rouge_by_run.png" in shown
    assert all((ROOT / name).is_file() for name in shown)
    assert (out / "plots" / "rouge_by_run.png").is_file()
