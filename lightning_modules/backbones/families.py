"""Tell encoder-decoders and decoder-only models apart, for what differs between the two."""

from inspect import Parameter, signature
from typing import Any

import torch
from peft import PeftModel, TaskType
from torch import nn

from lightning_modules.backbones.decoder_only import DecoderOnly, find_decoder
from lightning_modules.backbones.encoder_decoder import EncoderDecoder
from lightning_modules.backbones.interface import Backbone

_OTHER_INPUTS = {"pixel_values", "pixel_values_videos", "input_features", "input_values"}


def wrap_model(model: Any, tokenizer: Any) -> Backbone:
    """Put a transformers or PEFT model behind the backbone interface."""
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    kind = EncoderDecoder if base.config.is_encoder_decoder else DecoderOnly
    return kind(model, tokenizer)


def task_type(model: Any) -> TaskType:
    """Return what PEFT calls the task of a model."""
    return TaskType.SEQ_2_SEQ_LM if model.config.is_encoder_decoder else TaskType.CAUSAL_LM


def context_modules(model: Any) -> tuple[nn.Module, ...]:
    """Return the parts of a model that its context depends on: encoder and input embedding.

    Raises:
        ValueError: If the model has no encoder.
    """
    if not model.config.is_encoder_decoder:
        raise ValueError(
            f"policy.train_encoder: {type(model).__name__} has no encoder to freeze; leave it true"
        )
    return model.get_encoder(), model.get_input_embeddings()


def other_modalities(model: nn.Module) -> dict[str, nn.Module]:
    """Return the parts that read images or sounds, as in T5Gemma 2, by name.

    Text never passes through them, so that they have nothing to learn here.
    """
    return {
        name: part
        for name, part in model.named_modules()
        if (name and getattr(part, "main_input_name", "input_ids") in _OTHER_INPUTS)
        or name.endswith("multi_modal_projector")
    }


def train_all(model: Any) -> None:
    """Train every weight that text passes through."""
    model.requires_grad_(True)
    for part in other_modalities(model).values():
        part.requires_grad_(False)


def find_soft_prompt_problem(model: Any) -> str | None:
    """Explain why a soft prompt cannot precede a model's embedded input, or return None.

    PEFT embeds the prompt's tokens itself. Pegasus, Marian, M2M100 and others scale embeddings by
    sqrt(d) in the encoder only when it receives token ids, so that all of a prompt would reach such
    a model too small. FSMT's encoder accepts no input without token ids.
    """
    reader = model.get_encoder() if model.config.is_encoder_decoder else find_decoder(model)
    if signature(reader.forward).parameters["input_ids"].default is Parameter.empty:
        return "it does not accept embedded input, which PEFT passes to it"
    if not _reads_embeddings_like_ids(model, reader):
        return (
            "it treats embedded input, which PEFT passes to it, differently from token ids (many "
            "encoders scale the embeddings of token ids only)"
        )
    return None


@torch.no_grad()
def _reads_embeddings_like_ids(model: Any, reader: Any) -> bool:
    """Tell whether token ids and their embeddings are the same input to a part of a model."""
    ids = torch.arange(1, 5, device=model.device)[None]
    training = model.training
    model.eval()
    wanted = reader(input_ids=ids, return_dict=True).last_hidden_state
    embedded = model.get_input_embeddings()(ids)
    found = reader(inputs_embeds=embedded, return_dict=True).last_hidden_state
    model.train(training)
    return torch.allclose(wanted, found, rtol=1e-3, atol=1e-4)
