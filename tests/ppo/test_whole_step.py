"""A whole training step against one that is written out: token by token, row by row, by autograd.

The parts are tested by themselves. Here it is how they are put together: which temperature, which
log-probabilities, which sign and which weight each of them gets.
"""

from pathlib import Path
from typing import Any, NamedTuple

import lightning as L
import pytest
import torch
from torch import Tensor

from lightning_modules import PPOPolicy
from lightning_modules.policies.kinds import LoRAPolicy
from lightning_modules.ppo.advantages import GAE, GRPO, RLOO, ReinforcePlusPlus
from lightning_modules.ppo.config import PPOConfig
from lightning_modules.ppo.reward_terms import FunctionReward
from tests.backbones.decoders import save
from tests.batches import loader, make_batch, make_trainer, settle
from tests.models import move_lora

RATE, VALUE_RATE, EPOCHS = 0.5, 0.05, 2
ZERO = torch.zeros(())


def count_letters(predictions: list[str], *_: Any) -> list[float]:
    return [len(text) / 5 for text in predictions]


def count_kinds(predictions: list[str], *_: Any) -> list[float]:
    return [len(set(text)) / 3 for text in predictions]


CASES: dict[str, dict[str, Any]] = {
    "gae": {
        "advantage": GAE(gamma=0.9, lam=0.8),
        "ppo": {
            "temperature": 0.7, "kl_coef": 0.3, "unfinished_penalty": 0.5,
            "max_grad_norm": 0.2, "value_weight": 0.4, "value_clip": 0.01, "clip": 0.02,
        },
    },
    "rloo": {
        "advantage": RLOO(normalize=True),
        "ppo": {"samples": 2, "kl_estimator": "k3", "temperature": 1.4, "kl_coef": 0.2,
                "clip": 0.02, "unfinished_penalty": 2.0},
    },
    "grpo": {
        "advantage": GRPO(),
        "ppo": {"samples": 3, "kl_estimator": "k2", "kl_in_loss": True, "kl_coef": 0.7,
                "temperature": 0.7, "microbatch_size": 5, "normalize_scores": True},
    },
    "dapo": {
        "advantage": GRPO(),
        "ppo": {"samples": 3, "clip": 0.01, "clip_high": 0.05, "microbatch_size": 5},
    },
    "dr_grpo": {
        "advantage": GRPO(scale=False),
        "ppo": {"samples": 3, "clip": 0.02, "normalizer": "max_tokens", "microbatch_size": 5},
    },
    "gspo": {
        "advantage": GRPO(),
        "ppo": {"samples": 3, "clip": 0.01, "objective": "gspo", "normalizer": "sequences",
                "microbatch_size": 5},
    },
    "cispo": {
        "advantage": GRPO(),
        "ppo": {"samples": 3, "clip": 0.02, "clip_high": 0.01, "objective": "cispo"},
    },
    "reinforce++": {
        "advantage": ReinforcePlusPlus(gamma=0.9),
        "ppo": {"clip": 0.02, "kl_coef": 0.3, "dual_clip": 1.01},
    },
    "gae over sequences": {
        "advantage": GAE(gamma=0.9, lam=0.8),
        "ppo": {"value_weight": 0.4, "normalizer": "sequences", "microbatch_size": 5},
    },
}  # fmt: skip


class Moved(PPOPolicy):
    """Starts away from its reference, so that there is a KL from the first batch on."""

    def configure_model(self) -> None:
        super().configure_model()
        torch.manual_seed(3)
        move_lora(self.model)
        # About one token in ten ends a response.
        base = self.model.get_base_model()
        bias = torch.zeros(base.lm_head.weight.shape[0])
        bias[1] = 2.5 if base.config.is_encoder_decoder else 4.0
        base.lm_head.bias = torch.nn.Parameter(bias, requires_grad=False)
        self.gate_passed = True


class Keep(L.Callback):
    outputs: Any

    def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, *_: Any) -> None:
        self.outputs = outputs


def make(backbone: str, case: dict[str, Any]) -> Any:
    ppo = {"max_new_tokens": 8, "epochs": EPOCHS, "minibatch_size": 100} | case["ppo"]
    terms = {
        "letters": FunctionReward(f"{__name__}.count_letters", weight=0.5),
        "kinds": FunctionReward(f"{__name__}.count_kinds", weight=-1.0),
    }
    module = Moved(
        backbone=backbone, reward_model=None, extra_rewards=terms, policy=LoRAPolicy(r=4, alpha=8),
        advantage=case["advantage"], ppo=PPOConfig(**ppo), value_lr=VALUE_RATE,
        optimizer=lambda groups: torch.optim.SGD(groups, lr=RATE),
    )  # fmt: skip
    return settle(module)


class Row(NamedTuple):
    """A response of n tokens as the slow step knows it; numbers of tokens are lists of n."""

    prompt: Tensor
    tokens: list[int]
    text: str
    old: list[float]
    reference: list[float]
    old_values: list[float]


class SlowStep:
    """Two epochs of one minibatch, from the definitions in docs/ppo.md."""

    def __init__(self, module: Any, rows: list[Row], advantage: Any) -> None:
        self.module, self.rows, self.advantage, self.config = module, rows, advantage, module.ppo

    def scores(self) -> list[float]:
        c = self.config
        texts = [row.text for row in self.rows]
        pairs = zip(count_letters(texts), count_kinds(texts), strict=True)
        scores = [0.5 * letters - kinds for letters, kinds in pairs]
        if c.normalize_scores:
            mean = sum(scores) / len(scores)
            std = (sum((s - mean) ** 2 for s in scores) / len(scores)) ** 0.5
            scores = [(s - mean) / std for s in scores]
        for i, row in enumerate(self.rows):
            if row.tokens[-1] != 1:
                scores[i] -= c.unfinished_penalty
        return scores

    def rewards(self) -> list[list[float]]:
        c = self.config
        beta = 0.0 if c.kl_in_loss else c.kl_coef
        rewards = []
        for row, score in zip(self.rows, self.scores(), strict=True):
            gaps = torch.tensor(row.old) - torch.tensor(row.reference)
            estimate = {
                "k1": gaps, "k2": gaps**2 / 2, "k3": torch.exp(-gaps) - 1 + gaps
            }[c.kl_estimator]  # fmt: skip
            own = (-beta * estimate).tolist()
            own[-1] += score
            rewards.append(own)
        return rewards

    def credit(self) -> tuple[list[list[float]], list[list[float]]]:
        rewards, k = self.rewards(), self.config.samples
        advantages, returns = [], []
        for i, row in enumerate(self.rows):
            if isinstance(self.advantage, GAE):
                own, running, after = [], 0.0, 0.0
                for r, v in zip(reversed(rewards[i]), reversed(row.old_values), strict=True):
                    running = r + 0.9 * after - v + 0.9 * 0.8 * running
                    own.insert(0, running)
                    after = v
            elif isinstance(self.advantage, ReinforcePlusPlus):
                own = [
                    sum(0.9**s * r for s, r in enumerate(rewards[i][t:]))
                    for t in range(len(rewards[i]))
                ]
            else:
                totals = [sum(rewards[j]) for j in range(i // k * k, i // k * k + k)]
                others = (sum(totals) - totals[i % k]) / (k - 1)
                value = totals[i % k] - others
                if isinstance(self.advantage, GRPO):
                    std = torch.tensor(totals).std().item() + 1e-4 if self.advantage.scale else 1.0
                    value = (totals[i % k] - sum(totals) / k) / std
                own = [value] * len(row.tokens)
            advantages.append(own)
            returns.append([a + v for a, v in zip(own, row.old_values, strict=True)])
        return whiten(advantages) if self.advantage.whiten else advantages, returns

    def loss(self, advantages: list[list[float]], returns: list[list[float]]) -> Tensor:
        c, sums = self.config, []
        for row, own, target in zip(self.rows, advantages, returns, strict=True):
            new, values = read(self.module, row.prompt, row.tokens)
            n, total = len(row.tokens), torch.zeros(())
            for t in range(n):
                ratio = (new[t] - row.old[t]).exp()
                if c.objective == "gspo":
                    ratio = torch.stack([new[s] - row.old[s] for s in range(n)]).mean().exp()
                near = ratio.clamp(1 - c.clip, 1 + (c.clip_high or c.clip))
                gain = torch.minimum(own[t] * ratio, own[t] * near)
                if c.dual_clip and own[t] < 0:
                    gain = torch.maximum(gain, torch.tensor(c.dual_clip * own[t]))
                if c.objective == "cispo":
                    gain = near.item() * own[t] * new[t]
                total = total - gain
                if self.module.value_head is not None:
                    moved = (values[t] - row.old_values[t]).clamp(-c.value_clip, c.value_clip)
                    worse = torch.maximum(
                        (values[t] - target[t]) ** 2, (row.old_values[t] + moved - target[t]) ** 2
                    )
                    total = total + c.value_weight * worse / 2
                if c.kl_in_loss:
                    total = total + c.kl_coef * (new[t] - row.reference[t]) ** 2 / 2
            sums.append(total)
        lengths = [len(row.tokens) for row in self.rows]
        if c.normalizer == "sequences":
            return sum((s / n for s, n in zip(sums, lengths, strict=True)), ZERO) / len(sums)
        total = sum(sums, ZERO)
        return total / (8 * len(sums) if c.normalizer == "max_tokens" else sum(lengths))

    def learn(self) -> None:
        credit = self.credit()
        named = [(n, p) for n, p in self.module.named_parameters() if p.requires_grad]
        for _ in range(EPOCHS):
            gradients = torch.autograd.grad(self.loss(*credit), [p for _, p in named])
            norm = sum(float((g**2).sum()) for g in gradients) ** 0.5
            factor = min(1.0, self.config.max_grad_norm / norm)
            with torch.no_grad():
                for (name, p), gradient in zip(named, gradients, strict=True):
                    rate = VALUE_RATE if name.startswith("value_head") else RATE
                    p -= rate * factor * gradient


def whiten(values: list[list[float]]) -> list[list[float]]:
    flat = [each for own in values for each in own]
    mean = sum(flat) / len(flat)
    std = (sum((each - mean) ** 2 for each in flat) / len(flat) + 1e-8) ** 0.5
    return [[(each - mean) / std for each in own] for own in values]


def read(module: Any, prompt: Tensor, tokens: list[int]) -> tuple[Tensor, Tensor]:
    """Log-probabilities of a response and values, by the model's own forward pass of one row."""
    given, n = torch.tensor([tokens]), len(tokens)
    if module.model.config.is_encoder_decoder:
        start = torch.cat([torch.zeros_like(given[:, :1]), given[:, :-1]], dim=1)
        inputs = {"input_ids": prompt[None], "decoder_input_ids": start}
    else:
        inputs = {"input_ids": torch.cat([prompt[None], given[:, :-1]], dim=1)}
    output = module.model(**inputs, output_hidden_states=True)
    logprobs = (output.logits[0, -n:] / module.ppo.temperature).log_softmax(-1)
    own = logprobs[torch.arange(n), given[0]]
    if module.value_head is None:
        return own, torch.zeros(n)
    states = output.get("decoder_hidden_states") or output.hidden_states
    return own, module.value_head(states[-1])[0, -n:]


@torch.no_grad()
def read_rows(module: Any, outputs: Any) -> list[Row]:
    rollout = outputs["step"].rollout
    rows = []
    for i, owner in enumerate(rollout.owner.tolist()):
        prompt = rollout.prompts.input_ids[owner]
        prompt = prompt[rollout.prompts.attention_mask[owner].bool()]
        tokens = rollout.responses[i].tolist()
        tokens = tokens[: tokens.index(1) + 1] if 1 in tokens else tokens
        old, values = read(module, prompt, tokens)
        with module.open_reference():
            reference, _ = read(module, prompt, tokens)
        text = outputs["step"].texts[i]
        rows.append(Row(prompt, tokens, text, old.tolist(), reference.tolist(), values.tolist()))
    return rows


@pytest.mark.parametrize("family", ["encoder-decoder", "decoder-only"])
@pytest.mark.parametrize("case", CASES)
def test_a_step_is_the_one_that_is_written_out(
    t5: str, tmp_path: Path, case: str, family: str
) -> None:
    backbone = t5 if family == "encoder-decoder" else save("gemma3", tmp_path / "gemma3")
    keep, fast, slow = Keep(), make(backbone, CASES[case]), make(backbone, CASES[case])
    start = {n: p.detach().clone() for n, p in fast.named_parameters() if p.requires_grad}
    torch.manual_seed(11)
    make_trainer(tmp_path, callbacks=[keep]).fit(fast, loader(make_batch(backbone)))
    rows = read_rows(slow, keep.outputs)
    ends = [row.tokens[-1] == 1 for row in rows]
    assert any(ends) and not all(ends)
    SlowStep(slow, rows, CASES[case]["advantage"]).learn()
    own = dict(fast.named_parameters())
    moved = torch.cat([(own[n] - value).flatten() for n, value in start.items()]).detach()
    wanted = torch.cat(
        [(p - start[n]).flatten() for n, p in slow.named_parameters() if n in start]
    ).detach()
    assert wanted.norm() > 1e-2
    assert (moved - wanted).norm() < 1e-4 * wanted.norm()
