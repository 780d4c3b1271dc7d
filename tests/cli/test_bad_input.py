"""Bad input ends with exit code 2 and a message that names the setting and the remedy."""

import importlib
import json
import logging
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
import torch

from tests.rows import make_rows, write_rows

ROOT = Path(__file__).parents[2]

LORA = "train fit --config configs/lora.yaml {tiny} --run_dir {tmp}/run"
PPO = (
    "train fit --config configs/ppo.yaml {tiny} --model.reward_model {roberta} "
    "--data.min_dialogue_chars 0 --run_dir {tmp}/run"
)


class Bad(NamedTuple):
    """A command that cannot be done.

    command: The module and its arguments; names in braces are filled in.
    words: What the message must name: the setting, the place, the remedy.
    """

    command: str
    words: tuple[str, ...]


CASES: dict[str, Bad] = {
    # The command line: the option, and what was probably meant
    "no command": Bad("train", ("fit", "--help")),
    "a mistyped command": Bad("train fti", ("did you mean fit",)),
    "no method": Bad("train fit", ("--config", "configs/lora.yaml")),
    "a mistyped option": Bad(f"{LORA} --data.bacth_size 3", ("--data.batch_size",)),
    "a foreign class": Bad(
        "train fit --model lightning.pytorch.demos.boring_classes.BoringModel "
        "--data DialogSumDataModule --data.source mini --run_dir {tmp}/run",
        ("BoringModel", "BaseModule"),
    ),
    # Config files: the file, and what it has to be
    "a mistyped config": Bad("train fit --config configs/lorra.yaml", ("configs/lora.yaml",)),
    "broken YAML": Bad(f"{LORA} --config {{files}}/broken.yaml", ("broken.yaml", "line 2")),
    "a config that is a list": Bad(f"{LORA} --config {{files}}/list.yaml", ("list.yaml",)),
    "a config that is not UTF-8": Bad(f"{LORA} --config {{files}}/latin.yaml", ("latin.yaml",)),
    "a section that is null": Bad(f"{LORA} --config {{files}}/null.yaml", ("null.yaml", "trainer")),
    "an overlay first": Bad(
        "train fit --config configs/overlays/mini.yaml --config configs/lora.yaml",
        ("mini.yaml is an overlay", "after"),
    ),
    "an overlay for other classes": Bad(
        f"{LORA} --config {{files}}/other.yaml", ("per_model", "LoRA", "SoftPrompt")
    ),
    "two methods": Bad(
        "train fit --config configs/lora.yaml --config configs/ppo.yaml",
        ("PPOPolicy", "for LoRA", "--config configs/ppo.yaml"),
    ),
    "another method than the file's": Bad(
        f"{LORA} --model SoftPrompt", ("SoftPrompt", "--config configs/soft_prompt.yaml")
    ),
    # Settings
    "fp16": Bad(f"{LORA} --trainer.precision 16-mixed", ("fp16", "bf16-mixed")),
    "a negative clip": Bad(f"{LORA} --trainer.gradient_clip_val -1", ("gradient_clip_val",)),
    "a dry run": Bad(f"{LORA} --trainer.fast_dev_run true", ("debug.yaml",)),
    "a mistyped monitor": Bad(f"{LORA} --checkpoint.monitor val/rouge", ("mean val/rougeL",)),
    "no rows in a batch": Bad(f"{LORA} --data.batch_size 0", ("batch_size", "0")),
    "a template without the dialogue": Bad(
        f"{LORA} --data.prompt Template --data.prompt.template 'Summarize this.'", ("{dialogue}",)
    ),
    "a text as prompt without the dialogue": Bad(
        f"{LORA} --data.prompt 'Sum up {{{{dialog}}}}'", ("'Sum up {dialog}'", "{dialogue}")
    ),
    "a negative scale": Bad(f"{LORA} --model.alpha -1", ("alpha must be at least 1",)),
    "PPO without a reward": Bad(f"{PPO} --model.reward_model null", ("reward",)),
    # Data: the file, the line, the remedy
    "no such data": Bad(f"{LORA} --data.source {{tmp}}/nowhere", ("nowhere",)),
    "broken JSON": Bad(f"{LORA} --data.source {{files}}/json", ("train.jsonl:3",)),
    "a row that is not UTF-8": Bad(f"{LORA} --data.source {{files}}/latin", ("train.jsonl:3",)),
    "cells between semicolons": Bad(
        f"{LORA} --data.source {{files}}/semicolons.csv", ("separated by ';'", "commas")
    ),
    "a missing column": Bad(f"{LORA} --data.source {{files}}/column", ("dialogue", "columns")),
    # Models
    "no such backbone": Bad(f"{LORA} --model.backbone ./nowhere", ("backbone", "./nowhere")),
    "damaged weights": Bad(f"{LORA} --model.backbone {{files}}/cut", ("cut", "again")),
    "weights of another config": Bad(f"{LORA} --model.backbone {{files}}/reshaped", ("reshaped",)),
    "no tokenizer": Bad(f"{LORA} --model.backbone {{files}}/wordless", ("wordless", "tokenizer")),
    # Run folders and checkpoints
    "a run folder in use": Bad(f"{LORA} --run_dir {{run}}", ("--run_dir", "--resume auto")),
    "a run folder inside a file": Bad(f"{LORA} --run_dir {{files}}/key.yaml/run", ("key.yaml",)),
    "a run folder that cannot be written": Bad(
        f"{LORA} --run_dir /proc/run", ("/proc/run", "cannot be written")
    ),
    "a folder as checkpoint": Bad(
        f"{LORA.replace('fit', 'test')} --ckpt_path {{files}}", ("--ckpt_path", "name a .ckpt")
    ),
    "an unset variable": Bad(f"{LORA} --resume ''", ("--resume is empty",)),
    "nothing to resume": Bad(f"{LORA} --resume {{tmp}}/a.ckpt", ("--resume", "a.ckpt")),
    "a checkpoint of another program": Bad(
        f"{LORA} --resume {{files}}/foreign.ckpt", ("foreign.ckpt",)
    ),
    "a checkpoint that does not exist": Bad(
        f"{LORA.replace('fit', 'test')} --ckpt_path {{tmp}}/none.ckpt", ("none.ckpt",)
    ),
    "a test without a fit": Bad(LORA.replace("fit", "test"), ("no trained model", "fit")),
    # The other commands
    "a mistyped other command": Bad("alignsum.__main__ comapre x", ("did you mean compare",)),
    "a mistyped option of a command": Bad(
        "alignsum.__main__ predict {tmp} --ouput x", ("did you mean --output",)
    ),
    "no run to compare": Bad("alignsum.__main__ compare {tmp}/none", ("none",)),
    "no run to predict with": Bad(
        "alignsum.__main__ predict {tmp}/none --input {files}/in.txt --output {tmp}/o.jsonl",
        ("none",),
    ),
}


def write_files(folder: Path, t5: str) -> None:
    """Write the broken files that the cases name."""
    rows = make_rows(6)
    lines = [json.dumps(row).encode() + b"\n" for row in rows]
    bad_lines = {
        "json": b'{"id": "r2", \n',
        "latin": b'{"id": "r2", "dialogue": "caf\xe9", "summary": "x"}\n',
    }
    for name, line in bad_lines.items():
        write_rows(folder / name, validation=rows[:2])
        (folder / name / "train.jsonl").write_bytes(b"".join([*lines[:2], line, *lines[3:]]))
    write_rows(folder / "column", train=[{"id": "a", "text": "b"}], validation=rows, test=rows)
    texts = {
        "broken.yaml": "a: [1, 2\nb: }",
        "list.yaml": "- 1\n- 2\n",
        "key.yaml": "trainer: {max_epochs: 3}\n",
        "other.yaml": "per_model: {SoftPrompt: {}}\n",
        "null.yaml": "trainer: null\nseed_everything: 1\n",
        "semicolons.csv": "dialogue;summary\nHi.;Bye.\n",
        "in.txt": "#Person1#: Hello.\n\n#Person2#: Bye.\n",
    }
    for name, text in texts.items():
        (folder / name).write_text(text)
    (folder / "latin.yaml").write_bytes("trainer: {max_epochs: 1} # caf\xe9".encode("latin-1"))
    torch.save({"state_dict": {}}, folder / "foreign.ckpt")
    for name in ("cut", "reshaped", "wordless"):
        shutil.copytree(t5, folder / name)
    weights = folder / "cut" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    shape = json.loads((folder / "reshaped" / "config.json").read_text())
    (folder / "reshaped" / "config.json").write_text(json.dumps(shape | {"d_model": 16}))
    (folder / "wordless" / "tokenizer.json").unlink()


@pytest.fixture(scope="module")
def places(
    t5: str, roberta: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, str]]:
    """What the names in braces stand for; a LoRA run that is done, for one."""
    import train

    base = tmp_path_factory.mktemp("bad")
    files, run = base / "files", base / "run"
    files.mkdir()
    write_files(files, t5)
    data = write_rows(base / "data", train=make_rows(6), validation=make_rows(2), test=make_rows(2))
    tiny = (
        f"--model.backbone {t5} --data.source {data} --toxicity.model null "
        "--trainer.precision 32-true --trainer.accelerator cpu --trainer.max_epochs 1 "
        "--model.decoding.max_new_tokens 3"
    )
    named = {
        "t5": t5, "roberta": roberta, "files": str(files),
        "run": str(run), "tiny": tiny,
    }  # fmt: skip
    train.main(shlex.split(f"fit --config configs/lora.yaml {tiny} --run_dir {run}"))
    yield named


@pytest.mark.parametrize("name", CASES)
def test_bad_input_is_said(
    name: str, places: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(ROOT)
    caplog.set_level(logging.INFO)
    case = CASES[name]
    filled = places | {"tmp": str(tmp_path)}
    command = case.command
    for _ in range(2):  # {tiny} holds no further names, but braces of JSON stay doubled
        command = fill(command, filled)
    program, *arguments = shlex.split(command.replace("{{", "{").replace("}}", "}"))
    capsys.readouterr()
    try:
        code: object = importlib.import_module(program).main(arguments)
    except SystemExit as stop:
        code = stop.code
    said = capsys.readouterr()
    logged = [record.getMessage() for record in caplog.records if record.levelname == "ERROR"]
    text = " ".join([said.out, said.err, *logged])
    assert "Traceback" not in text
    assert code == 2, text
    flat = " ".join(text.split())
    for words in case.words:
        assert fill(words, filled) in flat, flat
    assert len(text.strip().splitlines()) <= 12  # at most six, and the same in the log
    assert not (tmp_path / "run").exists()


def fill(text: str, names: dict[str, str]) -> str:
    """Put in what the names in single braces stand for."""
    for name, value in names.items():
        text = text.replace("{" + name + "}", value)
    return text
