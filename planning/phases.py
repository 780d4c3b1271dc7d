"""The phases of a run, each as its peak of live bytes: training step, evaluation, PPO's rollout."""

import contextlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_

from lightning_modules.adapters import count_parameters, reference_policy
from lightning_modules.base import BaseModule
from lightning_modules.kernels import fuse
from lightning_modules.policy_module import PolicyModule
from lightning_modules.ppo.policy import PPOPolicy
from lightning_modules.ppo.token_scores import encode, score_in_chunks
from lightning_modules.ppo.update import minibatch_loss
from planning.batches import find_chunk, make_batch, make_experience, make_prompts
from planning.decoding import reckon_decoding
from planning.gpu import fused_kernels, slow_down
from planning.models import build_judge, build_module, build_rewards, count_units
from planning.parts import (
    ATTENTION,
    COPIES,
    GRADIENTS,
    JUDGES,
    LOGITS,
    OPTIMIZER,
    OTHER,
    PARTS,
    WEIGHTS,
    Computation,
    Lengths,
)
from planning.strategies import Size
from planning.trace import LiveBytes, place

_CAST = torch.ops.aten._to_copy.default
_JUDGED = 64  # texts in one pass of RewardScorer


@dataclass(frozen=True)
class Traced:
    """What the trace of one method found.

    Args:
        total: Number of parameters, judges left out.
        size: What a strategy needs to know.
        phases: Bytes by part at the peak of each phase.
    """

    total: int
    size: Size
    phases: dict[str, dict[str, int]]


def trace_module(
    module: BaseModule,
    lengths: Lengths,
    how: Computation,
    judge: str | None = None,
    trains: bool = True,
) -> Traced:
    """Run the phases of a module without data, and find the peak of each.

    Args:
        module: As it is built from its settings, nothing loaded; it stays as it is.
        lengths: The largest batches.
        how: How the numbers are computed.
        judge: The toxicity classifier that scores the evaluation's texts; None is none.
        trains: Whether the module is trained; else it is only evaluated.

    Raises:
        ValueError: If the config of a model cannot be had.
    """
    trial = build_module(module)
    rewards = build_rewards(trial)
    judges = [build_judge(judge)] if judge and trial.generates else []
    if how.gpu:
        slow_down(trial)
    trace = _Trace(trial, lengths, how)
    with trace.live, fused_kernels() if how.gpu else contextlib.nullcontext():
        trace.place(rewards + judges)
        if trains and any(p.requires_grad for p in trial.parameters()):
            trace.train(rewards)
        trace.evaluate(judges)
    trainable, total = count_parameters(trial)
    return Traced(total, Size(trainable, *count_units(trial.model)), trace.phases)


class _Trace:
    """One run without data: a module with its model, and the count of live bytes."""

    def __init__(self, module: Any, lengths: Lengths, how: Computation) -> None:
        self.module = module
        self.lengths = lengths
        self.how = how
        self.live = LiveBytes(self.classify)
        self.phases: dict[str, dict[str, int]] = {}
        self.weights = {tuple(p.shape) for p in module.parameters() if p.dim() == 2}
        kind = module.policy if isinstance(module, PolicyModule) else module
        self.source = lengths.source + getattr(kind, "virtual_tokens", 0)
        self.positions = {self.source, lengths.target}
        if isinstance(module, PPOPolicy):
            self.positions.add(module.ppo.max_new_tokens)

    def classify(self, tensor: Tensor, made_by: Any) -> str:
        """Name the part of a new tensor, from its shape and the operation that made it."""
        shape = tuple(tensor.shape)
        if made_by is _CAST and tensor.dtype == torch.bfloat16 and shape in self.weights:
            return COPIES
        if self.module.generates and shape and shape[-1] == self.module.model.config.vocab_size:
            return LOGITS
        if len(shape) > 2 and {*shape[-2:]} <= self.positions:
            return ATTENTION
        return OTHER

    def place(self, judges: list[nn.Module]) -> None:
        """Count the weights."""
        for part, model in ((WEIGHTS, self.module), *((JUDGES, judge) for judge in judges)):
            place(model)
            self.live.name(part, model.parameters())

    # Phases -------------------------------------------------------------------------------------

    def train(self, rewards: list[nn.Module]) -> None:
        """Take a step that meets the gradients and the optimizer state that others have left."""
        parameters = [p for p in self.module.parameters() if p.requires_grad]
        optimizer = fuse(self.module.optimizer(self.module.parameter_groups()))
        for group in optimizer.param_groups:
            if self.how.gpu and group.get("foreach", True) is None and not group.get("fused"):
                group["foreach"] = True  # torch's default there; on a CPU it goes one by one
        for parameter in parameters:
            parameter.grad = torch.empty_like(parameter)
            parameter.register_post_accumulate_grad_hook(
                lambda parameter: self.live.name(GRADIENTS, [parameter.grad])
            )
        self.live.name(GRADIENTS, (p.grad for p in parameters))
        optimizer.step()
        for state in optimizer.state.values():
            self.live.name(OPTIMIZER, state.values())
        if isinstance(self.module, PPOPolicy):
            self.roll_out(rewards)
            self.update(optimizer)
        else:
            self.learn(optimizer)
        with self.phase("optimizer step"):
            clip_grad_norm_(parameters, 1.0)
            optimizer.step()

    def learn(self, optimizer: Any) -> None:
        """Go forward and backward in the order of Lightning's closure."""
        batch = make_batch(self.module, self.lengths.batch_size, self.lengths)
        with self.phase("forward and backward"):
            with self.autocast():
                loss, count = self.module.sum_losses(batch)
                loss = loss / count
            optimizer.zero_grad()
            loss.backward()

    def update(self, optimizer: Any) -> None:
        """Go forward and backward in the order of ``PPOPolicy.step``, two micro-batches."""
        module = self.module
        with torch.no_grad(), self.autocast():
            prompts = make_prompts(self.lengths.batch_size, self.lengths.source)
            shared = module.shares_encoder
            encoded = encode(module.model, prompts, projects=True) if shared else None
        with self.phase("forward and backward"):
            optimizer.zero_grad()
            part = make_experience(module, self.lengths, encoded)
            for _ in range(2 if module.ppo.microbatch_size else 1):
                with self.autocast():
                    loss = minibatch_loss(module.model, module.value_head, part, module.ppo)[0]
                loss.backward()

    @torch.no_grad()
    def roll_out(self, rewards: list[nn.Module]) -> None:
        """Sample responses to a batch of prompts, and score their tokens and texts."""
        module, settings = self.module, self.module.ppo
        rows = self.lengths.batch_size * settings.samples
        prompts = make_prompts(self.lengths.batch_size, self.lengths.source)
        projects = module.shares_encoder or settings.samples > 1
        with self.phase("rollout, encoding"), self.autocast():
            encoded = encode(module.model, prompts, projects)
        self.generate("rollout, sampling", rows, settings.max_new_tokens, packed=True)
        chunk = find_chunk(module, self.lengths)
        responses = torch.ones(chunk, settings.max_new_tokens, dtype=torch.long)
        said = (torch.arange(chunk), responses, responses.bool(), settings.temperature, chunk)
        reuse = settings.reuse_sampler
        with self.phase("rollout, scoring"), self.autocast():
            if not (reuse or (reuse is None and not self.how.bf16)):
                score_in_chunks(module.model, encoded, *said, module.value_head, with_entropy=True)
            with reference_policy(module.model, module.reference) as reference:
                its = encoded if module.shares_encoder else encode(reference, prompts)
                score_in_chunks(reference, its, *said)
        del encoded, its
        self.score("rollout, reward", rewards, min(rows, _JUDGED), settings.max_new_tokens)

    @torch.no_grad()
    def evaluate(self, judges: list[nn.Module]) -> None:
        """Take the loss of an evaluation batch, generate for it, and score the texts."""
        module, rows = self.module, self.lengths.eval_batch_size
        module.eval()
        with self.phase("evaluation"), self.autocast():
            module.sum_losses(make_batch(module, rows, self.lengths))
        if module.generates:
            decoding = module.decoding
            self.generate(
                "evaluation, generating", rows * decoding.num_beams, decoding.max_new_tokens
            )
            self.score("evaluation, scoring", judges, _JUDGED, decoding.max_new_tokens)

    def generate(self, name: str, rows: int, new_tokens: int, packed: bool = False) -> None:
        """Add what decoding takes to what is there; see :func:`reckon_decoding`."""
        model = self.module.model
        taken = reckon_decoding(model, rows, self.source, new_tokens, self.how.bf16, packed)
        self.record(name, Counter(self.live.now) + taken)

    def score(self, name: str, models: list[nn.Module], rows: int, new_tokens: int) -> None:
        """Let classifiers score texts of a length; in fp32 whatever the precision."""
        for model in models:
            config: Any = model.config
            length = min(new_tokens + 2, config.max_position_embeddings - 2)
            ids = torch.ones(rows, length, dtype=torch.long)
            with self.phase(name):
                model(input_ids=ids, attention_mask=torch.ones_like(ids))

    # Bookkeeping --------------------------------------------------------------------------------

    def autocast(self) -> Any:
        """Compute as Lightning does in the precision asked for; it keeps no cache of casts."""
        if not self.how.bf16:
            return contextlib.nullcontext()
        return torch.autocast("cpu", dtype=torch.bfloat16, cache_enabled=False)

    @contextlib.contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Record the peak of what runs inside a ``with`` block; of several, the largest."""
        with self.live.watch() as found:
            yield
        self.record(name, found)

    def record(self, name: str, found: Counter[str]) -> None:
        """Keep the parts of a phase, those that are empty too."""
        parts = {part: found[part] for part in PARTS}
        known = self.phases.get(name, {})
        self.phases[name] = max(known, parts, key=lambda each: sum(each.values()))
