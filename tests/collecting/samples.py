"""Samples to rank, and ways to reach a server that shows them."""

import json
import re
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

from collecting.answer_file import AnswerFile
from collecting.assignments import Assignments
from collecting.samples import Sample
from datamodules.rankings import Answer

ROOT = Path(__file__).parent.parent.parent


def make_sample(number: int, completions: Sequence[str] = ("a", "b", "c", "d")) -> Sample:
    return Sample(
        f"s{number}", f"#Person1#: number {number}\n#Person2#: Yes.", (),
        tuple(f"{text}{number}" for text in completions),
        tuple(("lora", "full_ft")[place % 2] for place in range(len(completions))),
    )  # fmt: skip


def make_samples(count: int = 3) -> list[Sample]:
    return [make_sample(number) for number in range(count)]


def make_answer(sample: Sample, annotator: str = "ann", **changes: Any) -> Answer:
    settings: dict[str, Any] = {
        "ranks": (1, 2, 2, None), "toxic": (False, False, True, False),
        "time": "2025-01-02T03:04:05+00:00", "seconds": 7.5,
    }  # fmt: skip
    return Answer(
        sample.id, sample.dialogue, sample.completions, annotator,
        sources=sample.sources, **(settings | changes),
    )  # fmt: skip


def write_samples(path: Path, samples: Sequence[Sample]) -> Path:
    path.write_text("".join(json.dumps(sample._asdict()) + "\n" for sample in samples))
    return path


def read_lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def shown(work: Assignments, annotator: str, sample: Sample) -> dict[str, Any]:
    """Return what the page sends if the first completion shown is ranked first, and so on."""
    item = work.describe(annotator, sample.id)["item"]
    count = len(item["completions"])
    return {
        "annotator": annotator, "id": item["id"], "version": item["version"],
        "ranks": list(range(1, count + 1)), "toxic": [False] * count, "seconds": 1.0,
    }  # fmt: skip


def open_assignments(path: Path, samples: Sequence[Sample], **settings: Any) -> Assignments:
    return Assignments(samples, AnswerFile(path).__enter__(), **settings)


class ServerProcess:
    """``alignsum rank serve`` in a process that a test can drive and kill."""

    def __init__(self, samples: Path, answers: Path, *options: str, port: int = 0) -> None:
        files = ["--samples", str(samples), "--answers", str(answers)]
        command = ["-m", "alignsum", "rank", "serve", *files, "--port", str(port)]
        self.process = subprocess.Popen(
            [sys.executable, *command, *options],
            cwd=ROOT, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        self.lines: list[str] = []
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.lines.append(line)
            if found := re.search(r"at (http://\S+:(\d+)/)", line):
                self.url, self.port = found[1], int(found[2])
                return
        raise AssertionError("".join(self.lines))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.end(signal.SIGTERM)

    def end(self, how: signal.Signals) -> int:
        self.process.send_signal(how)
        _, rest = self.process.communicate(timeout=30)
        self.lines.append(rest)
        return self.process.returncode


class Project:
    """Samples, answers and a server over them, as long as a test needs it."""

    def __init__(self, folder: Path) -> None:
        self.samples, self.answers = folder / "s.jsonl", folder / "a.jsonl"
        self.server: ServerProcess | None = None

    def serve(self, samples: list[Sample], *options: str, port: int = 0) -> ServerProcess:
        write_samples(self.samples, samples)
        self.server = ServerProcess(self.samples, self.answers, *options, port=port)
        return self.server

    def rows(self) -> list[dict[str, Any]]:
        return read_lines(self.answers)
