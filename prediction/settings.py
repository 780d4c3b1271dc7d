"""What is summarised, and how."""

from dataclasses import dataclass
from pathlib import Path

from datamodules.prompts import Instruction, PromptStyle
from datamodules.reading import ColumnNames, OnBadRow
from prediction.inputs import DialogueFile, Format
from prediction.summarizer import Precision


@dataclass(frozen=True)
class Settings:
    r"""What is summarised, and how.

    Args:
        input: File of dialogues, or - for standard input.
        output: JSON lines to write (id, prediction), or - for standard output. A file that holds
            the beginning of the same work is gone on with.
        format: What the input is: jsonl; csv; text, blank lines between the dialogues; lines, one
            dialogue a line with \n for its line breaks; auto goes by the ending.
        dialogue_column: Column of the dialogues.
        id_column: Column of the ids.
        on_bad_row: Stop at rows that cannot be used, or skip and count them.
        keep_dialogue: Write the dialogue too.
        overwrite: Start the output anew whatever is there.
        backbone: Where the backbone of an adapter is now, if it has moved since: folder or hub id.
        prompt: The words around the dialogue.
        shots: Examples before the question, chosen from the train split of the run's data.
        max_source_length: Most tokens of a prompt; longer dialogues are cut at their end.
        batch_size: Dialogues in one pass.
        window_batches: Passes in a window, which is sorted by length, done and written as a whole.
        precision: Arithmetic; the weights are fp32.
        device: auto, cpu, cuda, cuda:1 and the like.
        seed: Seed of the sampling.

    Raises:
        ValueError: If a value is out of range.
    """

    input: str
    output: str
    format: Format = "auto"
    dialogue_column: str = ColumnNames.dialogue
    id_column: str = ColumnNames.id
    on_bad_row: OnBadRow = "stop"
    keep_dialogue: bool = False
    overwrite: bool = False
    backbone: str | None = None
    prompt: PromptStyle = Instruction()  # noqa: RUF009 - a style is never changed
    shots: int = 0
    max_source_length: int = 512
    batch_size: int = 8
    window_batches: int = 64
    precision: Precision = "32-true"
    device: str = "auto"
    seed: int = 42

    def __post_init__(self) -> None:
        least = {
            "shots": 0,
            "max_source_length": 2,
            "batch_size": 1,
            "window_batches": 1,
            "seed": 0,
        }
        problems = [
            f"{name} must be at least {low}, got {getattr(self, name)}"
            for name, low in least.items()
            if getattr(self, name) < low
        ]
        if self.output != "-" and self._is_input(Path(self.output)):
            problems.append(f"output would overwrite the input {self.input}")
        if problems:
            raise ValueError("; ".join(problems))

    def open_input(self) -> DialogueFile:
        """Find the input.

        Raises:
            DataError: If it is not there, or nothing says what it is.
        """
        columns = ColumnNames(id=self.id_column, dialogue=self.dialogue_column)
        return DialogueFile(self.input, self.format, columns, self.on_bad_row)

    def _is_input(self, path: Path) -> bool:
        return self.input != "-" and path.resolve() == Path(self.input).resolve()
