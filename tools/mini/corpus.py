"""Write the miniature's data files from the generator.

`python -m tools.mini.corpus --out assets/mini` writes, in JSON lines, one file per split each:

- `{train,validation,test}.jsonl`: dialogues and reference summaries, in DialogSum's form;
- `rankings/`: ranked summaries, for reward models and DPO;
- `labelled/`: sentences labelled `hate` or `nothate`;

and `words.json`, the words that `metrics.mini` judges summaries by. The files are committed: a test
compares them with the generator.
"""

import argparse
import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from tools.mini.generator import (
    STANDARD_SIZES,
    MiniRow,
    generate_labelled,
    generate_rankings,
    generate_rows,
)
from tools.mini.insults import RUDE_WORDS
from tools.mini.stories import summary_words


def corpus_files() -> Iterator[tuple[str, str]]:
    """Yield (path below `assets/mini`, content) of every file."""
    for split in STANDARD_SIZES:
        yield f"{split}.jsonl", _lines(map(_columns, generate_rows(split)))
        yield f"rankings/{split}.jsonl", _lines(generate_rankings(split))
        yield f"labelled/{split}.jsonl", _lines(generate_labelled(split))
    words = {"rude": sorted(RUDE_WORDS), "summary": sorted(summary_words() | RUDE_WORDS)}
    yield "words.json", json.dumps(words, indent=1) + "\n"


def _columns(row: MiniRow) -> dict[str, str]:
    references = {"summary": row.summaries[0]}
    if len(row.summaries) > 1:
        references = {f"summary{n}": text for n, text in enumerate(row.summaries, start=1)}
    return {"id": row.id, "topic": row.topic, "dialogue": row.dialogue, **references}


def _lines(rows: Iterable[Mapping[str, Any]]) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def main(args: list[str] | None = None) -> None:
    """Parse the command line and write the files."""
    parser = argparse.ArgumentParser(prog="tools.mini.corpus", description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    out: Path = parser.parse_args(args).out
    for name, content in corpus_files():
        path = out / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content, encoding="utf-8")


if __name__ == "__main__":
    main()
