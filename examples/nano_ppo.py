"""PPO for an encoder-decoder in one file: make a summarizer polite.

    python examples/nano_ppo.py                                  # miniature, two cores, < 2 minutes
    python examples/nano_ppo.py --adapter runs/lora/export       # start from your own LoRA
    python examples/nano_ppo.py --help

The functions stand in the order of the algorithm, so read from top to bottom: a supervised LoRA;
rollout (sample, score by policy and reference, judge); rewards with a KL penalty; GAE; the clipped
losses; the update; and `gate`, which compares what was computed before the first update with what
must hold there. `gate` takes plain tensors: call it from your own PPO code.

Four things go wrong most often on encoder-decoders, and none of them raises an error:

- The decoder reads [start, y1 .. yT-1] and predicts y1 .. yT. In T5 the start token is the padding
  token, so a mask made with `!= pad` loses a position. Here the mask is made by position.
- The reference of a policy that starts from a trained adapter is that adapter, frozen. With the
  adapter switched off instead, KL does not start at 0, and PPO unlearns the fine-tuning.
- `generate(do_sample=True)` samples from the 50 likeliest tokens unless `top_k=0` says otherwise;
  the log-probabilities of the update then belong to another distribution.
- Dropout makes policy, reference and sampler three different models.

Left out, because it changes speed or comfort but not the algorithm: reuse of encoder passes,
micro-batches and gradient accumulation, mixed precision, several processes, checkpoints, logging,
early stopping, an adaptive KL coefficient, and other rewards, advantages (RLOO, GRPO) and policies
than a LoRA. The package beside this file has them (docs/ppo.md); tests/examples holds one step of
this file to one step of the package.
"""

import argparse
import json
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor, nn
from transformers import (
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    GenerationConfig,
)

MINI = Path(__file__).resolve().parents[1] / "assets" / "mini"


@dataclass(frozen=True)
class Settings:
    """Hyperparameters; the values suit the miniature (1.6 M parameters)."""

    max_new_tokens: int = 48
    temperature: float = 1.0
    steps: int = 16
    batch_size: int = 64
    """Rollouts in a step; one for each dialogue."""
    epochs: int = 4
    """Passes over the rollouts of a step."""
    minibatch_size: int = 32
    policy_lr: float = 3e-4
    value_lr: float = 1e-2
    kl_coef: float = 0.7
    gamma: float = 1.0
    lam: float = 0.95
    clip: float = 0.2
    value_clip: float = 0.2
    value_weight: float = 0.1
    max_grad_norm: float = 1.0
    sft_steps: int = 120
    sft_batch_size: int = 32
    sft_lr: float = 5e-3


class Experience(NamedTuple):
    """What one step learns from. B rollouts, S prompt tokens, T response tokens.

    Everything has B first, so that rows can be picked from all of it at once.
    """

    input_ids: Tensor  # [B, S]
    attention_mask: Tensor  # [B, S]
    responses: Tensor  # [B, T] y1 .. yT, padding after EOS
    mask: Tensor  # [B, T] True at y1 .. EOS
    sampled_logprobs: Tensor  # [B, T] under the distribution that was sampled from; for the gate
    logprobs: Tensor  # [B, T] under the policy
    ref_logprobs: Tensor  # [B, T] under the reference
    values: Tensor  # [B, T] of the value head
    scores: Tensor  # [B] from the classifier
    toxicity: Tensor  # [B] in [0, 1]; reported, not learned from
    advantages: Tensor  # [B, T]
    returns: Tensor  # [B, T]


# ------------------------------------------------------------------- data and models


def read_rows(path: Path) -> list[dict[str, str]]:
    """Read dialogues and reference summaries from JSON lines."""
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return [
        {"dialogue": row["dialogue"], "summary": row.get("summary") or row["summary1"]}
        for row in rows
    ]


def encode_prompts(tokenizer: Any, rows: Sequence[dict[str, str]]) -> tuple[Tensor, Tensor]:
    """Wrap dialogues in an instruction: token ids and attention mask, both [B, S]."""
    texts = [f"Summarize the following conversation.\n\n{r['dialogue']}\n\nSummary:" for r in rows]
    # Padding on the right: padding on the left shifts T5's relative positions.
    tokens = tokenizer(texts, padding=True, truncation=True, return_tensors="pt")
    return tokens["input_ids"], tokens["attention_mask"]


def load_policy(backbone: str, adapter: str) -> PeftModel:
    """Load a trained LoRA twice on one backbone: "policy", trained on, and "reference", frozen."""
    model = AutoModelForSeq2SeqLM.from_pretrained(backbone, dtype=torch.float32)
    policy = PeftModel.from_pretrained(model, adapter, adapter_name="policy", is_trainable=True)
    policy.load_adapter(adapter, adapter_name="reference", is_trainable=False)
    policy.set_adapter("policy")
    return policy.eval()  # no dropout, neither in rollouts nor in the update


@contextmanager
def reference(policy: PeftModel) -> Iterator[None]:
    """Turn the policy into its reference for a while."""
    policy.set_adapter("reference", inference_mode=True)
    try:
        yield
    finally:
        policy.set_adapter("policy")


def make_value_head(policy: PeftModel) -> nn.Linear:
    """Make a linear layer from decoder states to values, as in the N+ details of RLHF (2024)."""
    size = policy.get_base_model().config.d_model
    head = nn.Linear(size, 1)
    nn.init.normal_(head.weight, std=(size + 1) ** -0.5)
    nn.init.zeros_(head.bias)
    return head


class Judge:
    """A frozen hate-speech classifier."""

    def __init__(self, path: str) -> None:
        self.tokenizer = AutoTokenizer.from_pretrained(path)
        self.model = AutoModelForSequenceClassification.from_pretrained(path).eval()

    @torch.no_grad()
    def __call__(self, texts: list[str]) -> tuple[Tensor, Tensor]:
        """Return scores, the raw logits of "nothate", and toxicity, p("hate"); both [B].

        The raw logit is the reward: a probability near 1 is flat and leaves nothing to learn.
        """
        tokens = self.tokenizer(texts, padding=True, truncation=True, return_tensors="pt")
        logits, labels = self.model(**tokens).logits, self.model.config.label2id
        return logits[:, labels["nothate"]], logits.softmax(dim=-1)[:, labels["hate"]]


# ------------------------------------------------------------------- supervised start


def train_adapter(
    backbone: str, tokenizer: Any, rows: list[dict[str, str]], settings: Settings, folder: str
) -> None:
    """Fine-tune a LoRA on reference summaries for a few steps, and save it to `folder`."""
    model = AutoModelForSeq2SeqLM.from_pretrained(backbone, dtype=torch.float32)
    lora = LoraConfig(task_type="SEQ_2_SEQ_LM", r=16, lora_alpha=32, target_modules=["q", "v"])
    model = get_peft_model(model, lora).eval()
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=settings.sft_lr, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, settings.sft_steps)
    for batch in draw_batches(rows, settings.sft_batch_size, settings.sft_steps):
        input_ids, attention_mask = encode_prompts(tokenizer, batch)
        summaries = [row["summary"] for row in batch]
        targets = tokenizer(text_target=summaries, padding=True, return_tensors="pt")
        labels = targets["input_ids"].masked_fill(targets["attention_mask"] == 0, -100)
        loss = model(input_ids=input_ids, attention_mask=attention_mask, labels=labels).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    print(f"supervised LoRA: {settings.sft_steps} steps, loss {loss.item():.3f}")
    model.save_pretrained(folder)


def draw_batches(
    rows: list[dict[str, str]], size: int, count: int
) -> Iterator[list[dict[str, str]]]:
    """Yield `count` random batches of rows."""
    for _ in range(count):
        yield [rows[i] for i in torch.randperm(len(rows))[:size].tolist()]


# ------------------------------------------------------------------- rollout


@torch.no_grad()
def sample(
    policy: PeftModel, input_ids: Tensor, attention_mask: Tensor, settings: Settings
) -> tuple[Tensor, Tensor]:
    """Draw one response to each prompt from the unfiltered distribution.

    Returns:
        Responses [B, T] without the start token, and the log-probabilities [B, T] that they were
        drawn with.
    """
    unfiltered = GenerationConfig(
        do_sample=True, top_k=0, top_p=1.0, temperature=settings.temperature,
        max_new_tokens=settings.max_new_tokens, return_dict_in_generate=True, output_scores=True,
    )  # fmt: skip
    output = policy.generate(
        input_ids=input_ids, attention_mask=attention_mask, generation_config=unfiltered
    )
    responses = output.sequences[:, 1:]
    logprobs = torch.stack(output.scores, dim=1).log_softmax(dim=-1)
    return responses, pick(logprobs, responses)


def response_mask(responses: Tensor, eos: int) -> Tensor:
    """Mark y1 .. EOS, by position: True [B, T] up to the first EOS, or everywhere without one."""
    ends = (responses == eos).long()
    return ends.cumsum(dim=1) - ends == 0


def score(
    policy: PeftModel,
    value_head: nn.Linear,
    input_ids: Tensor,
    attention_mask: Tensor,
    responses: Tensor,
    settings: Settings,
) -> tuple[Tensor, Tensor]:
    """Compute log pi(y_t | y_<t, prompt) and V_t of given responses; both [B, T].

    The decoder reads [start, y1 .. yT-1]; y_t and V_t belong to its position t - 1, where y_t is
    not yet known.
    """
    start = policy.get_base_model().config.decoder_start_token_id
    decoder_input_ids = torch.cat(
        [torch.full_like(responses[:, :1], start), responses[:, :-1]], dim=1
    )
    output = policy(
        input_ids=input_ids,
        attention_mask=attention_mask,
        decoder_input_ids=decoder_input_ids,
        output_hidden_states=True,
    )
    logprobs = (output.logits / settings.temperature).log_softmax(dim=-1)
    values = value_head(output.decoder_hidden_states[-1]).squeeze(-1)
    return pick(logprobs, responses), values


def pick(logprobs: Tensor, tokens: Tensor) -> Tensor:
    """Pick the log-probability of each token: [B, T, V] and [B, T] to [B, T]."""
    return logprobs.gather(-1, tokens[..., None]).squeeze(-1)


@torch.no_grad()
def collect(
    policy: PeftModel,
    value_head: nn.Linear,
    tokenizer: Any,
    judge: Judge,
    rows: Sequence[dict[str, str]],
    settings: Settings,
) -> Experience:
    """Sample responses to a batch of dialogues and compute all that the update needs."""
    input_ids, attention_mask = encode_prompts(tokenizer, rows)
    responses, sampled_logprobs = sample(policy, input_ids, attention_mask, settings)
    mask = response_mask(responses, tokenizer.eos_token_id)
    inputs = (input_ids, attention_mask, responses, settings)
    logprobs, values = score(policy, value_head, *inputs)
    with reference(policy):
        ref_logprobs, _ = score(policy, value_head, *inputs)
    scores, toxicity = judge(tokenizer.batch_decode(responses, skip_special_tokens=True))
    rewards = shape_rewards(scores, logprobs - ref_logprobs, mask, settings.kl_coef)
    advantages, returns = gae(rewards, values, mask, settings.gamma, settings.lam)
    return Experience(
        input_ids, attention_mask, responses, mask, sampled_logprobs, logprobs, ref_logprobs,
        values, scores, toxicity, whiten(advantages, mask), returns,
    )  # fmt: skip


# ------------------------------------------------------------------- rewards and advantages


def shape_rewards(scores: Tensor, kl: Tensor, mask: Tensor, kl_coef: float) -> Tensor:
    """Charge every token its KL, and add the score [B] at the last one: rewards [B, T].

    `kl` [B, T] is log pi - log pi_ref of the sampled tokens, Schulman's k1 (Ziegler et al. 2019).
    """
    rewards = -kl_coef * kl * mask
    last = mask.sum(dim=1) - 1
    rewards[torch.arange(len(scores)), last] += scores
    return rewards


def gae(
    rewards: Tensor, values: Tensor, mask: Tensor, gamma: float, lam: float
) -> tuple[Tensor, Tensor]:
    """Estimate advantages and returns, both [B, T] (Schulman et al. 2016, equation 16).

    delta_t = r_t + gamma V_{t+1} - V_t;  A_t = delta_t + gamma lam A_{t+1};  R_t = A_t + V_t.
    V and A are 0 after the last real token.
    """
    values = values * mask
    advantages = torch.zeros_like(rewards)
    next_value = next_advantage = torch.zeros(len(rewards))
    for t in reversed(range(rewards.shape[1])):
        delta = rewards[:, t] + gamma * next_value - values[:, t]
        next_advantage = (delta + gamma * lam * next_advantage) * mask[:, t]
        next_value = values[:, t]
        advantages[:, t] = next_advantage
    return advantages, advantages + values


def whiten(x: Tensor, mask: Tensor) -> Tensor:
    """Shift and scale x [B, T] to mean 0 and variance 1 over the real tokens."""
    real = x[mask]
    return (x - real.mean()) * torch.rsqrt(real.var(unbiased=False) + 1e-8) * mask


# ------------------------------------------------------------------- losses and update


def policy_loss(
    logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, mask: Tensor, clip: float
) -> Tensor:
    """Sum max(-A rho, -A clip(rho, 1 - clip, 1 + clip)) over the real tokens (PPO, equation 7)."""
    ratio = (logprobs - old_logprobs).exp()
    losses = torch.maximum(-advantages * ratio, -advantages * ratio.clamp(1 - clip, 1 + clip))
    return losses[mask].sum()


def value_loss(
    values: Tensor, old_values: Tensor, returns: Tensor, mask: Tensor, clip: float
) -> Tensor:
    """Sum 0.5 max((V - R)^2, (V_old + clip(V - V_old) - R)^2) over the real tokens."""
    clipped = old_values + (values - old_values).clamp(-clip, clip)
    losses = torch.maximum((values - returns).square(), (clipped - returns).square())
    return 0.5 * losses[mask].sum()


def ppo_loss(
    policy: PeftModel, value_head: nn.Linear, batch: Experience, settings: Settings
) -> tuple[Tensor, dict[str, float]]:
    """Compute the loss of a mini-batch, a mean over its real tokens, and metrics of it."""
    logprobs, values = score(
        policy, value_head, batch.input_ids, batch.attention_mask, batch.responses, settings
    )
    mask, tokens = batch.mask, batch.mask.sum()
    of_policy = policy_loss(logprobs, batch.logprobs, batch.advantages, mask, settings.clip)
    of_values = value_loss(values, batch.values, batch.returns, mask, settings.value_clip)
    loss = (of_policy + settings.value_weight * of_values) / tokens
    ratio = (logprobs - batch.logprobs).detach().exp()[mask]
    metrics = {
        "loss": loss.item(),
        "policy_loss": of_policy.item() / tokens.item(),
        "value_loss": of_values.item() / tokens.item(),
        "ratio": ratio.mean().item(),
        "approx_kl": 0.5 * ratio.log().square().mean().item(),
    }
    return loss, metrics


def update(
    policy: PeftModel,
    value_head: nn.Linear,
    optimizer: torch.optim.Optimizer,
    experience: Experience,
    settings: Settings,
) -> dict[str, float]:
    """Make several epochs of clipped gradient steps on one batch; return the last metrics."""
    trained = [p for group in optimizer.param_groups for p in group["params"]]
    for _ in range(settings.epochs):
        for rows in torch.randperm(len(experience.mask)).split(settings.minibatch_size):
            batch = Experience(*(tensor[rows] for tensor in experience))
            loss, metrics = ppo_loss(policy, value_head, batch, settings)
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(trained, settings.max_grad_norm)
            optimizer.step()
    return metrics


# ------------------------------------------------------------------- the gate


@torch.no_grad()
def gate(
    model: Any,
    input_ids: Tensor,
    attention_mask: Tensor,
    responses: Tensor,
    *,
    mask: Tensor,
    sampled_logprobs: Tensor,
    logprobs: Tensor,
    ref_logprobs: Tensor,
    new_logprobs: Tensor,
    temperature: float = 1.0,
    tolerance: float = 1e-3,
) -> dict[str, float]:
    """Check, before the first update, that a PPO implementation computes what it claims to.

    Args:
        model: The policy: any encoder-decoder of transformers, with or without PEFT.
        input_ids: Prompts, padded on the right, [B, S].
        attention_mask: Of the prompts, [B, S].
        responses: What was sampled, without the start token, [B, T].
        mask: Tokens that your losses count, [B, T].
        sampled_logprobs: Of the sampled tokens, under the distribution they were drawn from [B, T].
        logprobs: Stored with the rollout as log pi_old, [B, T].
        ref_logprobs: Under the reference, [B, T].
        new_logprobs: log pi in the first forward pass of the update, [B, T].
        temperature: Of the sampling.
        tolerance: Largest accepted difference in nats; 1e-3 suits fp32.

    Returns:
        The largest difference found by each check.

    Raises:
        RuntimeError: If a check fails. The message has the figures of all of them.
    """
    wrong_tokens, differences = 0, []
    for row, response in enumerate(responses.tolist()):
        # One row at a time, without padding: nothing here can share a mistake with a batch.
        eos = model.config.eos_token_id
        length = response.index(eos) + 1 if eos in response else len(response)
        wrong_tokens += int((mask[row] != (torch.arange(len(response)) < length)).sum())
        prompt = input_ids[row][attention_mask[row].bool()]
        decoder_input_ids = [model.config.decoder_start_token_id, *response[: length - 1]]
        logits = model(input_ids=prompt[None], decoder_input_ids=torch.tensor([decoder_input_ids]))
        own = (logits.logits[0] / temperature).log_softmax(dim=-1)
        truth = own[torch.arange(length), responses[row, :length]]
        differences.append((logprobs[row, :length] - truth).abs().max())
    real = response_mask(responses, model.config.eos_token_id)

    def largest(difference: Tensor) -> float:
        return difference[real].abs().max().item()

    figures = {
        "score against the model's own forward pass, nats": torch.stack(differences).max().item(),
        "KL to the reference, nats a token": largest(logprobs - ref_logprobs),
        "ratio - 1": largest((new_logprobs - logprobs).exp() - 1),
        "sampler against score, nats": largest(sampled_logprobs - logprobs),
        "tokens masked wrongly": float(wrong_tokens),
    }
    if any(not figure <= tolerance for figure in figures.values()):
        lines = [f"  {name}: {figure:.2g}" for name, figure in figures.items()]
        raise RuntimeError("\n".join(["step-0 gate failed:", *lines]))
    return figures


# ------------------------------------------------------------------- evaluation and main


@torch.no_grad()
def evaluate(
    policy: PeftModel, tokenizer: Any, judge: Judge, rows: list[dict[str, str]], settings: Settings
) -> dict[str, float]:
    """Summarize greedily: mean score, toxicity x 100 and overlap with the references x 100."""
    input_ids, attention_mask = encode_prompts(tokenizer, rows)
    greedy = GenerationConfig(do_sample=False, max_new_tokens=settings.max_new_tokens)
    tokens = policy.generate(
        input_ids=input_ids, attention_mask=attention_mask, generation_config=greedy
    )
    texts = tokenizer.batch_decode(tokens, skip_special_tokens=True)
    scores, toxicity = judge(texts)
    overlap = [unigram_f1(text, row["summary"]) for text, row in zip(texts, rows, strict=True)]
    return {
        "reward": scores.mean().item(),
        "toxicity": 100 * toxicity.mean().item(),
        "unigram_f1": 100 * sum(overlap) / len(overlap),
    }


def unigram_f1(text: str, reference_text: str) -> float:
    """Compare two texts by the words that they share: a rough ROUGE-1 in [0, 1]."""
    a, b = Counter(text.lower().split()), Counter(reference_text.lower().split())
    return 2 * (a & b).total() / max(a.total() + b.total(), 1)


def main() -> None:
    """Train a LoRA, make it polite by PPO, and print figures of every step."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--backbone", default=str(MINI / "t5"), help="folder or hub id")
    parser.add_argument("--judge", default=str(MINI / "roberta"), help="hate-speech classifier")
    parser.add_argument("--data", default=str(MINI), help="folder with {train,test}.jsonl")
    parser.add_argument("--adapter", help="folder of a LoRA to start from, instead of training one")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    torch.manual_seed(arguments.seed)
    settings = Settings()
    began = time.perf_counter()
    tokenizer = AutoTokenizer.from_pretrained(arguments.backbone)
    judge = Judge(arguments.judge)
    train, test = (read_rows(Path(arguments.data, f"{s}.jsonl")) for s in ("train", "test"))
    if arguments.adapter is None:
        arguments.adapter = tempfile.mkdtemp()
        train_adapter(arguments.backbone, tokenizer, train, settings, arguments.adapter)
    policy = load_policy(arguments.backbone, arguments.adapter)
    before = evaluate(policy, tokenizer, judge, test, settings)
    train_ppo(policy, tokenizer, judge, train, settings)
    after = evaluate(policy, tokenizer, judge, test, settings)
    for name in before:
        print(f"{name:>10}: {before[name]:6.2f} before, {after[name]:6.2f} after")
    print(f"{time.perf_counter() - began:.0f} s")


def train_ppo(
    policy: PeftModel,
    tokenizer: Any,
    judge: Judge,
    rows: list[dict[str, str]],
    settings: Settings,
) -> None:
    """Alternate rollouts and updates, after the gate has passed the first rollouts."""
    value_head = make_value_head(policy)
    lora = [p for p in policy.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(
        [
            {"params": lora, "lr": settings.policy_lr},
            {"params": value_head.parameters(), "lr": settings.value_lr},
        ],
        eps=1e-5,
        weight_decay=0.0,
    )
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, settings.steps)
    print("step   reward  kl(seq)  toxicity  ratio  seconds")
    for step, batch in enumerate(draw_batches(rows, settings.batch_size, settings.steps)):
        began = time.perf_counter()
        experience = collect(policy, value_head, tokenizer, judge, batch, settings)
        if step == 0:
            check_first(policy, value_head, experience, settings)
        metrics = update(policy, value_head, optimizer, experience, settings)
        schedule.step()
        kl = ((experience.logprobs - experience.ref_logprobs) * experience.mask).sum(dim=1).mean()
        print(
            f"{step:4d} {experience.scores.mean():8.3f} {kl:8.3f} "
            f"{100 * experience.toxicity.mean():9.2f} {metrics['ratio']:6.3f} "
            f"{time.perf_counter() - began:8.1f}", flush=True
        )


def check_first(policy, value_head, experience, settings) -> None:
    e = experience
    new_logprobs, _ = score(
        policy, value_head, e.input_ids, e.attention_mask, e.responses, settings
    )
    print(gate(
        policy, e.input_ids, e.attention_mask, e.responses, mask=e.mask,
        sampled_logprobs=e.sampled_logprobs, logprobs=e.logprobs, ref_logprobs=e.ref_logprobs,
        new_logprobs=new_logprobs, temperature=settings.temperature,
    ))


if __name__ == "__main__":
    main()
