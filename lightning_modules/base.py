"""BaseModule: backbone, optimizer, exact steps, checkpoints and export of every method."""

import logging
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeVar

import lightning as L
import torch
from lightning.pytorch.cli import OptimizerCallable
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from transformers import PreTrainedModel, get_scheduler

from common import hub
from common.memory import measure_free_memory
from lightning_modules.acceleration import accelerate
from lightning_modules.backbones import (
    Backbone,
    checkpoint_activations,
    find_frozen_problem,
    find_model_type,
    find_precision_problem,
    load_backbone,
    wrap_model,
)
from lightning_modules.fsdp import (
    FullyShardedStrategy,
    Shards,
    find_rows_problem,
    find_strategy_problem,
    full_state,
)
from lightning_modules.optimizer_step import (
    TEST,
    TRAINING,
    VALIDATION,
    StepSums,
    clip_by_norm,
    gradient_norm,
    gradients,
    seed_step,
    stop_if_not_finite,
)
from lightning_modules.policies.adapters import count_parameters
from lightning_modules.saving import check_checkpoint, save_model

logger = logging.getLogger(__name__)

Result = TypeVar("Result")


class BaseModule(L.LightningModule):
    """A pretrained backbone of which a part is trained.

    A subclass overrides :meth:`sum_losses`, and :meth:`attach`, which decides what is trained: it
    freezes, unfreezes or adds parameters, and everything else (optimizer, counts, checkpoints)
    follows their ``requires_grad``. The backbone is loaded in ``configure_model``, after the
    Trainer has checked everything else, so that constructing a module is cheap.

    Args:
        backbone: Hub id, a folder written by ``save_pretrained``, or ``mini``.
        optimizer: Builds the optimizer from the trained parameters.
        schedule: Learning rate after the warm-up: constant, or falling to 0 at the last step.
        warmup_fraction: Fraction of the steps in which the learning rate rises from 0.
        dropout: Dropout rate in the backbone; None keeps the backbone's own.
        gradient_checkpointing: Compute activations again in the backward pass instead of keeping
            them: less memory, one more forward pass, the same gradients.
        acceleration: Replace slow parts of the models on a CPU; see :mod:`~.acceleration`.
        frozen_bf16: Keep the backbone in bf16 and the adapter in fp32, with ``bf16-mixed``: half
            the memory of the weights.

    Raises:
        ValueError: If a setting is out of range.
    """

    kind: ClassVar[Literal["seq2seq", "classifier"]] = "seq2seq"
    """Kind of the backbone."""

    needs_training: ClassVar[bool] = True
    """Whether the method needs a fit before a test."""

    generates: ClassVar[bool] = False
    """Whether evaluation steps return texts for callbacks to score."""

    seed = 0
    """Seed of the run; a resumed run takes that of its checkpoint."""

    _step: StepSums
    """Losses of the optimizer step in progress."""

    def __init__(
        self,
        backbone: str,
        optimizer: OptimizerCallable = torch.optim.AdamW,
        schedule: Literal["constant", "linear", "cosine"] = "linear",
        warmup_fraction: float = 0.0,
        dropout: float | None = None,
        gradient_checkpointing: bool = False,
        acceleration: bool = True,
        frozen_bf16: bool = False,
    ) -> None:
        super().__init__()
        if dropout is not None and not 0 <= dropout < 1:
            raise ValueError(f"dropout must be in [0, 1), got {dropout}")
        if not 0 <= warmup_fraction < 1:
            raise ValueError(f"warmup_fraction must be in [0, 1), got {warmup_fraction}")
        self.backbone_name = backbone
        self.optimizer = optimizer
        self.schedule = schedule
        self.warmup_fraction = warmup_fraction
        self.dropout = dropout
        self.gradient_checkpointing = gradient_checkpointing
        self.acceleration = acceleration
        self.frozen_bf16 = frozen_bf16
        # A checkpoint holds what is trained and nothing else: see on_save_checkpoint.
        self.strict_loading = False
        self.model: Any = None
        self.tokenizer: Any = None
        self.backbone: Backbone  # set in configure_model
        self.shards: Shards | None = None

    @classmethod
    def find_problems(cls, init_args: Any, trainer: Any) -> list[str | None]:
        """List configuration problems before anything is loaded; None is no problem.

        Args:
            init_args: Parsed settings of this module.
            trainer: Settings of the Trainer.
        """
        name = hub.resolve_model(init_args.backbone, cls.kind)
        strategy = getattr(trainer.strategy, "class_path", trainer.strategy)
        missing = hub.find_model_problem(name, "backbone", cls.kind)
        known = () if missing else (find_model_type(name, cls.kind),)
        return [
            missing,
            find_precision_problem(trainer.precision, *known),
            find_frozen_problem(trainer.precision, strategy)
            if init_args.get("frozen_bf16")
            else None,
            find_strategy_problem(strategy),
        ]

    # Overridden by methods ----------------------------------------------------------------------

    def attach(self, backbone: PreTrainedModel) -> nn.Module:
        """Build the model from the backbone; its trained parameters require gradients."""
        raise NotImplementedError

    def load_backbone(self) -> PreTrainedModel:
        """Load the backbone in fp32."""
        return load_backbone(self.backbone_name, self.dropout)

    # Construction -------------------------------------------------------------------------------

    def setup(self, stage: str) -> None:
        """Check precision and strategy, and note the seed.

        Raises:
            ValueError: If the model cannot be trained with them.
        """
        model_type = find_model_type(self.backbone_name, self.kind)
        if problem := (
            find_precision_problem(self.trainer.precision, model_type)
            or find_strategy_problem(self.trainer.strategy)
            or find_rows_problem(self.trainer)
        ):
            raise ValueError(problem)
        strategy = self.trainer.strategy
        problem = find_frozen_problem(self.trainer.precision, strategy)
        if self.frozen_bf16 and problem:
            raise ValueError(problem)
        self.seed = torch.initial_seed()

    def configure_model(self) -> None:
        """Load the model once, and shard it if the strategy does so."""
        if self.model is not None:
            return
        self.load_model()
        strategy = getattr(self.attached_trainer, "strategy", None)
        if isinstance(strategy, FullyShardedStrategy):
            self.shards = Shards(self, strategy.root_device)

    def load_model(self) -> None:
        """Load the tokenizer and the backbone, and attach what is trained."""
        self.tokenizer = hub.load_tokenizer(self.backbone_name, self.kind)
        backbone = self.load_backbone()
        if self.frozen_bf16:
            for weight in backbone.parameters():  # buffers, such as rotary frequencies, stay
                weight.data = weight.data.to(torch.bfloat16)
        self.model = self.attach(backbone)
        if any(weight.dtype != torch.float32 for _, weight in self.trained_parameters()):
            raise ValueError(
                f"model.frozen_bf16: {type(self).__name__} trains weights of the backbone, and in "
                "bf16 an update of 1e-5 rounds to nothing; leave it false, or train an adapter"
            )
        if self.acceleration:
            accelerate(self)
        if self.kind == "seq2seq":
            self.backbone = wrap_model(self.model, self.tokenizer)
        if self.gradient_checkpointing:
            checkpoint_activations(self.model)
        # from_pretrained returns a model in eval mode, and Lightning keeps modes as they are:
        # without this neither dropout nor gradient checkpointing would ever be on.
        self.model.train()

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Build the optimizer of the trained parameters, and its schedule by steps."""
        trainable, total = self.count_parameters()
        share = f"{trainable:,} of {total:,} parameters ({100 * trainable / total:.2f} %)"
        logger.info("%s on %s trains %s", type(self).__name__, self.backbone_name, share)
        needed, free = 12 * trainable, measure_free_memory(self.device)
        if free is not None and needed > free and self.trainer.world_size == 1:
            logger.warning(
                "gradients and Adam's moments alone take %.1f GB, and %.1f GB are free; train "
                "fewer weights (LoRA), or shard them (configs/overlays/fsdp.yaml). `python -m "
                "alignsum plan` estimates the whole need", needed / 1e9, free / 1e9,
            )  # fmt: skip
        optimizer = self.optimizer(self.parameter_groups())
        steps = int(self.trainer.estimated_stepping_batches)
        # The "constant" of transformers silently ignores the warm-up.
        name = "constant_with_warmup" if self.schedule == "constant" else self.schedule
        scheduler = get_scheduler(name, optimizer, round(self.warmup_fraction * steps), steps)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": scheduler, "interval": "step"},
        }

    def trained_parameters(self) -> Iterator[tuple[str, Tensor]]:
        """Yield the names and values of the trained parameters."""
        return ((name, p) for name, p in self.named_parameters() if p.requires_grad)

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Return the trained parameters in the groups of the optimizer."""
        return [{"params": [weight for _, weight in self.trained_parameters()]}]

    def count_parameters(self) -> tuple[int, int]:
        """Count the trained parameters, and all of them."""
        return count_parameters(self.model)

    @property
    def attached_trainer(self) -> L.Trainer | None:
        """The Trainer, or None without one."""
        try:
            return self.trainer
        except RuntimeError:
            return None

    # Sharded models: see fsdp.py -----------------------------------------------------------------

    def as_forward(self, work: Callable[[], Result]) -> Result:
        """Run work with gradients on the models; sharded models can be called only in here."""
        return work() if self.shards is None else self.shards.as_forward(work)

    def gathered(self) -> AbstractContextManager[None]:
        """Gather all weights, if they are sharded, for passes without gradients."""
        return nullcontext() if self.shards is None else self.shards.gathered()

    # One optimizer step: see optimizer_step.py ---------------------------------------------------

    def sum_losses(self, batch: Any) -> tuple[Tensor, Tensor]:
        """Return the sum of the losses in a batch, and their number: two scalars."""
        raise NotImplementedError

    def sum_over_ranks(self, value: Tensor) -> Tensor:
        """Sum a tensor over all ranks, without gradient."""
        if self.trainer.world_size == 1:
            return value
        return self.trainer.strategy.reduce(value.detach().clone(), reduce_op="sum")

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Reset the sums and the random numbers at the first micro-batch of a step."""
        if batch_idx % self.trainer.accumulate_grad_batches == 0:
            self._step = StepSums(self.sum_over_ranks, self.trainer.world_size)
            seed_step(self.seed, TRAINING, self.global_rank, self.global_step)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        """Compute the loss of a micro-batch, which may have no rows on this rank."""
        if batch["ids"]:
            loss_sum, count = self.as_forward(lambda: self.sum_losses(batch))
        else:
            # DDP waits for a gradient of every trained weight; see LengthBatchSampler.
            count = torch.zeros((), device=self.device)
            loss_sum = sum((0.0 * weight.sum() for _, weight in self.trained_parameters()), count)
        return self._step.add(loss_sum, count, batch)

    def optimizer_step(
        self,
        epoch: int,
        batch_idx: int,
        optimizer: Any,
        optimizer_closure: Callable[[], Any] | None = None,
    ) -> None:
        """Scale the accumulated gradients to the exact mean before any hook sees them."""
        accumulate = self.trainer.accumulate_grad_batches

        def closure() -> Any:
            loss = optimizer_closure() if optimizer_closure else None
            if accumulate > 1:
                factor = accumulate * self._step.gradient_factor()
                for gradient in gradients(optimizer):
                    gradient.mul_(factor)
            return loss

        super().optimizer_step(epoch, batch_idx, optimizer, closure)

    def configure_gradient_clipping(
        self,
        optimizer: Any,
        gradient_clip_val: int | float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Log the loss and gradient norm of the step, check both, and clip the gradients.

        Raises:
            FloatingPointError: If one of the two is not finite.
        """
        norm = gradient_norm(optimizer)
        found = {"train/loss": self._step.mean(), "train/grad_norm": norm}
        for name, value in found.items():
            shown = name == "train/loss"
            self.log(name, value, on_step=True, on_epoch=False, prog_bar=shown, batch_size=1)
        stop_if_not_finite(self, found, self._step.suspect_rows(), self._step.batches)
        if gradient_clip_val and gradient_clip_algorithm == "value":
            self.clip_gradients(optimizer, gradient_clip_val, gradient_clip_algorithm)
        elif gradient_clip_val:
            clip_by_norm(optimizer, gradient_clip_val, norm)

    # Evaluation ---------------------------------------------------------------------------------

    def on_validation_start(self) -> None:
        """Seed a validation within a fit: texts may be sampled in it."""
        if self.trainer.state.fn == TrainerFn.FITTING and not self.trainer.sanity_checking:
            seed_step(self.seed, VALIDATION, self.global_rank, self.global_step)

    def on_test_start(self) -> None:
        """Use the seed of this command rather than that of a checkpoint."""
        self.seed = torch.initial_seed()

    def on_test_batch_start(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Give every model that is tested on a batch the same random numbers."""
        seed_step(self.seed, TEST, self.global_rank, batch_idx)

    def log_mean(self, name: str, value: Tensor, count: int, **settings: Any) -> None:
        """Log the mean over everything counted, in all evaluation batches on all ranks.

        Lightning averages the counts over the ranks and rounds that down; times the number of
        ranks, the average is their sum.

        Args:
            name: Of the metric.
            value: The batch's mean on this rank.
            count: How many values are in it.
            **settings: See ``log``.
        """
        weight = count * getattr(self.attached_trainer, "world_size", 1)
        self.log(name, value, batch_size=weight, sync_dist=True, **settings)

    # What a run leaves --------------------------------------------------------------------------

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep only the trained weights; the frozen ones are in the backbone's own files."""
        state = checkpoint["state_dict"]
        checkpoint["state_dict"] = {name: state[name] for name, _ in self.trained_parameters()}
        checkpoint["alignsum"] = self.origin
        checkpoint["seed"] = self.seed

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse a checkpoint of another method, backbone or shape; restore the seed.

        Raises:
            ValueError: If it is one.
        """
        check_checkpoint(checkpoint, self.origin, self.trained_parameters())
        self.seed = checkpoint["seed"]

    @property
    def origin(self) -> dict[str, str]:
        """Method and backbone, by its full path however it was spelled, of this run."""
        backbone = hub.resolve_model(self.backbone_name, self.kind)
        return {"method": type(self).__name__, "backbone": backbone}

    def export(self, path: str | Path) -> dict[str, Any]:
        """Write the model from rank 0; call it on every rank, as sharded weights are gathered.

        Returns:
            Entries for the run's summary.
        """
        is_first = self.global_rank == 0
        state = None
        if self.shards is not None:
            state = full_state(self.model.state_dict(keep_vars=True), keep=is_first)
        with self.gathered():  # PEFT computes a soft prompt to save it
            if is_first:
                save_model(self.model, self.tokenizer, path, state)
        return {}
