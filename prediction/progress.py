"""How far it is, how fast, and how long it will take: a bar in a terminal, lines elsewhere."""

import time
from collections.abc import Callable
from typing import Self

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text


class Rate(ProgressColumn):
    """How many a second."""

    def render(self, task: Task) -> Text:
        """Show the recent speed."""
        return Text(f"{task.speed:.1f}/s" if task.speed else "-/s", style="progress.data.speed")


class PredictProgress:
    """Progress through a file of dialogues, or through what is made of them.

    Args:
        console: Where it is shown.
        total: How many there are; None where nobody knows.
        done: How many an earlier run did.
        every_seconds: Time between two lines where the console is no terminal.
        clock: Gives the time in seconds.
        unit: What is counted.
    """

    def __init__(
        self,
        console: Console,
        total: int | None,
        done: int = 0,
        every_seconds: float = 5.0,
        clock: Callable[[], float] = time.monotonic,
        unit: str = "dialogues",
    ) -> None:
        self.console = console
        self.total = total
        self.first = self.done = done
        self.every_seconds = every_seconds
        self.clock = clock
        self.unit = unit
        self.started = self.spoke = clock()
        self._bar: Progress | None = None
        if console.is_terminal:
            self._bar = Progress(
                TextColumn(unit.capitalize()), BarColumn(), MofNCompleteColumn(), Rate(),
                TimeElapsedColumn(), TextColumn("left:"), TimeRemainingColumn(), console=console,
            )  # fmt: skip
            self._task = self._bar.add_task("", total=total, completed=done)

    def __enter__(self) -> Self:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def advance(self, count: int) -> None:
        """Count what is done."""
        self.done += count
        if self._bar is not None:
            self._bar.advance(self._task, count)
        elif (now := self.clock()) - self.spoke >= self.every_seconds:
            self.spoke = now
            self.console.print(self.describe(), soft_wrap=True, markup=False, highlight=False)

    def describe(self) -> str:
        """Say how far it is: ``[0:35] 512/2000 dialogues, 14.6/s, 1:41 left``."""
        seconds = self.clock() - self.started
        rate = (self.done - self.first) / seconds if seconds > 0 else 0.0
        of_all = f"/{self.total}" if self.total is not None else ""
        line = f"[{format_seconds(seconds)}] {self.done}{of_all} {self.unit}, {rate:.1f}/s"
        if self.total is None or rate == 0:
            return line
        return f"{line}, {format_seconds((self.total - self.done) / rate)} left"


def format_seconds(seconds: float) -> str:
    """Give minutes and seconds, and hours where there are any: ``1:41``, ``2:03:09``."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
