"""Language models behind one interface: the only package that knows about architectures."""

from lightning_modules.backbones.decoder_only import DecoderOnly
from lightning_modules.backbones.decoding import Decoding
from lightning_modules.backbones.dropout import find_noise, set_dropout
from lightning_modules.backbones.encoder_decoder import EncoderDecoder
from lightning_modules.backbones.families import (
    context_modules,
    find_soft_prompt_problem,
    other_modalities,
    task_type,
    train_all,
    wrap_model,
)
from lightning_modules.backbones.interface import (
    Backbone,
    Context,
    Prompts,
    Samples,
    Sampling,
    TokenScores,
)
from lightning_modules.backbones.loading import (
    checkpoint_activations,
    find_frozen_problem,
    find_model_type,
    find_precision_problem,
    head_is_tied,
    load_backbone,
    load_weights,
    record_head,
    sketch_backbone,
)

__all__ = [
    "Backbone", "Context", "DecoderOnly", "Decoding", "EncoderDecoder", "Prompts", "Samples",
    "Sampling", "TokenScores", "checkpoint_activations", "context_modules",
    "find_frozen_problem", "find_model_type",
    "find_noise", "find_precision_problem", "find_soft_prompt_problem", "head_is_tied",
    "load_backbone", "load_weights", "other_modalities", "record_head", "set_dropout",
    "sketch_backbone", "task_type", "train_all", "wrap_model",
]  # fmt: skip
