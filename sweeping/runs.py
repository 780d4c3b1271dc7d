"""The runs of a sweep: which are complete, which are another sweep's, and how one is run."""

import hashlib
import json
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from alignsum.overlays import config_values
from common.redaction import redact_arguments, show_command
from common.run_folder import RunFolder, write_text
from sweeping.plan import Combination, Plan
from sweeping.processes import call

console = Console(soft_wrap=True)


class Sweep:
    """The runs of one plan, each in a folder of its own, and what is known of them.

    ``sweep.json`` beside the run folders holds, by run, the settings that it was started with and
    whether all of its commands have ended well.

    Args:
        plan: What to run.
        shared: Arguments of train.py that every run gets, before those of its choices.
        out: Folder of the run folders.

    Raises:
        ValueError: If the sweep.json that is there cannot be read.
    """

    def __init__(self, plan: Plan, shared: Sequence[str], out: Path) -> None:
        self.plan = plan
        self.shared = list(shared)
        self.out = out
        self.file = out / "sweep.json"
        self.known: dict[str, Any] = {}
        if self.file.exists():
            try:
                self.known = json.loads(self.file.read_text(encoding="utf-8"))
            except ValueError as error:
                raise ValueError(
                    f"{self.file} is not JSON ({error}); name another --out, or remove it, and "
                    "--overwrite true runs all anew"
                ) from error

    def folder(self, run: Combination) -> RunFolder:
        """Give the run folder of a combination."""
        return RunFolder(self.out / run.name)

    def arguments(self, run: Combination) -> list[str]:
        """Give what train.py is told of a run, whatever the command."""
        return [*self.shared, *run.arguments, "--run_dir", str(self.folder(run).path)]

    def settings(self, run: Combination) -> dict[str, Any]:
        """Say what decides a run's result: commands, arguments without keys, the config files."""
        arguments = redact_arguments([*self.shared, *run.arguments])
        files = [Path(value) for _, value in config_values(arguments) if Path(value).is_file()]
        return {
            "commands": self.plan.commands,
            "arguments": arguments,
            "configs": {str(file): hashlib.sha256(file.read_bytes()).hexdigest() for file in files},
        }

    def is_complete(self, run: Combination) -> bool:
        """Whether all commands of a run have ended well, and its results are still there."""
        return bool(
            self.known.get(run.name, {}).get("complete") and self.folder(run).summary.exists()
        )

    def find_output_problem(self) -> str | None:
        """Say that there is a file where a folder is wanted."""
        for path in (self.out, *self.out.parents):
            if path.exists():
                return None if path.is_dir() else f"--out {self.out}: {path} is a file"
        return None

    def find_others(self) -> list[str]:
        """List the folders that hold a run with other settings than this sweep's."""
        problems = []
        for run in self.plan.combinations:
            folder = self.folder(run)
            if not folder.holds_run():
                continue
            before = self.known.get(run.name, {}).get("settings")
            now = self.settings(run)
            if before is None:
                problems.append(f"{folder.path} holds a run that is not of this sweep")
            elif before != now:
                changed = " and ".join(part for part in now if now[part] != before.get(part))
                then = shlex.join(before["arguments"])
                problems.append(f"{folder.path} was run with other {changed} (then: {then})")
        return problems

    def start_anew(self, run: Combination) -> None:
        """Remove what an earlier sweep left of a run."""
        self.folder(run).clear()
        self.known.pop(run.name, None)

    def run(self, run: Combination) -> int:
        """Run those commands of a combination that are still to be run.

        Returns:
            0, or the exit code of the command that failed.
        """
        self._record(run, complete=False)
        folder = self.folder(run)
        for command in self.plan.commands:
            arguments = [command, *self.arguments(run), "--overwrite", "true"]
            if command == "fit":
                if folder.read_summary().get("measured") == "fit":
                    continue  # ended in an earlier call
                if (folder.checkpoints / "last.ckpt").exists():
                    arguments[-2:] = ["--resume", "auto"]
            line = show_command(["python", "train.py", *arguments])
            console.print(f"$ {line}", style="cyan", markup=False)
            if code := call("train.py", *arguments):
                return code
        self._record(run, complete=True)
        return 0

    def _record(self, run: Combination, complete: bool) -> None:
        self.known[run.name] = {"settings": self.settings(run), "complete": complete}
        write_text(self.file, json.dumps(self.known, indent=2, ensure_ascii=False) + "\n")
