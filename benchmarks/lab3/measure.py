"""Measure exported policies on the miniature's test dialogues, all in the same way.

    python -m benchmarks.lab3.measure --seed 1 --out measured.json 0=FOLDER 200=FOLDER

Like the lab, it samples one summary of each dialogue, without a filter. It scores the summary alone
(the lab adds the prompt, for which this classifier has too few positions), against the three
references, and by how much likelier it is under the policy than under the first one: its KL, nats.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers.utils import logging

from common.hub import ASSETS
from common.run_folder import write_text
from examples.nano_ppo import Judge, encode_prompts, pick, response_mask
from lightning_modules.exports import load_exported
from metrics.rouge_scores import score_rouge

Measured = dict[str, list[float]]
MINI = ASSETS / "mini"
BATCH, MAX_NEW_TOKENS = 60, 64


@torch.no_grad()
def measure(policy: Path, start: Path, rows: Sequence[dict[str, Any]], seed: int) -> Measured:
    """Sample a summary of each dialogue and score it.

    Args:
        policy: Export folder, of an adapter or a whole model.
        start: Export folder of what the policy was before PPO.
        rows: The dialogues, each with three references.
        seed: Seed of the sampling.

    Returns:
        By name, a number for each row: toxicity, rouge1, kl and the length in tokens.
    """
    torch.manual_seed(seed)
    (model, tokenizer), (reference, _) = load_exported(policy), load_exported(start)
    judge = Judge(str(MINI / "roberta"))
    found: Measured = {"toxicity": [], "rouge1": [], "kl": [], "tokens": []}
    for first in range(0, len(rows), BATCH):
        batch = list(rows[first : first + BATCH])
        prompts = encode_prompts(tokenizer, batch)
        unfiltered = {"do_sample": True, "top_k": 0, "top_p": 1.0}
        output = model.generate(**prompts, **unfiltered, max_new_tokens=MAX_NEW_TOKENS)
        mask = response_mask(output[:, 1:], tokenizer.eos_token_id)
        likelier = log_probs(model, prompts, output) - log_probs(reference, prompts, output)
        texts = tokenizer.batch_decode(output, skip_special_tokens=True)
        references = [[row[f"summary{k}"] for k in (1, 2, 3)] for row in batch]
        found["toxicity"] += judge(texts)[1].tolist()
        found["rouge1"] += score_rouge(texts, references)["rouge1"]
        found["kl"] += (likelier * mask).sum(dim=1).tolist()
        found["tokens"] += mask.sum(dim=1).tolist()
    return found


def log_probs(model: Any, prompts: dict[str, torch.Tensor], output: torch.Tensor) -> torch.Tensor:
    """Compute the log-probability of each token after the start token, [B, T]."""
    logits = model(**prompts, decoder_input_ids=output[:, :-1]).logits
    return pick(logits.log_softmax(dim=-1), output[:, 1:])


def main() -> None:
    """Measure some policies and write their figures by name."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("policies", nargs="+", metavar="NAME=FOLDER", help="the start first")
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    torch.set_num_threads(1)
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    rows = [json.loads(line) for line in (MINI / "test.jsonl").read_text("utf-8").splitlines()]
    named = {name: Path(path) for name, path in (each.split("=", 1) for each in options.policies)}
    start = next(iter(named.values()))
    found = {name: measure(path, start, rows, options.seed) for name, path in named.items()}
    write_text(options.out, json.dumps(found) + "\n")


if __name__ == "__main__":
    main()
