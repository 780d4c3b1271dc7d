"""Byte-level BPE tokenizers in the layouts of T5 and RoBERTa.

Every byte has a token, so any UTF-8 text is encoded without unknown tokens and decodes to itself.
"""

from collections.abc import Iterable

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from tools.mini.pretraining import SENTINELS

# One token each, because they open every turn; not special, so that decoding keeps them.
SPEAKERS = [AddedToken(f"#Person{number}#", normalized=False) for number in (1, 2)]


def t5_tokenizer(texts: Iterable[str], size: int) -> PreTrainedTokenizerFast:
    """Train T5's tokenizer: pad 0, `</s>` 1, unk 2, sentinels; EOS is appended.

    Args:
        texts: training texts of the merges.
        size: number of entries before speakers and sentinels are added.
    """
    tokenizer = _byte_level_bpe(texts, size, ["<pad>", "</s>", "<unk>"])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s>", pair="$A </s> $B </s>", special_tokens=[("</s>", 1)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        eos_token="</s>",
        unk_token="<unk>",
        additional_special_tokens=[f"<extra_id_{number}>" for number in range(SENTINELS)],
        model_max_length=512,
        clean_up_tokenization_spaces=False,
    )


def roberta_tokenizer(texts: Iterable[str], size: int) -> PreTrainedTokenizerFast:
    """Train RoBERTa's tokenizer: `<s>` 0, `<pad>` 1, `</s>` 2, `<unk>` 3, `<mask>`.

    Args:
        texts: training texts of the merges.
        size: number of entries before the speakers are added.
    """
    tokenizer = _byte_level_bpe(texts, size, ["<s>", "<pad>", "</s>", "<unk>", "<mask>"])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>",
        pair="<s> $A </s> </s> $B </s>",
        special_tokens=[("<s>", 0), ("</s>", 2)],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        cls_token="<s>",
        pad_token="<pad>",
        eos_token="</s>",
        sep_token="</s>",
        unk_token="<unk>",
        mask_token="<mask>",
        model_max_length=256,
        clean_up_tokenization_spaces=False,
    )


def _byte_level_bpe(texts: Iterable[str], size: int, special: list[str]) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.add_tokens(SPEAKERS)
    return tokenizer
