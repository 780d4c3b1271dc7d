"""Rebuild the embedded models from the generator and a seed.

`python -m tools.mini.build --seed 0 --out assets/mini` writes the folders `t5` and `roberta`
(safetensors and tokenizer, for plain `from_pretrained`). Same seed, machine and versions: same
bytes.
"""

import argparse
import logging
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from random import Random

import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from tools.mini.backbone import build_backbone
from tools.mini.bpe import roberta_tokenizer, t5_tokenizer
from tools.mini.classifier import build_classifier
from tools.mini.generator import generate_labelled
from tools.mini.pretraining import draw_task

logger = logging.getLogger(__name__)

T5_STEPS = 5000
CLASSIFIER_STEPS = 300
TOKENIZER_TEXTS = 20_000


def build(out: Path, seed: int, t5_steps: int, classifier_steps: int) -> None:
    """Train both tokenizers and both models and save them.

    Args:
        out: folder in which `t5` and `roberta` are written or overwritten.
        seed: of everything.
        t5_steps: pretraining steps of the T5; 0 leaves it unchanged.
        classifier_steps: training steps of the classifier; 0 leaves it unchanged.
    """
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn()
    with Progress(*columns, TimeRemainingColumn(), TextColumn("{task.fields[note]}")) as bars:
        if classifier_steps:
            bar = bars.add_task("classifier", total=classifier_steps, note="")
            tokenizer = roberta_tokenizer(_labelled_texts(seed), size=1000)
            advance = partial(bars.advance, bar)
            _save(
                out / "roberta",
                tokenizer,
                build_classifier(tokenizer, seed, classifier_steps, advance),
            )
        if t5_steps:
            bar = bars.add_task("t5", total=t5_steps, note="")
            tokenizer = t5_tokenizer(_task_texts(seed), size=1600)

            def report(loss: float) -> None:
                bars.update(bar, advance=1, note=f"loss {loss:.2f}")

            backbone = build_backbone(tokenizer, seed, t5_steps, report)
            _save(out / "t5", tokenizer, backbone)


def _save(folder: Path, tokenizer: PreTrainedTokenizerFast, model: PreTrainedModel) -> None:
    tokenizer.save_pretrained(folder)
    model.save_pretrained(folder)
    logger.info("wrote %s: %d parameters", folder, model.num_parameters())


def _labelled_texts(seed: int) -> Iterator[str]:
    for row in generate_labelled("train", seed, TOKENIZER_TEXTS):
        yield row["text"]


def _task_texts(seed: int) -> Iterator[str]:
    """Yield the T5's training texts, and some insults, which are rare there."""
    rng = Random(f"alignsum mini tokenizer {seed}")
    for row in generate_labelled("train", seed, TOKENIZER_TEXTS // 4):
        yield row["text"]
    for _ in range(TOKENIZER_TEXTS):
        yield from draw_task(rng)


def main(args: list[str] | None = None) -> None:
    """Parse the command line and build."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    parser = argparse.ArgumentParser(prog="tools.mini.build", description=__doc__)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--t5_steps", type=int, default=T5_STEPS)
    parser.add_argument("--classifier_steps", type=int, default=CLASSIFIER_STEPS)
    parser.add_argument("--threads", type=int, default=2, help="sums differ in the last bits")
    options = parser.parse_args(args)
    torch.set_num_threads(options.threads)
    torch.use_deterministic_algorithms(True)
    build(options.out, options.seed, options.t5_steps, options.classifier_steps)


if __name__ == "__main__":
    main()
