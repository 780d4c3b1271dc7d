"""PPO for an encoder-decoder in one file: teach a summarizer to be polite.

    python examples/nano_ppo.py                                # the miniature, under two minutes
    python examples/nano_ppo.py --adapter runs/lora/export     # start from your own LoRA

The functions are in the order of the algorithm: a supervised LoRA to start from; the rollout
(sample, score by policy and reference); rewards with a KL penalty; GAE; the clipped losses; the
update. `gate` checks what was computed before the first update; call it on the first rollout of
your own PPO code.

Four mistakes are common with encoder-decoders, and none of them raises an error:

- The decoder reads [start, y1 .. yT-1] and predicts y1 .. yT. T5's start token is its padding
  token, so a mask made with `!= pad` is wrong. Here the mask is made by position.
- The reference of a policy that starts from a trained adapter is that adapter, frozen. If the
  adapter is disabled instead, KL does not start at 0 and PPO undoes the fine-tuning.
- `generate(do_sample=True)` draws from the 50 likeliest tokens unless `top_k=0` says otherwise,
  and the update then belongs to another distribution.
- Dropout makes policy, reference and sampler three different models.

Left out, because it adds speed or options and leaves the algorithm as it is: reuse of encoder
states, micro-batches, mixed precision, several processes, checkpoints, logging, early stopping,
adaptive KL, other rewards, advantages and policies. The package has them, and
`tests/examples/test_nano_ppo.py` compares its step with this one.
"""

import argparse
import json
import random
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer
from torch.optim.lr_scheduler import LinearLR
from transformers import AutoModelForSeq2SeqLM, AutoModelForSequenceClassification, AutoTokenizer
from transformers.utils import logging

Rows = list[dict[str, str]]
MINI = Path(__file__).resolve().parents[1] / "assets" / "mini"


@dataclass(frozen=True)
class Settings:
    """Hyperparameters. These suit the miniature; a large model wants smaller learning rates."""

    steps: int = 12  # of PPO; each is a rollout and its update
    batch_size: int = 64  # rollouts in a step, one per dialogue
    epochs: int = 2  # passes over them
    minibatch_size: int = 32
    policy_lr: float = 1e-3
    value_lr: float = 1e-2
    max_new_tokens: int = 48
    temperature: float = 1.0
    kl_coef: float = 0.4
    gamma: float = 1.0
    lam: float = 0.95
    clip: float = 0.2  # of ratios and of values
    value_weight: float = 0.1
    max_grad_norm: float = 1.0


class Policy(NamedTuple):
    """What is trained: a LoRA on a frozen backbone, and a value head on the decoder's states."""

    model: PeftModel
    value_head: nn.Linear
    tokenizer: Any


class Rollout(NamedTuple):
    """B responses of up to T tokens, and what was computed about them before the update."""

    prompts: dict[str, Tensor]  # input_ids and attention_mask, [B, S]
    responses: Tensor  # [B, T] y1 .. yT: no start token, padding after EOS
    mask: Tensor  # [B, T] True at y1 .. EOS
    sampled_logprobs: Tensor  # [B, T] in the distribution that was sampled; only the gate reads it
    logprobs: Tensor  # [B, T] log pi_old(y_t)
    ref_logprobs: Tensor  # [B, T] log pi_ref(y_t)
    values: Tensor  # [B, T] V_old


def encode_prompts(tokenizer: Any, rows: Rows) -> dict[str, Tensor]:
    """Wrap dialogues in the instruction: input_ids and attention_mask [B, S], right-padded."""
    texts = [f"Summarize the following conversation.\n\n{r['dialogue']}\n\nSummary:" for r in rows]
    return dict(tokenizer(texts, padding=True, truncation=True, return_tensors="pt"))


def load_policy(backbone: str, adapter: str) -> Policy:
    """Load a trained LoRA twice on one backbone: as "policy", trainable, and frozen "reference"."""
    base = AutoModelForSeq2SeqLM.from_pretrained(backbone, dtype=torch.float32)
    model = PeftModel.from_pretrained(base, adapter, adapter_name="policy", is_trainable=True)
    model.load_adapter(adapter, adapter_name="reference", is_trainable=False)
    model.set_adapter("policy")
    value_head = nn.Linear(base.config.d_model, 1)
    nn.init.normal_(value_head.weight, std=(base.config.d_model + 1) ** -0.5)
    nn.init.zeros_(value_head.bias)
    # It stays in eval mode, in updates too: no dropout anywhere.
    return Policy(model.eval(), value_head, AutoTokenizer.from_pretrained(backbone))


@contextmanager
def as_reference(policy: Policy) -> Iterator[None]:
    """Make the policy's model compute what the reference computes, inside a `with` block."""
    policy.model.set_adapter("reference", inference_mode=True)
    yield
    policy.model.set_adapter("policy")


class Judge:
    """A frozen classifier of hate speech: the reward, and the toxicity that is reported."""

    def __init__(self, path: str) -> None:
        self.tokenizer = AutoTokenizer.from_pretrained(path)
        self.model = AutoModelForSequenceClassification.from_pretrained(path).eval()

    @torch.no_grad()
    def __call__(self, texts: list[str]) -> tuple[Tensor, Tensor]:
        """Return scores, the raw logits of "nothate", and toxicity, p("hate"); both [B]."""
        tokens = self.tokenizer(texts, padding=True, truncation=True, return_tensors="pt")
        logits, labels = self.model(**tokens).logits, self.model.config.label2id
        return logits[:, labels["nothate"]], logits.softmax(dim=-1)[:, labels["hate"]]


def train_adapter(
    backbone: str, rows: Rows, folder: str, steps: int = 60, size: int = 32, lr: float = 5e-3
) -> None:
    """Fine-tune a LoRA on reference summaries for a few steps and save it in `folder`."""
    tokenizer = AutoTokenizer.from_pretrained(backbone)
    base = AutoModelForSeq2SeqLM.from_pretrained(backbone, dtype=torch.float32)
    lora = LoraConfig(task_type="SEQ_2_SEQ_LM", r=16, lora_alpha=32, target_modules=["q", "v"])
    model = get_peft_model(base, lora).eval()
    optimizer = AdamW([p for p in model.parameters() if p.requires_grad], lr=lr)
    schedule = LinearLR(optimizer, 1.0, 0.0, steps)
    for _ in range(steps):
        batch = random.sample(rows, size)
        summaries = [row["summary"] for row in batch]
        targets = tokenizer(text_target=summaries, padding=True, return_tensors="pt")
        labels = targets["input_ids"].masked_fill(targets["attention_mask"] == 0, -100)
        loss = model(**encode_prompts(tokenizer, batch), labels=labels).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    model.save_pretrained(folder)


@torch.no_grad()
def roll_out(policy: Policy, rows: Rows, settings: Settings) -> Rollout:
    """Sample a response to each dialogue, and score it by the policy and by its reference."""
    prompts = encode_prompts(policy.tokenizer, rows)
    responses, sampled_logprobs = sample(policy, prompts, settings)
    mask = response_mask(responses, policy.tokenizer.eos_token_id)
    logprobs, values = score(policy, prompts, responses, settings.temperature)
    with as_reference(policy):
        ref_logprobs, _ = score(policy, prompts, responses, settings.temperature)
    return Rollout(prompts, responses, mask, sampled_logprobs, logprobs, ref_logprobs, values)


def sample(policy: Policy, prompts: dict[str, Tensor], settings: Settings) -> tuple[Tensor, Tensor]:
    """Sample responses [B, T] from the unfiltered distribution; also their log-probs [B, T]."""
    unfiltered = {"do_sample": True, "top_k": 0, "top_p": 1.0, "temperature": settings.temperature}
    more = {"max_new_tokens": settings.max_new_tokens, "output_scores": True}
    output = policy.model.generate(**prompts, **unfiltered, **more, return_dict_in_generate=True)
    responses = output.sequences[:, 1:]  # without the start token
    logprobs = torch.stack(output.scores, dim=1).log_softmax(dim=-1)
    return responses, pick(logprobs, responses)


def response_mask(responses: Tensor, eos: int) -> Tensor:
    """Mark y1 .. EOS by position: True up to the first EOS, everywhere if there is none; [B, T]."""
    is_eos = (responses == eos).long()
    return is_eos.cumsum(dim=1) - is_eos == 0


def score(
    policy: Policy, prompts: dict[str, Tensor], responses: Tensor, temperature: float
) -> tuple[Tensor, Tensor]:
    """Compute log pi(y_t | prompt, y_1 .. y_t-1) and V_t of given responses; both [B, T].

    The decoder reads [start, y1 .. yT-1]. Its position t has not seen y_t and predicts it.
    """
    start = torch.full_like(responses[:, :1], policy.model.config.decoder_start_token_id)
    decoder_input_ids = torch.cat([start, responses[:, :-1]], dim=1)
    output = policy.model(**prompts, decoder_input_ids=decoder_input_ids, output_hidden_states=True)
    logprobs = (output.logits / temperature).log_softmax(dim=-1)
    values = policy.value_head(output.decoder_hidden_states[-1]).squeeze(-1)
    return pick(logprobs, responses), values


def pick(logprobs: Tensor, tokens: Tensor) -> Tensor:
    """Pick the log-probability of each token: [B, T, V] and [B, T] to [B, T]."""
    return logprobs.gather(-1, tokens[..., None]).squeeze(-1)


def shape_rewards(scores: Tensor, kl: Tensor, mask: Tensor, kl_coef: float) -> Tensor:
    """Charge each token its KL, and add the score [B] at the last one: rewards [B, T].

    `kl` [B, T] is log pi - log pi_ref of the sampled tokens, Schulman's k1 (Ziegler et al. 2019).
    """
    rewards = -kl_coef * kl * mask
    rewards[torch.arange(len(scores)), mask.sum(dim=1) - 1] += scores
    return rewards


def gae(rewards: Tensor, values: Tensor, mask: Tensor, settings: Settings) -> tuple[Tensor, Tensor]:
    """Estimate advantages and returns, both [B, T] (Schulman et al. 2016, equation 16).

    delta_t = r_t + gamma V_t+1 - V_t,  A_t = delta_t + gamma lam A_t+1,  R_t = A_t + V_t,
    where V and A are 0 after the last real token.
    """
    values = values * mask
    advantages = torch.zeros_like(rewards)
    next_value = next_advantage = torch.zeros_like(rewards[:, 0])
    for t in reversed(range(rewards.shape[1])):
        delta = rewards[:, t] + settings.gamma * next_value - values[:, t]
        advantage = delta + settings.gamma * settings.lam * next_advantage
        advantages[:, t] = advantage * mask[:, t]
        next_value, next_advantage = values[:, t], advantages[:, t]
    return advantages, advantages + values


def whiten(x: Tensor, mask: Tensor) -> Tensor:
    """Shift and scale x [B, T] to mean 0 and variance 1 over the real tokens."""
    real = x[mask]
    return (x - real.mean()) * (real.var(unbiased=False) + 1e-8).rsqrt() * mask


def ppo_loss(
    policy: Policy, old: Rollout, advantages: Tensor, returns: Tensor, settings: Settings
) -> tuple[Tensor, dict[str, float]]:
    """Compute the loss of a mini-batch, a mean over its real tokens, and its metrics.

    The policy's is max(-A rho, -A clip(rho, 1 - clip, 1 + clip)), PPO's equation 7; the values' is
    0.5 max((V - R)^2, (V_old + clip(V - V_old) - R)^2).
    """
    mask, clip = old.mask, settings.clip
    logprobs, values = score(policy, old.prompts, old.responses, settings.temperature)
    ratio = (logprobs - old.logprobs).exp()
    losses = torch.maximum(-advantages * ratio, -advantages * ratio.clamp(1 - clip, 1 + clip))
    clipped = old.values + (values - old.values).clamp(-clip, clip)
    errors = 0.5 * torch.maximum((values - returns).square(), (clipped - returns).square())
    of_policy, of_values = losses[mask].mean(), errors[mask].mean()
    metrics = {
        "policy_loss": of_policy.item(),
        "value_loss": of_values.item(),
        "ratio": ratio[mask].mean().item(),
        "approx_kl": 0.5 * (logprobs - old.logprobs)[mask].square().mean().item(),
    }
    return of_policy + settings.value_weight * of_values, metrics


def update(
    policy: Policy,
    optimizer: Optimizer,
    rollout: Rollout,
    advantages: Tensor,
    returns: Tensor,
    settings: Settings,
) -> dict[str, float]:
    """Take clipped gradient steps on one rollout for some epochs; return the last metrics."""
    trained = [p for group in optimizer.param_groups for p in group["params"]]
    for _ in range(settings.epochs):
        for rows in torch.randperm(len(advantages)).split(settings.minibatch_size):
            prompts = {name: tensor[rows] for name, tensor in rollout.prompts.items()}
            old = Rollout(prompts, *(tensor[rows] for tensor in rollout[1:]))
            loss, metrics = ppo_loss(policy, old, advantages[rows], returns[rows], settings)
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(trained, settings.max_grad_norm)
            optimizer.step()
    return metrics


@torch.no_grad()
def gate(
    model: Any,
    rollout: Rollout,
    new_logprobs: Tensor,
    temperature: float,
    credit: tuple[Tensor, Tensor, Tensor] | None = None,
    tolerance: float = 1e-3,
) -> dict[str, float]:
    """Check the first rollout of a PPO implementation, this one or yours, before its first update.

    `model` is the policy, any encoder-decoder of transformers, with or without PEFT; `new_logprobs`
    [B, T] is log pi(y_t) in the first forward pass of the update; `credit` is scores [B], rewards
    and whitened advantages [B, T]; `tolerance` is in nats. Returns the largest deviation that each
    check found, and raises a RuntimeError if one is too large.
    """
    eos, start = model.config.eos_token_id, model.config.decoder_start_token_id
    mask, truth = torch.zeros_like(rollout.mask), torch.zeros_like(rollout.logprobs)
    for i, response in enumerate(rollout.responses):
        # Row by row, without padding and masks, so that no mistake in those is repeated here.
        length = [*response.tolist(), eos].index(eos) + 1
        tokens = response[:length]
        decoder_input_ids = torch.cat([tokens.new_tensor([start]), tokens[:-1]])[None]
        prompt = rollout.prompts["input_ids"][i][rollout.prompts["attention_mask"][i].bool()][None]
        logits = model(input_ids=prompt, decoder_input_ids=decoder_input_ids).logits
        own = pick((logits / temperature).log_softmax(dim=-1), tokens[None])[0]
        mask[i, :length], truth[i, :length] = True, own
    differences = {
        "score differs from the model's own forward pass": rollout.logprobs - truth,
        "sampler differs from score": rollout.sampled_logprobs - rollout.logprobs,
        "KL to the reference": rollout.logprobs - rollout.ref_logprobs,
        "ratio - 1": (new_logprobs - rollout.logprobs).exp() - 1,
    }
    found = {name: each[mask].abs().max().item() for name, each in differences.items()}
    found["wrongly masked tokens"] = float((rollout.mask != mask).sum())
    if credit is not None:
        # With a KL of 0, the score on the last token is the only reward.
        scores, rewards, advantages = credit[0], credit[1].clone(), credit[2][mask]
        rewards[torch.arange(len(scores)), mask.sum(dim=1) - 1] -= scores
        found["rewards but for the score on the last token"] = rewards.abs().max().item()
        off = advantages.mean().abs() + (advantages.std(unbiased=False) - 1).abs()
        found["whitened advantages: |mean| + |std - 1|"] = off.item()
    report = "\n".join(f"  {name:<48}{value:9.1e}" for name, value in found.items())
    if not all(value <= tolerance for value in found.values()):
        raise RuntimeError(f"the gate before the first update failed:\n{report}")
    return found


def train_ppo(policy: Policy, judge: Judge, rows: Rows, settings: Settings) -> None:
    """Alternate rollouts and updates, and print a line of figures for each."""
    lora = [p for p in policy.model.parameters() if p.requires_grad]
    of_values = {"params": policy.value_head.parameters(), "lr": settings.value_lr}
    optimizer = AdamW([{"params": lora, "lr": settings.policy_lr}, of_values], eps=1e-5)
    schedule = LinearLR(optimizer, 1.0, 0.0, settings.steps)
    for step in range(settings.steps):
        rollout = roll_out(policy, random.sample(rows, settings.batch_size), settings)
        texts = policy.tokenizer.batch_decode(rollout.responses, skip_special_tokens=True)
        scores, toxicity = judge(texts)
        kl = (rollout.logprobs - rollout.ref_logprobs) * rollout.mask
        rewards = shape_rewards(scores, kl, rollout.mask, settings.kl_coef)
        advantages, returns = gae(rewards, rollout.values, rollout.mask, settings)
        advantages = whiten(advantages, rollout.mask)
        if step == 0:
            new_logprobs, _ = score(policy, *rollout[:2], settings.temperature)
            checked = (rollout, new_logprobs, settings.temperature, (scores, rewards, advantages))
            print("gate:", gate(policy.model, *checked))
            print("step   reward   KL (nats)   toxicity x 100   ratio")
        ratio = update(policy, optimizer, rollout, advantages, returns, settings)["ratio"]
        schedule.step()
        figures = f"{scores.mean():9.2f} {kl.sum(dim=1).mean():11.2f} {100 * toxicity.mean():16.1f}"
        print(f"{step:4d}{figures} {ratio:7.3f}", flush=True)


def main() -> None:
    """Fine-tune a LoRA, make it polite by PPO, and print reward, KL and toxicity."""
    parser = argparse.ArgumentParser(description="PPO for an encoder-decoder in one file.")
    parser.add_argument("--backbone", default=str(MINI / "t5"), help="encoder-decoder")
    parser.add_argument("--judge", default=str(MINI / "roberta"), help="hate speech classifier")
    parser.add_argument("--data", default=str(MINI / "train.jsonl"), help="JSON lines")
    parser.add_argument("--adapter", help="folder of a LoRA to start from; trained if not given")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    logging.set_verbosity_error()  # each load would advise on the tying of T5's weights
    logging.disable_progress_bar()
    torch.manual_seed(arguments.seed)
    random.seed(arguments.seed)
    rows = [json.loads(line) for line in Path(arguments.data).read_text("utf-8").splitlines()]
    with tempfile.TemporaryDirectory() as folder:
        if arguments.adapter is None:
            train_adapter(arguments.backbone, rows, folder)
        policy = load_policy(arguments.backbone, arguments.adapter or folder)
    train_ppo(policy, Judge(arguments.judge), rows, Settings())


if __name__ == "__main__":
    main()
