"""Settings of text generation for evaluation."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

_SAMPLING = ("temperature", "top_k", "top_p")  # without effect unless do_sample
_BEAMS = ("length_penalty", "early_stopping")  # without effect unless num_beams > 1


@dataclass(frozen=True)
class Decoding:
    """How summaries are generated for evaluation, with the names of ``generate``.

    The default is greedy decoding. ``num_beams`` above 1 is beam search, ``do_sample`` is sampling,
    and both together are beam sampling.

    Args:
        max_new_tokens: Longest summary in tokens, EOS included.
        min_new_tokens: Shortest summary in tokens, EOS excluded.
        no_repeat_ngram_size: Length of n-grams that may not repeat in a summary; 0 allows all.
        num_beams: Number of beams; 1 means no beam search.
        length_penalty: Beam scores are log-probabilities over length to this power: values above 0
            favor long summaries, values below 0 short ones.
        early_stopping: Stop as soon as ``num_beams`` summaries are complete.
        do_sample: Sample instead of taking the most likely token.
        temperature: Divides the logits when sampling.
        top_k: Sample among the k most likely tokens; 0 means all.
        top_p: Sample among the most likely tokens that hold this much probability; 1 means all.

    Raises:
        ValueError: If a value is out of range, or a setting would have no effect.
    """

    max_new_tokens: int = 128
    min_new_tokens: int = 0
    no_repeat_ngram_size: int = 0
    num_beams: int = 1
    length_penalty: float = 1.0
    early_stopping: bool = False
    do_sample: bool = False
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0

    def __post_init__(self) -> None:
        shortest = 0 <= self.min_new_tokens <= max(1, self.max_new_tokens)
        rules = (
            ("max_new_tokens", "at least 1", self.max_new_tokens >= 1),
            ("min_new_tokens", "from 0 to max_new_tokens", shortest),
            ("no_repeat_ngram_size", "0 or more", self.no_repeat_ngram_size >= 0),
            ("num_beams", "at least 1", self.num_beams >= 1),
            ("temperature", "above 0 (greedy decoding: do_sample false)", self.temperature > 0),
            ("top_k", "0 or more", self.top_k >= 0),
            ("top_p", "in (0, 1]", 0 < self.top_p <= 1),
        )
        problems = [
            f"{name} must be {rule}, got {getattr(self, name)}"
            for name, rule, holds in rules
            if not holds
        ]
        if not self.do_sample and (idle := self._changed(_SAMPLING)):
            problems.append(f"{idle} would have no effect without do_sample: true")
        if self.num_beams <= 1 and (idle := self._changed(_BEAMS)):
            problems.append(f"{idle} would have no effect without num_beams above 1")
        if problems:
            raise ValueError("decoding: " + "; ".join(problems))

    def _changed(self, names: Sequence[str]) -> str:
        """Name the settings that differ from their defaults."""
        return ", ".join(name for name in names if name in self.changes())

    def changes(self) -> dict[str, Any]:
        """Return the settings that differ from their defaults."""
        return {name: x for name, x in asdict(self).items() if x != getattr(Decoding, name)}

    def arguments(self) -> dict[str, Any]:
        """Return the keyword arguments for ``generate``, all of them explicit.

        With its own defaults ``generate`` samples among the 50 most likely tokens, stops after 20,
        and follows whatever ``generation_config.json`` says.
        """
        idle = {*(() if self.do_sample else _SAMPLING), *(() if self.num_beams > 1 else _BEAMS)}
        return {name: value for name, value in asdict(self).items() if name not in idle}
