"""The model card of an export: where it comes from, how good it is, how to load it."""

import json

import yaml

from common.run_folder import RunFolder, write_text

_CLASSES = {
    "SEQ_2_SEQ_LM": "peft.AutoPeftModelForSeq2SeqLM",
    "CAUSAL_LM": "peft.AutoPeftModelForCausalLM",
    "ForConditionalGeneration": "transformers.AutoModelForSeq2SeqLM",
    "ForSequenceClassification": "transformers.AutoModelForSequenceClassification",
}
"""What loads an export, by PEFT's task or the end of an architecture's name."""


def write_card(folder: RunFolder) -> None:
    """Write ``export/README.md`` from summary.json, instead of PEFT's empty template."""
    summary = folder.read_summary()
    method, backbone = summary.get("method", "unknown"), summary.get("backbone", "unknown")
    header = {"library_name": "transformers", "base_model": backbone, "tags": ["alignsum", method]}
    if (folder.export / "adapter_config.json").exists():
        header["library_name"] = "peft"
    scores = [
        f"| {name} | {entry['value']:.4f} | {entry['low']:.4f} to {entry['high']:.4f} | "
        f"{entry['n']} |"
        for name, entry in summary.get("metrics", {}).items()
        if entry["low"] is not None
    ]
    package, _, name = find_class(folder).rpartition(".")
    lines = [
        f"---\n{yaml.safe_dump(header)}---",
        f"# {method} on {backbone}",
        f"Trained by alignsum: `{summary.get('command')}`",
        "\n".join(["| metric | value | 95 % interval | n |", "| --- | --- | --- | --- |", *scores]),
        "```python",
        f"from transformers import AutoTokenizer\nfrom {package} import {name}\n\n"
        f'tokenizer = AutoTokenizer.from_pretrained("{folder.export}")\n'
        f'model = {name}.from_pretrained("{folder.export}")\n```',
    ]
    write_text(folder.export / "README.md", "\n\n".join(lines).replace("python\n\n", "python\n"))


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
