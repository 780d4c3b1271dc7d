"""Synthetic run folders, as a training and a test leave them."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from common.run_folder import RolloutFiles, RunFolder, write_lines, write_text
from metrics.intervals import Estimate, bootstrap_mean, paired_change
from metrics.rouge_scores import KEYS

METRICS = (*KEYS, "toxicity", "reward")
REFERENCES = ["Ann asks Ben for the way.", "Ben tells Ann the way."]
VERSIONS = {
    "python": "3.11.7",
    "torch": "2.13.0",
    "alignsum": "d2d5d735770bd582a7008c7faa23fd1606bd0837-dirty",
}


def draw_values(seed: int, count: int, mean: float = 0.5) -> dict[str, list[float]]:
    """Draw values in [0, 1] of every metric around a mean."""
    rng = np.random.default_rng(seed)
    return {metric: np.clip(rng.normal(mean, 0.2, count), 0, 1).tolist() for metric in METRICS}


def make_dialogue(number: int) -> str:
    return f"#Person1#: Ben, the way {number}?\n#Person2#: Left, Ann."


def write_run(
    path: Path,
    values: Mapping[str, Sequence[float]],
    method: str = "lora",
    seed: int | None = 1,
    trainable: int = 57_344,
    config: Mapping[str, Any] | None = None,
    texts: Sequence[str] | None = None,
    dialogues: Sequence[str] | None = None,
    curves: Mapping[str, Sequence[float]] | None = None,
    **summary: Any,
) -> Path:
    """Write summary.json, predictions.jsonl, config.yaml and metrics.csv.

    Columns that end in "_before" add the paired changes, as PPO's test does.
    """
    folder, count = RunFolder(path), len(next(iter(values.values())))
    folder.update_summary(
        command=f"python train.py fit --run_dir {path}", versions=VERSIONS, seed=seed,
        backbone="tiny", method=method, seconds=100.0 + (seed or 0),
        parameters={"trainable": trainable, "total": 1_673_728}, peak_memory_bytes=2**30,
        **summary,
    )  # fmt: skip
    found: dict[str, Estimate] = {f"test/{k}": bootstrap_mean(v) for k, v in values.items()}
    for name, after in values.items():
        if before := values.get(f"{name}_before"):
            found[f"test/{name}_change"] = paired_change(before, after)
    folder.record_metrics(found)
    rows = []
    for i in range(count):
        text = texts[i] if texts else f"Ann asks Ben {i}. {path.name} says Zorro."
        rows.append(
            {
                "id": f"test_{i}",
                "dialogue": dialogues[i] if dialogues else make_dialogue(i),
                "references": REFERENCES,
                "prediction": text,
                "unknown_names": ["Zorro"] if "Zorro" in text else [],
                "unknown_speakers": [],
            }
            | {name: column[i] for name, column in values.items()}
            | ({"prediction_before": f"Before {i}."} if "toxicity_before" in values else {})
        )
    folder.merge_predictions(rows)
    settings = {"seed_everything": seed, "run_dir": str(path)} | dict(config or {})
    write_text(folder.config, yaml.safe_dump(settings, sort_keys=False))
    write_curves(path, curves or {"train/loss": [3.0, 2.0, 1.5], "val/rouge1": [0.3, 0.5]})
    return path


def write_curves(path: Path, curves: Mapping[str, Sequence[float]]) -> None:
    """Write metrics.csv: a value every ten steps, one row per value as loggers do."""
    lines = [",".join(["step", *curves])]
    for place, curve in enumerate(curves.values()):
        before, after = "," * place, "," * (len(curves) - place - 1)
        lines += [f"{10 * step},{before}{value!r}{after}" for step, value in enumerate(curve)]
    write_text(RunFolder(path).metrics_csv, "\n".join(lines) + "\n")


def write_ppo(path: Path, values: Mapping[str, Sequence[float]], **settings: Any) -> Path:
    """Write a PPO run: texts from before, curves and rollouts."""
    rng = np.random.default_rng(0)
    before = {f"{k}_before": np.clip(np.array(v) + 0.2, 0, 1).tolist() for k, v in values.items()}
    curves = {
        "objective/reward": np.linspace(0, 2, 80).tolist(),
        "objective/kl": np.abs(rng.normal(3, 1, 80)).tolist(),
        "objective/entropy": np.linspace(2, 1, 80).tolist(),
        "val/rouge1": [0.5, 0.52, 0.51],
    }
    config = {"model": {"init_args": {"ppo": {"clip": 0.2, "kl_coef": 0.7}}}}
    write_run(path, dict(values) | before, method="ppo", curves=curves, config=config, **settings)
    write_rollouts(path)
    return path


def write_rollouts(path: Path, batches: Sequence[int] = (0, 5, 9), rows: int = 3) -> None:
    """Write rollouts of four tokens, with numbers that can be worked out by hand."""
    files = RolloutFiles(path)
    for batch in batches:
        lines = []
        for row in range(rows):
            old = [-1.0, -0.5 - row, -0.25, -2.0]
            lines.append(
                {
                    "batch": batch, "id": f"train_{batch}_{row}", "prompt_index": row,
                    "prompt": "Summarize: <b>Ann</b>", "prompt_tokens": [3, 1],
                    "response": "Ann asks.", "response_tokens": [5, 6, 7, 1],
                    "response_pieces": ["\u2581Ann", "\u2581asks", ".", "</s>"],
                    "finished": True, "terms": {"reward_model": 1.0}, "score": 1.5 + row,
                    "shaped_score": 1.5, "beta": 0.7, "logprobs": old,
                    "ref_logprobs": [-1.5, -0.5, -0.75, -1.0],
                    "new_logprobs": [each + 0.3 for each in old],
                    "values": [0.1, 0.2, 0.3, 0.4], "entropy": [1.0, 1.12341, 1.2, 1.3],
                    "rewards": [-0.35, 0.0, -0.35, 2.2], "advantages": [0.5, -0.5, 0.25, 1.0],
                    "returns": [0.6, -0.3, 0.55, 1.4],
                }
            )  # fmt: skip
        write_lines(files.rows(batch), lines)
