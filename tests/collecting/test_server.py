"""What stands behind the page: it saves before it says so, and keeps others out."""

import asyncio
import json
import re
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from aiohttp import ClientResponse
from aiohttp.test_utils import TestClient, TestServer

from alignsum.commands import rank
from collecting.assignments import Assignments
from collecting.server import PAGE, make_app
from collecting.web import LARGEST_REQUEST
from tests.collecting.samples import (
    ServerProcess,
    make_answer,
    make_sample,
    make_samples,
    open_assignments,
    read_lines,
    shown,
    write_samples,
)

Scenario = Callable[[TestClient], Awaitable[None]]


@pytest.fixture
def work(tmp_path: Path) -> Assignments:
    return open_assignments(tmp_path / "a.jsonl", make_samples(3))


def play(work: Assignments, scenario: Scenario, *allowed_hosts: str) -> None:
    """Play against a server in this process; with real sockets all the same."""

    async def run() -> None:
        app = make_app(work, "Rank <them>.", allowed_hosts)
        async with TestClient(TestServer(app)) as client:
            await scenario(client)

    asyncio.run(run())


async def error(response: ClientResponse) -> tuple[int, str]:
    return response.status, (await response.json())["error"]


def test_from_the_first_dialogue_to_the_last(work: Assignments) -> None:
    async def scenario(client: TestClient) -> None:
        task = await (await client.get("/api/task", params={"annotator": " Ann  Lee "})).json()
        assert task["annotator"] == "Ann Lee"
        assert task["progress"] == {"done": 0, "skipped": 0, "total": 3}
        for number in range(3):
            assert task["item"]["id"] == f"s{number}"
            sent = {"annotator": "Ann Lee", "toxic": [False] * 4, "seconds": 2}
            sent |= {"ranks": [2, 1, 3, 3]} if number else {"skipped": True}
            sent |= {name: task["item"][name] for name in ("id", "version")}
            task = await (await client.post("/api/answer", json=sent)).json()
        assert task["item"] is None
        assert task["last"] == "s2"
        assert task["progress"] == {"done": 3, "skipped": 1, "total": 3}

    play(work, scenario)
    rows = read_lines(work.file.path)
    assert [row["id"] for row in rows] == ["s0", "s1", "s2"]
    assert rows[0]["skipped"] is True
    assert sorted(rows[1]["ranks"]) == [1, 2, 3, 3]


def test_an_answer_that_cannot_be_saved_is_not_confirmed(
    work: Assignments, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: object) -> None:
        raise OSError(28, "No space left on device")

    async def scenario(client: TestClient) -> None:
        sent = shown(work, "ann", work.samples["s0"])
        with monkeypatch.context() as patch:
            patch.setattr(work.file, "append", fail)
            response = await client.post("/api/answer", json=sent)
            assert await error(response) == (507, "It was not saved: No space left on device")
        assert work.describe("ann")["progress"]["done"] == 0
        for _ in range(2):  # also when the confirmation gets lost on the way
            reply = await (await client.post("/api/answer", json=sent)).json()
            assert reply["progress"]["done"] == 1

    play(work, scenario)
    assert len(read_lines(work.file.path)) == 2


def test_nothing_but_an_answer_is_saved(work: Assignments) -> None:
    async def scenario(client: TestClient) -> None:
        good = shown(work, "ann", work.samples["s0"])
        for body, status, message in (
            (b"{", 400, "Expecting property name"),
            (b"[" * 60_000, 400, "recursion"),
            (b"[]", 400, "JSON object"),
            (b"x" * (LARGEST_REQUEST + 1), 413, ""),
            (json.dumps(good | {"annotator": ""}).encode(), 400, "a name has"),
            (json.dumps(good | {"ranks": [1]}).encode(), 400, "there are 4"),
            (json.dumps(good | {"version": "x"}).encode(), 409, "have changed"),
            (json.dumps(good | {"id": "\ud800"}).encode(), 409, "have changed"),
        ):
            response = await client.post(
                "/api/answer", data=body, headers={"Content-Type": "application/json"}
            )
            found = await error(response)
            assert found[0] == status
            assert message in found[1]
        response = await client.post("/api/answer", data=json.dumps(good))
        assert response.status == 415
        for address in ("/api/answer", "/../server.py", "/%2e%2e/server.py", "/..%2fserver.py"):
            assert (await client.get(address)).status in (403, 404)

    play(work, scenario)
    assert work.file.path.read_bytes() == b""


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200),
        ({"Host": "localhost:8000"}, 200),
        ({"Host": "lab.example:80"}, 200),
        ({"Host": "LAB.example"}, 200),
        ({"Host": "evil.example"}, 403),
        ({"Host": "127.0.0.1.evil.example"}, 403),
        ({"Host": "localhost:8000", "Origin": "http://localhost:8000"}, 200),
        ({"Host": "localhost:8000", "Origin": "http://localhost:9000"}, 403),
        ({"Origin": "https://evil.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Origin": "http://[::1"}, 403),
        ({"Sec-Fetch-Site": "same-origin"}, 200),
        ({"Sec-Fetch-Site": "cross-site"}, 403),
    ],
)
def test_other_sites_are_kept_out(headers: dict[str, str], status: int, work: Assignments) -> None:
    async def scenario(client: TestClient) -> None:
        sent = shown(work, "ann", work.samples["s0"])
        response = await client.post("/api/answer", json=sent, headers=headers)
        assert response.status == status
        response = await client.get("/api/task?annotator=ann", headers=headers)
        assert response.status == status

    play(work, scenario, "lab.example")
    assert len(work.file) == (status == 200)


def test_every_answer_has_the_headers_that_keep_scripts_out(work: Assignments) -> None:
    async def scenario(client: TestClient) -> None:
        for address in ("/", "/page.js", "/task.css", "/api/instructions", "/nothing"):
            response = await client.get(address)
            policy = response.headers["Content-Security-Policy"]
            assert "default-src 'none'; script-src 'self'; style-src 'self'" in policy
            assert "require-trusted-types-for 'script'" in policy
            assert "unsafe" not in policy
            assert response.headers["X-Content-Type-Options"] == "nosniff"
        response = await client.get("/", headers={"Host": "evil.example"})
        assert await error(response) == (
            403, "this server is not called 'evil.example'; allow the name with --allowed_hosts",
        )  # fmt: skip
        response = await client.get("/api/instructions")
        assert (await response.json())["instructions"] == "Rank <them>."

    play(work, scenario)


def test_the_page_loads_files_of_its_own_only() -> None:
    """And no script can turn a text into HTML."""
    page = (PAGE / "page.html").read_text()
    asked = set(re.findall(r'(?:src|href)="(?!data:)([^"]+)"', page))
    for script in PAGE.glob("*.js"):
        asked |= set(re.findall(r'from "\./([^"]+)"', script.read_text()))
        assert not re.search(
            r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(", script.read_text()
        )
    assert asked == {file.name for file in PAGE.iterdir() if file.suffix in (".css", ".js")}
    assert not re.search(r"<script(?! type=\"module\" src=)|<style| style=| on\w+=", page)


def test_the_process_goes_on_where_it_was(tmp_path: Path) -> None:
    samples = write_samples(tmp_path / "s.jsonl", make_samples(2))
    answers = tmp_path / "a.jsonl"
    with ServerProcess(samples, answers) as server:
        assert server.url.startswith("http://127.0.0.1:")
        taken = ["serve", "--samples", str(samples), "--answers"]
        assert rank.main([*taken, str(answers)]) == 2  # two servers, one file
        assert rank.main([*taken, str(tmp_path / "b.jsonl"), "--port", str(server.port)]) == 2
    assert "Stopped; " in server.lines[-1]
    assert server.process.returncode == 0
    with (tmp_path / "a.jsonl").open("a") as file:
        file.write(json.dumps(make_answer(make_sample(0)).to_row()) + "\n")
    with ServerProcess(samples, answers) as server:
        pass
    assert "has 1 answers" in server.lines[-1]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--samples", "nothing.jsonl"], "there is no file 'nothing.jsonl'"),
        (["--answers", "{samples}"], "is the file of samples"),
        (["--port", "70000"], "choose another --port"),
        (["--host", "no.such.host.invalid", "--port", "0"], "cannot listen on no.such"),
        (["--answers_per_dialogue", "0"], "must be at least 1"),
    ],
)
def test_what_cannot_work_is_refused(
    options: list[str], message: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    samples = write_samples(tmp_path / "s.jsonl", make_samples(1))
    before = samples.read_bytes()
    options = [option.format(samples=samples) for option in options]
    base: dict[str, Any] = {"--samples": str(samples)}
    base |= dict(zip(options[::2], options[1::2], strict=True))
    assert rank.main(["serve", *(word for pair in base.items() for word in pair)]) == 2
    assert re.search(message, caplog.text)
    assert samples.read_bytes() == before
