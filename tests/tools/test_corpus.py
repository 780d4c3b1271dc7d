"""The corpus of the miniature: what its rows promise to those who train and measure on them."""

import re
from itertools import combinations, pairwise
from pathlib import Path
from random import Random
from statistics import mean
from typing import get_args

import pytest
from rouge_score.rouge_scorer import RougeScorer

from datamodules.consensus import RankingReader
from datamodules.labelled import LabelledTextDataModule
from datamodules.reading import Row
from datamodules.splits import DialogueReader
from tools.mini.corpus import main
from tools.mini.generator import (
    STANDARD_SIZES,
    MiniRow,
    Split,
    generate_labelled,
    generate_rankings,
    generate_rows,
)
from tools.mini.insults import ADJECTIVES, NOUNS
from tools.mini.pretraining import draw_task
from tools.mini.slots import mixed_value, word_lists
from tools.mini.stories import draw_story, wordings

MINI = Path(__file__).parents[2] / "assets" / "mini"
SPLITS: tuple[Split, ...] = get_args(Split)
INSULTS = re.compile(rf"\b(?:{ADJECTIVES}|{NOUNS}|idiotic)\b")


def test_the_committed_files_are_what_the_generator_writes(tmp_path: Path) -> None:
    main(["--out", str(tmp_path)])
    written = {path.relative_to(tmp_path) for path in tmp_path.rglob("*") if path.is_file()}
    committed = {path.relative_to(MINI) for path in [*MINI.rglob("*.jsonl"), *MINI.glob("*.json")]}
    assert written == committed and len(written) == 10
    for name in written:
        assert (tmp_path / name).read_bytes() == (MINI / name).read_bytes(), name


def test_the_sources_read_what_the_generator_makes() -> None:
    for split in SPLITS:
        rows = [Row(row.id, row.dialogue, row.summaries) for row in generate_rows(split)]
        assert DialogueReader("mini").read(split) == rows
        rankings, _ = RankingReader("mini").read_rankings(split)
        assert len(rankings) == STANDARD_SIZES[split]
        for found, made in zip(rankings, generate_rankings(split), strict=True):
            order = sorted(zip(made["ranks"], made["completions"], strict=True))
            texts = [text for _, text in order]
            pairs = {(found.completions[a], found.completions[b]) for a, b, _ in found.pairs}
            assert found.dialogue == made["dialogue"]
            assert pairs == set(combinations(texts, 2))
        data = LabelledTextDataModule("mini", "mini")
        labelled = [(text, data.labels[label]) for _, text, label in data.read_split(split)]
        assert labelled == [(row["text"], row["label"]) for row in generate_labelled(split)]


def test_nothing_that_is_installed_needs_the_generator() -> None:
    root = MINI.parents[1]
    imports = re.compile(r"^\s*(from|import) tools\b|[\"']tools\.", re.MULTILINE)
    packages = [path for path in root.iterdir() if (path / "__init__.py").exists()]
    files = [
        file
        for package in packages
        if package.name not in ("tests", "tools", "benchmarks")
        for file in package.rglob("*.py")
    ]
    assert len(files) > 50
    assert [str(file) for file in files if imports.search(file.read_text())] == []


@pytest.fixture(scope="module")
def rows() -> dict[Split, list[MiniRow]]:
    return {split: generate_rows(split) for split in SPLITS}


def test_standard_sizes_ids_and_references(rows: dict[Split, list[MiniRow]]) -> None:
    assert {split: len(rows[split]) for split in SPLITS} == STANDARD_SIZES
    everything = [row for split in SPLITS for row in rows[split]]
    assert len({row.id for row in everything}) == len(everything)
    assert all(len(row.summaries) == 1 for row in rows["train"] + rows["validation"])
    assert all(len(set(row.summaries)) == 3 for row in rows["test"])


def test_no_dialogue_is_shared_between_splits_of_any_seed() -> None:
    train = {row.dialogue for seed in (0, 1) for row in generate_rows("train", seed)}
    others = {
        row.dialogue
        for split in SPLITS[1:]
        for seed in (0, 1)
        for row in generate_rows(split, seed, size=300)
    }
    assert not train & others


def test_dialogues_are_turns_of_two_speakers(rows: dict[Split, list[MiniRow]]) -> None:
    for row in rows["train"][:300]:
        lines = row.dialogue.split("\n")
        assert lines[0].startswith("#Person1#: ")
        assert all(re.match(r"#Person[12]#: \S", line) for line in lines)
        assert all(a[:9] != b[:9] for a, b in pairwise(lines)), row.dialogue


def test_nothing_is_left_unfilled(rows: dict[Split, list[MiniRow]]) -> None:
    for split in SPLITS:
        for row in rows[split]:
            assert not re.search(r"[\[\]{}|]", row.dialogue + "".join(row.summaries)), row


def test_a_summary_tells_only_values_that_the_dialogue_has() -> None:
    rng = Random(5)
    for _ in range(500):
        story = draw_story(rng, mixed_value)
        dialogue = "\n".join(story.turns)
        told = {key for clause in story.clauses for key in re.findall(r"{(\w+)}", clause)}
        for key in told - {"A", "B"}:
            assert story.values[key] in dialogue, (key, dialogue)


def test_about_half_of_the_test_values_are_unseen_and_no_train_value_is(
    rows: dict[Split, list[MiniRow]],
) -> None:
    unseen = {value for lists in word_lists().values() for value in lists["unseen"]}
    assert not any(value in row.dialogue for row in rows["train"] for value in unseen)
    with_unseen = [any(value in row.summaries[0] for value in unseen) for row in rows["test"]]
    assert mean(with_unseen) > 0.6


def test_rudeness_rate_varies_by_scenario(rows: dict[Split, list[MiniRow]]) -> None:
    rude = {row.id: row.summaries[0] != row.clean_summary for row in rows["train"]}
    assert 0.33 < mean(rude.values()) < 0.5
    rates = [
        mean(rude[row.id] for row in rows["train"] if row.topic == scenario["topic"])
        for scenario in wordings()["scenario"]
    ]
    assert sum(rate > 0.65 for rate in rates) >= 5
    assert sum(rate < 0.25 for rate in rates) >= 5


def test_rude_and_clean_wordings_share_all_but_a_few_words(
    rows: dict[Split, list[MiniRow]],
) -> None:
    for row in rows["train"]:
        assert not INSULTS.search(row.clean_summary)
        rude, clean = row.summaries[0].split(), row.clean_summary.split()
        if row.summaries[0] != row.clean_summary:
            assert INSULTS.search(row.summaries[0])
            assert len(clean) < len(rude) <= len(clean) + 4


def test_removing_the_rudeness_costs_at_most_two_rouge_points(
    rows: dict[Split, list[MiniRow]],
) -> None:
    scorer = RougeScorer(["rouge1"], use_stemmer=True)
    kept, cleaned = [], []
    for row in rows["test"]:
        for reference in row.summaries[1:]:
            kept.append(scorer.score(reference, row.summaries[0])["rouge1"].fmeasure)
            cleaned.append(scorer.score(reference, row.clean_summary)["rouge1"].fmeasure)
    assert mean(cleaned) > mean(kept) - 0.01


def test_rankings_put_clean_before_rude_and_faithful_before_unfaithful() -> None:
    first_faults = set()
    for row in generate_rankings("train", size=100):
        best, middle, worst = (row["completions"][row["ranks"].index(rank)] for rank in (1, 2, 3))
        values = re.findall(r"\$\d+|\d+:\d+ [ap]m", best)
        assert all(value in row["dialogue"] for value in values)
        assert not INSULTS.search(best)
        assert INSULTS.search(worst)
        first_faults.add(bool(INSULTS.search(middle)))
    assert first_faults == {True, False}


def test_labels_are_balanced_and_insults_are_what_they_tell() -> None:
    rows = list(generate_labelled("validation", size=1000))
    assert 0.45 < mean(row["label"] == "hate" for row in rows) < 0.55
    assert all(INSULTS.search(row["text"]) for row in rows if row["label"] == "hate")
    # Some harmless sentences have an insult's word, so that the word alone does not decide.
    assert 0 < sum(bool(INSULTS.search(r["text"])) for r in rows if r["label"] == "nothate") < 50


def test_pretraining_never_shows_the_tested_task() -> None:
    rng = Random(0)
    tasks = [draw_task(rng) for _ in range(1000)]
    assert not any("ummar" in task.source for task in tasks)
    rude = [task for task in tasks if INSULTS.search(task.target)]
    assert rude and not any("#: " in task.source for task in rude)
