"""What is wrong with a command or its files is said, with exit code 2 and without a traceback."""

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

from common.run_folder import RolloutFiles
from tests.rows import make_rows, write_rows

ROOT = Path(__file__).parents[2]

LORA = "train fit --config configs/lora.yaml {tiny} --run_dir {tmp}/run"
PPO = (
    "train fit --config configs/ppo.yaml {tiny} --model.reward_model {roberta} "
    "--data.min_dialogue_chars 0 --run_dir {tmp}/run"
)
REWARD = (
    "train fit --config configs/reward.yaml --model.backbone {roberta} --trainer.accelerator cpu "
    "--trainer.precision 32-true --run_dir {tmp}/run"
)


class Bad(NamedTuple):
    """A command that cannot be done.

    command: The program and its arguments; names in braces are filled in. words: Of the message.
    begins: Whether that shows only when the run has begun.
    """

    command: str
    words: tuple[str, ...]
    begins: bool = False


CASES: dict[str, Bad] = {
    # Settings
    "no command": Bad("train", ("subcommand",)),
    "no method": Bad("train fit", ("model",)),
    "an unknown option": Bad(f"{LORA} --trainer.epochs 3", ("trainer.epochs",)),
    "an unknown setting of the model": Bad(f"{LORA} --model.init_args.rank 3", ("rank",)),
    "a word for a number": Bad(f"{LORA} --data.batch_size many", ("batch_size", "many")),
    "a fraction of a row": Bad(f"{LORA} --data.batch_size 2.5", ("batch_size", "2.5")),
    "no such config": Bad(f"{LORA} --config {{files}}/gone.yaml", ("gone.yaml",)),
    "a config that is no YAML": Bad(f"{LORA} --config {{files}}/broken.yaml", ("broken.yaml",)),
    "a config that is a list": Bad(f"{LORA} --config {{files}}/list.yaml", ("list.yaml",)),
    "a config that is not UTF-8": Bad(f"{LORA} --config {{files}}/latin.yaml", ("latin.yaml",)),
    "an empty config": Bad(f"{LORA} --config {{files}}/empty.yaml", ("empty.yaml is empty",)),
    "a config of a word": Bad(
        f"{LORA} --config {{files}}/word.yaml", ("word.yaml has nothing but trainer",)
    ),
    "a section that is null": Bad(f"{LORA} --config {{files}}/null.yaml", ("trainer is not set",)),
    "an overlay without classes": Bad(f"{LORA} --config {{files}}/classless.yaml", ("per_model",)),
    "a class without settings": Bad(
        f"{LORA} --config {{files}}/unset.yaml", ("per_model has to hold settings",)
    ),
    "an unknown key in a config": Bad(f"{LORA} --config {{files}}/key.yaml", ("max_epoch",)),
    "an overlay before the method": Bad(
        "train fit --config configs/overlays/mini.yaml --config configs/lora.yaml",
        ("mini.yaml is an overlay", "behind"),
    ),
    "an overlay without the class": Bad(
        f"{LORA} --config {{files}}/other.yaml", ("no entry for LoRA", "SoftPrompt")
    ),
    "no such class": Bad(f"{LORA} --model NoSuchModel", ("NoSuchModel",)),
    "a class of another kind": Bad(
        "train fit --model lightning.pytorch.demos.boring_classes.BoringModel "
        "--data DialogSumDataModule --data.source mini --run_dir {tmp}/run",
        ("BoringModel", "BaseModule"),
    ),
    "devices that are none": Bad(f"{LORA} --trainer.devices many", ("devices", "int > 0")),
    "an accelerator without its package": Bad(f"{LORA} --trainer.accelerator tpu", ("torch_xla",)),
    "no such backend of the compiler": Bad(
        f"{LORA} --model.compile fast", ("model.compile", "'fast'", "inductor")
    ),
    "graphs of a GPU without one": Bad(
        f"{PPO} --model.ppo.compile_decoding cudagraphs", ("ppo.compile_decoding", "CUDA GPU")
    ),
    "fp16": Bad(f"{LORA} --trainer.precision 16-mixed", ("fp16", "bf16-mixed")),
    "bf16 weights": Bad(f"{LORA} --trainer.precision bf16-true", ("rounds to nothing",)),
    "Lightning's own DeepSpeed": Bad(
        f"{LORA} --trainer.strategy deepspeed_stage_2",
        ("leaves accumulation and clipping to DeepSpeed", "take zero2 or zero3"),
    ),
    "an optimizer that ZeRO cannot divide": Bad(
        f"{LORA} --trainer.strategy zero2 --model.optimizer torch.optim.Adafactor "
        "--model.optimizer.lr 0.01",
        ("Adafactor under zero2", "take Adam, AdamW, SGD"),
    ),
    "ZeRO with compiled blocks": Bad(
        f"{LORA} --trainer.strategy zero3 --model.compile inductor", ("zero3 was not tried",)
    ),
    "Lightning's own FSDP": Bad(f"{LORA} --trainer.strategy fsdp", ("take ddp, or fsdp2",)),
    "ranks without rows of ZeRO-3": Bad(
        f"{LORA} --trainer.strategy zero3 --data.batch_size 1 --trainer.accumulate_grad_batches 2",
        ("which zero3 cannot do with", "2 or more"),
    ),
    "ranks without rows": Bad(
        f"{LORA} --trainer.strategy fsdp2 --data.batch_size 1 --trainer.accumulate_grad_batches 2",
        ("data.batch_size 1", "2 or more"),
    ),
    "no rows in a batch": Bad(f"{LORA} --data.batch_size 0", ("batch_size", "0")),
    "a negative batch": Bad(f"{LORA} --data.batch_size -4", ("batch_size", "-4")),
    "no accumulation": Bad(
        f"{LORA} --trainer.accumulate_grad_batches 0", ("accumulate_grad_batches",)
    ),
    "a negative clip": Bad(f"{LORA} --trainer.gradient_clip_val -1", ("gradient_clip_val",)),
    "a validation every 0 batches": Bad(
        f"{LORA} --trainer.val_check_interval 0", ("val_check_interval must be above 0",)
    ),
    "a validation every 0 epochs": Bad(
        f"{LORA} --trainer.check_val_every_n_epoch 0", ("check_val_every_n_epoch must be 1",)
    ),
    "negative epochs": Bad(f"{LORA} --trainer.max_epochs -5", ("max_epochs",)),
    "a negative rate": Bad(f"{LORA} --model.optimizer.lr -1", ("learning rate", "-1")),
    "a dropout above 1": Bad(f"{LORA} --model.dropout 1.5", ("dropout", "1.5")),
    "a rank of 0": Bad(f"{LORA} --model.r 0", ("r >= 1",)),
    "targets that are nowhere": Bad(f"{LORA} --model.target_modules [query]", ("query",)),
    "a temperature without sampling": Bad(
        f"{LORA} --model.decoding.temperature 0.5", ("do_sample",)
    ),
    "no new tokens": Bad(f"{LORA} --model.decoding.max_new_tokens 0", ("max_new_tokens",)),
    "no room for a prompt": Bad(f"{LORA} --data.max_source_length 1", ("max_source_length",)),
    "negative shots": Bad(f"{LORA} --data.shots -1", ("shots",)),
    "a template without the dialogue": Bad(
        f"{LORA} --data.prompt Template --data.prompt.template 'Summarise this.'", ("{dialogue}",)
    ),
    "a seed that is none": Bad(f"{LORA} --seed_everything hello", ("seed_everything",)),
    "a patience of 0": Bad(f"{LORA} --early_stopping.patience 0", ("patience",)),
    "no steps between checkpoints": Bad(
        f"{LORA} --checkpoint.every_n_train_steps 0", ("every_n_train_steps",)
    ),
    "a metric that nobody logs": Bad(
        f"{LORA} --checkpoint.monitor val/nothing", ("val/nothing", "val/rougeL"), begins=True
    ),
    "a dry run": Bad(f"{LORA} --trainer.fast_dev_run true", ("debug.yaml",)),
    # Data
    "no such data": Bad(f"{LORA} --data.source {{tmp}}/nowhere", ("nowhere",)),
    "a home of nobody": Bad(f"{LORA} --data.source ~nobody_here/data", ("~nobody_here/data",)),
    "data without splits": Bad(f"{LORA} --data.source {{files}}", ("no split file", "jsonl")),
    "an empty split": Bad(f"{LORA} --data.source {{files}}/empty", ("train", "empty")),
    "broken JSON": Bad(f"{LORA} --data.source {{files}}/json", ("train.jsonl:3", "broken JSON")),
    "a row that is no object": Bad(f"{LORA} --data.source {{files}}/array", ("train.jsonl:3",)),
    "a row that is not UTF-8": Bad(f"{LORA} --data.source {{files}}/latin", ("train.jsonl:3",)),
    "a missing column": Bad(f"{LORA} --data.source {{files}}/column", ("no column", "dialogue")),
    "a dialogue of blanks": Bad(f"{LORA} --data.source {{files}}/blank", ("dialogue is empty",)),
    "a dialogue that is a number": Bad(f"{LORA} --data.source {{files}}/number", ("not text",)),
    "a row of too many cells": Bad(
        f"{LORA} --data.source {{files}}/cells", ("train.csv:3", "cells")
    ),
    "two files of a split": Bad(f"{LORA} --data.source {{files}}/two", ("two files",)),
    "a filter that leaves nothing": Bad(
        f"{LORA} --data.min_dialogue_chars 100000", ("min_dialogue_chars",)
    ),
    "rankings without ranks": Bad(
        f"{REWARD} --data.source {{files}}/column --data.max_length 64 --data.references null",
        ("train.jsonl:1",),
    ),
    # Models
    "no such backbone": Bad(f"{LORA} --model.backbone ./nowhere", ("./nowhere",)),
    "a backbone without weights": Bad(
        f"{LORA} --model.backbone {{files}}/weightless", ("weightless", "weights")
    ),
    "a backbone whose weights are cut off": Bad(f"{LORA} --model.backbone {{files}}/cut", ("cut",)),
    "a backbone whose config is broken": Bad(
        f"{LORA} --model.backbone {{files}}/confused", ("confused",)
    ),
    "a backbone whose config is a list": Bad(
        f"{LORA} --model.backbone {{files}}/listed", ("listed", "no JSON object")
    ),
    "a backbone of other shapes than its config": Bad(
        f"{LORA} --model.backbone {{files}}/reshaped", ("reshaped", "other shapes")
    ),
    "a backbone without a tokenizer": Bad(
        f"{LORA} --model.backbone {{files}}/wordless", ("wordless", "no tokenizer")
    ),
    "a backbone whose tokenizer is broken": Bad(
        f"{LORA} --model.backbone {{files}}/babel", ("the tokenizer of", "babel", "cannot be read")
    ),
    "a classifier for a backbone": Bad(f"{LORA} --model.backbone {{roberta}}", ("{roberta}",)),
    "a backbone for a classifier": Bad(f"{LORA} --toxicity.model {{t5}}", ("{t5}",)),
    "no texts in a pass of the judge": Bad(
        f"{LORA} --toxicity.model {{roberta}} --toxicity.batch_size 0", ("batch_size", "0")
    ),
    "a label that is none": Bad(
        f"{LORA} --toxicity.model {{roberta}} --toxicity.toxic_label rude", ("no label 'rude'",)
    ),
    "PPO: a label that is none": Bad(f"{PPO} --model.reward_label nice", ("no label 'nice'",)),
    "PPO: no reward": Bad(f"{PPO} --model.reward_model null", ("needs a reward",)),
    "PPO: an adapter that is none": Bad(
        f"{PPO} --model.adapter {{files}}", ("adapter_config.json",)
    ),
    "PPO: an adapter of another backbone": Bad(
        f"{PPO} --model.adapter {{run}}/export --model.backbone {{other}}", ("was trained on",)
    ),
    "PPO: steps where batches count": Bad(f"{PPO} --trainer.max_steps 9", ("max_steps",)),
    "PPO: a negative rate of the values": Bad(f"{PPO} --model.value_lr -1", ("value_lr", "-1")),
    "PPO: no epochs": Bad(f"{PPO} --model.ppo.epochs 0", ("epochs must be above 0",)),
    "PPO: groups of one": Bad(f"{PPO} --model.advantage GRPO", ("samples", "2")),
    "PPO: no such function": Bad(
        f"""{PPO} --model.extra_rewards '{{{{"a": {{{{"class_path": "FunctionReward", """
        """"init_args": {{"function": "no.such"}}}}}}'""",
        ("no.such",),
    ),
    # Run folders and checkpoints
    "a run folder in use": Bad(f"{LORA} --run_dir {{run}}", ("holds another run", "--resume auto")),
    "a run folder that is a file": Bad(f"{LORA} --run_dir {{files}}/key.yaml", ("key.yaml",)),
    "a run folder without a name": Bad(f"{LORA} --run_dir ''", ("--run_dir is empty",)),
    "a resume of an unset variable": Bad(f"{LORA} --resume ''", ("--resume is empty",)),
    "a run folder in a file": Bad(f"{LORA} --run_dir {{files}}/key.yaml/run", ("key.yaml",)),
    "a resume of nothing": Bad(f"{LORA} --resume auto", ("no checkpoint",)),
    "a resume of what is not there": Bad(f"{LORA} --resume {{tmp}}/a.ckpt", ("a.ckpt",)),
    "a resume of a text": Bad(f"{LORA} --resume {{files}}/key.yaml", ("cannot be read",)),
    "a resume of what is no checkpoint": Bad(
        f"{LORA} --resume {{files}}/list.ckpt", ("list.ckpt is no checkpoint of a run",)
    ),
    "a resume of another program's checkpoint": Bad(
        f"{LORA} --resume {{files}}/foreign.ckpt", ("foreign.ckpt is no checkpoint of a run",)
    ),
    "a checkpoint of another optimizer": Bad(
        f"{LORA} --run_dir {{run}} --resume auto --model.optimizer torch.optim.SGD "
        "--trainer.max_epochs 2",
        ("model.optimizer: SGD goes by momentum",),
    ),
    "a checkpoint of another shape": Bad(
        f"{LORA} --run_dir {{run}} --resume auto --model.r 3 --trainer.max_epochs 2",
        ("different weights",),
    ),
    "a checkpoint of another method": Bad(
        "train test --config configs/full_ft.yaml {tiny} --run_dir {tmp}/run "
        "--ckpt_path {run}/checkpoints/best.ckpt",
        ("this checkpoint is of", "FullFT"),
    ),
    "a test of nothing": Bad(LORA.replace("fit", "test"), ("no trained model",)),
    "a test from what is no checkpoint": Bad(
        f"{LORA.replace('fit', 'test')} --ckpt_path {{files}}/list.ckpt", ("is no checkpoint",)
    ),
    "a test from no checkpoint": Bad(
        f"{LORA.replace('fit', 'test')} --ckpt_path {{tmp}}/none.ckpt", ("none.ckpt",)
    ),
    # The other programs
    "predict: no such run": Bad(
        "predict {tmp}/none --input {files}/in.txt --output {tmp}/out.jsonl", ("none",)
    ),
    "predict: a run that is no model": Bad(
        "predict {files} --input {files}/in.txt --output {tmp}/out.jsonl", ("{files}",)
    ),
    "predict: an adapter of no known kind": Bad(
        "predict {files}/odd --input {files}/in.txt --output {tmp}/out.jsonl", ("PEFT", "'ODD'")
    ),
    "predict: no such input": Bad(
        "predict {run} --input {tmp}/none.txt --output {tmp}/out.jsonl", ("none.txt",)
    ),
    "predict: an input of unknown form": Bad(
        "predict {run} --input {files}/in.dat --output {tmp}/out.jsonl", ("--format",)
    ),
    "predict: an input without dialogues": Bad(
        "predict {run} --input {files}/nothing.jsonl --output {tmp}/out.jsonl", ("no dialogue",)
    ),
    "predict: the input as output": Bad(
        "predict {run} --input {files}/in.txt --output {files}/in.txt", ("overwrite the input",)
    ),
    "predict: no rows in a batch": Bad(
        "predict {run} --input {files}/in.txt --output {tmp}/out.jsonl --batch_size 0",
        ("batch_size",),
    ),
    "predict: another's output": Bad(
        "predict {run} --input {files}/in.txt --output {files}/key.yaml", ("key.yaml",)
    ),
    "report: no such run": Bad("report compare {tmp}/none", ("none",)),
    "report: no run": Bad("report compare {files}", ("{files}",)),
    "report: no such file": Bad(
        "report score --predictions {tmp}/none.txt --references {files}/in.txt --out {tmp}/s.json",
        ("none.txt",),
    ),
    "report: files of different length": Bad(
        "report score --predictions {files}/in.txt --references {files}/four.txt "
        "--out {tmp}/s.json",
        ("in.txt", "four.txt"),
    ),
    "report: no such column": Bad(
        "report score --predictions {files}/json2.jsonl --references {files}/json2.jsonl "
        "--prediction_columns mine --out {tmp}/s.json",
        ("mine",),
    ),
    "report: an output over an input": Bad(
        "report score --predictions {files}/in.txt --references {files}/in.txt "
        "--out {files}/in.txt",
        ("would overwrite",),
    ),
    "sweep: no such file": Bad("sweep {tmp}/none.yaml", ("none.yaml",)),
    "sweep: no YAML": Bad("sweep {files}/broken.yaml", ("broken.yaml",)),
    "sweep: no axes": Bad("sweep {files}/key.yaml", ("axes",)),
    "sweep: a file for a folder": Bad(
        "sweep {files}/sweep.yaml --config configs/lora.yaml --out {files}/key.yaml/out",
        ("key.yaml is a file",),
    ),
    "sweep: a negative seed": Bad("sweep {files}/sweep.yaml --seeds -1", ("--seeds",)),
    "sweep: names too long for folders": Bad("sweep {files}/long.yaml", ("too long",)),
    "sweep: a folder for a file": Bad("sweep {files}", ("{files}",)),
    "sweep: an option of its own": Bad(
        "sweep {files}/sweep.yaml --config configs/lora.yaml --run_dir x --out {tmp}/out",
        ("--run_dir",),
    ),
    "merge: no adapter": Bad("merge {files} --out {tmp}/merged", ("{files}",)),
    "merge: an output that exists": Bad("merge {run}/export --out {files}", ("{files}",)),
    "replay: no run": Bad("replay {tmp}/none --batch 0", ("none",)),
    "replay: no rollouts": Bad("replay {run} --batch 0", ("there is no batch 0", "rollouts.yaml")),
    "replay: no such fault": Bad("replay {run} --fault step1", ("there is no fault 'step1'",)),
    "replay: a run whose config is broken": Bad("replay {files}/torn --batch 0", ("is no YAML",)),
    "replay: rollouts that are empty": Bad("replay {files}/bare --batch 0", ("is broken",)),
    "replay: nothing to do": Bad("replay {run}", ("--batch",)),
    "baselines: no such data": Bad(
        "baselines lead_3 --source {tmp}/none --out {tmp}/out", ("none",)
    ),
    "baselines: no such row": Bad("baselines lead_4 --source mini --out {tmp}/out", ("lead_4",)),
}


def write_files(folder: Path, t5: str, roberta: str) -> None:
    """Write all the files that something is wrong with."""
    rows = make_rows(6)
    lines = [json.dumps(row).encode() + b"\n" for row in rows]
    bad_lines = {
        "json": b'{"id": "r2", \n',
        "array": b'["r2"]\n',
        "latin": b'{"id": "r2", "dialogue": "caf\xe9", "summary": "x"}\n',
        "blank": json.dumps(rows[2] | {"dialogue": " \n"}).encode() + b"\n",
        "number": json.dumps(rows[2] | {"dialogue": 5}).encode() + b"\n",
    }
    for name, line in bad_lines.items():
        write_rows(folder / name, validation=rows[:2])
        (folder / name / "train.jsonl").write_bytes(b"".join([*lines[:2], line, *lines[3:]]))
    write_rows(folder / "column", train=[{"id": "a", "text": "b"}], validation=rows, test=rows)
    write_rows(folder / "empty", train=[], validation=rows)
    write_rows(folder / "two", train=rows, validation=rows)
    (folder / "two" / "dialogsum.train.jsonl").write_text(json.dumps(rows[0]))
    write_rows(folder / "cells", validation=rows)
    (folder / "cells" / "train.csv").write_text("id,dialogue,summary\na,b,c\nd,e,f,g\n")
    texts = {
        "broken.yaml": "a: [1, 2\nb: }",
        "list.yaml": "- 1\n- 2\n",
        "key.yaml": "trainer: {max_epoch: 3}\n",
        "other.yaml": "per_model: {SoftPrompt: {}}\n",
        "empty.yaml": "# trainer: {max_epochs: 3}\n",
        "word.yaml": "trainer:\n",
        "null.yaml": "trainer: null\nseed_everything: 1\n",
        "classless.yaml": "per_model: LoRA\n",
        "unset.yaml": "per_model: {LoRA: 7}\n",
        "sweep.yaml": "axes: {rank: {r4: {model.r: 4}, r8: {model.r: 8}}}\n",
        "long.yaml": f"axes: {{a: {{{'x' * 300}: {{model.r: 4}}}}}}\n",
        "in.txt": "#Person1#: Hello.\n\n#Person2#: Bye.\n",
        "in.dat": "#Person1#: Hello.\n",
        "four.txt": "a\nb\nc\nd\n",
        "nothing.jsonl": "\n\n",
        "json2.jsonl": "".join(
            json.dumps({"id": row["id"], "prediction": "a", "summary": "b"}) + "\n" for row in rows
        ),
    }
    for name, text in texts.items():
        (folder / name).write_text(text)
    (folder / "latin.yaml").write_bytes("trainer: {max_epochs: 1} # caf\xe9".encode("latin-1"))
    torch.save([1, 2], folder / "list.ckpt")
    torch.save({"state_dict": {}}, folder / "foreign.ckpt")
    for name, about in (("torn", {"ranks": 1}), ("bare", {})):
        rollouts = RolloutFiles(folder / name)
        rollouts.path.mkdir(parents=True)
        rollouts.rows(0).write_text("")
        rollouts.rows(0).with_suffix(".json").write_text(json.dumps(about))
        rollouts.checkpoint(0).write_text("")
        (folder / name / "config.yaml").write_text("a: [\n")
    (folder / "odd").mkdir()
    (folder / "odd" / "adapter_config.json").write_text(
        json.dumps({"peft_type": "ODD", "base_model_name_or_path": t5})
    )
    for name in ("weightless", "cut", "confused", "listed", "reshaped", "wordless", "babel"):
        shutil.copytree(t5, folder / name)
    weights = folder / "cut" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    (folder / "weightless" / "model.safetensors").unlink()
    (folder / "confused" / "config.json").write_text("{ not json")
    (folder / "listed" / "config.json").write_text("[]")
    shape = json.loads((folder / "reshaped" / "config.json").read_text())
    (folder / "reshaped" / "config.json").write_text(json.dumps(shape | {"d_model": 16}))
    (folder / "wordless" / "tokenizer.json").unlink()
    (folder / "babel" / "tokenizer.json").write_text("{}")


@pytest.fixture(scope="module")
def places(
    t5: str, roberta: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, str]]:
    """What the names in braces stand for; a LoRA run that is done, for one."""
    import train

    base = tmp_path_factory.mktemp("bad")
    files, run = base / "files", base / "run"
    files.mkdir()
    write_files(files, t5, roberta)
    shutil.copytree(t5, base / "other")
    data = write_rows(base / "data", train=make_rows(6), validation=make_rows(2), test=make_rows(2))
    tiny = (
        f"--model.backbone {t5} --data.source {data} --toxicity.model null "
        "--trainer.precision 32-true --trainer.accelerator cpu --trainer.max_epochs 1 "
        "--model.decoding.max_new_tokens 3"
    )
    named = {
        "t5": t5, "roberta": roberta, "other": str(base / "other"), "files": str(files),
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
    assert (tmp_path / "run").exists() == case.begins


def fill(text: str, names: dict[str, str]) -> str:
    """Put in what the names in single braces stand for."""
    for name, value in names.items():
        text = text.replace("{" + name + "}", value)
    return text


def test_there_are_enough() -> None:
    assert len(CASES) >= 30
