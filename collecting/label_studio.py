"""Label Studio's form of samples and answers: a List of completions, and a Ranker over it.

A task's completions are the items ``c0``, ``c1``, ... of a List, numbered by their place in the
file. Each rank is a Bucket of the Ranker, so that completions in one bucket are tied, and one more
bucket is for the unusable. The toxic ones are ticked in a Choices tag, by the letters that head the
items. Forms as described at labelstud.io/tags/ranker.html, /tags/list.html and
/guide/task_format.html.
"""

import hashlib
import re
from collections.abc import Iterator, Sequence
from typing import Any
from xml.etree import ElementTree

from collecting.desk import shuffle
from collecting.samples import Sample
from datamodules.rankings import Answer, parse_answer

UNUSABLE = "unusable"
"""Bucket of the completions that get no rank."""

UNPLACED = "_"
"""Label Studio's own name for what still stands in the List."""

_RANK = re.compile(r"rank_([1-9]\d*)")

# What is answered ---------------------------------------------------------------------------------


def make_interface(completions: int) -> str:
    """Write the labelling interface for tasks of at most so many completions."""
    view = ElementTree.Element("View")
    _add(view, "Header", value="Read the dialogue")
    _add(view, "Text", name="dialogue", value="$dialogue")
    _add(view, "Header", value="Move each summary into a column; two in one column are a tie")
    _add(view, "List", name="completions", value="$items", title="Summaries")
    ranker = _add(view, "Ranker", name="ranking", toName="completions")
    for rank in range(1, completions + 1):
        title = f"{rank}, the best" if rank == 1 else str(rank)
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
    """Make a task of a sample and the answers to it.

    Args:
        sample: The sample.
        answers: Each of another annotator.
        seed: Seed of the order in which Label Studio shows the completions to everybody.
    """
    order = shuffle(sample, "", seed)
    items = [
        {"id": f"c{place}", "title": letter(number), "body": sample.completions[place]}
        for number, place in enumerate(order)
    ]
    letters = {place: letter(number) for number, place in enumerate(order)}
    return {
        "data": {
            "id": sample.id, "dialogue": sample.dialogue, "items": items,
            "letters": [{"value": item["title"]} for item in items],
        },
        "meta": {"sources": list(sample.sources)},
        "annotations": [_make_annotation(answer, letters) for answer in answers],
    }  # fmt: skip


def letter(number: int) -> str:
    """Give the name that the n-th item is shown by, from 0: A, B, ..., Z, A1, B1, ..."""
    return chr(ord("A") + number % 26) + (str(number // 26) if number >= 26 else "")


def _make_annotation(answer: Answer, letters: dict[int, str]) -> dict[str, Any]:
    results = [
        _make_result(answer, "annotator", "dialogue", "textarea", {"text": [answer.annotator]})
    ]
    if toxic := [letters[place] for place, mark in enumerate(answer.toxic) if mark]:
        results.append(_make_result(answer, "toxic", "dialogue", "choices", {"choices": toxic}))
    if answer.ranks is not None:
        buckets: dict[str, list[str]] = {}
        for place, rank in enumerate(answer.ranks):
            name = UNUSABLE if rank is None else f"rank_{rank}"
            buckets.setdefault(name, []).append(f"c{place}")
        value = {"ranker": buckets | {UNPLACED: []}}
        results.append(_make_result(answer, "ranking", "completions", "ranker", value))
    return {
        "result": results, "was_cancelled": answer.ranks is None, "lead_time": answer.seconds,
        "created_at": answer.time, "updated_at": answer.time,
    }  # fmt: skip


def _make_result(
    answer: Answer, name: str, of: str, kind: str, value: dict[str, Any]
) -> dict[str, Any]:
    """Make one control's result; Label Studio wants an id of its own for each."""
    key = hashlib.sha256(f"{answer.annotator}\n{answer.id}\n{name}".encode()).hexdigest()[:10]
    return {"id": key, "from_name": name, "to_name": of, "type": kind, "value": value}


# What comes back ----------------------------------------------------------------------------------


def read_task(task: dict[str, Any]) -> Iterator[Answer | str]:
    """Read a task as Label Studio exports it.

    An interface of somebody else's will do where the task has its text in ``dialogue`` or
    ``prompt``, the completions in ``items`` (``body``, or else ``title``), and a Ranker that is
    ours or has no buckets.

    Returns:
        For each annotation its answer, or what is wrong with it.
    """
    try:
        asked, places, letters = _read_data(task)
    except ValueError as error:
        yield str(error)
        return
    for annotation in task.get("annotations") or []:
        try:
            yield parse_answer(asked | _read_annotation(annotation, places, letters))
        except ValueError as error:
            yield str(error)


def _read_data(task: dict[str, Any]) -> tuple[dict[str, Any], dict[str, int], dict[str, int]]:
    """Read what was asked.

    Returns:
        The fields of an answer that come from it, and the places of its completions by the items'
        ids and by their titles.
    """
    data = task.get("data")
    data = data if isinstance(data, dict) else {}
    items = data.get("items")
    if not isinstance(items, list) or not all(isinstance(item, dict) for item in items):
        raise ValueError("its data has no list of items")
    ids = [str(item.get("id")) for item in items]
    if len(set(ids)) < len(ids):
        raise ValueError("two of its items have one id")
    ours = [f"c{number}" for number in range(len(items))]
    if set(ids) == set(ours):
        items = [items[ids.index(name)] for name in ours]
        ids = ours
    asked = {
        "id": data.get("id", task.get("id")),
        "dialogue": data.get("dialogue", data.get("prompt")),
        "completions": [item.get("body") or item.get("title") for item in items],
        "sources": (task.get("meta") or {}).get("sources", []),
    }
    titles = {str(item.get("title")): place for place, item in enumerate(items)}
    return asked, {name: place for place, name in enumerate(ids)}, titles


def _read_annotation(
    annotation: dict[str, Any], places: dict[str, int], letters: dict[str, int]
) -> dict[str, Any]:
    """Read the fields of an answer that come from its annotation."""
    values: dict[str, dict[str, Any]] = {}
    for result in annotation.get("result") or []:
        name = "ranker" if result.get("type") == "ranker" else str(result.get("from_name"))
        values[name] = result.get("value") or {}
    toxic = [False] * len(places)
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
    return fields | {"ranks": read_ranks(values["ranker"].get("ranker"), places)}


def _find_annotator(annotation: dict[str, Any], values: dict[str, Any]) -> str:
    """Find the name in our field, or else Label Studio's user."""
    if texts := values.get("annotator", {}).get("text"):
        return texts if isinstance(texts, str) else str(texts[0])
    user = annotation.get("completed_by")
    if isinstance(user, dict):
        user = user.get("email") or user.get("id")
    if user is None:
        raise ValueError("an annotation has no annotator")
    return f"user {user}" if isinstance(user, int) else str(user)


def read_ranks(ranker: Any, places: dict[str, int]) -> list[int | None]:
    """Read a Ranker's value.

    Args:
        ranker: A list of ids, the best first; or of such a list by the tag's name; or lists of ids
            by bucket.
        places: Places of the completions by their ids.

    Returns:
        A rank a completion; None for the unusable.

    Raises:
        ValueError: If it is none of these, or has not every completion once.
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
            if name in ranks or name not in places or bucket == UNPLACED:
                raise ValueError(f"{name!r} has no place, or two, or is none of the items")
            ranks[name] = int(match[1]) if match else None
    if missing := places.keys() - ranks.keys():
        raise ValueError(f"{', '.join(sorted(missing))} have no place in the ranking")
    return [ranks[name] for name in places]
