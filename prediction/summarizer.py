"""A loaded model that summarises windows of dialogues."""

from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from datamodules.batching import LengthBatchSampler, pad
from datamodules.encoding import Encoded
from datamodules.reading import Row
from lightning_modules.backbones import Decoding, EncoderDecoder

Precision = Literal["32-true", "bf16-mixed"]


class Summarizer:
    """Summarises dialogues, those of like length together, and gives the texts in their order.

    What it gives for a window depends on nothing but the arguments, the window and its number: a
    window that was interrupted gives the same when it is done again, sampled or not.

    Args:
        model: An encoder-decoder in eval mode, on the device it is to run on.
        tokenizer: Its tokenizer.
        encode: Turns rows into prompts that fit.
        decoding: How summaries are generated.
        batch_size: Dialogues in one pass.
        precision: ``32-true``, or ``bf16-mixed``: bf16 arithmetic over fp32 weights.
        seed: Seed of the sampling, where ``decoding`` samples.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        encode: Callable[[Sequence[Row]], Encoded],
        decoding: Decoding,
        batch_size: int = 8,
        precision: Precision = "32-true",
        seed: int = 42,
    ) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.encode = encode
        self.decoding = decoding
        self.batch_size = batch_size
        self.precision = precision
        self.seed = seed
        self.rows = 0
        """Dialogues that were summarised, so far."""
        self.shortened = 0
        """Dialogues that were cut to fit, so far."""
        self.shots = 0
        """Examples that stood before them all together, so far."""

    def summarise(
        self,
        rows: Sequence[Row],
        window: int,
        advance: Callable[[int], None] = lambda _: None,
        turn: Sequence[int] = (),
    ) -> list[str]:
        """Summarise one window.

        Args:
            rows: N rows.
            window: Number of the window in the file: a part of the seed.
            advance: Is told after each pass how many dialogues were in it.
            turn: Further parts of the seed, for a window that is summarised several times.

        Returns:
            N texts.
        """
        sources = self._encode(rows)
        if self.decoding.do_sample:
            sequence = np.random.SeedSequence((self.seed, window, *turn))
            torch.manual_seed(int(sequence.generate_state(1)[0]))
        texts = [""] * len(rows)
        lengths = [len(source) for source in sources]
        for places in LengthBatchSampler(lengths, self.batch_size, shuffle=False):
            made = self._generate([sources[place] for place in places])
            for place, text in zip(places, made, strict=True):
                texts[place] = text
            advance(len(places))
        return texts

    def _encode(self, rows: Sequence[Row]) -> list[np.ndarray]:
        """Tokenise the prompts, and count what was cut and what was shown."""
        # Encoding wants a reference to make labels of, which nobody looks at here.
        encoded = self.encode([row._replace(references=("",)) for row in rows])
        self.rows += len(rows)
        self.shortened += int(encoded.cut.sum())
        self.shots += int(encoded.shots.sum())
        return encoded.sources

    def _generate(self, sources: Sequence[np.ndarray]) -> list[str]:
        """Generate for prompts in one pass."""
        device: torch.device = self.model.device
        input_ids: Tensor = pad(sources, self.tokenizer.pad_token_id).to(device)
        mask = pad([np.ones_like(source) for source in sources], 0).to(device)
        autocast = torch.autocast(
            device.type, torch.bfloat16, enabled=self.precision == "bf16-mixed"
        )
        with torch.inference_mode(), autocast:
            batch = {"input_ids": input_ids, "attention_mask": mask}
            return EncoderDecoder(self.model, self.tokenizer).generate(batch, self.decoding)


def find_device(name: str) -> torch.device:
    """Find the device of a name, ``auto`` being the accelerator where there is one.

    Raises:
        ValueError: If there is no such device here.
    """
    here = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    if name == "auto":
        return here or torch.device("cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ValueError(
            f"device: {name!r} is none; auto, cpu, cuda, cuda:1 and the like"
        ) from error
    count = torch.accelerator.device_count() if here and here.type == device.type else 0
    if device.type != "cpu" and (device.index or 0) >= count:
        raise ValueError(f"device: there is no {name!r} here; auto takes what there is")
    return device
