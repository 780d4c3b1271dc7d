"""The push command against a stand-in for the hub's API, and the card it uploads."""

import base64
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml
from aiohttp import web
from huggingface_hub import ModelCard

from callbacks.model_card import make_card
from common.run_folder import RunFolder
from tests.serving import serve_in_thread

ROOT = Path(__file__).parents[2]


@pytest.fixture
def run_folder(tmp_path: Path, trained_adapter: str) -> RunFolder:
    folder = RunFolder(tmp_path / "ppo")
    shutil.copytree(trained_adapter, folder.export)
    folder.update_summary(
        command="python train.py fit", method="ppo", backbone="google/flan-t5-base",
        versions={"torch": "2.13.0"}, gate={"kl": 0.00012},
    )  # fmt: skip
    folder.record_metrics({
        "test/rouge1": (0.4321, 300, 0.41, 0.45), "test/rouge1_before": (0.4411, 300, 0.42, 0.46),
        "test/rouge1_change": (-0.009, 300, -0.02, 0.003), "test/toxicity": (0.137, 300, 0.1, 0.2),
    })  # fmt: skip
    model = {"beta": 0.5, "policy": {"class_path": "LoRAPolicy", "init_args": {"r": 8, "x": None}}}
    data = {"source": "knkarthick/dialogsum", "batch_size": 16}
    config = {"model": {"init_args": model}, "data": {"init_args": data}}
    folder.config.write_text(yaml.safe_dump(config | {"trainer": {"max_epochs": 3}}))
    (folder.export / "README.md").write_text(make_card(folder, str(folder.export)))
    return folder


@contextmanager
def stand_in() -> Iterator[tuple[str, list[tuple[str, Any]]]]:
    """Serve what creating a repository and committing to it needs; yield address and calls."""
    calls: list[tuple[str, Any]] = []

    async def answer(request: web.Request) -> web.Response:
        body = (await request.read()).decode()
        if request.headers.get("Authorization") != "Bearer hf_test":
            return web.json_response({"error": "no such token"}, status=401)
        calls.append((request.path, body))
        if request.path == "/api/repos/create":
            return web.json_response({"url": f"http://{request.host}/user/name", "id": "1"})
        if "/preupload/" in request.path:
            files = json.loads(body)["files"]
            modes = [
                {"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in files
            ]
            return web.json_response({"files": modes})
        if "/commit/" in request.path:
            url = f"http://{request.host}/user/name/commit/1"
            return web.json_response({"commitUrl": url, "commitOid": "1"})
        return web.json_response({"warnings": [], "errors": []})

    app = web.Application(client_max_size=2**30)
    app.router.add_route("*", "/{path:.*}", answer)
    with serve_in_thread(app) as address:
        yield address, calls


def push(folder: Path, home: Path, address: str, *more: str, user: str = "test") -> Any:
    own = {
        "HF_ENDPOINT": address,
        "HF_HUB_OFFLINE": "0",
        "HF_HOME": str(home),
        "HF_TOKEN": user and f"hf_{user}",
    }
    command = [sys.executable, "-m", "alignsum", "push", str(folder), *more]
    environment = os.environ | own
    return subprocess.run(command, env=environment, capture_output=True, text=True, cwd=ROOT)


def test_the_export_is_uploaded_with_a_card_that_loads_from_the_hub(
    run_folder: RunFolder, tmp_path: Path
) -> None:
    with stand_in() as (address, calls):
        done = push(run_folder.path, tmp_path, address, "--to", "user/name", "--private", "true")
        assert done.returncode == 0, done.stderr
        refused = push(run_folder.path, tmp_path, address, "--to", "user/name", user="other")
    assert refused.returncode != 0 and "no such token" in refused.stderr
    assert "Traceback" not in refused.stderr
    assert "user/name" in done.stderr + done.stdout
    create = json.loads(next(body for path, body in calls if path == "/api/repos/create"))
    assert create["name"] == "name" and create["organization"] == "user"
    assert create.get("private") is True or create.get("visibility") == "private"
    commit = next(body for path, body in calls if "/commit/" in path)
    files = {}
    for line in map(json.loads, commit.splitlines()):
        if line["key"] == "file":
            files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
    local = {p.name: p.read_bytes() for p in run_folder.export.iterdir() if p.name != "README.md"}
    assert {name: content for name, content in files.items() if name != "README.md"} == local
    card = files["README.md"].decode()
    assert 'from_pretrained("user/name")' in card and str(run_folder.export) not in card


def test_nothing_is_sent_without_export_name_or_token(
    run_folder: RunFolder, tmp_path: Path
) -> None:
    with stand_in() as (address, calls):
        nowhere = push(tmp_path / "none", tmp_path, address, "--to", "user/name")
        unnamed = push(run_folder.path, tmp_path, address, "--to", "name")
        anonymous = push(run_folder.path, tmp_path, address, "--to", "user/name", user="")
        assert not calls
    gone = push(run_folder.path, tmp_path, address, "--to", "user/name")
    for found, words in (
        (nowhere, "no export with a model card"), (unnamed, "user/name"),
        (anonymous, "hf auth login"), (gone, "does not answer"),
    ):  # fmt: skip
        assert found.returncode == 2 and words in found.stderr
        assert len(found.stderr.strip().splitlines()) <= 6


def test_the_card_is_valid_and_every_number_is_in_the_run_folder(run_folder: RunFolder) -> None:
    text = (run_folder.export / "README.md").read_text()
    card = ModelCard(text)
    assert card.data.base_model == "google/flan-t5-base" and card.data.license == "cc-by-nc-sa-4.0"
    assert card.data.datasets == ["knkarthick/dialogsum"] and card.data.library_name == "peft"
    assert {r.metric_type: r.metric_value for r in card.data.eval_results} == {
        "rouge1": 0.4321, "toxicity": 0.137
    }  # fmt: skip
    known = run_folder.summary.read_text() + run_folder.config.read_text()
    known_numbers = {float(each) for each in re.findall(r"-?\d+\.?\d*(?:e-?\d+)?", known)}
    text = text.replace(str(run_folder.export), "")
    body = re.sub(r"95 % interval|cc-by-nc-sa-4.0|CC BY-NC-SA 4.0|x 100|flan-t5", "", text)
    for word in re.findall(r"(?<![\w.])[-+]?\d+\.?\d*(?:e-?\d+)?(?![\w.])", body):
        number = float(word)
        close = (abs(number - known) < 0.005 or abs(number / 100 - known) < 5.1e-4
                 for known in known_numbers)  # fmt: skip
        assert any(close), word
