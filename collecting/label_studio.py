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
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

from collecting.answer_file import AnswerFile, read_answers
from collecting.assignments import shuffle
from collecting.samples import Sample, read_samples
from common.jsonl import describe_bad_rows
from common.run_folder import expand, write_text
from datamodules.rankings import Answer, parse_answer

log = logging.getLogger(__name__)

UNUSABLE = "unusable"
"""Bucket of the completions without a rank."""

UNPLACED = "_"
"""Label Studio's own name for what is still in the List."""

# To Label Studio ----------------------------------------------------------------------------------


def export_tasks(
    samples: str, output: str, answers: str | None = None, seed: int = 42, overwrite: bool = False
) -> None:
    """Write samples, and the answers so far, as tasks for Label Studio.

    Next to <output>.json, <output>.xml is written: the labelling interface to paste into the
    project's settings.

    Args:
        samples: File of completions, as `sample` writes it.
        output: JSON file to write.
        answers: File of answers; the last one of each annotator goes with its task.
        seed: Seed of the order in which the completions of a task are shown.
        overwrite: Replace existing files.

    Raises:
        ValueError: If a file cannot be used.
    """
    tasks_file = expand(output)
    interface = tasks_file.with_suffix(".xml")
    if tasks_file.suffix != ".json":
        raise ValueError(f"output: {output} must end in .json; the interface gets .xml")
    if there := [str(path) for path in (tasks_file, interface) if path.exists() and not overwrite]:
        raise ValueError(f"output: {' and '.join(there)} exist; --overwrite true replaces them")
    found = read_samples(expand(samples))
    answers_to = defaultdict(list)
    for answer in read_answers(expand(answers)) if answers else []:
        answers_to[answer.id, answer.completions].append(answer)
    tasks = [
        make_task(each, answers_to.pop((each.id, each.completions), []), seed) for each in found
    ]
    if answers_to:
        others = sum(map(len, answers_to.values()))
        log.warning("%d answers are about other samples, and are left out", others)
    write_text(tasks_file, json.dumps(tasks, indent=1, ensure_ascii=False) + "\n")
    write_text(interface, make_interface(max(len(sample.completions) for sample in found)))
    count = sum(len(task["annotations"]) for task in tasks)
    log.info("%d tasks with %d answers: %s, interface: %s", len(tasks), count, output, interface)


def make_interface(completions: int) -> str:
    """Write the labelling interface for tasks with up to this many completions."""
    titles = ["1 (best)", *map(str, range(2, completions + 1))]
    buckets = [f'    <Bucket name="rank_{i}" title="{t}"/>' for i, t in enumerate(titles, 1)]
    return f"""<View>
  <Header value="Read the dialogue"/>
  <Text name="dialogue" value="$dialogue"/>
  <Header value="Move each summary into a column; two in one column are a tie"/>
  <List name="completions" value="$items" title="Summaries"/>
  <Ranker name="ranking" toName="completions">
{chr(10).join(buckets)}
    <Bucket name="{UNUSABLE}" title="Unusable"/>
  </Ranker>
  <Header value="Which of them are toxic?"/>
  <Choices name="toxic" toName="dialogue" choice="multiple" value="$letters"/>
  <View style="display: none">
    <TextArea name="annotator" toName="dialogue"/>
  </View>
</View>
"""


def make_task(sample: Sample, answers: Sequence[Answer], seed: int) -> dict[str, Any]:
    """Make a task from a sample and its answers, each by another annotator.

    Label Studio shows the completions to everybody in the same order, which ``seed`` decides.
    """
    order = shuffle(sample, "", seed)
    letters = {place: chr(ord("A") + number) for number, place in enumerate(order)}
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


def import_answers(input: str, answers: str, on_bad_row: Literal["stop", "skip"] = "stop") -> None:
    """Append the answers of a JSON export of Label Studio to a file of answers.

    Answers that the file has already are left out, so importing twice changes nothing.

    Args:
        input: Exported file, in the format that Label Studio calls JSON.
        answers: File of answers to append to; it need not exist.
        on_bad_row: Stop at annotations that cannot be used, or skip and count them.

    Raises:
        ValueError: If a file cannot be used.
    """
    try:
        tasks = json.loads(expand(input).read_text(encoding="utf-8"))
        if not isinstance(tasks, list) or not all(isinstance(task, dict) for task in tasks):
            raise ValueError("not a list of tasks")
    except (ValueError, RecursionError) as error:
        raise ValueError(f"input: {input} is not an export in the format JSON ({error})") from error
    good: list[Answer] = []
    problems: list[str] = []
    for number, task in enumerate(tasks, start=1):
        for found in read_task(task):
            if isinstance(found, Answer):
                good.append(found)
            else:
                problems.append(f"{input}, task {number}: {found}")
    if problems:
        message = describe_bad_rows(problems)
        if on_bad_row == "stop":
            raise ValueError(f"input: {message}\nLeave them out with --on_bad_row skip")
        log.warning("Skipped %s", message)
    with AnswerFile(expand(answers)) as file:
        new = [answer for answer in good if not file.contains(answer)]
        file.append(new)
    log.info("%d of %d answers are new; they are now in %s", len(new), len(good), answers)


def read_task(task: Mapping[str, Any]) -> Iterator[Answer | str]:
    """Read a task as Label Studio exports it.

    Returns:
        For each annotation its answer, or what is wrong with it.
    """
    data = task.get("data") or {}
    try:
        by_id = {item["id"]: item for item in data["items"]}
        items = [by_id[f"c{place}"] for place in range(len(data["items"]))]
    except (KeyError, TypeError):
        yield "its data has no list of items c0, c1, ..."
        return
    fields = {
        "id": data.get("id"), "dialogue": data.get("dialogue"),
        "completions": [item.get("body") for item in items],
        "sources": (task.get("meta") or {}).get("sources", []),
    }  # fmt: skip
    titles = [item.get("title") for item in items]
    for annotation in task.get("annotations") or []:
        try:
            yield parse_answer(fields | _read_annotation(annotation, titles))
        except ValueError as error:
            yield str(error)


def _read_annotation(annotation: Mapping[str, Any], titles: Sequence[str]) -> dict[str, Any]:
    """Return an answer's fields that the annotation decides."""
    results = annotation.get("result") or []
    values = {str(result.get("from_name")): result.get("value") or {} for result in results}
    toxic = values.get("toxic", {}).get("choices", [])
    if unknown := {*toxic} - {*titles}:
        raise ValueError(f"no completion is called {', '.join(sorted(unknown))}")
    fields: dict[str, Any] = {
        "annotator": _find_annotator(annotation, values),
        "toxic": [title in toxic for title in titles],
        "time": annotation.get("updated_at") or annotation.get("created_at") or "",
        "seconds": annotation.get("lead_time"),
    }
    if annotation.get("was_cancelled"):
        return fields | {"skipped": True}
    if "ranking" not in values:
        raise ValueError("an annotation has no ranking")
    return fields | {"ranks": read_ranks(values["ranking"].get("ranker"), len(titles))}


def _find_annotator(annotation: Mapping[str, Any], values: Mapping[str, Any]) -> str:
    """Return the name in our own field, or else Label Studio's user."""
    if texts := values.get("annotator", {}).get("text"):
        return texts if isinstance(texts, str) else str(texts[0])
    user = annotation.get("completed_by")
    user = user.get("email") if isinstance(user, dict) else user and f"user {user}"
    if not user:
        raise ValueError("an annotation has no annotator")
    return str(user)


def read_ranks(buckets: Any, count: int) -> list[int | None]:
    """Read the value of a Ranker.

    Args:
        buckets: Ids of items by bucket.
        count: Number of completions.

    Returns:
        One rank per completion; None for the unusable ones.

    Raises:
        ValueError: If a bucket is not ours, or a completion is not in exactly one of them.
    """
    if not isinstance(buckets, dict):
        raise ValueError(f"a ranking must be lists of ids by bucket, got {buckets!r}")
    ranks: dict[str, int | None] = {}
    for bucket, members in buckets.items():
        match = re.fullmatch(r"rank_([1-9]\d*)", bucket)
        if match is None and bucket not in (UNUSABLE, UNPLACED):
            raise ValueError(f"bucket {bucket!r} is neither rank_1, rank_2, ... nor {UNUSABLE}")
        for name in members:
            if name in ranks or bucket == UNPLACED:
                raise ValueError(f"{name!r} is unplaced or placed twice")
            ranks[name] = int(match[1]) if match else None
    expected = [f"c{place}" for place in range(count)]
    if wrong := ranks.keys() ^ {*expected}:
        raise ValueError(f"the ranking lacks, or should not have, {', '.join(sorted(wrong))}")
    return [ranks[name] for name in expected]
