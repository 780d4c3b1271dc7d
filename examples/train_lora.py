"""Fine-tune a LoRA from Python, test it, and load the export without this package.

    python examples/train_lora.py                                  # the miniature, minutes
    python examples/train_lora.py --source my.csv --backbone google/flan-t5-base

``train.py fit --config configs/lora.yaml`` does the same with the same classes.
"""

import argparse

from lightning.pytorch import Trainer, seed_everything
from peft import AutoPeftModelForSeq2SeqLM
from transformers import AutoTokenizer

from callbacks import default_callbacks
from callbacks.loggers import RunCSVLogger
from callbacks.toxicity import ToxicityCallback
from common.run_folder import RunFolder
from datamodules import DialogSumDataModule
from lightning_modules import LoRA


def main(backbone: str, source: str, run_dir: str, max_steps: int) -> str:
    """Train, test and export; return a summary written by the reloaded export."""
    seed_everything(42)
    module = LoRA(backbone, r=16, target_modules=["q", "k", "v", "o"])
    data = DialogSumDataModule(source, tokenizer=backbone, batch_size=32)
    trainer = Trainer(
        default_root_dir=run_dir,
        max_epochs=10,
        max_steps=max_steps,
        enable_model_summary=False,
        use_distributed_sampler=False,  # the datamodule shards batches itself
        logger=RunCSVLogger(run_dir),
        callbacks=default_callbacks([ToxicityCallback("mini")]),
    )
    trainer.fit(module, data)  # exports the best weights to run_dir/export
    trainer.test(module, data, verbose=False)
    metrics = RunFolder(run_dir).read_summary()["metrics"]
    for name in ("test/rouge1", "test/rougeL", "test/toxicity"):
        print("{name}: {value:.3f} ({low:.3f} to {high:.3f})".format(name=name, **metrics[name]))

    export = f"{run_dir}/export"
    tokenizer = AutoTokenizer.from_pretrained(export)
    model = AutoPeftModelForSeq2SeqLM.from_pretrained(export)
    prompt = data.prompt.wrap("#Person1#: Lunch at noon?\n#Person2#: Yes, see you at the cafe.")
    tokens = model.generate(**tokenizer(prompt, return_tensors="pt"), max_new_tokens=64)
    return tokenizer.decode(tokens[0], skip_special_tokens=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--backbone", default="mini", help="hub id or folder")
    parser.add_argument("--source", default="mini", help="hub id, folder, CSV or JSONL file")
    parser.add_argument("--run_dir", default="runs/python")
    parser.add_argument("--max_steps", type=int, default=200)
    print(main(**vars(parser.parse_args())))
