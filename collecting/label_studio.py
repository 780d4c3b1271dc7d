"""Exchange samples and answers with Label Studio.

A task's completions are the items ``c0``, ``c1``, ... of a List, numbered by their position in the
file. Each rank is a Bucket of a Ranker, so completions in one bucket are tied; one more bucket
holds the unusable ones. Toxic completions are ticked in a Choices tag, by the letters of the items.
Formats: labelstud.io/tags/ranker.html, /tags/list.html and /guide/task_format.html.
"""

import hashlib
import json
import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from collecting.answer_file import AnswerFile, read_answers
from collecting.assignments import shuffle
from collecting.samples import Sample, read_samples
from common.jsonl import describe_bad_rows
from common.run_folder import write_text
from datamodules.rankings import Answer, parse_answer

log = logging.getLogger(__name__)

UNUSABLE = "unusable"
"""Bucket of the completions without a rank."""

UNPLACED = "_"
"""Label Studio's own name for what is still in the List."""

_RANK = re.compile(r"rank_([1-9]\d*)")

# To Label Studio ----------------------------------------------------------------------------------


def export_tasks(
    samples: Path,
    output: Path,
    answers: Path | None = None,
    seed: int = 42,
    overwrite: bool = False,
) -> None:
    """Write samples, and the answers so far, as tasks, with the labelling interface next to them.

    Args:
        samples: File of samples.
        output: JSON file to write; the interface gets the ending .xml.
        answers: File of answers.
        seed: Seed of the order in which the completions of a task are shown.
        overwrite: Replace existing files.

    Raises:
        ValueError: If a file cannot be used.
    """
    interface = output.with_suffix(".xml")
    if output.suffix != ".json":
        raise ValueError(f"output: {output} must end in .json; the interface gets .xml")
    if there := [str(path) for path in (output, interface) if path.exists() and not overwrite]:
        raise ValueError(f"output: {' and '.join(there)} exist; --overwrite true replaces them")
    found = read_samples(samples)
    answers_to: dict[tuple[str, tuple[str, ...]], list[Answer]] = {
        (sample.id, sample.completions): [] for sample in found
    }
    others = 0
    for answer in read_answers(answers) if answers else []:
        if (key := (answer.id, answer.completions)) in answers_to:
            answers_to[key].append(answer)
        else:
            others += 1
    if others:
        log.warning("%d answers are about other samples, and are left out", others)
    tasks = [make_task(each, answers_to[each.id, each.completions], seed) for each in found]
    write_text(output, json.dumps(tasks, indent=1, ensure_ascii=False) + "\n")
    write_text(interface, make_interface(max(len(sample.completions) for sample in found)))
    count = sum(map(len, answers_to.values()))
    log.info("%d tasks with %d answers: %s, interface: %s", len(tasks), count, output, interface)


def make_interface(completions: int) -> str:
    """Write the labelling interface for tasks with up to this many completions."""
    view = ElementTree.Element("View")
    _add(view, "Header", value="Read the dialogue")
    _add(view, "Text", name="dialogue", value="$dialogue")
    _add(view, "Header", value="Move each summary into a column; two in one column are a tie")
    _add(view, "List", name="completions", value="$items", title="Summaries")
    ranker = _add(view, "Ranker", name="ranking", toName="completions")
    for rank in range(1, completions + 1):
        title = "1 (best)" if rank == 1 else str(rank)
        _add(ranker, "Bucket", name=f"rank_{rank}", title=title)
    _add(ranker, "Bucket", name=UNUSABLE, title="Unusable")
    _add(view, "Header", value="Which of them are toxic?")
    _add(view, "Choices", name="toxic", toName="dialogue", choice="multiple", value="$letters")
    hidden = _add(view, "View", style="display: none")
    _add(hidden, "TextArea", name="annotator", toName="dialogue")
    ElementTree.indent(view)
    return ElementTree.tostring(view, encoding="unicode") + "\n"


def _add(parent: ElementTree.Element, tag: str, **attributes: str) -> ElementTree.Element:
    return ElementTree.SubElement(parent, tag, attributes)


def make_task(sample: Sample, answers: Sequence[Answer], seed: int) -> dict[str, Any]:
    """Make a task from a sample and its answers, each by another annotator.

    Label Studio shows the completions to everybody in the same order, which ``seed`` decides.
    """
    order = shuffle(sample, "", seed)
    letters = {place: letter(number) for number, place in enumerate(order)}
    items = [
        {"id": f"c{place}", "title": letters[place], "body": sample.completions[place]}
        for place in order
    ]
    return {
        "data": {
            "id": sample.id, "dialogue": sample.dialogue, "items": items,
            "letters": [{"value": item["title"]} for item in items],
        },
        "meta": {"sources": list(sample.sources)},
        "annotations": [_make_annotation(answer, letters) for answer in answers],
    }  # fmt: skip


def letter(number: int) -> str:
    """Name item n, from 0: A, B, ..., Z, A1, B1, ..."""
    return chr(ord("A") + number % 26) + (str(number // 26) if number >= 26 else "")


def _make_annotation(answer: Answer, letters: Mapping[int, str]) -> dict[str, Any]:
    def make_result(name: str, of: str, kind: str, value: dict[str, Any]) -> dict[str, Any]:
        key = hashlib.sha256(f"{answer.annotator}\n{answer.id}\n{name}".encode()).hexdigest()[:10]
        return {"id": key, "from_name": name, "to_name": of, "type": kind, "value": value}

    results = [make_result("annotator", "dialogue", "textarea", {"text": [answer.annotator]})]
    if toxic := [letters[place] for place, mark in enumerate(answer.toxic) if mark]:
        results.append(make_result("toxic", "dialogue", "choices", {"choices": toxic}))
    if answer.ranks is not None:
        buckets: dict[str, list[str]] = {}
        for place, rank in enumerate(answer.ranks):
            buckets.setdefault(f"rank_{rank}" if rank else UNUSABLE, []).append(f"c{place}")
        value = {"ranker": buckets | {UNPLACED: []}}
        results.append(make_result("ranking", "completions", "ranker", value))
    return {
        "result": results, "was_cancelled": answer.ranks is None, "lead_time": answer.seconds,
        "created_at": answer.time, "updated_at": answer.time,
    }  # fmt: skip


# From Label Studio --------------------------------------------------------------------------------


def import_answers(source: Path, answers: Path, on_bad_row: str = "stop") -> None:
    """Append the answers of a JSON export to a file of answers, unless it has them already.

    Args:
        source: The exported file.
        answers: File of answers; it need not exist.
        on_bad_row: "stop" at annotations that cannot be used, or "skip" and count them.

    Raises:
        ValueError: If a file cannot be used.
    """
    try:
        tasks = json.loads(source.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"input: {source} is not JSON ({error})") from error
    if not isinstance(tasks, list) or not all(isinstance(task, dict) for task in tasks):
        raise ValueError(f"input: {source} is not a list of tasks; export it as JSON")
    good: list[Answer] = []
    problems: list[str] = []
    for number, task in enumerate(tasks, start=1):
        for found in read_task(task):
            if isinstance(found, Answer):
                good.append(found)
            else:
                problems.append(f"{source}, task {number}: {found}")
    if problems:
        message = describe_bad_rows(problems, len(problems))
        if on_bad_row == "stop":
            raise ValueError(f"input: {message}\nLeave them out with --on_bad_row skip")
        log.warning("Skipped %s", message)
    with AnswerFile(answers) as file:
        new = [answer for answer in good if not file.contains(answer)]
        file.append(new)
    log.info("%d of %d answers are new; they are now in %s", len(new), len(good), answers)


def read_task(task: Mapping[str, Any]) -> Iterator[Answer | str]:
    """Read a task as Label Studio exports it.

    Other interfaces can be read if the task has its text in ``dialogue`` or ``prompt``, the
    completions in ``items`` (``body`` or ``title``), and a Ranker with our buckets or none.

    Returns:
        For each annotation its answer, or what is wrong with it.
    """
    try:
        fields, positions, letters = _read_data(task)
    except ValueError as error:
        yield str(error)
        return
    for annotation in task.get("annotations") or []:
        try:
            yield parse_answer(fields | _read_annotation(annotation, positions, letters))
        except ValueError as error:
            yield str(error)


def _read_data(
    task: Mapping[str, Any],
) -> tuple[dict[str, Any], dict[str, int], dict[str, int]]:
    """Return an answer's fields that the task decides, and positions by item id and by title."""
    data = task.get("data")
    data = data if isinstance(data, dict) else {}
    items = data.get("items")
    if not isinstance(items, list) or not all(isinstance(item, dict) for item in items):
        raise ValueError("its data has no list of items")
    by_id = {str(item.get("id")): item for item in items}
    if len(by_id) < len(items):
        raise ValueError("two of its items have the same id")
    ours = [f"c{number}" for number in range(len(items))]
    ids = ours if by_id.keys() == set(ours) else list(by_id)
    items = [by_id[name] for name in ids]
    fields = {
        "id": data.get("id", task.get("id")),
        "dialogue": data.get("dialogue", data.get("prompt")),
        "completions": [item.get("body") or item.get("title") for item in items],
        "sources": (task.get("meta") or {}).get("sources", []),
    }
    titles = {str(item.get("title")): position for position, item in enumerate(items)}
    return fields, {name: position for position, name in enumerate(ids)}, titles


def _read_annotation(
    annotation: Mapping[str, Any], positions: Mapping[str, int], letters: Mapping[str, int]
) -> dict[str, Any]:
    """Return an answer's fields that the annotation decides."""
    values: dict[str, dict[str, Any]] = {}
    for result in annotation.get("result") or []:
        name = "ranker" if result.get("type") == "ranker" else str(result.get("from_name"))
        values[name] = result.get("value") or {}
    toxic = [False] * len(positions)
    for name in values.get("toxic", {}).get("choices", []):
        if name not in letters:
            raise ValueError(f"no completion is called {name!r}")
        toxic[letters[name]] = True
    fields: dict[str, Any] = {
        "annotator": _find_annotator(annotation, values), "toxic": toxic,
        "time": annotation.get("updated_at") or annotation.get("created_at") or "",
        "seconds": annotation.get("lead_time"),
    }  # fmt: skip
    if annotation.get("was_cancelled"):
        return fields | {"skipped": True}
    if "ranker" not in values:
        raise ValueError("an annotation has no ranking")
    return fields | {"ranks": read_ranks(values["ranker"].get("ranker"), positions)}


def _find_annotator(annotation: Mapping[str, Any], values: Mapping[str, Any]) -> str:
    """Return the name in our own field, or else Label Studio's user."""
    if texts := values.get("annotator", {}).get("text"):
        return texts if isinstance(texts, str) else str(texts[0])
    user = annotation.get("completed_by")
    if isinstance(user, dict):
        user = user.get("email") or user.get("id")
    if user is None:
        raise ValueError("an annotation has no annotator")
    return f"user {user}" if isinstance(user, int) else str(user)


def read_ranks(ranker: Any, positions: Mapping[str, int]) -> list[int | None]:
    """Read the value of a Ranker.

    Args:
        ranker: Ids, best first; or such a list by the tag's name; or lists of ids by bucket.
        positions: Positions of the completions by their ids.

    Returns:
        One rank per completion; None for the unusable ones.

    Raises:
        ValueError: If it is none of these, or does not have every completion exactly once.
    """
    if isinstance(ranker, dict) and len(ranker) == 1:
        ((name, members),) = ranker.items()
        if name not in (UNUSABLE, UNPLACED) and not _RANK.fullmatch(name):
            ranker = members
    if isinstance(ranker, list):
        ranker = {f"rank_{rank}": [name] for rank, name in enumerate(ranker, start=1)}
    if not isinstance(ranker, dict):
        raise ValueError(f"a ranking must be a list of ids or buckets, got {ranker!r}")
    ranks: dict[str, int | None] = {}
    for bucket, members in ranker.items():
        match = _RANK.fullmatch(bucket)
        if match is None and bucket not in (UNUSABLE, UNPLACED):
            raise ValueError(f"bucket {bucket!r} is neither rank_1, rank_2, ... nor {UNUSABLE}")
        for name in members if isinstance(members, list) else [str(members)]:
            if name in ranks or name not in positions or bucket == UNPLACED:
                raise ValueError(f"{name!r} is unplaced, placed twice, or not one of the items")
            ranks[name] = int(match[1]) if match else None
    if missing := positions.keys() - ranks.keys():
        raise ValueError(f"the ranking lacks {', '.join(sorted(missing))}")
    return [ranks[name] for name in positions]
