"""DialogSumDataModule: dialogues with reference summaries, tokenized and batched."""

import logging
import warnings
from collections.abc import Sequence
from typing import Any

from torch.utils.data import DataLoader

from common.hub import is_decoder_only, load_tokenizer, resolve_model
from datamodules import sources
from datamodules.batching import STAGES, Collator, Example, ResumableDataModule
from datamodules.encoding import Encoded, Encoder
from datamodules.few_shot import ExampleSelector, RandomExamples
from datamodules.prompts import Instruction, PromptStyle
from datamodules.reading import ColumnNames, DataError, OnBadRow, Row, Split
from datamodules.splits import DialogueReader

logger = logging.getLogger(__name__)


class DialogSumDataModule(ResumableDataModule):
    """DialogSum, or any data set of the same form.

    Only the splits that a command needs have to exist. If the train or the validation split is
    missing, it is held out from the other one.

    Args:
        source: Hub id; folder with ``{train,validation|dev|val,test}.{jsonl,csv}``; a single such
            file, which is split by dialogue; ``mini``; or ``challenge``, rude dialogues, a test
            split only.
        tokenizer: The backbone's tokenizer: hub id, folder, or ``mini``.
        prompt: The words around the dialogue.
        chat_template: Put prompts into the tokenizer's chat template, as a user's message.
        shots: Examples from the train split before each question, as many as fit.
        examples: How they are chosen; None is ``RandomExamples``.
        batch_size: Rows per training batch and rank.
        eval_batch_size: Rows per evaluation batch and rank; None is ``batch_size``.
        max_source_length: Maximum number of tokens of a prompt; dialogues are truncated to fit.
        max_target_length: Maximum number of tokens of a label, EOS included.
        max_train_rows: Use only the first train rows.
        max_validation_rows: Use only the first validation rows.
        max_test_rows: Use only the first test rows.
        min_dialogue_chars: Train only on dialogues of at least this many characters.
        max_dialogue_chars: Train only on dialogues of at most this many characters.
        columns: Names of the source's columns.
        on_bad_row: Stop at unusable rows, or skip and count them.
        seed: Seed of the examples and of the order of the batches.
        num_workers: Processes that collate batches; 0 uses the main process.

    Raises:
        ValueError: If settings are out of range; one message names all of them.
    """

    def __init__(
        self,
        source: str,
        tokenizer: str,
        prompt: PromptStyle = Instruction(),  # noqa: B008 - styles are immutable
        chat_template: bool = False,
        shots: int = 0,
        examples: ExampleSelector | None = None,
        batch_size: int = 8,
        eval_batch_size: int | None = None,
        max_source_length: int = 512,
        max_target_length: int = 128,
        max_train_rows: int | None = None,
        max_validation_rows: int | None = None,
        max_test_rows: int | None = None,
        min_dialogue_chars: int = 0,
        max_dialogue_chars: int | None = None,
        columns: ColumnNames = ColumnNames(),  # noqa: B008 - frozen
        on_bad_row: OnBadRow = "stop",
        seed: int = 42,
        num_workers: int = 0,
    ) -> None:
        super().__init__()
        self.source = source
        self.tokenizer_name = tokenizer
        self.prompt = prompt
        self.chat_template = chat_template
        self.shots = shots
        self.examples = examples
        self.batch_size = batch_size
        self.eval_batch_size = batch_size if eval_batch_size is None else eval_batch_size
        self.max_source_length = max_source_length
        self.max_target_length = max_target_length
        self.max_rows: dict[Split, int | None] = {
            "train": max_train_rows,
            "validation": max_validation_rows,
            "test": max_test_rows,
        }
        self.min_dialogue_chars = min_dialogue_chars
        self.max_dialogue_chars = max_dialogue_chars
        self.reader = DialogueReader(source, columns, on_bad_row)
        self.seed = seed
        self.num_workers = num_workers
        self._selector = examples or RandomExamples()
        self._check_settings()
        self.tokenizer: Any = None
        self.datasets: dict[Split, list[Example]] = {}
        self._rows: dict[Split, list[Row]] = {}
        self._encoder: Encoder | None = None

    def _check_settings(self) -> None:
        least = {
            "shots": (self.shots, 0), "batch_size": (self.batch_size, 1),
            "eval_batch_size": (self.eval_batch_size, 1), "num_workers": (self.num_workers, 0),
            "max_source_length": (self.max_source_length, 2),
            "max_target_length": (self.max_target_length, 2),
            "min_dialogue_chars": (self.min_dialogue_chars, 0),
            "max_dialogue_chars": (self.max_dialogue_chars, max(1, self.min_dialogue_chars)),
            "seed": (self.seed, 0),
            **{f"max_{split}_rows": (rows, 1) for split, rows in self.max_rows.items()},
        }  # fmt: skip
        problems = [
            f"{name} must be at least {low}, got {value}"
            for name, (value, low) in least.items()
            if value is not None and value < low
        ]
        if self.examples is not None and self.shots == 0:
            name = type(self.examples).__name__
            problems.append(f"examples {name} has no effect if shots is 0; set shots, or null")
        if problems:
            raise ValueError("data: " + "; ".join(problems))

    @staticmethod
    def find_problems(settings: Any) -> list[str]:
        """Return why the source is not available, before anything is loaded.

        Args:
            settings: The arguments of the constructor, as attributes.
        """
        return sources.find_problems(settings.source)

    # Rows ---------------------------------------------------------------------------------------

    def setup(self, stage: str) -> None:
        """Read and tokenize the splits that a stage needs.

        Raises:
            DataError: If a split is missing, empty or has bad rows.
            ValueError: If the tokenizer is not the module's, or the instruction does not fit.
        """
        self._check_tokenizer()
        missing = [split for split in STAGES[stage] if split not in self.datasets]
        if not missing:
            return
        # Not reused: the selector may have been fitted to another datamodule's rows meanwhile.
        self._encoder = None
        _ = self.encoder  # fits the selector, which `without_shown` needs
        for split in missing:
            rows = self._split_rows(split)
            if split == "train":  # never ask for a row that the prompt shows with its summary
                rows = self._selector.without_shown(rows)
            if not rows:
                raise DataError("data: all train rows are examples; lower shots")
            encoded = self.encode(rows)
            self.datasets[split] = [
                Example(i, row.id, row.dialogue, list(row.references), each.source, each.target)
                for i, (row, each) in enumerate(zip(rows, encoded, strict=True))
            ]
            self._describe(split, encoded)

    def _describe(self, split: Split, encoded: Sequence[Encoded]) -> None:
        """Count the truncated dialogues and the examples that fit."""
        rows, shortened = len(encoded), sum(each.cut for each in encoded)
        fitted = sum(each.shots for each in encoded) / rows
        self.descriptions[split] = {
            "rows": rows,
            "shortened": shortened,
            "shots_asked": self.shots,
            "shots_fitted_mean": fitted,
        }
        if shortened:
            logger.info("%s: %d of %d dialogues were truncated", split, shortened, rows)
        if self.shots:
            logger.info("%s: %.2f of %d examples fit on average", split, fitted, self.shots)

    @property
    def encoder(self) -> Encoder:
        """The encoder of rows, with examples from the train split; created once."""
        if self._encoder is None:
            if self.tokenizer is None:
                self.tokenizer = load_tokenizer(self.tokenizer_name)
            if self.shots:
                self._selector.fit(self._split_rows("train"), self.shots, self.seed)
            self._encoder = Encoder(
                self.tokenizer, self.prompt, self._selector.pool, self.max_source_length,
                self.max_target_length, self._selector.best_last,
                is_decoder_only(self.tokenizer_name), self.chat_template,
            )  # fmt: skip
        return self._encoder

    def encode(self, rows: Sequence[Row]) -> list[Encoded]:
        """Tokenize rows, with examples from the train split.

        Raises:
            DataError: If the train split has too few examples.
            ValueError: If the instruction does not fit.
        """
        encoder = self.encoder  # fits the selector
        return encoder.encode(rows, self._selector.pick(rows))

    def _check_tokenizer(self) -> None:
        module = self.trainer.lightning_module if self.trainer else None
        backbone = getattr(module, "backbone_name", None)
        if backbone is not None and resolve_model(backbone) != resolve_model(self.tokenizer_name):
            raise ValueError(
                f"data.tokenizer is {self.tokenizer_name!r} but model.backbone is {backbone!r}: "
                "their tokens differ; leave data.tokenizer out (the command line sets it) or use "
                "the same name for both"
            )

    def _split_rows(self, split: Split) -> list[Row]:
        """Return the rows of a split, filtered and limited by the settings."""
        if split not in self._rows:
            rows = self.reader.read(split)
            if split == "train":
                rows = self._filter(rows)
            self._rows[split] = rows[: self.max_rows[split]]
        return self._rows[split]

    def _filter(self, rows: list[Row]) -> list[Row]:
        longest = self.max_dialogue_chars or float("inf")
        kept = [row for row in rows if self.min_dialogue_chars <= len(row.dialogue) <= longest]
        if not kept:
            raise DataError(
                f"data: no train dialogue has {self.min_dialogue_chars} to {longest} characters; "
                "widen min_dialogue_chars and max_dialogue_chars"
            )
        if len(kept) < len(rows):
            logger.info("train: %d of %d dialogues are in the length limits", len(kept), len(rows))
        return kept

    # Batches ------------------------------------------------------------------------------------

    def loader(self, split: Split) -> DataLoader[Any]:
        """Return the batches of a split's dialogues."""
        collate = Collator(self.tokenizer.pad_token_id)
        return self.length_loader(
            split, self.datasets[split], lambda example: len(example.source), collate
        )

    def predict_dataloader(self) -> DataLoader[Any]:
        """Return the test batches."""
        # Lightning warns because it cannot know that this sampler yields every row once.
        warnings.filterwarnings("ignore", message="You are using a custom batch sampler")
        return self.loader("test")
