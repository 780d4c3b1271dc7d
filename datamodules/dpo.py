"""DPODataModule: preference pairs with their prompts, and dialogues to summarize."""

from collections.abc import Sequence
from typing import Any, TypedDict

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from datamodules import sources
from datamodules.batching import STAGES, pad
from datamodules.consensus import Ranking, RankingReader
from datamodules.dialogsum import DialogSumDataModule
from datamodules.preferences import stack_pairs
from datamodules.reading import OnBadRow, Row, Split


class ComparisonBatch(TypedDict):
    """A batch of B dialogues; their N completions are concatenated.

    Keys:
        input_ids: [B, S] int64, the prompts, padded on the right.
        attention_mask: [B, S] int64, 0 on padding.
        responses: [N, T] int64, the completions with EOS, padded on the right.
        mask: [N, T] bool, True at y1..EOS.
        owner: [N] int64, the row of each completion's prompt.
        pairs: [P, 2] int64, positions of (preferred, other) among the N completions.
        weights: [P] float32; the pairs of one dialogue sum to 1.
        index: [B] int64, row number of each dialogue in the split.
        ids: B ids.
    """

    input_ids: Tensor
    attention_mask: Tensor
    responses: Tensor
    mask: Tensor
    owner: Tensor
    pairs: Tensor
    weights: Tensor
    index: Tensor
    ids: list[str]


class DPODataModule(DialogSumDataModule):
    """Preference pairs to train on, and dialogues with references to evaluate on.

    A fit trains on the pairs of ``source`` and validates on its held-out pairs and on the
    validation dialogues of ``dialogues``; a test uses the test pairs and the test dialogues.
    Prompts are made and truncated as in :class:`DialogSumDataModule`.

    Args:
        source: Rankings or pairs, as for :class:`PreferenceDataModule`.
        tokenizer: The backbone's tokenizer: hub id, folder, or ``mini``.
        dialogues: Source of the dialogues to summarize, as for :class:`DialogSumDataModule`.
        batch_size: Dialogues per training batch and rank, each with all of its completions.
        on_bad_row: Stop at unusable lines, or skip and count them.
        **settings: See :class:`DialogSumDataModule`. Use the prompt ``Plain`` for pairs whose
            prompt already contains the instruction.

    Raises:
        ValueError: If a setting is out of range.
    """

    def __init__(
        self,
        source: str,
        tokenizer: str,
        dialogues: str,
        batch_size: int = 16,
        on_bad_row: OnBadRow = "stop",
        **settings: Any,
    ) -> None:
        super().__init__(
            source=dialogues,
            tokenizer=tokenizer,
            batch_size=batch_size,
            on_bad_row=on_bad_row,
            **settings,
        )
        self.rankings = RankingReader(source, on_bad_row)
        self.splits: dict[Split, list[Ranking]] = {}

    @staticmethod
    def find_problems(settings: Any) -> list[str]:
        """Return why the sources cannot be used, before anything is loaded."""
        return [
            *sources.find_problems(settings.source, "rankings"),
            *(f"data.dialogues: {each}" for each in sources.find_problems(settings.dialogues)),
        ]

    def setup(self, stage: str) -> None:
        """Read the pairs and the dialogues that a stage needs.

        Raises:
            DataError: If they are missing or unusable.
            ValueError: If the tokenizer is not the module's, or the instruction does not fit.
        """
        super().setup("validate" if stage == "fit" else stage)
        splits = () if stage == "predict" else STAGES[stage]  # predicting needs no pairs
        for split in splits:
            if split not in self.splits:
                found = self.rankings.read_rankings(split)
                self.splits[split], self.descriptions[f"{split}_pairs"] = found

    def train_dataloader(self) -> DataLoader[Any]:
        """Return shuffled batches of pairs."""
        return self._pair_loader("train")

    def val_dataloader(self) -> list[DataLoader[Any]]:
        """Return the validation dialogues and the held-out pairs."""
        return [self.loader("validation"), self._pair_loader("validation")]

    def test_dataloader(self) -> list[DataLoader[Any]]:
        """Return the test dialogues and the test pairs."""
        return [self.loader("test"), self._pair_loader("test")]

    def _pair_loader(self, split: Split) -> DataLoader[Any]:
        def length(ranking: Ranking) -> int:
            return len(ranking.dialogue) + max(map(len, ranking.completions))

        return self.length_loader(split, self.splits[split], length, self.collate)

    def collate(self, rankings: Sequence[Ranking]) -> ComparisonBatch:
        """Tokenize the prompts and completions of some dialogues and list their pairs."""
        encoder = self.encoder
        padding = encoder.tokenizer.pad_token_id
        prompts = [
            each.source for each in self.encode([Row(r.id, r.dialogue, ()) for r in rankings])
        ]
        responses = encoder.encode_responses([text for r in rankings for text in r.completions])
        pairs, _, weights = stack_pairs(rankings)
        sizes = torch.tensor([len(ranking.completions) for ranking in rankings], dtype=torch.int64)
        return ComparisonBatch(
            input_ids=pad(prompts, padding),
            attention_mask=pad([np.ones_like(prompt) for prompt in prompts], 0),
            responses=pad(responses, padding),
            mask=pad([np.ones_like(response) for response in responses], 0).bool(),
            owner=torch.arange(len(rankings)).repeat_interleave(sizes),
            pairs=pairs,
            weights=weights,
            index=torch.tensor([ranking.index for ranking in rankings], dtype=torch.int64),
            ids=[ranking.id for ranking in rankings],
        )
