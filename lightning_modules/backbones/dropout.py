"""Set every source of randomness in a model's forward pass, whatever its architecture."""

import re
from collections.abc import Iterator
from typing import Any

from torch import nn
from transformers import PretrainedConfig

_DROPOUT = re.compile(r"drop_?out|pdrop|drop_?prob")
_OTHER_NOISE = re.compile(r"layer_?drop|drop_?path|jitter")
_MODULES = (
    nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout,
)  # fmt: skip


def set_dropout(model: nn.Module, rate: float) -> None:
    """Set every dropout of a model to ``rate``: in modules, float attributes and configs.

    Rate 0 makes training and evaluation the same function, which PPO needs: its ratio compares two
    passes of one policy. It therefore also turns off layerdrop, stochastic depth and router jitter.
    ``eval()`` would do as well, but gradient checkpointing never engages in eval mode.

    Args:
        model: A transformers model, with or without adapters.
        rate: The new dropout rate.
    """
    for module in model.modules():
        if isinstance(module, _MODULES):
            module.p = rate
        for holder in (module, *_configs(getattr(module, "config", None))):
            for name in _noise_fields(holder, rate):
                setattr(holder, name, rate)


def find_noise(model: nn.Module) -> list[str]:
    """List the dropouts and similar noise of a model that are not 0, by name and rate."""
    found = []
    for path, module in model.named_modules():
        if isinstance(module, _MODULES) and module.p:
            found.append(f"{path}.p {module.p}")
        found += [f"{path}.{n} {getattr(module, n)}" for n in _noise_fields(module, 0.0)]
    return found


def _noise_fields(holder: Any, rate: float) -> list[str]:
    """Name the float attributes that set a noise rate and differ from ``rate``."""
    return [
        name
        for name, value in vars(holder).items()
        if isinstance(value, float)
        and value != rate
        and (_DROPOUT.search(name) or (rate == 0 and _OTHER_NOISE.search(name)))
    ]


def _configs(config: Any) -> Iterator[PretrainedConfig]:
    """Yield a config and the configs nested in it."""
    if isinstance(config, PretrainedConfig):
        yield config
        for nested in vars(config).values():
            if isinstance(nested, PretrainedConfig):
                yield from _configs(nested)
