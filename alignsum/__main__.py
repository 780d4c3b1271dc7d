"""Run a command: ``python -m alignsum COMMAND``, or ``alignsum COMMAND`` once installed."""

import importlib
import os
import sys
from collections.abc import Sequence

from common.exits import suggest

# As in train.py: read by OpenMP when torch is imported.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

COMMANDS = {
    "demo": "train, test and compare every method on the embedded miniature",
    "compare": "compare runs: a report page, tables and charts",
    "score": "score a file of predictions against references",
    "duplicates": "find dialogues that two splits or two datasets share",
    "baselines": "score lead-3 and the human references, which need no model",
    "toxicity": "compare the toxicity of a run's summaries before and after training",
    "frontier": "plot reward against KL over the runs of a sweep",
    "predict": "summarize the dialogues of a file with a trained run",
    "play": "compare runs on a dialogue of your own, in a browser",
    "merge": "merge a LoRA adapter into its backbone",
    "push": "upload a run's export with its model card to the Hugging Face hub",
    "plan": "predict the peak memory of a run from its configuration",
    "rank": "collect people's rankings of completions",
    "sweep": "run a config over many settings",
}
"""Purpose of each module of `alignsum.commands`."""


def main(args: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        args: Arguments without the program's name; None takes those of the process.

    Returns:
        The exit code (see common/exits.py).
    """
    arguments = list(sys.argv[1:] if args is None else args)
    name = arguments[0] if arguments else ""
    if name not in COMMANDS:
        lines = [f"  {each:<10} {purpose}" for each, purpose in COMMANDS.items()]
        text = "\n".join(["usage: python -m alignsum COMMAND [OPTIONS]", "", *lines, ""])
        if name in ("-h", "--help"):
            sys.stdout.write(text)
            return 0
        unknown = f"error: there is no command {name}{suggest(name, COMMANDS)}\n"
        sys.stderr.write(f"{unknown}all commands: python -m alignsum --help\n" if name else text)
        return 2
    code: int = importlib.import_module(f"alignsum.commands.{name}").main(arguments[1:])
    return code


if __name__ == "__main__":
    sys.exit(main())
