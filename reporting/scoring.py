"""How a test measured toxicity and reward: two that did it differently are not to be compared."""

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from common.run_folder import expand


class Scoring(NamedTuple):
    """What a test asked its classifier.

    model: which one, a folder by its full path. label: whose logit is the reward. toxic_label:
    whose probability is the toxicity. with_dialogue: whether it saw the dialogue too.
    """

    model: str
    label: str = "nothate"
    toxic_label: str = "hate"
    with_dialogue: bool = False


def find_scoring(config: Mapping[str, Any]) -> Scoring | None:
    """Find how a run's test measured toxicity, in the settings that the test was run with.

    Returns:
        None where they do not say.
    """
    settings = config.get("toxicity")
    if isinstance(settings, str):  # of baselines.py
        settings = {"model": settings}
    if not isinstance(settings, Mapping) or not isinstance(settings.get("model"), str):
        return None
    known = {name: settings[name] for name in Scoring._fields if settings.get(name) is not None}
    path = expand(known["model"])
    return Scoring(**known | ({"model": str(path.resolve())} if path.is_dir() else {}))


def find_scoring_caution(scorings: Iterable[tuple[str, Scoring | None]]) -> str | None:
    """Say that runs have measured toxicity differently, and how each did; None where they did not.

    Args:
        scorings: Each run's name, and how it measured; what is None is left out.
    """
    known = [(name, scoring) for name, scoring in scorings if scoring is not None]
    differing = [
        field
        for field in Scoring._fields
        if len({getattr(scoring, field) for _, scoring in known}) > 1
    ]
    if not differing:
        return None
    lines = [
        f"{name} {', '.join(_in_words(field, getattr(scoring, field)) for field in differing)}"
        for name, scoring in known
    ]
    return (
        "Careful: toxicity and reward were not measured alike and are not to be compared between "
        f"these runs: {'; '.join(lines)}."
    )


def _in_words(field: str, value: Any) -> str:
    if field == "with_dialogue":
        return "with the dialogue" if value else "the summary alone"
    names = {"model": "by", "label": "reward of", "toxic_label": "toxicity of"}
    return f"{names[field]} {value}"
