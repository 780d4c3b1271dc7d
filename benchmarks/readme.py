"""Put a comparison into README.md: its table, and the pictures that README.md shows of it.

    make demo && python -m benchmarks.readme
    python -m benchmarks.readme --report runs/other/report

The table is that of REPORT/comparison.md, and takes the place of the one in README.md that begins
as it does, with run, n and refs. A picture docs/pictures/NAME.png is replaced by
REPORT/plots/NAME.png where there is one. Everything else stays as it is, the sentences with
numbers in them too: read them again.
"""

import argparse
import re
import shutil
import sys
from pathlib import Path

from rich.console import Console

from common.run_folder import write_text

TABLE = re.compile(r"^\| run \| n \| refs \|.*\n(?:\|.*\n)+", re.MULTILINE)
PICTURE = re.compile(r"\]\((\S+?)\)")


def find_table(page: Path) -> str:
    """Find the table of runs in a Markdown page.

    Raises:
        ValueError: If there is not exactly one.
    """
    found = TABLE.findall(page.read_text(encoding="utf-8"))
    if len(found) != 1:
        raise ValueError(f"{page} has {len(found)} tables that begin with run, n and refs, not one")
    return str(found[0])


def refresh(page: Path, report: Path) -> list[Path]:
    """Put the table and the pictures of a report into a page.

    Returns:
        The pictures that were replaced.

    Raises:
        ValueError: If page or report has no such table.
    """
    new, old = find_table(report / "comparison.md"), find_table(page)
    text = page.read_text(encoding="utf-8")
    write_text(page, text.replace(old, new))
    replaced = []
    for name in dict.fromkeys(PICTURE.findall(text)):
        picture, drawn = page.parent / name, report / "plots" / Path(name).name
        if picture.suffix == ".png" and drawn.exists():
            shutil.copyfile(drawn, picture)
            replaced.append(picture)
    return replaced


def main(arguments: list[str]) -> int:
    """Refresh a page; give 0, or 2 where it cannot be done."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--report", type=Path, default=Path("runs/demo/report"))
    parser.add_argument("--page", type=Path, default=Path("README.md"))
    options = parser.parse_args(arguments)
    console = Console(soft_wrap=True)
    try:
        pictures = refresh(options.page, options.report)
    except (ValueError, OSError) as error:
        console.print(f"error: {error}", style="red", markup=False)
        return 2
    console.print(f"{options.page}: the table of {options.report}, {len(pictures)} pictures")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
