"""Every command in README and docs is accepted: its options, configs, targets and files exist."""

import importlib
import importlib.util
import re
import shlex
import shutil
from pathlib import Path

import pytest

from alignsum.__main__ import COMMANDS
from alignsum.commands import options
from alignsum.option_check import prepare
from alignsum.overlays import expand_short_options

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
_BLOCK = re.compile(r"^```(?:bash|console|sh)?\n(.*?)^```", re.DOTALL | re.MULTILINE)
_INLINE = re.compile(r"`(python (?:train\.py|-m alignsum) [^`]+)`")


def read_commands(page: Path) -> list[list[str]]:
    """Return the commands of a page's blocks and inline code, split into words."""
    text = page.read_text(encoding="utf-8").replace("\\|", "|")
    lines = [
        line for block in _BLOCK.findall(text) for line in block.replace("\\\n", " ").split("\n")
    ]
    lines += _INLINE.findall(text)
    found = []
    for line in lines:
        for part in line.removeprefix("$ ").split("&&"):
            try:
                words = shlex.split(part, comments=True)
            except ValueError:  # output with an apostrophe
                continue
            while words and re.fullmatch(r"[A-Z_]+=\S*", words[0]):
                words = words[1:]
            if words[:1] in (["torchrun"], ["srun"]) and "train.py" in words:
                words = ["python", *words[words.index("train.py") :]]
            if words:
                found.append(words)
    return found


def check(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Fail if a command of ours would be refused before its work starts."""
    match words:
        case ["python", "train.py", *arguments] if arguments and not arguments[0].startswith("-"):
            if "..." not in arguments and not any(each.endswith("help") for each in arguments):
                prepare(expand_short_options(arguments))
        case [option, *_] if re.match(r"--[a-z]+\.", option):
            prepare(expand_short_options(["fit", "--config", "configs/lora.yaml", *words]))
        case ["python", "-m", "alignsum", name, *arguments] if name in COMMANDS:
            if arguments and "..." not in arguments and "--help" not in arguments:
                check_command(name, arguments, monkeypatch)
        case ["python", "-m", module, *_]:
            assert module == "alignsum" or importlib.util.find_spec(module), module
        case ["python", file, *_] if file.endswith(".py"):
            assert (ROOT / file).is_file(), file
        case ["make", target, *_] if target.isidentifier():
            assert f"\n{target}:" in (ROOT / "Makefile").read_text(), target


def check_command(name: str, arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Parse the arguments of ``python -m alignsum NAME`` without running it."""
    if name == "plan":
        prepare(["fit", *expand_short_options(arguments)])
        return
    module = importlib.import_module(f"alignsum.commands.{name}")
    with monkeypatch.context() as patch:
        for place in (module, options):
            if hasattr(place, "run"):
                patch.setattr(place, "run", lambda *_, **__: 0)
        assert not module.main(arguments)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_commands_are_accepted(
    page: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "lora").mkdir(parents=True)  # a run whose config a page names
    shutil.copy(ROOT / "configs" / "lora.yaml", tmp_path / "runs" / "lora" / "config.yaml")
    refused = []
    for words in read_commands(page):
        try:
            check(words, monkeypatch)
        except (AssertionError, SystemExit, ValueError) as error:
            refused.append(f"{shlex.join(words)}\n    {error} {capsys.readouterr().err}")
    assert not refused, "\n".join(refused)


def test_the_pages_have_commands() -> None:
    counts = {page: len(read_commands(page)) for page in PAGES}
    assert counts[ROOT / "README.md"] > 5
    assert sum(counts.values()) > 100


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_links_lead_somewhere(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    dead = [
        link
        for link in re.findall(r"\]\(([^)\s]+)\)", text)
        if not link.startswith(("http", "#"))
        and not (page.parent / link.partition("#")[0]).exists()
    ]
    assert not dead


def test_functions_and_tests_that_pages_name_exist() -> None:
    """A page names them as `file::name`, below the package, the repository, or tests/."""
    found = 0
    for page in PAGES:
        for file, name in re.findall(r"`([\w/]+\.py)::(\w+)`", page.read_text(encoding="utf-8")):
            paths = [ROOT / each / file for each in ("", "lightning_modules", "tests")]
            text = next((p.read_text("utf-8") for p in paths if p.is_file()), "")
            assert re.search(rf"^(def|class) {name}\b", text, re.MULTILINE), (page.name, file, name)
            found += 1
    assert found > 40
