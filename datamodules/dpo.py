"""DPODataModule: preference pairs with their prompts, and dialogues to summarize."""

from collections.abc import Sequence
from typing import Any, TypedDict

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from datamodules import sources
from datamodules.batching import MULTIPLE, STAGES, ResumableDataModule, pad
from datamodules.consensus import Consensus, Ranking, RankingReader
from datamodules.dialogsum import DialogSumDataModule
from datamodules.preferences import stack_pairs
from datamodules.prompts import Instruction, PromptStyle
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


class DPODataModule(ResumableDataModule):
    """Preference pairs to train on, and dialogues with references to evaluate on.

    A fit trains on the pairs of ``source`` and validates on its held-out pairs and on the
    validation dialogues of ``dialogues``; a test uses the test pairs and the test dialogues.
    Prompts are made and truncated as in :class:`DialogSumDataModule`.

    Args:
        source: Rankings or pairs, as for :class:`PreferenceDataModule`.
        tokenizer: The backbone's tokenizer: hub id, folder, or ``mini``.
        dialogues: Source of the dialogues to summarize, as for :class:`DialogSumDataModule`.
        prompt: The words around the dialogue; ``Plain`` for pairs whose prompt already contains
            the instruction.
        batch_size: Dialogues per training batch and rank, each with all of its completions.
        eval_batch_size: Dialogues per evaluation batch and rank; None is ``batch_size``.
        max_source_length: Maximum number of tokens of a prompt; dialogues are truncated to fit.
        max_target_length: Maximum number of tokens of a completion, EOS included.
        pad_to_multiple_of: Pad batches to lengths that are multiples of this.
        max_validation_rows: Summarize only the first validation dialogues.
        max_test_rows: Summarize only the first test dialogues.
        consensus: How the answers of several annotators are combined.
        holdout: Share of the dialogues of a single file for validation, and for testing.
        on_bad_row: Stop at unusable lines, or skip and count them.
        seed: Seed of the order of the batches.

    Raises:
        ValueError: If a setting is out of range.
    """

    def __init__(
        self,
        source: str,
        tokenizer: str,
        dialogues: str,
        prompt: PromptStyle = Instruction(),  # noqa: B008 - styles are immutable
        batch_size: int = 16,
        eval_batch_size: int | None = None,
        max_source_length: int = 512,
        max_target_length: int = 128,
        pad_to_multiple_of: int = MULTIPLE,
        max_validation_rows: int | None = None,
        max_test_rows: int | None = None,
        consensus: Consensus = "mean_rank",
        holdout: float = 0.1,
        on_bad_row: OnBadRow = "stop",
        seed: int = 42,
    ) -> None:
        super().__init__()
        self.reader = RankingReader(source, consensus, on_bad_row, holdout)
        self.dialogues = DialogSumDataModule(
            dialogues,
            tokenizer,
            prompt,
            batch_size=batch_size,
            eval_batch_size=eval_batch_size,
            max_source_length=max_source_length,
            max_target_length=max_target_length,
            pad_to_multiple_of=pad_to_multiple_of,
            max_validation_rows=max_validation_rows,
            max_test_rows=max_test_rows,
            holdout=holdout,
            on_bad_row=on_bad_row,
            seed=seed,
        )
        self.batch_size = batch_size
        self.eval_batch_size = self.dialogues.eval_batch_size
        self.max_source_length = max_source_length
        self.max_target_length = max_target_length
        self.pad_to_multiple_of = pad_to_multiple_of
        self.seed = seed
        self.splits: dict[Split, list[Ranking]] = {}
        self._descriptions: dict[str, dict[str, Any]] = {}

    @classmethod
    def find_problems(cls, init_args: Any) -> list[str]:
        """Return why the sources cannot be used, before anything is loaded."""
        return [
            *sources.find_problems(init_args.source, "rankings"),
            *(f"data.dialogues: {each}" for each in sources.find_problems(init_args.dialogues)),
        ]

    def setup(self, stage: str) -> None:
        """Read the pairs and the dialogues that a stage needs.

        Raises:
            DataError: If they are missing or unusable.
            ValueError: If the tokenizer is not the module's, or the instruction does not fit.
        """
        self.dialogues.trainer = self.trainer
        self.dialogues.setup("validate" if stage == "fit" else stage)
        splits = () if stage == "predict" else STAGES[stage]  # predicting needs no pairs
        for split, found in self.reader.read(splits).items():
            self.splits[split] = found.rankings
            self._descriptions[split] = found.description

    def describe(self) -> dict[str, dict[str, Any]]:
        """Return counts of the dialogues and pairs, for the run's summary."""
        pairs = {f"{split}_pairs": found for split, found in self._descriptions.items()}
        return self.dialogues.describe() | pairs

    def train_dataloader(self) -> DataLoader[Any]:
        """Return shuffled batches of pairs."""
        return self.resume_loader(self._loader("train", shuffle=True))

    def val_dataloader(self) -> list[DataLoader[Any]]:
        """Return the validation dialogues and the held-out pairs."""
        return [self.dialogues.val_dataloader(), self._loader("validation")]

    def test_dataloader(self) -> list[DataLoader[Any]]:
        """Return the test dialogues and the test pairs."""
        return [self.dialogues.test_dataloader(), self._loader("test")]

    def predict_dataloader(self) -> DataLoader[Any]:
        """Return the test dialogues."""
        return self.dialogues.predict_dataloader()

    def _loader(self, split: Split, shuffle: bool = False) -> DataLoader[Any]:
        rankings = self.splits[split]
        lengths = [len(r.dialogue) + max(map(len, r.completions)) for r in rankings]
        size = self.batch_size if shuffle else self.eval_batch_size
        return self.length_loader(
            rankings, lengths, size, self.seed, shuffle, collate_fn=self.collate
        )

    def collate(self, rankings: Sequence[Ranking]) -> ComparisonBatch:
        """Tokenize the prompts and completions of some dialogues and list their pairs."""
        encoder, multiple = self.dialogues.encoder, self.pad_to_multiple_of
        padding = encoder.tokenizer.pad_token_id
        rows = [Row(r.id, r.dialogue, tuple(r.completions)) for r in rankings]
        prompts = encoder.encode(rows).sources
        texts = [text for ranking in rankings for text in ranking.completions]
        responses = [np.asarray(ids) for ids in encoder.encode_targets(texts)] if texts else []
        pairs, _, weights = stack_pairs(rankings)
        sizes = torch.tensor([len(ranking.completions) for ranking in rankings], dtype=torch.int64)
        return ComparisonBatch(
            input_ids=pad(prompts, padding, multiple),
            attention_mask=pad([np.ones_like(prompt) for prompt in prompts], 0, multiple),
            responses=pad(responses, padding, multiple),
            mask=pad([np.ones_like(response) for response in responses], 0, multiple).bool(),
            owner=torch.arange(len(rankings)).repeat_interleave(sizes),
            pairs=pairs,
            weights=weights,
            index=torch.tensor([ranking.index for ranking in rankings], dtype=torch.int64),
            ids=[ranking.id for ranking in rankings],
        )
