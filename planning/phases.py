"""The phases of a run, each as its peak of live bytes: training step, evaluation, PPO's rollout."""

import contextlib
import copy
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_

from lightning_modules.adapters import count_parameters, encoder_is_trained, reference_policy
from lightning_modules.base import BaseModule
from lightning_modules.kernels import fuse, quicken
from lightning_modules.ppo.policy import PPOPolicy
from lightning_modules.ppo.rollout import Encoded, encode, score_tokens
from lightning_modules.ppo.value_head import ValueHead
from planning.classify import Classifier
from planning.losses import make_loss, make_rollout
from planning.models import build_judges, build_model, count_bytes, find_layers
from planning.parts import (
    CACHE,
    GRADIENTS,
    JUDGES,
    LOGITS,
    OPTIMIZER,
    OTHER,
    TENSORS,
    WEIGHTS,
    Computation,
    Lengths,
)
from planning.shapes import find_blueprint
from planning.trace import FusedKernels, LiveBytes, place

_JUDGED = 64  # texts in one pass of RewardScorer


@dataclass(frozen=True)
class Traced:
    """What the trace of one method found.

    Args:
        trainable: Number of trained parameters.
        total: Number of parameters, judges left out.
        largest_layer: Bytes of the weights of the largest repeated layer, or of the embedding.
        phases: Bytes by part at the peak of each phase.
    """

    trainable: int
    total: int
    largest_layer: int
    phases: dict[str, dict[str, int]]


def trace_module(
    module: BaseModule,
    lengths: Lengths,
    computation: Computation,
    judge: str | None = None,
    trains: bool = True,
) -> Traced:
    """Run the phases of a module without data, and find the peak of each.

    Args:
        module: As it is built from its settings, nothing loaded; it stays as it is.
        lengths: The largest batches.
        computation: How the numbers are computed.
        judge: The toxicity classifier that scores the evaluation's texts; None is none.
        trains: Whether the module is trained; else it is only evaluated.

    Raises:
        ValueError: If the config of a model cannot be had.
    """
    trial: Any = copy.deepcopy(module)
    blueprint = find_blueprint(trial.backbone_name, trial.kind)
    with torch.device("meta"):
        trial.model = build_model(trial, blueprint)
        if not computation.gpu:  # there dropout and attention are torch's own
            for each in (trial.model, getattr(trial, "reference", None)):
                if each is not None:
                    quicken(each)
        if isinstance(trial, PPOPolicy):
            trial.shares_encoder = not encoder_is_trained(trial.model)
            if trial.advantage.uses_values:
                trial.value_head = ValueHead(blueprint.config.hidden_size)
        judges = build_judges(trial, judge)
    trace = _Trace(trial, lengths.padded(), computation)
    return trace.run(judges, judge is not None, trains)


class _Trace:
    """One run without data: the module, its optimizer, and the count of live bytes."""

    def __init__(self, module: BaseModule, lengths: Lengths, how: Computation) -> None:
        self.module: Any = module
        self.lengths = lengths
        self.how = how
        self.live = LiveBytes(Classifier(module, lengths))
        self.phases: dict[str, dict[str, int]] = {}

    def run(self, judges: list[nn.Module], has_toxicity: bool, trains: bool) -> Traced:
        """Go through the phases that this kind of module has."""
        module = self.module
        with self.live, FusedKernels() if self.how.gpu else contextlib.nullcontext():
            for part, model in ((WEIGHTS, module), *((JUDGES, judge) for judge in judges)):
                place(model)
                self.live.name(part, model.parameters())
            self.parameters = [p for p in module.parameters() if p.requires_grad]
            if trains and self.parameters:
                self.train()
            self.evaluate(judges[-1:] if has_toxicity else [])
            if trains and isinstance(module, PPOPolicy):
                self.roll_out(judges[: len(judges) - has_toxicity])
        layers = [count_bytes(child) for child in find_layers(module.model)]
        return Traced(*count_parameters(module), max(layers, default=0), self.phases)

    # Phases -------------------------------------------------------------------------------------

    def train(self) -> None:
        """Take a step that meets the gradients and the optimizer state that others have left."""
        optimizer = self.optimizer = fuse(self.module.optimizer(self.module.parameter_groups()))
        for group in optimizer.param_groups:
            if self.how.gpu and group.get("foreach", True) is None:
                group["foreach"] = True  # torch's default there; on a CPU it goes one by one
        for parameter in self.parameters:
            parameter.grad = torch.empty_like(parameter)
        optimizer.step()
        self.live.name(GRADIENTS, (p.grad for p in self.parameters))
        for state in optimizer.state.values():
            self.live.name(OPTIMIZER, state.values())
        for parameter in self.parameters:
            parameter.register_post_accumulate_grad_hook(self.name_gradient)
        # In the order of Lightning's closure, and of PPO's own.
        with self.phase("forward and backward"):
            with self.autocast():
                loss = make_loss(self.module, self.lengths)
            optimizer.zero_grad()
            loss.backward()
            del loss
        with self.phase("optimizer step"):
            if self.how.clip:
                clip_grad_norm_(self.parameters, 1.0)
            optimizer.step()

    def name_gradient(self, parameter: Tensor) -> None:
        """Count a new gradient as one."""
        self.live.name(GRADIENTS, [parameter.grad])

    @torch.no_grad()
    def evaluate(self, judges: list[nn.Module]) -> None:
        """Take the loss of an evaluation batch, generate for it, and score the texts."""
        module, size = self.module, self.lengths
        module.eval()
        with self.phase("evaluation"), self.autocast():
            make_loss(module, replace(size, batch_size=size.eval_batch_size), updates=False)
        if module.generates:
            decoding = module.decoding
            rows = size.eval_batch_size * decoding.num_beams
            self.generate("evaluation, generating", rows, decoding.max_new_tokens)
            self.score("evaluation, scoring", judges, _JUDGED, decoding.max_new_tokens)
        module.train()

    @torch.no_grad()
    def roll_out(self, judges: list[nn.Module]) -> None:
        """Sample responses to a batch of prompts, and score their tokens and texts."""
        module, settings = self.module, self.module.ppo
        rows = self.lengths.batch_size * settings.samples
        self.generate("rollout, generating", rows, settings.max_new_tokens)
        prompts, _ = make_rollout(self.lengths.batch_size, self.lengths.source, 1)
        chunk = min(rows, settings.microbatch_size or settings.minibatch_size)
        responses = torch.ones(chunk, settings.max_new_tokens, dtype=torch.long)
        mask = torch.ones_like(responses, dtype=torch.bool)
        with self.phase("rollout, log-probabilities"), self.autocast():
            kept = encode(module.model, prompts)
            with reference_policy(module.model, module.reference) as reference:
                own = kept if module.shares_encoder else encode(reference, prompts)
                some = Encoded(*(each[:1].expand(chunk, *each.shape[1:]) for each in own))
                score_tokens(reference, some, responses, mask, settings.temperature)
            del kept, own, some
        self.score("rollout, reward", judges, min(rows, _JUDGED), settings.max_new_tokens)

    def generate(self, name: str, rows: int, new_tokens: int) -> None:
        """Reckon, without a trace, what decoding with a cache takes at its last token.

        Keys and values of every decoder layer, of the prompt for the cross-attention and of the
        text so far for the self-attention; and the logits of one position, as the model gives
        them, in fp32, as a processed copy, and as probabilities.
        """
        config = self.module.model.config
        inner = config.num_attention_heads * getattr(
            config, "d_kv", config.hidden_size // config.num_attention_heads
        )
        layers = getattr(config, "num_decoder_layers", None) or config.decoder_layers
        size = 2 if self.how.bf16 else 4
        virtual = getattr(self.module, "virtual_tokens", 0)
        source = self.lengths.source + virtual
        found = Counter(self.live.now)
        found[CACHE] = 2 * layers * rows * (source + new_tokens) * inner * size
        found[LOGITS] += 4 * rows * config.vocab_size * 4
        found[OTHER] += rows * source * config.hidden_size * 4
        self.record(name, found)

    def score(self, name: str, models: list[nn.Module], rows: int, new_tokens: int) -> None:
        """Let classifiers score texts of a length; in fp32 whatever the precision."""
        for model in models:
            config: Any = model.config
            ids = torch.ones(
                rows, min(new_tokens + 2, config.max_position_embeddings - 2), dtype=torch.long
            )
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
        """Record the peak of what runs inside a ``with`` block."""
        with self.live.watch() as found:
            yield
        self.record(name, found)

    def record(self, name: str, found: Counter[str]) -> None:
        """Keep the parts of a phase, in their order, those that are empty too."""
        self.phases[name] = {part: found[part] for part in TENSORS}
