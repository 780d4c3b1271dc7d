"""Run TRL 0.11.4's PPOTrainer on the miniature; `benchmarks.lab3` calls this in TRL's environment.

    runs/lab3/trl/bin/python benchmarks/lab3/trl_ppo.py job.json

A job names one of three ways to call the same trainer:

- lab: as the course does. A trained LoRA goes on, a copy of the model is passed as ref_model, and
  prompts are sampled one at a time.
- forced: the same, but the trainer is made to use that ref_model.
- careful: the trained LoRA is merged and a new one put on top, so that TRL's reference, the model
  without its LoRA, is the right one. Prompts are sampled in a batch, without dropout; layers and
  settings are this package's.
"""

import copy
import json
import logging
import sys
from contextlib import nullcontext
from itertools import chain, islice, repeat
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch.nn.utils.rnn import pad_sequence
from transformers import (
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    PreTrainedTokenizerFast,
)
from trl import AutoModelForSeq2SeqLMWithValueHead, PPOConfig, PPOTrainer, create_reference_model

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from examples.nano_ppo import Rollout, encode_prompts, gate, pick

Job = dict[str, Any]
Tokens = list[torch.Tensor]
SAMPLING = {"min_length": 5, "top_k": 0, "top_p": 1.0, "do_sample": True, "max_new_tokens": 64}
"""The lab's, but for the length: it draws that from 100 to 400, which suits FLAN-T5."""

LAB = {"learning_rate": 1.41e-5, "ppo_epochs": 1, "mini_batch_size": 4, "batch_size": 16}
"""The lab's settings; the others are TRL's defaults: Adam, an adaptive beta that starts at 0.2."""


def load_tokenizer(path: str) -> PreTrainedTokenizerFast:
    """Load a tokenizer that transformers 5 has written."""
    config = json.loads((Path(path) / "tokenizer_config.json").read_text("utf-8"))
    names = ("pad_token", "eos_token", "unk_token", "model_max_length")
    known = {name: config[name] for name in names if name in config}
    return PreTrainedTokenizerFast(tokenizer_file=f"{path}/tokenizer.json", **known)


def load_policy(job: Job) -> Any:
    """Load the policy with its value head."""
    careful = job["way"] == "careful"
    # FLAN-T5's dropout, which the miniature's own config does not have.
    base = AutoModelForSeq2SeqLM.from_pretrained(job["backbone"], dropout_rate=0.1 * (not careful))
    model = PeftModel.from_pretrained(base, job["adapter"], is_trainable=True)
    if careful:
        old = model.peft_config["default"]
        decoder = rf".*decoder\..*\.({'|'.join(old.target_modules)})"
        new = LoraConfig(
            task_type="SEQ_2_SEQ_LM", r=old.r, lora_alpha=old.lora_alpha, target_modules=decoder
        )
        model = get_peft_model(model.merge_and_unload(), new)
    return AutoModelForSeq2SeqLMWithValueHead.from_pretrained(model, is_trainable=True)


def make_trainer(job: Job, tokenizer: PreTrainedTokenizerFast) -> PPOTrainer:
    """Build the trainer as the lab does."""
    torch.manual_seed(job["seed"])
    rows = [json.loads(line) for line in Path(job["rows"]).read_text("utf-8").splitlines()]
    prompts: Any = [encode_prompts(tokenizer, [row])["input_ids"][0] for row in rows]
    model = load_policy(job)
    reference = create_reference_model(model)
    config = PPOConfig(seed=job["seed"], **(LAB | job["config"]))
    trainer = PPOTrainer(config, model, reference, tokenizer)
    trainer.dataloader = trainer.prepare_dataloader(prompts, list)
    if job["way"] == "forced":
        trainer.is_peft_model, trainer.ref_model = False, reference
        trainer.optional_peft_ctx = nullcontext
    return trainer


def sample(trainer: PPOTrainer, queries: Tokens, way: str) -> Tokens:
    """Sample a response to each prompt, as the lab does or with care."""
    if way == "careful":
        trainer.model.eval()  # `step` leaves it in training mode, with dropout on
        return trainer.generate(queries, batch_size=len(queries), **SAMPLING)
    limit = SAMPLING["max_new_tokens"]
    return [trainer.generate(query, **SAMPLING).squeeze()[-limit:] for query in queries]


@torch.no_grad()
def check(trainer: PPOTrainer, queries: Tokens, sampling: dict[str, Any]) -> dict[str, float]:
    """Apply the gate of examples/nano_ppo.py to responses to some prompts."""
    more = {"output_scores": True, "return_dict_in_generate": True}
    outputs = [trainer.generate(query, **sampling, **more) for query in queries]
    sampled = [
        pick(torch.stack(output.scores, dim=1).log_softmax(dim=-1), output.sequences[:, 1:])[0]
        for output in outputs
    ]
    responses = [output.sequences[0] for output in outputs]
    inputs = trainer.prepare_model_inputs(queries, responses)
    logprobs, _, values, mask = trainer.batched_forward_pass(
        trainer.model, queries, responses, inputs
    )
    reference = trainer.model if trainer.is_peft_model else trainer.ref_model
    with trainer.optional_peft_ctx():
        ref_logprobs = trainer.batched_forward_pass(reference, queries, responses, inputs)[0]
    new_logprobs = trainer.batched_forward_pass(trainer.model, queries, responses, inputs)[0]
    rollout = Rollout(
        prompts={name: inputs[name] for name in ("input_ids", "attention_mask")},
        responses=inputs["decoder_input_ids"][:, 1:],
        mask=mask.bool(),
        sampled_logprobs=pad_sequence(sampled, batch_first=True),
        logprobs=logprobs,
        ref_logprobs=ref_logprobs,
        values=values,
    )
    return gate(trainer.model.pretrained_model, rollout, new_logprobs, temperature=1.0)


def main(path: str) -> None:
    """Run one job; write the figures of each step, and the policy after some of them."""
    job: Job = json.loads(Path(path).read_text("utf-8"))
    torch.set_num_threads(1)
    tokenizer, judge_tokenizer = load_tokenizer(job["backbone"]), load_tokenizer(job["judge"])
    judge = AutoModelForSequenceClassification.from_pretrained(job["judge"]).eval()
    trainer = make_trainer(job, tokenizer)
    steps, gates = [], {}
    batches = chain.from_iterable(repeat(trainer.dataloader))
    for step, queries in enumerate(islice(batches, job["steps"])):
        responses = sample(trainer, queries, job["way"])
        if step < 2:
            with torch.random.fork_rng():
                try:
                    gates[step] = f"passed: {check(trainer, queries, SAMPLING)}"
                except RuntimeError as error:
                    gates[step] = str(error)
        texts = tokenizer.batch_decode(responses, skip_special_tokens=True)
        tokens = judge_tokenizer(texts, padding=True, truncation=True, return_tensors="pt")
        with torch.no_grad():
            scores = judge(**tokens).logits[:, judge.config.label2id["nothate"]]
        found = trainer.step(queries, responses, list(scores))
        names = {"kl": "objective/kl", "entropy": "ppo/policy/entropy", "ratio": "ppo/policy/ratio"}
        steps.append({short: float(np.mean(found[name])) for short, name in names.items()})
        logging.warning("%d/%d %s", step + 1, job["steps"], steps[-1])
        if step + 1 in job["export_at"]:
            folder = Path(job["out"]) / f"step{step + 1}"
            policy = copy.deepcopy(trainer.model.pretrained_model)
            policy.merge_and_unload().save_pretrained(folder)
            tokenizer.save_pretrained(folder)
    (Path(job["out"]) / "trl.json").write_text(json.dumps({"steps": steps, "gates": gates}))


if __name__ == "__main__":
    main(sys.argv[1])
