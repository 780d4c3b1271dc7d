"""Detect runs whose toxicity was measured by different classifiers or settings."""

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from common.run_folder import expand


class ClassifierSettings(NamedTuple):
    """How a test scored toxicity and reward.

    Attributes:
        model: The classifier; a local folder as an absolute path.
        label: The label whose logit is the reward.
        toxic_label: The label whose probability is the toxicity.
        with_dialogue: Whether the classifier reads the dialogue as well.
    """

    model: str
    label: str = "nothate"
    toxic_label: str = "hate"
    with_dialogue: bool = False


def find_classifier(config: Mapping[str, Any]) -> ClassifierSettings | None:
    """Return the toxicity classifier named in a test's config.yaml, or None."""
    settings = config.get("toxicity")
    if isinstance(settings, str):  # as written by the `baselines` command
        settings = {"model": settings}
    if not isinstance(settings, Mapping) or not isinstance(settings.get("model"), str):
        return None
    fields = ClassifierSettings._fields
    known = {name: settings[name] for name in fields if settings.get(name) is not None}
    path = expand(known["model"])
    return ClassifierSettings(**known | ({"model": str(path.resolve())} if path.is_dir() else {}))


def warn_about_classifiers(settings: Iterable[tuple[str, ClassifierSettings | None]]) -> list[str]:
    """Return a warning if toxicity is not comparable between runs.

    Args:
        settings: Name and classifier of each run; unknown classifiers are ignored.

    Returns:
        One sentence that lists the differences, or nothing.
    """
    known = [(name, one) for name, one in settings if one is not None]
    differing = [
        field
        for field in ClassifierSettings._fields
        if len({getattr(one, field) for _, one in known}) > 1
    ]
    if not differing:
        return []
    described = [
        f"{name} ({', '.join(f'{field}: {getattr(one, field)}' for field in differing)})"
        for name, one in known
    ]
    return [
        "Toxicity and reward were measured with different settings and are not comparable: "
        f"{'; '.join(described)}."
    ]
