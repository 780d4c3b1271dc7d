import pytest

from datamodules.prompts import Flan, Instruction, Plain, Professional, PromptStyle, Template


@pytest.mark.parametrize(
    ("style", "expected"),
    [
        (Plain(), "A: hi"),
        (Instruction(), "Summarize the following conversation.\n\nA: hi\n\nSummary:"),
        (Flan(), "Dialogue:\n\nA: hi\n\nWhat was going on?"),
        (
            Professional(),
            "You are a professional text summarizer.\n\nDialogue:\n\nA: hi\n\nWhat was going on?",
        ),
        (Template("TL;DR of {dialogue} is"), "TL;DR of A: hi is"),
    ],
)
def test_wrap_is_exactly(style: PromptStyle, expected: str) -> None:
    assert style.wrap("A: hi") == expected


@pytest.mark.parametrize(
    ("style", "expected"),
    [
        (Plain(), "A: hi\nGreeting.\n\n\n"),
        (
            Instruction(),
            "Summarize the following conversation.\n\nA: hi\n\nSummary: Greeting.\n\n\n",
        ),
        (Flan(), "Dialogue:\n\nA: hi\n\nWhat was going on?\nGreeting.\n\n\n"),
        (Template("{dialogue}", answer=" => "), "A: hi => Greeting.\n\n\n"),
    ],
)
def test_example_is_exactly(style: PromptStyle, expected: str) -> None:
    assert style.example("A: hi", "Greeting.") == expected


def test_braces_in_a_dialogue_are_text() -> None:
    assert Template("> {dialogue}").wrap("{dialogue} {0}") == "> {dialogue} {0}"


@pytest.mark.parametrize("template", ["no place", "{dialogue} and {dialogue}", "{Dialogue}"])
def test_template_needs_one_place_for_the_dialogue(template: str) -> None:
    with pytest.raises(ValueError, match="once, where the dialogue goes"):
        Template(template)
