"""The model card of an export: where it comes from, how good it is, how to load it."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import EvalResult, ModelCardData

from callbacks.closing import describe_units, tabulate_scores
from common.run_folder import RunFolder, write_text
from reporting.markdown import markdown_table
from reporting.numbers import ROUGE_LABELS

_CLASSES = {
    "SEQ_2_SEQ_LM": "peft.AutoPeftModelForSeq2SeqLM",
    "CAUSAL_LM": "peft.AutoPeftModelForCausalLM",
    "ForConditionalGeneration": "transformers.AutoModelForSeq2SeqLM",
    "ForSequenceClassification": "transformers.AutoModelForSequenceClassification",
}
"""What loads an export, by PEFT's task or the end of an architecture's name."""


_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")

MOVED = (
    "The backbone is a local model, whose absolute path is `base_model_name_or_path` in "
    "adapter_config.json, so that the lines above work from any folder. If it has moved, write its "
    "new path there. alignsum itself finds its miniature again when its checkout has moved."
)


LIMITS = (
    "Summaries can state what the dialogue does not say. Toxicity is a classifier's opinion, not "
    "people's. The scores hold for dialogues like those named above, in their language. The "
    "licenses of the backbone and of the data apply; DialogSum's is CC BY-NC-SA 4.0."
)


def write_card(folder: RunFolder) -> None:
    """Write ``export/README.md`` in the hub's format, instead of PEFT's empty template."""
    write_text(folder.export / "README.md", make_card(folder, str(folder.export)))


def make_card(folder: RunFolder, place: str) -> str:
    """Make the card from summary.json and config.yaml: metadata for the hub, then text.

    Args:
        folder: The run.
        place: Where the export can be loaded from: a folder, or a repository of the hub.
    """
    summary, config = folder.read_summary(), folder.read_config()
    method, backbone = summary.get("method", "unknown"), summary.get("backbone", "unknown")
    entries = summary.get("metrics", {})
    split = "test" if any(name.startswith("test/") for name in entries) else "val"
    rows = tabulate_scores(entries, split)
    title = "Test" if split == "test" else "Last validation, perhaps of later weights than these"
    is_adapter, is_local = is_adapter_export(folder), is_local_model(backbone)
    settings = {name: (config.get(name) or {}).get("init_args") or {} for name in ("model", "data")}
    settings["trainer"] = {
        name: (config.get("trainer") or {}).get(name)
        for name in ("max_epochs", "precision", "accumulate_grad_batches", "gradient_clip_val")
    }
    package, _, name = find_class(folder).rpartition(".")
    scores = []
    if len(rows) > 1:
        scores = [f"{title} ({describe_units(rows)}):", markdown_table(rows, ("metric",))]
    if gate := summary.get("gate"):
        kl = f"{gate['kl']:.2g}"
        scores.append(f"Before the first update the policy's KL to its reference was {kl} nats.")
    versions = (f"{name} {number}" for name, number in (summary.get("versions") or {}).items())
    metadata = ModelCardData(
        base_model=None if is_local else backbone,
        library_name="peft" if is_adapter else "transformers",
        pipeline_tag="text-classification" if name.endswith("SequenceClassification")
        else "summarization",
        tags=["alignsum", method],
        **describe_results(settings["data"], entries, method, split),
    ).to_yaml()  # fmt: skip
    dumped = yaml.safe_dump(drop_empty(settings), sort_keys=False)
    parts = [
        f"---\n{metadata}\n---",
        f"# {method} on {backbone}",
        f"Trained by alignsum: `{summary.get('command')}`",
        *describe_data(settings["data"]),
        *scores,
        "## Use",
        f"```python\nfrom transformers import AutoTokenizer\nfrom {package} import {name}\n\n"
        f'tokenizer = AutoTokenizer.from_pretrained("{place}")\n'
        f'model = {name}.from_pretrained("{place}")\n```',
        *([MOVED] if is_adapter and is_local else []),
        "## Settings",
        f"<details>\n\n```yaml\n{dumped}```\n</details>",
        f"Versions: {', '.join(versions)}.",
        "## Limitations",
        LIMITS,
    ]
    return "\n\n".join(parts) + "\n"


def describe_results(
    data: Mapping[str, Any], entries: Mapping[str, Mapping[str, Any]], method: str, split: str
) -> dict[str, Any]:
    """Return the hub's metadata of data, license and scores, which are fractions of 1.

    Args:
        data: Settings of the datamodule.
        entries: "metrics" of summary.json.
        method: The run's method.
        split: "val" or "test".
    """
    source = str(data.get("dialogues") or data.get("source") or "unknown")
    is_hub = bool(_HUB_ID.fullmatch(source)) and not Path(source).exists()
    shown = {f"{split}/{key}": key for key in (*ROUGE_LABELS, "toxicity", "accuracy", "f1")}
    results = [
        EvalResult(
            task_type="summarization", dataset_type=source if is_hub else "local",
            dataset_name=Path(source).name,
            dataset_split="test" if split == "test" else "validation",
            metric_type=shown[name], metric_value=round(entry["value"], 4),
        )
        for name, entry in entries.items()
        if name in shown
    ]  # fmt: skip
    return {
        "datasets": [source] if is_hub else None,
        "license": "cc-by-nc-sa-4.0" if "dialogsum" in source.lower() else "other",
        "metrics": sorted({result.metric_type for result in results}) or None,
        "model_name": method if results else None,
        "eval_results": results or None,
    }


def is_adapter_export(folder: RunFolder) -> bool:
    """Return whether a run exported an adapter."""
    return (folder.export / "adapter_config.json").exists()


def is_local_model(name: str) -> bool:
    """Return whether a model is on this machine only."""
    return name == "mini" or Path(name).is_dir()


def describe_data(data: Mapping[str, Any]) -> list[str]:
    """Return a line with source and prompt of the training data; none without a config.yaml."""
    shown = {name: data.get(name) for name in ("source", "dialogues", "prompt")}
    words = [f"{name} `{json.dumps(value)}`" for name, value in shown.items() if value]
    return [f"Data: {', '.join(words)}"] if words else []


def drop_empty(settings: Any) -> Any:
    """Leave out settings without a value."""
    if isinstance(settings, list):
        return [drop_empty(each) for each in settings]
    if not isinstance(settings, dict):
        return settings
    kept = {name: drop_empty(value) for name, value in settings.items()}
    return {name: value for name, value in kept.items() if value not in (None, {}, [])}


def find_class(folder: RunFolder) -> str:
    """Return the class that loads an export, with its package."""
    adapter, model = (folder.export / f"{name}config.json" for name in ("adapter_", ""))
    kind = ""
    if adapter.exists():
        kind = str(json.loads(adapter.read_text(encoding="utf-8")).get("task_type"))
    elif model.exists():
        kind = (json.loads(model.read_text(encoding="utf-8")).get("architectures") or [""])[0]
    found = (name for end, name in _CLASSES.items() if kind.endswith(end))
    return next(found, "transformers.AutoModelForCausalLM")
