"""predict.py as its users meet it: the texts of a test, in order, whatever happens on the way."""

import io
import json
import logging
import multiprocessing
import os
import re
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

import train
from alignsum.commands import predict
from common.jsonl import to_lines
from common.run_folder import RunFolder
from datamodules.reading import Row
from prediction import job
from prediction.outputs import SummaryFile, SummaryStream
from prediction.progress import PredictProgress
from prediction.summarizer import find_device
from tests.models import name_backbone

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
def base(t5: str, dialogues: Path) -> list[str]:
    """Windows of four rows; sampled, so that every seed and batch shows in the text."""
    return [
        t5, "--input", str(dialogues), "--batch_size", "2", "--window_batches", "2",
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
    run(base, tmp_path / "t.jsonl", "--keep_dialogue", "true")
    kept = read(tmp_path / "t.jsonl")
    assert [row["prediction"] for row in kept] == [row["prediction"] for row in rows]
    assert kept[3]["dialogue"].startswith("#Person1#: 3 ")
    assert run(base, tmp_path / "u.jsonl", "--seed", "7") != (tmp_path / "s.jsonl").read_bytes()


def fork(task: Callable[[], object]) -> int | None:
    """Run a task in a child process; give its exit code, negative for a signal."""
    child = multiprocessing.get_context("fork").Process(target=task)
    child.start()
    child.join(120)
    return child.exitcode


@pytest.mark.parametrize("budget", [0, 1, 0.2, 0.39, 0.4, 0.7, 1.0])
def test_killed_after_any_byte_it_goes_on_as_if_nothing_had_been(
    budget: float, base: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The budget is a number of bytes, or a share of the whole file: all of the first window."""
    whole = run(base, tmp_path / "whole.jsonl")
    first = len(b"".join(whole.splitlines(keepends=True)[:4]))
    size = {0.4: first, 1: 1}.get(budget, int(budget * len(whole)))
    output = tmp_path / "s.jsonl"

    def append_and_die(self: SummaryFile, rows: list[dict[str, Any]]) -> None:
        text = to_lines(rows).encode()
        left = size - self.path.stat().st_size
        self.file.write(text[: max(left, 0)])
        self.file.flush()
        self.rows += len(rows)
        if len(text) >= left:
            os.kill(os.getpid(), signal.SIGKILL)

    with monkeypatch.context() as patch:
        patch.setattr(SummaryFile, "append", append_and_die)
        assert fork(lambda: run(base, output)) == -signal.SIGKILL
    assert output.read_bytes() == whole[:size]
    assert run(base, output) == whole


def test_killed_before_the_first_line(
    base: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def die(*_: object) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    output = tmp_path / "s.jsonl"
    with monkeypatch.context() as patch:
        patch.setattr("prediction.outputs.write_text", die)
        assert fork(lambda: run(base, output)) == -signal.SIGKILL
    assert output.read_bytes() == b""
    assert run(base, output) == run(base, tmp_path / "whole.jsonl")


def test_what_is_complete_is_left_as_it_is(
    base: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = run(base, tmp_path / "s.jsonl")
    monkeypatch.setattr(job, "load_exported", None)  # not even the model is loaded
    assert run(base, tmp_path / "s.jsonl") == whole


def test_an_adapter_whose_backbone_has_moved(
    base: list[str],
    t5: str,
    trained_adapter: str,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    whole = run([trained_adapter, *base[1:]], tmp_path / "whole.jsonl")
    here, there, export = tmp_path / "here", tmp_path / "there", tmp_path / "export"
    shutil.copytree(t5, here)
    shutil.copytree(trained_adapter, export)
    name_backbone(export, here)
    command = [str(export), *base[1:]]
    output = tmp_path / "s.jsonl"
    run(command, output)
    output.write_bytes(b"".join(whole.splitlines(keepends=True)[:4]))
    here.rename(there)
    assert predict.main([*command, "--output", str(output)]) == 2
    assert re.search(r"no folder '.*here'.* name the new place: --backbone", caplog.text)
    # It is the same model, and so the same work, wherever it is.
    assert run(command, output, "--backbone", str(there)) == whole


def test_a_lost_end_is_made_again(base: list[str], tmp_path: Path) -> None:
    whole = run(base, tmp_path / "s.jsonl")
    lines = whole.splitlines(keepends=True)
    for kept in (0, 3, 4, 9):
        (tmp_path / "s.jsonl").write_bytes(b"".join(lines[:kept]))
        assert run(base, tmp_path / "s.jsonl") == whole


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["--num_beams", "2"], "num_beams was 1 and is 2"),
        (["--prompt", "Flan"], "prompt was"),
        (["--max_source_length", "99"], "max_source_length was 512 and is 99"),
        (["--precision", "bf16-mixed"], "precision was"),
        (["--seed", "1"], "seed was 42 and is 1"),
        (["--batch_size", "3"], "batch_size was 2 and is 3"),  # a part of what is sampled
        (["--keep_dialogue", "true"], "keep_dialogue was"),
    ],
)
def test_work_of_other_settings_is_not_mixed(
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


def test_work_on_another_input_or_by_another_model_is_not_mixed(
    base: list[str], t5: str, dialogues: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    output = tmp_path / "s.jsonl"
    whole = run(base, output)
    output.write_bytes(b"".join(whole.splitlines(keepends=True)[:5]))
    text = dialogues.read_text()
    dialogues.write_text(text.replace("9 and", "8 and"))
    assert predict.main([*base, "--output", str(output)]) == 2
    assert "input was" in caplog.text
    # The same rows in another form are the same input.
    dialogues.write_text("\n" + text)
    copy = tmp_path / "copy"
    copy.mkdir()
    for file in Path(t5).iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    moved = [str(copy), *base[1:]]
    assert run(moved, output) == whole  # and the same model in another place the same model
    output.write_bytes(b"".join(whole.splitlines(keepends=True)[:5]))
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(config | {"dropout_rate": 0.2}))
    assert predict.main([*moved, "--output", str(output)]) == 2
    assert "model was" in caplog.text


def test_lines_of_other_rows_are_not_gone_on_with(
    base: list[str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    output = tmp_path / "s.jsonl"
    whole = run(base, output).replace(b'"r3"', b'"x3"')
    output.write_bytes(whole)
    assert predict.main([*base, "--output", str(output)]) == 2
    assert "s.jsonl:4 is of row 'x3', the input has 'r3'" in caplog.text
    assert output.read_bytes() == whole


def test_without_sampling_the_batch_size_may_change(base: list[str], tmp_path: Path) -> None:
    greedy = [*base, "--do_sample", "false"]
    whole = run(greedy, tmp_path / "s.jsonl")
    (tmp_path / "s.jsonl").write_bytes(b"".join(whole.splitlines(keepends=True)[:5]))
    assert run(greedy, tmp_path / "s.jsonl", "--batch_size", "3") == whole


@pytest.mark.parametrize(
    ("method", "shots"),
    [("lora", []), ("soft_prompt", []), ("in_context", []),
     ("in_context", ["--data.shots", "2"]),
     ("in_context", ["--data.shots", "2", "--data.examples", "SimilarExamples"])],
)  # fmt: skip
def test_the_texts_are_those_of_the_runs_own_test(
    method: str, shots: list[str], tmp_path: Path, caplog: pytest.LogCaptureFixture
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
    for name, more in (("s", []), ("t", ["--batch_size", "4", "--window_batches", "1"])):
        output = tmp_path / f"{name}.jsonl"
        with caplog.at_level(logging.INFO):
            assert predict.main([str(root), *arguments, str(output), *more]) == 0
        assert ("Of 2 examples" in caplog.text) == bool(shots)
        assert read(output) == [{key: row[key] for key in ("id", "prediction")} for row in tested]
    assert len({row["prediction"] for row in tested}) > 3


def test_long_dialogues_lose_their_end_and_never_the_question(
    t5: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    texts = ["#Person1#: short", "#Person1#: " + "long " * 99, "#Person1#: " + "long " * 400]
    (tmp_path / "d.txt").write_text("\n\n".join(texts))
    arguments = [t5, "--input", str(tmp_path / "d.txt"), "--max_new_tokens", "4"]
    arguments += ["--device", "cpu", "--max_source_length", "100"]
    with caplog.at_level(logging.INFO):
        run(arguments, tmp_path / "s.jsonl")
    assert "2 dialogues were shortened to fit 100 tokens" in caplog.text
    # Both are the same once they are cut.
    rows = read(tmp_path / "s.jsonl")
    assert rows[1]["prediction"] == rows[2]["prediction"]


def test_settings_of_the_run_stand_below_those_given(t5: str, tmp_path: Path) -> None:
    root = tmp_path / "run"
    (root / "export").mkdir(parents=True)
    config = {
        "model": {"class_path": "LoRA", "init_args": {"decoding": {"num_beams": 3, "top_k": 0}}},
        "data": {
            "class_path": "DialogSumDataModule",
            "init_args": {
                "prompt": {
                    "class_path": "datamodules.Template", "init_args": {"template": "<{dialogue}>"},
                },
                "shots": 2, "batch_size": 32, "eval_batch_size": None, "max_source_length": 77,
            },
        },
        "trainer": {"precision": "bf16-mixed"},
    }  # fmt: skip
    (root / "config.yaml").write_text(json.dumps(config))
    arguments = ["--input", "i", "--output", "o", "--shots", "0", "--num_beams", "4"]
    for name in (root, root / "export"):
        export, settings, decoding = predict.parse([str(name), *arguments])
        assert export == root / "export"
        assert (decoding.num_beams, decoding.max_new_tokens) == (4, 128)
        assert settings.prompt.wrap("x") == "<x>"
        assert (settings.batch_size, settings.max_source_length) == (32, 77)
        assert settings.precision == "bf16-mixed"
    assert predict.parse([str(root), *arguments[:4]])[1].shots == 2
    _, settings, decoding = predict.parse([t5, *arguments[:4]])
    assert (settings.prompt.wrap("x"), settings.batch_size) == (
        "Summarize the following conversation.\n\nx\n\nSummary:", 8,
    )  # fmt: skip
    config["model"]["init_args"]["decoding"]["beams"] = 2
    (root / "config.yaml").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"not understood.*beams"):
        predict.parse([str(root), *arguments])
    (root / "config.yaml").write_text("[]")
    with pytest.raises(ValueError, match="no configuration of a run"):
        predict.parse([str(root), *arguments])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["--batch_size", "0", "--window_batches", "0"], "batch_size must be.*window_batches must"),
        (["--temperature", "0"], "temperature must be"),
        (["--device", "cuda:77"], "there is no 'cuda:77' here"),
        (["--device", "tpux"], "'tpux' is none"),
        (["--input", "nothing.jsonl"], "there is no file 'nothing.jsonl'"),
        (["--output", "{input}"], "would overwrite the input"),
        (["--output", "{folder}"], "is a folder"),
        (["--shots", "1"], "belongs to no run whose train split has examples"),
        (["--max_source_length", "5"], "leaves no room for a dialogue"),
    ],
)
def test_what_cannot_work_changes_nothing(
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
        (roberta, "not an encoder-decoder"),
    ):  # fmt: skip
        assert predict.main([folder, *base[1:], "--output", str(tmp_path / "s.jsonl")]) == 2
        assert message in caplog.text
    assert not (tmp_path / "s.jsonl").exists()


def test_standard_output_and_pipes(
    base: list[str], dialogues: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    whole = run(base, tmp_path / "s.jsonl")
    capsys.readouterr()
    assert predict.main([*base, "--output", "-"]) == 0
    assert capsys.readouterr().out.encode() == whole

    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    piped = [
        *base,
        "--input",
        str(pipe),
        "--format",
        "jsonl",
        "--output",
        str(tmp_path / "t.jsonl"),
    ]

    def feed() -> None:
        pipe.write_text(dialogues.read_text())

    for code in (0, 2):  # what came from a pipe is not gone on with
        feeder = multiprocessing.get_context("fork").Process(target=feed)
        feeder.start()
        assert predict.main(piped) == code
        assert (tmp_path / "t.jsonl").read_bytes() == whole
        feeder.terminate()
        feeder.join()
    assert "a pipe cannot be compared" in caplog.text


class Counted:
    """A source that counts what is taken of it, and a model that looks at the count."""

    def __init__(self, rows: int, window: int) -> None:
        self.rows, self.window, self.taken = rows, window, 0

    def read(self) -> Iterator[Row]:
        for i in range(self.rows):
            self.taken += 1
            yield Row(str(i), "x", ())

    def summarise(self, rows: list[Row], window: int, advance: Callable[[int], None]) -> list[str]:
        assert self.taken == min((window + 1) * self.window, self.rows)
        advance(len(rows))
        return [row.id for row in rows]


@pytest.mark.parametrize("total", [None, 50])
def test_no_more_is_read_than_the_window_at_hand(total: int | None, tmp_path: Path) -> None:
    counted: Any = Counted(50, window=8)
    settings: Any = predict.Settings("i", "o", batch_size=4, window_batches=2)
    file = io.StringIO()
    console = Console(file=io.StringIO())
    job.write_summaries(counted, counted, SummaryStream(file), settings, total, console)
    rows = [json.loads(line) for line in file.getvalue().splitlines()]
    assert [row["prediction"] for row in rows] == [str(i) for i in range(50)]


def test_progress_says_how_far_and_how_long() -> None:
    now = 0.0
    file = io.StringIO()
    progress = PredictProgress(Console(file=file), 1000, done=200, clock=lambda: now)
    for moment in (1.0, 4.0, 10.0):
        now = moment
        progress.advance(20)
    assert file.getvalue() == "[0:10] 260/1000 dialogues, 6.0/s, 2:03 left\n"
    progress = PredictProgress(Console(file=file), None, clock=lambda: now)
    now += 7200
    progress.advance(36)
    assert file.getvalue().endswith("[2:00:00] 36 dialogues, 0.0/s\n")


def test_a_bar_is_shown_in_a_terminal() -> None:
    file = io.StringIO()
    console = Console(file=file, force_terminal=True, width=100)
    with PredictProgress(console, 10, done=4) as progress:
        progress.advance(6)
    assert "10/10" in file.getvalue()


def test_the_device_is_found() -> None:
    assert find_device("cpu") == torch.device("cpu")
    if not torch.accelerator.is_available():
        assert find_device("auto") == torch.device("cpu")
