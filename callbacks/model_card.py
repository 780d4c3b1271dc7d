"""The model card of an export: where it comes from, how good it is, how to load it."""

import json
from pathlib import Path

import yaml

from callbacks.closing import describe_units, tabulate_scores
from common.run_folder import RunFolder, write_text
from reporting.markdown import markdown_table

_CLASSES = {
    "SEQ_2_SEQ_LM": "peft.AutoPeftModelForSeq2SeqLM",
    "CAUSAL_LM": "peft.AutoPeftModelForCausalLM",
    "ForConditionalGeneration": "transformers.AutoModelForSeq2SeqLM",
    "ForSequenceClassification": "transformers.AutoModelForSequenceClassification",
}
"""What loads an export, by PEFT's task or the end of an architecture's name."""


MOVED = (
    "The backbone is a local model, whose absolute path is `base_model_name_or_path` in "
    "adapter_config.json, so that the lines above work from any folder. If it has moved, write its "
    "new path there. alignsum itself finds its miniature again when its checkout has moved."
)


def write_card(folder: RunFolder) -> None:
    """Write ``export/README.md`` from summary.json, instead of PEFT's empty template."""
    summary = folder.read_summary()
    method, backbone = summary.get("method", "unknown"), summary.get("backbone", "unknown")
    header = {"library_name": "transformers", "tags": ["alignsum", method]}
    is_local = backbone == "mini" or Path(backbone).is_dir()
    if not is_local:
        header["base_model"] = backbone
    if is_adapter := (folder.export / "adapter_config.json").exists():
        header["library_name"] = "peft"
    entries = summary.get("metrics", {})
    is_tested = any(name.startswith("test/") for name in entries)
    rows = tabulate_scores(entries, "test" if is_tested else "val")
    split = "Test" if is_tested else "Last validation, perhaps of later weights than these"
    table = markdown_table(rows, ("metric",))
    package, _, name = find_class(folder).rpartition(".")
    lines = [
        f"---\n{yaml.safe_dump(header)}---",
        f"# {method} on {backbone}",
        f"Trained by alignsum: `{summary.get('command')}`",
        *describe_data(folder),
        *([f"{split} ({describe_units(rows)}):", table] if len(rows) > 1 else []),
        "```python",
        f"from transformers import AutoTokenizer\nfrom {package} import {name}\n\n"
        f'tokenizer = AutoTokenizer.from_pretrained("{folder.export}")\n'
        f'model = {name}.from_pretrained("{folder.export}")\n```',
    ]
    if is_adapter and is_local:
        lines.append(MOVED)
    write_text(folder.export / "README.md", "\n\n".join(lines).replace("python\n\n", "python\n"))


def describe_data(folder: RunFolder) -> list[str]:
    """Return a line with source and prompt of the training data; none without a config.yaml."""
    data = (folder.read_config().get("data") or {}).get("init_args") or {}
    shown = {name: data.get(name) for name in ("source", "dialogues", "prompt")}
    words = [f"{name} `{json.dumps(value)}`" for name, value in shown.items() if value]
    return [f"Data: {', '.join(words)}"] if words else []


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
