"""What `report.py frontier` writes."""

import logging
from collections.abc import Sequence
from pathlib import Path

from common.run_folder import write_text
from reporting.frontier import Arm
from reporting.frontier_figures import draw_frontier, draw_seeds
from reporting.frontier_tables import make_csv, make_json, make_markdown

log = logging.getLogger(__name__)


def write_frontier(
    out: Path, arms: Sequence[Arm], chosen: Arm | None, max_loss: float, problems: Sequence[str]
) -> None:
    """Write frontier.md, frontier.json, frontier.csv and the plots to a folder.

    Args:
        out: The folder.
        arms: At least one.
        chosen: The arm to mark.
        max_loss: How much rouge1 may be lost, a fraction of 1.
        problems: What could not be used, for the reader of the page.
    """
    figures = ("plots/seeds.png", "plots/frontier.png")
    draw_seeds(out / figures[0], arms, max_loss)
    draw_frontier(out / figures[1], arms, chosen, max_loss)
    write_text(out / "frontier.json", make_json(arms, chosen, max_loss))
    write_text(out / "frontier.csv", make_csv(arms))
    write_text(out / "frontier.md", make_markdown(arms, chosen, max_loss, problems, figures))
    log.info("Wrote %s", out / "frontier.md")
