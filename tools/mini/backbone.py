"""Pretrain the miniature's T5 v1.1 on the tasks of `pretraining.py`."""

from collections.abc import Callable, Iterator
from itertools import chain
from random import Random

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerFast, T5Config, T5ForConditionalGeneration

from tools.mini.pretraining import Task, draw_task

BATCH = 32
POOL = 32  # batches that are drawn and sorted by length together, to reduce padding
DRILL = 400  # initial steps that only copy
PEAK_LR = 2e-3
WARMUP = 100


def build_backbone(
    tokenizer: PreTrainedTokenizerFast, seed: int, steps: int, advance: Callable[[float], None]
) -> T5ForConditionalGeneration:
    """Train the backbone from scratch.

    Args:
        tokenizer: from `bpe.t5_tokenizer`.
        seed: of the weights and of the tasks.
        steps: optimizer steps of 32 tasks.
        advance: called after each step with its loss in nats per token.
    """
    torch.manual_seed(seed)
    model = _untied_t5(tokenizer).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=PEAK_LR, weight_decay=0.01, fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer,
        max_lr=PEAK_LR,
        total_steps=steps,
        pct_start=min(WARMUP / steps, 0.3),
        cycle_momentum=False,
    )
    batches = chain(_drill(len(tokenizer), tokenizer.eos_token_id), _batches(tokenizer, seed))
    for _ in range(steps):
        source, mask, labels = next(batches)
        loss = model(input_ids=source, attention_mask=mask, labels=labels).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        advance(loss.item())
    return model.eval()


def _untied_t5(tokenizer: PreTrainedTokenizerFast) -> T5ForConditionalGeneration:
    config = T5Config(
        vocab_size=len(tokenizer),
        d_model=128,
        d_kv=32,
        d_ff=384,
        num_layers=3,
        num_decoder_layers=2,
        num_heads=4,
        relative_attention_num_buckets=32,
        relative_attention_max_distance=64,
        feed_forward_proj="gated-gelu",
        dropout_rate=0.0,
        tie_word_embeddings=False,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        decoder_start_token_id=tokenizer.pad_token_id,
    )
    model = T5ForConditionalGeneration(config)
    # In transformers 5, tie_word_embeddings=False only removes v1.0's scaling of the decoder's
    # output; the constructor ties head, encoder and decoder anyway. v1.1 ties only the latter two.
    head = model.shared.weight.detach().clone() * config.d_model**-0.5
    model.lm_head.weight = torch.nn.Parameter(head)
    config.tie_word_embeddings = False
    _lean_towards_copying(model)
    return model


def _lean_towards_copying(model: T5ForConditionalGeneration) -> None:
    """Initialize attention heads to look at neighboring tokens.

    Three encoder heads start on the previous, the next and the second previous token, a decoder
    head on the previous one. Copying needs encoder states that know their neighbors, so that the
    decoder finds the token after the one it wrote last. From T5's own initialization (with an
    untied head) this was not learned in 1,400 steps; from this one, drill learns it in 300.
    """
    bias = model.encoder.block[0].layer[0].SelfAttention.relative_attention_bias.weight
    right = bias.shape[0] // 2  # the buckets of tokens to the right begin here
    with torch.no_grad():
        for head, bucket in enumerate((1, right + 1, 2)):
            bias[bucket, head] += 4.0
        block = model.decoder.block[0].layer[0].SelfAttention
        block.relative_attention_bias.weight[1, 0] += 4.0


def _drill(vocabulary: int, eos: int) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Yield batches of 64 short random sequences, 4 to 13 tokens, to be copied."""
    for _ in range(DRILL):
        length = int(torch.randint(4, 14, ()))
        tokens = torch.randint(3, vocabulary, (2 * BATCH, length))
        tokens = torch.cat((tokens, torch.full((2 * BATCH, 1), eos)), dim=1)
        yield tokens, torch.ones_like(tokens), tokens


def _batches(
    tokenizer: PreTrainedTokenizerFast, seed: int
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Yield (source [B, S], mask [B, S], labels [B, T] padded with -100) forever."""
    rng = Random(f"alignsum mini pretraining {seed}")
    while True:
        tasks = sorted((draw_task(rng) for _ in range(POOL * BATCH)), key=_length)
        batches = [tasks[start : start + BATCH] for start in range(0, len(tasks), BATCH)]
        rng.shuffle(batches)
        for batch in batches:
            source = tokenizer([task.source for task in batch], return_tensors="pt", padding=True)
            target = tokenizer([task.target for task in batch], return_tensors="pt", padding=True)
            labels = target.input_ids.masked_fill(target.attention_mask == 0, -100)
            yield source.input_ids, source.attention_mask, labels


def _length(task: Task) -> int:
    return len(task.source) + 3 * len(task.target)  # decoder tokens cost more
