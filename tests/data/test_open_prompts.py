"""Prompts of decoder-only models: open at the end, with or without a chat template."""

from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from common.hub import is_decoder_only, load_tokenizer
from datamodules.encoding import Encoder
from datamodules.prompts import Instruction, Plain, PromptStyle, Template
from datamodules.reading import Row
from tests.backbones.decoders import make_tokenizer, save

ROW = Row("a", "A: hi", ("Greeting.",))


def encode(prompt: PromptStyle, row: Row = ROW, shown: tuple[int, ...] = (), **more: Any) -> Any:
    tokenizer = make_tokenizer()
    settings = {"max_source_length": 300, "max_target_length": 20, "continues": True} | more
    examples = [Row("b", "B: bye", ("Farewell.",))]
    (found,) = Encoder(tokenizer, prompt, examples, **settings).encode([row], [shown])
    return tokenizer.decode(found.source), tokenizer.decode(found.target), found


def test_prompt_and_response_are_one_text() -> None:
    """No EOS after the prompt, no BOS before the response, and white space between them."""
    prompt, response, _ = encode(Instruction())
    assert prompt == "<s>Summarize the following conversation.\n\nA: hi\n\nSummary:"
    assert response == " Greeting.</s>"


def test_a_chat_template_frames_examples_and_question() -> None:
    prompt, response, _ = encode(Plain(), shown=(0,), chat_template=True)
    assert prompt == "<s>user\nB: bye\nFarewell.\n\n\nA: hi</s><s>assistant\n"
    assert response == "Greeting.</s>"


@pytest.mark.parametrize("chat", [False, True])
def test_only_the_dialogue_is_truncated(chat: bool) -> None:
    row = ROW._replace(dialogue="A: " + "word " * 50)
    prompt, _, found = encode(
        Template("<{dialogue}>"), row, max_source_length=40, chat_template=chat
    )
    assert found.cut and len(found.source) == 40
    begin, end = ("<s>user\n<", "></s><s>assistant\n") if chat else ("<s><", ">")
    assert prompt.startswith(begin + "A: word") and prompt.endswith(end)


def test_a_missing_chat_template_is_named() -> None:
    tokenizer = make_tokenizer()
    tokenizer.chat_template = None
    with pytest.raises(ValueError, match="no chat template"):
        Encoder(tokenizer, Plain(), [], 300, 20, continues=True, chat_template=True)


def test_a_tokenizer_without_padding_pads_with_eos(t5: str, tmp_path: Path) -> None:
    folder = save("gpt2", tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.pad_token = None
    tokenizer.save_pretrained(folder)
    assert load_tokenizer(folder).pad_token_id == 1
    assert is_decoder_only(folder) and not is_decoder_only(t5)
