from pathlib import Path

import pytest
from jsonargparse import ArgumentParser
from transformers import AutoTokenizer

from datamodules.encoding import Encoder
from datamodules.prompts import (
    Flan,
    Instruction,
    Plain,
    Professional,
    PromptStyle,
    SpacedInstruction,
    Template,
)
from datamodules.reading import Row

FLAN = "Dialogue:\n\nA: hi\n\nWhat was going on?"


@pytest.mark.parametrize(
    ("style", "prompt", "example"),
    [
        (Plain(), "A: hi", "A: hi\nGreeting.\n\n\n"),
        (
            Instruction(),
            "Summarize the following conversation.\n\nA: hi\n\nSummary:",
            "Summarize the following conversation.\n\nA: hi\n\nSummary: Greeting.\n\n\n",
        ),
        (
            SpacedInstruction(),
            "Summarize the following conversation.\n\nA: hi\n\nSummary: ",
            "Summarize the following conversation.\n\nA: hi\n\nSummary: Greeting.\n\n\n",
        ),
        (Flan(), FLAN, f"{FLAN}\nGreeting.\n\n\n"),
        (
            Professional(),
            f"You are a professional text summarizer.\n\n{FLAN}",
            f"You are a professional text summarizer.\n\n{FLAN}\nGreeting.\n\n\n",
        ),
        (
            Template("TL;DR of {dialogue} is", answer=" => "),
            "TL;DR of A: hi is",
            "TL;DR of A: hi is => Greeting.\n\n\n",
        ),
    ],
)
def test_styles_are_exactly(style: PromptStyle, prompt: str, example: str) -> None:
    assert style.wrap("A: hi") == prompt
    assert style.example("A: hi", "Greeting.") == example


def test_braces_in_a_dialogue_are_text() -> None:
    assert Template("> {dialogue}").wrap("{dialogue} {0}") == "> {dialogue} {0}"


@pytest.mark.parametrize("template", ["no place", "{dialogue} and {dialogue}", "{Dialogue}"])
def test_template_needs_one_place_for_the_dialogue(template: str) -> None:
    with pytest.raises(ValueError, match="once, where the dialogue goes"):
        Template(template)


def test_few_shots_are_laid_out_as_in_the_original(t5: str) -> None:
    examples = [Row("a", "A: hi", ("Greeting.",)), Row("b", "B: bye", ("Farewell.",))]
    subject = Encoder(AutoTokenizer.from_pretrained(t5), Flan(), examples, 512, 8)
    assert subject.ask(Row("c", "C: tea?", ("-",)), [0, 1]) == (
        "Dialogue:\n\nA: hi\n\nWhat was going on?\nGreeting.\n\n\n"
        "Dialogue:\n\nB: bye\n\nWhat was going on?\nFarewell.\n\n\n"
        "Dialogue:\n\nC: tea?\n\nWhat was going on?"
    )


YAML = r"""
prompt:
  class_path: Template
  init_args:
    template: "Chat {in \"braces\"}:\n{dialogue}\n{{tl;dr}} "
    answer: ">> "
"""


def test_a_template_from_yaml_is_exactly_what_is_written(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(YAML)
    parser = ArgumentParser()
    parser.add_argument("--config", action="config")
    parser.add_argument("--prompt", type=PromptStyle)
    prompt = parser.instantiate(parser.parse_args(["--config", str(tmp_path / "a.yaml")])).prompt
    assert prompt.wrap("A: {hi}") == 'Chat {in "braces"}:\nA: {hi}\n{{tl;dr}} '
    assert prompt.example("A", "S.") == 'Chat {in "braces"}:\nA\n{{tl;dr}} >> S.\n\n\n'
    flags = ["--prompt=Template", "--prompt.template={dialogue}\n=", "--prompt.answer="]
    assert parser.instantiate(parser.parse_args(flags)).prompt.example("A", "S.") == "A\n=S.\n\n\n"
