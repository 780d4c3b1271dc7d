"""Summarize one dialogue with a run's model, token by token, and say what is known about each."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import torch
from peft import PeftModel
from torch import Tensor
from transformers.generation import BaseStreamer

from common.run_folder import expand
from datamodules.reading import Row
from lightning_modules.backbones import Backbone, Prompts, wrap_model
from lightning_modules.exported_run import ExportedRun, make_datamodule
from lightning_modules.exports import find_export_problem, load_exported
from lightning_modules.policies.adapters import reference_backbone
from lightning_modules.reward_scorer import RewardScorer
from metrics.faithfulness import find_unknown_speakers
from metrics.names import find_unknown_names


class Verdict(NamedTuple):
    """What is known about a summary.

    tokens: (text, log pi - log pi_ref in nats) of each token; the second is None without a
    reference. toxicity: probability of hate; None without a classifier. unknown: speakers and names
    that are not in the dialogue.
    """

    text: str
    tokens: list[tuple[str, float | None]]
    toxicity: float | None
    unknown: list[str]


class TokenStreamer(BaseStreamer):
    """Pass the text so far on whenever ``generate`` has drawn a token.

    Args:
        decode: Turns token ids into text.
        show: Called with the whole text so far; may raise :class:`~.play.Stopped`.
    """

    def __init__(self, decode: Callable[[list[int]], str], show: Callable[[str], None]) -> None:
        self.decode, self.show = decode, show
        self.tokens: list[int] = []
        self.has_begun = False

    def put(self, value: Tensor) -> None:
        """Take tokens; the first call has the prompt, or the decoder's start."""
        if self.has_begun:
            self.tokens += value.flatten().tolist()
            self.show(self.decode(self.tokens))
        self.has_begun = True

    def end(self) -> None:
        """Do nothing: ``generate`` returns next."""


class Player:
    """The model of a run, and the reference that it is compared with.

    Args:
        run: The run.
        start: The adapter that the run continued, or None. The reference is that adapter, otherwise
            the backbone of an adapter; a fully trained model has none.
        device: Where to compute.
    """

    def __init__(self, run: ExportedRun, start: str | None, device: torch.device) -> None:
        model, tokenizer = load_exported(run.export, run.backbone)
        self.decoding, self.precision, self.device = run.decoding, run.precision, device
        self.backbone = wrap_model(model.to(device).eval(), tokenizer)
        self.data = make_datamodule(run, tokenizer)
        self.reference: Callable[[], AbstractContextManager[Backbone]] | None = None
        self.reference_name = "none"
        if start is not None:
            # The backbone is not where this run began, so without the adapter there is nothing.
            if find_export_problem(expand(start)) is None:
                first, _ = load_exported(start)
                begun = self.backbone.with_model(first.to(device).eval())
                self.reference = lambda: nullcontext(begun)
                self.reference_name = start
        elif isinstance(model, PeftModel):
            self.reference = lambda: reference_backbone(self.backbone)
            self.reference_name = "the backbone without the adapter"

    @torch.no_grad()
    def summarize(
        self, dialogue: str, show: Callable[[str], None], judge: RewardScorer | None
    ) -> Verdict:
        """Summarize a dialogue with the run's own settings.

        Args:
            dialogue: The text.
            show: Called with the text so far, token by token; once for beam search.
            judge: The toxicity classifier, or None.
        """
        source = self.data.encode([Row("", dialogue, ())])[0].source
        ids = torch.from_numpy(np.asarray(source, dtype=np.int64))[None].to(self.device)
        batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        streamer = TokenStreamer(lambda ids: self.backbone.decode(torch.tensor([ids]))[0], show)
        with torch.autocast(self.device.type, torch.bfloat16, enabled="bf16" in self.precision):
            streams = self.decoding.num_beams == 1
            text = self.backbone.generate(batch, self.decoding, streamer if streams else None)[0]
            show(text)
            tokens = streamer.tokens or self.data.encoder.encode_responses([text])[0].tolist()
            given = torch.tensor([tokens], device=self.device)
            responses, mask = self.backbone.strip_prefix(given, torch.ones_like(given).bool())
            ratios = self.log_ratios(Prompts(*batch.values()), responses, mask)
        pieces = self.cut(responses[0].tolist())
        toxicity = None if judge is None else judge.rate([text], "hate")["toxicity"][0]
        unknown = [*find_unknown_speakers(text, dialogue), *find_unknown_names(text, dialogue)]
        return Verdict(text, [*zip(pieces, ratios, strict=True)], toxicity, unknown)

    def cut(self, tokens: list[int]) -> list[str]:
        """Return the text that each token adds; the end of a response adds none."""
        ends = range(1, len(tokens) + 1)
        texts = ["", *(self.backbone.decode(torch.tensor([tokens[:end]]))[0] for end in ends)]
        # Before its last token, a character of several tokens is a replacement character.
        texts[:-1] = [text.rstrip("\ufffd") for text in texts[:-1]]
        return [text[len(before) :] for before, text in pairwise(texts)]

    def log_ratios(self, prompts: Prompts, responses: Tensor, mask: Tensor) -> list[float | None]:
        """Return log pi - log pi_ref of each token, nats; None without a reference."""
        if self.reference is None:
            return [None] * responses.shape[1]
        own = self.backbone.score(self.backbone.read(prompts), responses, mask).logprobs
        with self.reference() as start:
            before = start.score(start.read(prompts), responses, mask).logprobs
        return [round(each, 4) for each in (own - before)[0].tolist()]
