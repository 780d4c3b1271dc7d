"""Samples and answers to Label Studio, and answers back."""

import json
import logging
from typing import Literal

from collecting.answers import AnswerFile, read_answers
from collecting.label_studio import make_interface, make_task, read_task
from collecting.samples import read_samples
from common.jsonl import describe_bad_rows
from common.run_folder import expand, write_text
from datamodules.rankings import Answer

log = logging.getLogger(__name__)


def export_tasks(
    samples: str,
    output: str,
    answers: str | None = None,
    seed: int = 42,
    overwrite: bool = False,
) -> None:
    """Write samples, and the answers there are, as tasks for Label Studio.

    Beside <output>.json lies <output>.xml, the labelling interface to paste into the project's
    settings.

    Args:
        samples: File of completions, as `sample` writes it.
        output: JSON file to write.
        answers: File of answers; the last one of each annotator goes with its task.
        seed: Seed of the order in which the completions of a task are shown.
        overwrite: Write over files that are there.

    Raises:
        ValueError: If a file cannot be used.
    """
    target = expand(output)
    config = target.with_suffix(".xml")
    if target.suffix != ".json":
        raise ValueError(f"output: {target} must end in .json; the interface gets .xml")
    if there := [str(path) for path in (target, config) if path.exists() and not overwrite]:
        raise ValueError(f"output: {' and '.join(there)} exist; --overwrite true replaces them")
    asked = read_samples(expand(samples))
    answered: dict[tuple[str, tuple[str, ...]], list[Answer]] = {
        (sample.id, sample.completions): [] for sample in asked
    }
    given = read_answers(expand(answers)) if answers else []
    known = [answer for answer in given if (answer.id, answer.completions) in answered]
    for answer in known:
        answered[answer.id, answer.completions].append(answer)
    if strange := len(given) - len(known):
        log.warning("%d answers are of other samples, and left out", strange)
    tasks = [make_task(sample, answered[sample.id, sample.completions], seed) for sample in asked]
    write_text(target, json.dumps(tasks, indent=1, ensure_ascii=False) + "\n")
    write_text(config, make_interface(max(len(sample.completions) for sample in asked)))
    log.info(
        "%d tasks with %d answers are in %s, their interface is in %s",
        len(tasks), len(known), target, config,
    )  # fmt: skip


def import_answers(input: str, answers: str, on_bad_row: Literal["stop", "skip"] = "stop") -> None:
    """Take answers from a JSON export of Label Studio.

    They are appended to a file of answers. Those that it has are left out, so that importing twice
    is importing once.

    Args:
        input: Exported file; of Label Studio's formats the one called JSON.
        answers: File of answers to append to; it need not exist.
        on_bad_row: Stop at annotations that cannot be used, or skip and count them.

    Raises:
        ValueError: If a file cannot be used.
    """
    source = expand(input)
    try:
        tasks = json.loads(source.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"input: {source} is no JSON ({error})") from error
    if not isinstance(tasks, list) or not all(isinstance(task, dict) for task in tasks):
        raise ValueError(f"input: {source} is no list of tasks; export it as JSON")
    good: list[Answer] = []
    problems: list[str] = []
    for number, task in enumerate(tasks, start=1):
        for found in read_task(task):
            if isinstance(found, Answer):
                good.append(found)
            else:
                problems.append(f"{source}, task {number}: {found}")
    found_bad = describe_bad_rows(problems, len(problems))
    if problems and on_bad_row == "stop":
        raise ValueError(f"input: {found_bad}\nLeave them out with --on_bad_row skip")
    if problems:
        log.warning("Skipped %s", found_bad)
    with AnswerFile(expand(answers)) as file:
        fresh = [answer for answer in good if not file.has(answer)]
        file.append(fresh)
    log.info("%d answers of %d are new, and in %s now", len(fresh), len(good), answers)
