"""The server is killed in the middle of its work, again and again."""

import http.client
import itertools
import json
import random
import signal
import threading
from pathlib import Path
from typing import Any

from collecting.answer_file import AnswerFile
from tests.collecting.samples import ServerProcess, make_samples, write_samples

# Lines so long that writing one takes a while, and a kill can hit the middle of it.
LONG = "#Person1#: and so on " * 10_000


class Annotator(threading.Thread):
    """Answers as fast as the server confirms, until it is gone."""

    def __init__(self, port: int, name: str, begun: threading.Event) -> None:
        super().__init__()
        self.port, self.annotator, self.begun = port, name, begun
        self.confirmed: dict[str, tuple[int, ...]] = {}
        """By id, the ranks that the server said are saved."""
        self.open: dict[str, tuple[int, ...]] = {}
        """What was sent and not confirmed: it may be there or not."""

    def run(self) -> None:
        try:
            self.answer_all()
        except (OSError, http.client.HTTPException):
            self.begun.set()

    def answer_all(self) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)
        connection.request("GET", f"/api/task?annotator={self.annotator}")
        item = json.loads(connection.getresponse().read())["item"]
        for turn in itertools.count():
            if item is None:
                connection.request("GET", f"/api/task?annotator={self.annotator}&id=s{turn % 9}")
                item = json.loads(connection.getresponse().read())["item"]
            # The ranks of one's own order come back in the order of the file.
            texts = item["completions"]
            said = {text: rank for rank, text in enumerate(sorted(texts), start=1)}
            if turn % 2:
                said = {text: len(texts) + 1 - rank for text, rank in said.items()}
            sent: dict[str, Any] = {
                "annotator": self.annotator, "id": item["id"], "version": item["version"],
                "ranks": [said[text] for text in texts], "toxic": [False] * len(texts),
            }  # fmt: skip
            ranks = tuple(said[text] for text in sorted(texts))
            self.open = {item["id"]: ranks}
            connection.request(
                "POST", "/api/answer", json.dumps(sent), {"Content-Type": "application/json"}
            )
            response = connection.getresponse()
            reply = json.loads(response.read())
            assert response.status == 200, reply
            self.open = {}
            self.confirmed[sent["id"]] = ranks
            self.begun.set()
            item = reply["item"]


def kill(trial: int, samples: Path, answers: Path) -> int:
    """Kill a server while three annotators work; returns how many answers it had confirmed."""
    server = ServerProcess(samples, answers)
    begun = threading.Event()
    people = [Annotator(server.port, f"p{trial}-{number}", begun) for number in range(3)]
    for person in people:
        person.start()
    assert begun.wait(30)
    pause = random.Random(trial).uniform(0, 0.03)
    threading.Event().wait(pause)
    assert server.end(signal.SIGKILL) == -signal.SIGKILL
    for person in people:
        person.join(30)
        assert not person.is_alive()
    with AnswerFile(answers) as file:
        for person in people:
            found = file.answers.get(person.annotator, {})
            kept = {name: answer.ranks for name, answer in found.items()}
            for name, ranks in person.confirmed.items():
                assert kept.pop(name) in (ranks, person.open.get(name))
            assert kept.items() <= person.open.items()
    return sum(len(person.confirmed) for person in people)


def test_no_confirmed_answer_is_lost_when_the_server_is_killed(tmp_path: Path) -> None:
    samples = [one._replace(dialogue=one.dialogue + LONG) for one in make_samples(9)]
    file = write_samples(tmp_path / "s.jsonl", samples)
    assert sum(kill(trial, file, tmp_path / "a.jsonl") for trial in range(8)) >= 8
