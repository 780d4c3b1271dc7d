"""Folders of data, in the form that a user keeps them in."""

import json
from pathlib import Path

TEXT = "is room free from six and can you call me back before the train leaves at noon"


def make_rows(count: int) -> list[dict[str, str]]:
    """Dialogues and summaries of very different lengths."""
    return [
        {
            "id": f"r{i}",
            "dialogue": f"#Person1#: {TEXT[i % 5 : 10 + 23 * i % 71]}?",
            "summary": f"{i} {TEXT[: 1 + 17 * i % 43]}",
        }
        for i in range(count)
    ]


def write_rows(folder: Path, **splits: list[dict]) -> Path:
    folder.mkdir(exist_ok=True)
    for split, rows in splits.items():
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / f"{split}.jsonl").write_text(lines, encoding="utf-8")
    return folder
