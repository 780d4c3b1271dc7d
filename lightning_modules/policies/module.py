"""PolicyModule: a policy that is trained away from a frozen reference, by whatever method."""

from contextlib import AbstractContextManager
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

from peft import PeftModel
from torch import nn
from transformers import PreTrainedModel

from common.imports import instantiate
from datamodules.batching import Batch
from lightning_modules.backbones import Backbone, Decoding, set_dropout
from lightning_modules.base import BaseModule
from lightning_modules.policies.adapters import REFERENCE, count_parameters, reference_backbone
from lightning_modules.policies.gate import GateFigures, fingerprint
from lightning_modules.policies.kinds import PolicyKind
from lightning_modules.summarization import evaluate


class PolicyModule(BaseModule):
    """A policy and the reference that it started from, on one backbone where adapters allow it.

    Every dropout is 0, so that all passes see one function. A test generates with both. A
    checkpoint identifies the reference by its hash, and the export is the policy alone.

    Args:
        backbone: Hub id, a folder written by ``save_pretrained``, or ``mini``.
        policy: What of the backbone is trained.
        adapter: Export folder of an adapter to start from; None starts a new one.
        decoding: How summaries are generated in validation, test and predict.
        **kwargs: See :class:`BaseModule`.

    Raises:
        ValueError: If a setting is out of range, or the adapter does not fit the backbone.
    """

    generates: ClassVar[bool] = True

    def __init__(
        self,
        backbone: str,
        policy: PolicyKind,
        adapter: str | None = None,
        decoding: Decoding | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(backbone, dropout=None, **kwargs)
        if problem := policy.find_problem(adapter, backbone):
            raise ValueError(problem)
        self.policy = policy
        self.adapter = None if adapter is None else str(Path(adapter).resolve())
        self.decoding = decoding or Decoding()
        self.reference: nn.Module | None = None
        self.needs_reference = True
        self.gate_figures: GateFigures | None = None  # of this process; a resumed run has none

    @classmethod
    def find_problems(cls, init_args: Any, trainer: Any) -> list[str | None]:
        """List configuration problems before anything is loaded; None is no problem."""
        policy, problems = instantiate(init_args.policy), super().find_problems(init_args, trainer)
        problems.append(policy.find_problem(init_args.adapter, init_args.backbone))
        if not any(problems) and init_args.adapter is None:
            problems.append(policy.find_backbone_problem(init_args.backbone))
        return problems

    def attach(self, backbone: PreTrainedModel) -> nn.Module:
        """Build the policy and its reference on the backbone."""
        model, self.reference = self.policy.attach(backbone, self.adapter, self.needs_reference)
        for each in (model, self.reference):
            if each is not None:
                set_dropout(each, 0.0)
                each.train()
        return model

    def count_parameters(self) -> tuple[int, int]:
        """Count policy, reference and value head; a reward model is not a submodule."""
        return count_parameters(self)

    def open_reference(self) -> AbstractContextManager[Backbone]:
        """Open a block in which the reference policy can be called."""
        return reference_backbone(self.backbone, self.reference)

    @property
    def is_exact(self) -> bool:
        """Whether the run computes in fp32 or better."""
        return str(self.trainer.precision).startswith(("32", "64"))

    def validation_step(self, batch: Batch, batch_idx: int) -> Any:
        """Measure the loss on references, and generate the summaries that callbacks score."""
        return evaluate(self, batch, "val")

    def test_step(self, batch: Batch, batch_idx: int) -> Any:
        """Generate with the policy, and with the reference for the comparison before and after."""
        return evaluate(self, batch, "test") | self.before(batch, batch_idx)

    def predict_step(self, batch: Batch, batch_idx: int) -> list[str]:
        """Generate a summary for each dialogue."""
        return self.generate(batch)

    def generate(self, batch: Batch) -> list[str]:
        """Generate one summary for each row of a batch, with the settings of ``decoding``."""
        return self.backbone.generate(batch, self.decoding)

    def before(self, batch: Batch, batch_idx: int) -> dict[str, list[str]]:
        """Generate one summary for each row of a test batch with the reference, if there is one.

        It draws the same random numbers as the policy did, so that sampled texts differ by what was
        learned and not by chance.
        """
        if self.reference is None and not isinstance(self.model, PeftModel):
            return {}
        self.on_test_batch_start(batch, batch_idx)
        with self.open_reference() as start:
            return {"predictions_before": start.generate(batch, self.decoding)}

    # What a run leaves --------------------------------------------------------------------------

    @cached_property
    def fingerprint(self) -> str:
        """A hash of the reference's weights, which never change."""
        return fingerprint(self.model, self.reference)

    @property
    def drawn_reference(self) -> nn.Module | None:
        """The reference of a new soft prompt: drawn at random, and stored in no folder."""
        prompts = getattr(self.model, "prompt_encoder", {})
        return prompts[REFERENCE] if self.adapter is None and REFERENCE in prompts else None

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add the reference's hash, and a reference that was drawn at random."""
        super().on_save_checkpoint(checkpoint)
        checkpoint["reference"] = self.fingerprint
        if (drawn := self.drawn_reference) is not None:
            checkpoint["drawn_reference"] = drawn.state_dict()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restore a reference that was drawn at random; refuse a checkpoint of another one.

        Raises:
            ValueError: If the reference is not that of the run.
        """
        super().on_load_checkpoint(checkpoint)
        if (drawn := self.drawn_reference) is not None:
            # This command may have begun with another seed.
            drawn.load_state_dict(checkpoint["drawn_reference"])
            self.__dict__.pop("fingerprint", None)
        if checkpoint["reference"] != self.fingerprint:
            raise ValueError(
                f"the reference is not that of the run: the backbone {self.backbone_name!r} or the "
                f"adapter {self.adapter!r} has changed since; restore it, or start a new run"
            )
