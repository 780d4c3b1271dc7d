"""Train with one silent error at a time, and measure what it costs.

    python -m benchmarks.lab3.faults            # into runs/lab3_faults, 44 CPU-minutes
    python -m benchmarks.lab3.faults --seeds 1 --faults dropout top_k

Each fault is a small edit of the text of examples/nano_ppo.py, which is then run from memory. The
gate is asked but not obeyed. Whatever the fault, the adapter that comes out is measured in the same
way, by the file as it is: one sampled summary of each test dialogue. A finished run is a line of
results.jsonl and is not repeated, so the same command continues.
"""

import argparse
import hashlib
import io
import json
import logging
import math
import random
import sys
import time
import warnings
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import redirect_stdout
from multiprocessing import get_context
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
import yaml
from transformers.utils import logging as transformers_logging

from common.exits import start_log
from common.run_folder import write_text
from examples import nano_ppo
from metrics.intervals import bootstrap_crossed, difference_over_runs
from metrics.rouge_scores import score_rouge
from reporting.charts import Dot, Dots, save_charts
from reporting.markdown import markdown_table
from reporting.numbers import RAW, format_both, format_duration, is_clear, unit_of

log = logging.getLogger("faults")

MINI = nano_ppo.MINI
SOURCE = Path(nano_ppo.__file__)
SETTINGS = nano_ppo.Settings(batch_size=32, minibatch_size=16)
LAST = 4
"""Number of last steps over which the reward and KL that a run prints are averaged."""

FAULTS: dict[str, dict[str, Any]] = yaml.safe_load(
    Path(__file__).with_suffix(".yaml").read_text("utf-8")
)
"""For each fault a label for readers and its edits; START and CORRECT have none."""

START, CORRECT = "start", "none"

SHORT = {
    "score differs from the model's own forward pass": "score",
    "sampler differs from score": "sampler",
    "KL to the reference": "KL",
    "ratio - 1": "ratio",
    "wrongly masked tokens": "mask",
    "rewards but for the score on the last token": "rewards",
    "whitened advantages: |mean| + |std - 1|": "advantages",
}
"""The gate's checks, by shorter names."""

SHOWN = {"toxicity": "toxicity", "rouge1": "ROUGE-1", "kl": "KL to the start"}
"""What is compared with the correct run, with titles."""


def edit(fault: str) -> str:
    """Return the text of nano_ppo.py with a fault.

    Raises:
        ValueError: A text to replace is not in the file exactly once.
    """
    text = SOURCE.read_text("utf-8")
    for old, new in FAULTS[fault]["edits"]:
        if (count := text.count(old)) != 1:
            raise ValueError(
                f"{old!r} occurs {count} times in {SOURCE}, not once: adapt faults.yaml, {fault}."
            )
        text = text.replace(old, new)
    return text


def load(fault: str) -> Any:
    """Make a module of nano_ppo.py with a fault."""
    module = ModuleType(f"nano_ppo_with_{fault}")
    module.__file__ = str(SOURCE)
    sys.modules[module.__name__] = module  # where dataclasses look for it
    exec(compile(edit(fault), str(SOURCE), "exec"), module.__dict__)  # noqa: S102 - our own file
    return module


def train(
    fault: str, backbone: str, adapter: str, judge: Any, rows: Any, settings: Any, seed: int
) -> tuple[dict[str, Any], Any]:
    """Run PPO with a fault, whatever the gate says.

    Returns:
        What the gate found, what complained, and by name what was printed at each step; and the
        policy.
    """
    module = load(fault)
    gate: dict[str, float] = {}

    def only_look(model: Any, *figures: Any) -> dict[str, float]:
        rollout, logprobs, temperature, credit = figures
        gate.update(nano_ppo.gate(model, rollout, logprobs, temperature, credit, math.inf))
        return gate

    module.gate = only_look
    torch.manual_seed(seed)
    random.seed(seed)
    policy = module.load_policy(backbone, adapter)
    complaints, printed = [], io.StringIO()
    with warnings.catch_warnings(record=True) as warned, redirect_stdout(printed):
        try:
            module.train_ppo(policy, judge, rows, settings)
        except (RuntimeError, ValueError, IndexError) as error:
            complaints.append(repr(error))
    complaints += sorted({str(warning.message) for warning in warned})
    steps = [line.split() for line in printed.getvalue().splitlines() if line[:4].strip().isdigit()]
    columns = {
        name: [float(step[k]) for step in steps] for k, name in enumerate(("step", "reward", "kl"))
    }
    if not all(math.isfinite(value) for values in columns.values() for value in values):
        complaints.append("nan")
    return {"gate": gate, "complaints": complaints, **columns}, policy


@torch.no_grad()
def measure(backbone: str, adapter: str, trained: Any, judge: Any, rows: Any) -> dict[str, Any]:
    """Sample a summary of each dialogue from an adapter, without any fault, and score it.

    Returns:
        By name, a number for each row: score (the reward), toxicity, rouge1, and KL to the start.
    """
    torch.manual_seed(0)
    policy = nano_ppo.load_policy(backbone, adapter)
    if trained is not None:
        weights = dict(trained.model.named_parameters())
        for name, parameter in policy.model.named_parameters():
            if parameter.requires_grad:
                parameter.copy_(weights[name])
    found: dict[str, list[float]] = {"score": [], "toxicity": [], "rouge1": [], "kl": []}
    for first in range(0, len(rows), 100):
        batch = rows[first : first + 100]
        rollout = nano_ppo.roll_out(policy, batch, SETTINGS)
        texts = policy.tokenizer.batch_decode(rollout.responses, skip_special_tokens=True)
        scores, toxicity = judge(texts)
        kl = ((rollout.logprobs - rollout.ref_logprobs) * rollout.mask).sum(dim=1)
        references = [[row[f"summary{k}"] for k in (1, 2, 3)] for row in batch]
        values = (scores.tolist(), toxicity.tolist(), score_rouge(texts, references)["rouge1"])
        for column, more in zip(found.values(), (*values, kl.tolist()), strict=True):
            column += more
    return {name: [round(value, 5) for value in column] for name, column in found.items()}


def read_rows(name: str) -> list[dict[str, str]]:
    """Read a part of the miniature's corpus."""
    return [json.loads(line) for line in (MINI / name).read_text("utf-8").splitlines()]


def prepare() -> None:
    """Set a worker process up: one thread, and no advice from transformers."""
    torch.set_num_threads(1)
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing", category=FutureWarning)


def make_adapter(folder: Path, seed: int) -> None:
    """Fine-tune the LoRA that all runs of a seed start from, unless it is there."""
    if not (folder / "adapter_config.json").exists():
        torch.manual_seed(seed)
        random.seed(seed)
        nano_ppo.train_adapter(str(MINI / "t5"), read_rows("train.jsonl"), str(folder))


def run(fault: str, seed: int, adapter: str) -> dict[str, Any]:
    """Train with a fault, or not at all for START, and measure."""
    backbone, judge = str(MINI / "t5"), nano_ppo.Judge(str(MINI / "roberta"))
    found: dict[str, Any] = {"fault": fault, "seed": seed}
    policy = None
    if fault != START:
        rows = read_rows("train.jsonl")
        more, policy = train(fault, backbone, adapter, judge, rows, SETTINGS, seed)
        found |= more
    measured = measure(backbone, adapter, policy, judge, read_rows("test.jsonl"))
    return found | {"version": version(fault), "measured": measured}


def version(fault: str) -> str:
    """Identify code and settings of a run, so that a changed file makes it run again."""
    return hashlib.sha256((edit(fault) + repr(SETTINGS)).encode()).hexdigest()[:12]


def run_all(root: Path, faults: Iterable[str], seeds: Sequence[int], workers: int) -> None:
    """Run what results.jsonl lacks, and log progress and the time left."""
    path = root / "results.jsonl"
    results = read_results(path)
    chosen = [(fault, seed) for seed in seeds for fault in faults]
    todo = [key for key in chosen if key not in results]
    log.info("%d of %d runs are finished", len(chosen) - len(todo), len(chosen))
    adapters = {seed: root / "adapters" / str(seed) for seed in dict.fromkeys(s for _, s in todo)}
    with ProcessPoolExecutor(workers, get_context("spawn"), prepare) as pool:
        list(pool.map(make_adapter, adapters.values(), adapters))
        begun = time.monotonic()
        runs = {pool.submit(run, *key, str(adapters[key[1]])): key for key in todo}
        for count, future in enumerate(as_completed(runs), 1):
            results[runs[future]] = future.result()
            lines = (json.dumps(results[key]) for key in sorted(results))
            write_text(path, "\n".join(lines) + "\n")
            left = format_duration((time.monotonic() - begun) * (len(todo) / count - 1))
            log.info("%d/%d: %s, seed %d; about %s left", count, len(todo), *runs[future], left)


def read_results(path: Path) -> dict[tuple[str, int], dict[str, Any]]:
    """Read the finished runs that were made with the present code."""
    lines = path.read_text("utf-8").splitlines() if path.exists() else []
    found = [json.loads(line) for line in lines]
    known = [each for each in found if each["fault"] in FAULTS]
    current = [each for each in known if each["version"] == version(each["fault"])]
    return {(each["fault"], each["seed"]): each for each in current}


# Report -------------------------------------------------------------------------------------------


def values(runs: Sequence[Mapping[str, Any]], name: str) -> Any:
    """Return a measured figure, [seeds, rows]."""
    return np.array([run["measured"][name] for run in runs])


def caught_by(runs: Sequence[Mapping[str, Any]]) -> str:
    """Name the gate's checks that stop every seed, each with its smallest figure."""
    least = {name: min(run["gate"][name] for run in runs) for name in runs[0]["gate"]}
    failed = [f"{SHORT[name]} {value:.3g}" for name, value in least.items() if value > 1e-3]
    return ", ".join(failed) or "-"


def printed(runs: Sequence[Mapping[str, Any]], name: str) -> str:
    """Average what the runs print at their last steps."""
    return format_both(bootstrap_crossed([run[name][-LAST:] for run in runs]), RAW)


def write_report(root: Path, seeds: Sequence[int]) -> None:
    """Write faults.md and faults.png, from the faults that are finished for all seeds."""
    results = read_results(root / "results.jsonl")
    runs_of = {
        fault: [results[fault, seed] for seed in seeds]
        for fault in FAULTS
        if all((fault, seed) in results for seed in seeds)
    }
    correct = runs_of[CORRECT]
    usual = {text for run in correct for text in run["complaints"]}
    found = [["run", "complains", "the gate", "reward", "true reward", "KL", "true KL"]]
    costs = [["run", *(cell for title in SHOWN.values() for cell in (title, "change"))]]
    dots: dict[str, list[Dot]] = {name: [] for name in SHOWN}
    for fault, runs in runs_of.items():
        label = FAULTS[fault]["label"]
        if fault != START:
            said = {text for run in runs for text in run["complaints"]} - usual
            found.append([label, ", ".join(sorted(said)) or "nothing", caught_by(runs)])
            for name, measured in (("reward", "score"), ("kl", "kl")):
                truth = bootstrap_crossed(values(runs, measured).tolist())
                found[-1] += [printed(runs, name), format_both(truth, RAW)]
        costs.append([label])
        for name in SHOWN:
            own, base, unit = values(runs, name), values(correct, name), unit_of(name)
            change = difference_over_runs(base, own, paired=True)
            text = "" if fault == CORRECT else format_both(change, unit, sign=True)
            costs[-1] += [format_both(bootstrap_crossed(own.tolist()), unit), text]
            if fault not in (START, CORRECT):
                seen = (unit.scale * (own - base).mean(axis=1)).tolist()
                # Grey unless the interval is clear of 0; then by whether it is worse.
                worse = change.value < 0 if name == "rouge1" else change.value > 0
                color = (1 if worse else 2) if is_clear(change) else 4
                dots[name].append(Dot(label, color, change.scaled(unit.scale), seen))
    write_text(root / "faults.md", f"{markdown_table(found)}\n\n{markdown_table(costs)}\n")
    charts = [
        Dots(
            title,
            f"change, {'nats' if name == 'kl' else 'x 100'}",
            dots[name],
            unit_of(name).digits,
        )
        for name, title in SHOWN.items()
    ]
    save_charts(root / "faults.png", f"What each silent error costs: {len(seeds)} seeds", charts)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the faults over the seeds, and write tables and a picture."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--root", type=Path, default=Path("runs/lab3_faults"))
    parser.add_argument("--faults", nargs="+", choices=FAULTS, default=list(FAULTS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3, 4, 5])
    parser.add_argument("--workers", type=int, default=2, help="runs at a time, one thread each")
    options = parser.parse_args(arguments)
    start_log()
    faults = dict.fromkeys((START, CORRECT, *options.faults))
    run_all(options.root, faults, options.seeds, options.workers)
    write_report(options.root, options.seeds)
    log.info("Results are in %s", options.root / "faults.md")


if __name__ == "__main__":
    main()
