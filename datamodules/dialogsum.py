"""DialogSumDataModule: dialogues and references as batches, for every method alike."""

import logging
import warnings
from collections.abc import Sequence
from typing import Any

from torch.utils.data import DataLoader, Dataset

from common.hub import load_tokenizer, resolve_model
from common.paths import expand
from datamodules import sources
from datamodules.batching import (
    MULTIPLE,
    STAGES,
    Collator,
    Example,
    ResumableDataModule,
)
from datamodules.encoding import Encoded, Encoder
from datamodules.examples import ExampleSelector, RandomExamples
from datamodules.prompts import Instruction, PromptStyle
from datamodules.reading import ColumnNames, DataError, OnBadRow, Row, Split
from datamodules.splits import SplitReader
from datamodules.token_cache import default_cache_dir, encode_cached

logger = logging.getLogger(__name__)


class ExampleDataset(Dataset[Example]):
    """The rows of a split with their tokens.

    Args:
        rows: The rows.
        encoded: Their tokens, in the same order.
    """

    def __init__(self, rows: Sequence[Row], encoded: Encoded) -> None:
        self.rows = rows
        self.encoded = encoded
        self.lengths = [len(source) for source in encoded.sources]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Example:
        """Give one row; ``index`` is its number in the split."""
        row = self.rows[index]
        return Example(
            index, row.id, row.dialogue, list(row.references),
            self.encoded.sources[index], self.encoded.targets[index],
        )  # fmt: skip


class DialogSumDataModule(ResumableDataModule):
    """DialogSum, or any data set of its shape.

    Only the splits that a command needs have to be there. Without a train split the validation
    split is trained on, but for a held-out part; without a validation split a part of the train
    split is held out.

    Args:
        source: Hub id, folder with ``{train,validation|dev|val,test}.{jsonl,csv}``, ``mini``, or
            ``challenge``, dialogues that provoke: a test split only.
        tokenizer: The backbone's tokenizer: hub id, folder, or ``mini``.
        prompt: The words around the dialogue.
        shots: Examples from the train split before each question, as many of them as fit.
        examples: How they are chosen; None is ``RandomExamples``.
        batch_size: Rows per training batch and rank.
        eval_batch_size: Rows per evaluation batch and rank; None is ``batch_size``.
        max_source_length: Most tokens of a prompt; longer dialogues are cut at their end.
        max_target_length: Most tokens of a label, EOS included.
        pad_to_multiple_of: Batches are padded to lengths of which this is a factor. Tensor cores
            want 8; a CPU gains nothing by more than 1, and pays for each token.
        max_train_rows: Train on the first rows only.
        max_validation_rows: Validate on the first rows only.
        max_test_rows: Test on the first rows only.
        min_dialogue_chars: Train on dialogues of at least this many characters.
        max_dialogue_chars: Train on dialogues of at most this many characters.
        holdout: Share of the rows held out for validation where a split is missing.
        columns: Names of the source's columns.
        on_bad_row: Stop at rows that cannot be used, or skip and count them.
        seed: Seed of the hold-out, of the examples and of the order of the batches.
        num_workers: Processes that collate batches; 0 does it in the main one.
        cache_dir: Folder for tokenised data; None is ``$XDG_CACHE_HOME/alignsum/tokens``.

    Raises:
        ValueError: If settings are out of range, all of them in one message.
    """

    def __init__(
        self,
        source: str,
        tokenizer: str,
        prompt: PromptStyle = Instruction(),  # noqa: B008 - a style is never changed
        shots: int = 0,
        examples: ExampleSelector | None = None,
        batch_size: int = 8,
        eval_batch_size: int | None = None,
        max_source_length: int = 512,
        max_target_length: int = 128,
        pad_to_multiple_of: int = MULTIPLE,
        max_train_rows: int | None = None,
        max_validation_rows: int | None = None,
        max_test_rows: int | None = None,
        min_dialogue_chars: int = 0,
        max_dialogue_chars: int | None = None,
        holdout: float = 0.1,
        columns: ColumnNames = ColumnNames(),  # noqa: B008 - frozen
        on_bad_row: OnBadRow = "stop",
        seed: int = 42,
        num_workers: int = 0,
        cache_dir: str | None = None,
    ) -> None:
        super().__init__()
        self.source = source
        self.tokenizer_name = tokenizer
        self.prompt = prompt
        self.shots = shots
        self.examples = examples
        self.batch_size = batch_size
        self.eval_batch_size = batch_size if eval_batch_size is None else eval_batch_size
        self.max_source_length = max_source_length
        self.max_target_length = max_target_length
        self.pad_to_multiple_of = pad_to_multiple_of
        self.max_rows: dict[Split, int | None] = {
            "train": max_train_rows,
            "validation": max_validation_rows,
            "test": max_test_rows,
        }
        self.min_dialogue_chars = min_dialogue_chars
        self.max_dialogue_chars = max_dialogue_chars
        self.reader = SplitReader(source, columns, on_bad_row, holdout, seed)
        self.seed = seed
        self.num_workers = num_workers
        self.cache_dir = expand(cache_dir) if cache_dir else default_cache_dir()
        self._selector = examples or RandomExamples()
        self._check_settings()
        self.tokenizer: Any = None
        self.datasets: dict[Split, ExampleDataset] = {}
        self._rows: dict[Split, list[Row]] = {}
        self._encoder: Encoder | None = None

    def _check_settings(self) -> None:
        least = {
            "shots": (self.shots, 0), "batch_size": (self.batch_size, 1),
            "eval_batch_size": (self.eval_batch_size, 1), "num_workers": (self.num_workers, 0),
            "max_source_length": (self.max_source_length, 2),
            "max_target_length": (self.max_target_length, 2),
            "pad_to_multiple_of": (self.pad_to_multiple_of, 1),
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
        if not 0 < self.reader.holdout < 1:
            problems.append(f"holdout must be a share between 0 and 1, got {self.reader.holdout}")
        if self.reader.on_bad_row not in ("stop", "skip"):
            problems.append(f"on_bad_row must be stop or skip, got {self.reader.on_bad_row!r}")
        if self.examples is not None and self.shots == 0:
            name = type(self.examples).__name__
            problems.append(f"examples {name} changes nothing while shots is 0; set shots, or null")
        if problem := self._selector.find_problem(self.shots):
            problems.append(problem)
        if problems:
            raise ValueError("data: " + "; ".join(problems))

    @staticmethod
    def find_problems(settings: Any) -> list[str]:
        """Say why the data of these settings cannot be had, before anything is loaded.

        Args:
            settings: The arguments of the constructor, as attributes.
        """
        return sources.find_problems(settings.source)

    # Rows ---------------------------------------------------------------------------------------

    def setup(self, stage: str) -> None:
        """Read and tokenise the splits that a stage needs.

        Raises:
            DataError: If a split is missing, empty or has bad rows.
            ValueError: If the tokenizer is not the module's, or the instruction does not fit.
        """
        self._check_tokenizer()
        missing = [split for split in STAGES[stage] if split not in self.datasets]
        if not missing:
            return
        # Anew: the selector may have been fitted to another module's rows since.
        self._encoder = None
        encoder = self.encoder
        for split in missing:
            rows = self._split_rows(split)
            if split == "train":  # no row is asked for while it stands solved in its own prompt
                rows = self._selector.without_shown(rows)
            if not rows:
                raise DataError("data: all train rows are examples; lower shots")
            first = self._rank() == 0
            picks = self._selector.pick(rows, show_progress=first)
            encoded = encode_cached(encoder, rows, picks, split, self.cache_dir, first)
            self.datasets[split] = ExampleDataset(rows, encoded)

    @property
    def encoder(self) -> Encoder:
        """What turns rows into tokens, its examples taken from the train split; made once."""
        if self._encoder is None:
            if self.tokenizer is None:
                self.tokenizer = load_tokenizer(self.tokenizer_name)
            if self.shots:
                self._selector.fit(self._split_rows("train"), self.shots, self.seed)
            self._encoder = Encoder(
                self.tokenizer, self.prompt, self._selector.pool, self.max_source_length,
                self.max_target_length, self._selector.best_last,
            )  # fmt: skip
        return self._encoder

    def encode(self, rows: Sequence[Row]) -> Encoded:
        """Tokenise rows of one's own as those of a split, with examples from the train split.

        Raises:
            DataError: If there are not so many examples.
            ValueError: If the instruction does not fit.
        """
        return self.encoder.encode(rows, self._selector.pick(rows))

    def describe(self) -> dict[str, dict[str, Any]]:
        """Say what became of the rows of each split that was read, for the run's summary.

        Returns:
            By split: ``rows``; ``shortened``, the rows whose dialogue was cut; ``shots_asked``;
            ``shots_fitted_mean``, the mean number of examples before a row; ``shots_fitted``, the
            number of rows by their number of examples.
        """
        return {
            str(split): dataset.encoded.describe(self.shots)
            for split, dataset in self.datasets.items()
        }

    def _check_tokenizer(self) -> None:
        module = self.trainer.lightning_module if self.trainer else None
        backbone = getattr(module, "backbone_name", None)
        if backbone is not None and resolve_model(backbone) != resolve_model(self.tokenizer_name):
            raise ValueError(
                f"data.tokenizer is {self.tokenizer_name!r} but model.backbone is {backbone!r}: "
                "their tokens differ; leave data.tokenizer out (the command line sets it) or give "
                "both the same name"
            )

    def _split_rows(self, split: Split) -> list[Row]:
        """Give the rows of a split, filtered and limited as the settings say."""
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
            logger.info("train: %d of %d dialogues have the length asked for", len(kept), len(rows))
        return kept

    # Batches ------------------------------------------------------------------------------------

    def train_dataloader(self) -> DataLoader[Any]:
        """Shuffled batches of like lengths, new ones each epoch."""
        return self.resume_loader(self._loader("train", self.batch_size))

    def val_dataloader(self) -> DataLoader[Any]:
        """Batches from the longest rows to the shortest."""
        return self._loader("validation", self.eval_batch_size)

    def test_dataloader(self) -> DataLoader[Any]:
        """Batches from the longest rows to the shortest."""
        return self._loader("test", self.eval_batch_size)

    def predict_dataloader(self) -> DataLoader[Any]:
        """The test split's batches."""
        # Lightning cannot see that this sampler leaves out no row; it does not.
        warnings.filterwarnings("ignore", message="You are using a custom batch sampler")
        return self._loader("test", self.eval_batch_size)

    def _loader(self, split: Split, batch_size: int) -> DataLoader[Any]:
        dataset = self.datasets[split]
        return self.length_loader(
            dataset,
            dataset.lengths,
            batch_size,
            self.seed,
            shuffle=split == "train",
            collate_fn=Collator(self.tokenizer.pad_token_id, self.pad_to_multiple_of),
            num_workers=self.num_workers,
            persistent_workers=self.num_workers > 0,
        )

    def _rank(self) -> int:
        return self.trainer.global_rank if self.trainer else 0
