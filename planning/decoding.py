"""What generation takes, reckoned: how far it goes only the data say."""

from collections import Counter
from typing import Any

from lightning_modules import linear
from lightning_modules.adapters import unwrap
from lightning_modules.linear import QuickLinear
from planning.parts import CACHE, COPIES, LOGITS, OTHER


def reckon_decoding(
    model: Any, rows: int, source: int, new_tokens: int, bf16: bool, packed: bool = False
) -> Counter[str]:
    """Give the bytes by part that decoding with a cache takes at its last token.

    Keys and values of every decoder layer, of the prompt for the cross-attention and of the text
    so far for the self-attention; the encoder's output; and the logits of one position, as the
    model gives them, in fp32, as a processed copy, and as probabilities.

    Args:
        model: The encoder-decoder, bare or with an adapter.
        rows: Texts that are generated together.
        source: Tokens of a prompt, virtual ones too.
        new_tokens: Most tokens of a text.
        bf16: Whether keys and values are in bf16.
        packed: Whether the decoder's linear layers lie in memory again in another order, as PPO's
            sampler has them on a CPU.
    """
    model = unwrap(model)
    config = model.config
    inner = config.num_attention_heads * getattr(
        config, "d_kv", config.hidden_size // config.num_attention_heads
    )
    layers = getattr(config, "num_decoder_layers", None) or config.decoder_layers
    size = 2 if bf16 else 4
    taken = Counter({
        CACHE: 2 * layers * rows * (source + new_tokens) * inner * size,
        LOGITS: 4 * rows * config.vocab_size * 4,
        OTHER: rows * source * config.hidden_size * 4,
    })  # fmt: skip
    if packed:
        decoder = (*model.get_decoder().modules(), model.get_output_embeddings())
        counts = [layer.weight.numel() for layer in decoder if isinstance(layer, QuickLinear)]
        taken[COPIES] = size * sum(count for count in counts if count >= linear.LEAST_WEIGHTS)
    return taken
