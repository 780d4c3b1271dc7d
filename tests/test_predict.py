"""The predict command: the texts of a run's test, in order, however often it is interrupted."""

import json
import multiprocessing
import os
import re
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import pytest

import train
from alignsum.commands import predict
from common import jsonl, resumable
from common.run_folder import RunFolder
from lightning_modules import exported_run

ROOT = Path(__file__).parent.parent
CONFIGS = ROOT / "configs"


def write_dialogues(path: Path, count: int = 10) -> Path:
    """Dialogues of different lengths, the long ones not first."""
    rows = [
        {"id": f"r{i}", "dialogue": f"#Person1#: {i} " + "and so on " * (7 * i % 5)}
        for i in range(count)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def dialogues(tmp_path: Path) -> Path:
    return write_dialogues(tmp_path / "dialogues.jsonl")


@pytest.fixture
def base(t5: str, dialogues: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Windows of four rows; sampled, so that every seed and batch shows in the text."""
    monkeypatch.setattr(predict, "WINDOW_BATCHES", 2)
    return [
        t5, "--input", str(dialogues), "--batch_size", "2",
        "--do_sample", "true", "--max_new_tokens", "6", "--device", "cpu",
    ]  # fmt: skip


def run(base: list[str], output: Path, *more: str) -> bytes:
    assert predict.main([*base, "--output", str(output), *more]) == 0
    return output.read_bytes()


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_rows_come_in_the_order_of_the_input(base: list[str], tmp_path: Path) -> None:
    run(base, tmp_path / "s.jsonl")
    rows = read(tmp_path / "s.jsonl")
    assert [row["id"] for row in rows] == [f"r{i}" for i in range(10)]
    assert all(list(row) == ["id", "prediction"] for row in rows)
    assert len({row["prediction"] for row in rows}) == 10
    assert run(base, tmp_path / "u.jsonl", "--seed", "7") != (tmp_path / "s.jsonl").read_bytes()


def test_without_an_output_the_summaries_are_printed(
    t5: str, dialogues: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    options = ["--batch_size", "2", "--max_new_tokens", "6", "--device", "cpu"]
    assert predict.main([t5, str(dialogues), *options]) == 0
    printed = capsys.readouterr().out.splitlines()
    predict.main([t5, str(dialogues), *options, "--output", str(tmp_path / "o.jsonl")])
    assert printed == [row["prediction"] for row in read(tmp_path / "o.jsonl")]
    for files in ([], [str(dialogues), "--input", str(dialogues)]):
        with pytest.raises(SystemExit, match="2"):
            predict.main([t5, *files])
    assert "name one file of dialogues" in capsys.readouterr().err


def fork(task: Callable[[], object]) -> int | None:
    """Run a task in a child process; return its exit code, negative for a signal."""
    child = multiprocessing.get_context("fork").Process(target=task)
    child.start()
    child.join(120)
    return child.exitcode


@pytest.mark.parametrize("budget", [0, 1, 0.39, 0.4, 0.7, 1.0])
def test_killed_after_any_byte_it_continues_to_the_same_file(
    budget: float, base: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The budget is a number of bytes, or a share of the whole file: all of the first window."""
    whole = run(base, tmp_path / "whole.jsonl")
    first = len(b"".join(whole.splitlines(keepends=True)[:4]))
    size = {0.4: first, 1: 1}.get(budget, int(budget * len(whole)))
    output = tmp_path / "s.jsonl"

    def append_and_die(file: BinaryIO, data: bytes) -> None:
        left = size - output.stat().st_size
        file.write(data[: max(left, 0)])
        if len(data) >= left:
            os.kill(os.getpid(), signal.SIGKILL)

    with monkeypatch.context() as patch:
        patch.setattr(resumable, "append", append_and_die)
        assert fork(lambda: run(base, output)) == -signal.SIGKILL
    assert output.read_bytes() == whole[:size]
    assert run(base, output) == whole


def test_a_complete_output_is_left_as_it_is(
    base: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = run(base, tmp_path / "s.jsonl")
    monkeypatch.setattr(exported_run, "load_generator", None)  # not even the model is loaded
    assert run(base, tmp_path / "s.jsonl") == whole


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["--num_beams", "2"], "num_beams was 1 and is 2"),
        (["--prompt", "Flan"], "prompt was None and is 'Flan'"),
        (["--seed", "1"], "seed was 42 and is 1"),
        (["--batch_size", "3"], "batch_size was 2 and is 3"),  # a part of what is sampled
    ],
)
def test_outputs_of_other_settings_are_not_mixed(
    change: list[str], message: str, base: list[str], tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    whole = run(base, tmp_path / "s.jsonl")
    half = b"".join(whole.splitlines(keepends=True)[:5])
    (tmp_path / "s.jsonl").write_bytes(half)
    assert predict.main([*base, "--output", str(tmp_path / "s.jsonl"), *change]) == 2
    assert message in caplog.text
    assert (tmp_path / "s.jsonl").read_bytes() == half
    run(base, tmp_path / "s.jsonl", *change, "--overwrite", "true")
    assert len(read(tmp_path / "s.jsonl")) == 10
    assert predict.main([*base, "--output", str(tmp_path / "s.jsonl")]) == 2  # now it is theirs


def test_outputs_of_another_input_or_model_are_not_mixed(
    base: list[str], t5: str, dialogues: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    output = tmp_path / "s.jsonl"
    whole = run(base, output)
    output.write_bytes(b"".join(whole.splitlines(keepends=True)[:5]))
    text = dialogues.read_text()
    dialogues.write_text(text.replace("9 and", "8 and"))
    assert predict.main([*base, "--output", str(output)]) == 2
    assert "input was" in caplog.text
    # Blank lines, and the place of the model, make no difference.
    dialogues.write_text("\n" + text)
    copy = tmp_path / "copy"
    shutil.copytree(t5, copy)
    moved = [str(copy), *base[1:]]
    assert run(moved, output) == whole
    output.write_bytes(b"".join(whole.splitlines(keepends=True)[:5]))
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(config | {"dropout_rate": 0.2}))
    assert predict.main([*moved, "--output", str(output)]) == 2
    assert "model was" in caplog.text


def test_without_sampling_the_batch_size_may_change(base: list[str], tmp_path: Path) -> None:
    greedy = [*base, "--do_sample", "false"]
    whole = run(greedy, tmp_path / "s.jsonl")
    (tmp_path / "s.jsonl").write_bytes(b"".join(whole.splitlines(keepends=True)[:5]))
    assert run(greedy, tmp_path / "s.jsonl", "--batch_size", "3") == whole


@pytest.mark.parametrize(
    ("method", "shots"),
    [("lora", []), ("soft_prompt", []),
     ("in_context", ["--data.shots", "2", "--data.examples", "SimilarExamples"])],
)  # fmt: skip
def test_the_texts_are_those_of_the_runs_own_test(
    method: str, shots: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / method
    settings = [
        "--config", str(CONFIGS / f"{method}.yaml"),
        "--config", str(CONFIGS / "overlays" / "mini.yaml"), "--run_dir", str(root),
        "--data.max_train_rows", "16", "--data.batch_size", "4", "--trainer.limit_val_batches", "0",
        "--toxicity.model", "null", "--checkpoint.monitor", "null", "--data.max_test_rows", "12",
        "--data.prompt", "Flan",
        "--data.max_source_length", "90", "--model.decoding.num_beams", "2",
        "--model.decoding.max_new_tokens", "12", "--data.eval_batch_size", "5", *shots,
    ]  # fmt: skip
    if shots:
        settings += ["--data.max_source_length", "300"]
    if method != "in_context":
        train.main(["fit", *settings, "--trainer.max_epochs", "1"])
    train.main(["test", *settings])
    tested = RunFolder(root).read_predictions()
    lines = [json.dumps({"id": row["id"], "dialogue": row["dialogue"]}) for row in tested]
    (tmp_path / "d.jsonl").write_text("\n".join(lines))
    arguments = ["--input", str(tmp_path / "d.jsonl"), "--output"]
    for name, batches in (("s", 16), ("t", 1)):
        output = tmp_path / f"{name}.jsonl"
        monkeypatch.setattr(predict, "WINDOW_BATCHES", batches)
        assert predict.main([str(root), *arguments, str(output), "--batch_size", "4"]) == 0
        assert read(output) == [{key: row[key] for key in ("id", "prediction")} for row in tested]
    assert len({row["prediction"] for row in tested}) > 3


def read_job(*arguments: str) -> exported_run.ExportedRun:
    files = ["--input", "i", "--output", "o"]
    settings = predict.make_parser().parse_args([*arguments, *files])
    return exported_run.read_exported_run(settings.run, {n: settings[n] for n in predict.GIVEN})


def test_settings_that_are_given_precede_those_of_the_run(t5: str, tmp_path: Path) -> None:
    root = tmp_path / "run"
    shutil.copytree(t5, root / "export")
    prompt = {"class_path": "datamodules.Template", "init_args": {"template": "<{dialogue}>"}}
    data = {
        "source": "mini", "prompt": prompt, "shots": 2, "batch_size": 32, "eval_batch_size": None,
        "max_source_length": 77,
    }  # fmt: skip
    config: dict[str, Any] = {
        "model": {"class_path": "LoRA", "init_args": {"decoding": {"num_beams": 3, "top_k": 0}}},
        "data": {"class_path": "DialogSumDataModule", "init_args": data},
        "trainer": {"precision": "bf16-mixed"},
    }
    (root / "config.yaml").write_text(json.dumps(config))
    for name in (root, root / "export"):
        job = read_job(str(name), "--shots", "0", "--num_beams", "4")
        assert job.export == root / "export"
        assert (job.decoding.num_beams, job.decoding.max_new_tokens) == (4, 128)
        assert job.data == {"prompt": prompt, "max_source_length": 77}
        assert (job.batch_size, job.precision) == (32, "bf16-mixed")
    assert read_job(str(root)).data == data
    assert read_job(str(root)).decoding.num_beams == 3
    assert (read_job(t5).data, read_job(t5).batch_size) == ({}, 8)
    config["model"]["init_args"]["decoding"]["beams"] = 2
    (root / "config.yaml").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="beams"):
        read_job(str(root))
    (root / "config.yaml").write_text("[]")
    with pytest.raises(ValueError, match="config"):
        read_job(str(root))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["--batch_size", "0"], "batch_size must be at least 1"),
        (["--temperature", "0"], "temperature must be"),
        (["--device", "cuda:77"], "'cuda:77' is not available"),
        (["--device", "tpux"], "'tpux' is not available"),
        (["--input", "nothing.jsonl"], "'nothing.jsonl' is not a"),
        (["--output", "{input}"], "is a folder or the input"),
        (["--output", "{folder}"], "is a folder or"),
        (["--shots", "1"], "belongs to no run whose train split has examples"),
        (["--max_source_length", "5"], "leaves no room for a dialogue"),
    ],
)
def test_invalid_settings_change_nothing(
    change: list[str], message: str, base: list[str], dialogues: Path, tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    change = [part.format(input=dialogues, folder=tmp_path) for part in change]
    assert predict.main([*base, "--output", str(tmp_path / "s.jsonl"), *change]) == 2
    assert re.search(message, caplog.text)
    assert {file.name for file in tmp_path.iterdir()} == {"dialogues.jsonl"}


def test_a_folder_that_is_no_model_is_refused(
    base: list[str], roberta: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for folder, message in (
        (str(tmp_path), "neither config.json"), ("./nothing", "there is no folder"),
        (roberta, "generates no text"),
    ):  # fmt: skip
        assert predict.main([folder, *base[1:], "--output", str(tmp_path / "s.jsonl")]) == 2
        assert message in caplog.text
    assert not (tmp_path / "s.jsonl").exists()


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("d.txt", "\ufeffA: Hi.\r\nB: Yo.\r\n \r\n\r\nC: No.\n"),
        ("d.csv", 'key,chat\r\n,"A: Hi.\r\nB: Yo."\r\n,C: No.\r\n'),
        ("d.jsonl", '{"chat": "A: Hi.\\r\\nB: Yo."}\n\n{"chat": "C: No."}\n'),
    ],
)
def test_the_input_formats(name: str, text: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(text, newline="")
    columns = [] if name == "d.txt" else ["--dialogue_column", "chat", "--id_column", "key"]
    arguments = ["r", "--input", str(tmp_path / name), "--output", "o", *columns]
    rows = predict.read_dialogues(predict.make_parser().parse_args(arguments))
    assert [row.id for row in rows] == ["0", "1"]
    assert [row.dialogue.replace("\r", "") for row in rows] == ["A: Hi.\nB: Yo.", "C: No."]


def test_bad_rows_stop_the_command_or_are_skipped(
    base: list[str], dialogues: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    bad = b'{"dialogue": 3}\nno JSON\n{"dialogue": "\xff"}\n'
    dialogues.write_bytes(bad + dialogues.read_bytes())
    assert predict.main([*base, "--output", str(tmp_path / "s.jsonl")]) == 2
    for line in (1, 2, 3):
        assert f"dialogues.jsonl:{line}: " in caplog.text
    run(base, tmp_path / "s.jsonl", "--on_bad_row", "skip")
    assert [row["id"] for row in read(tmp_path / "s.jsonl")] == [f"r{i}" for i in range(10)]


def test_two_commands_cannot_write_one_output(
    base: list[str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with jsonl.open_to_append(tmp_path / "s.jsonl"):
        assert predict.main([*base, "--output", str(tmp_path / "s.jsonl")]) == 2
    assert "written by another process" in caplog.text
