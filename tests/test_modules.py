"""The supervised methods: what is trained, what the loss is, what is left behind."""

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from lightning_modules import FullFT, InContext, LoRA, SoftPrompt, base
from lightning_modules.backbones import head_is_tied
from lightning_modules.exports import load_exported
from lightning_modules.summarization import Decoding
from tests.batches import loader, make_batch, make_trainer, settle

DECODING = Decoding(max_new_tokens=8)
METHODS: dict[str, Any] = {
    "full_ft": lambda t5, **kw: FullFT(backbone=t5, decoding=DECODING, **kw),
    "lora": lambda t5, **kw: LoRA(backbone=t5, r=4, alpha=8, decoding=DECODING, **kw),
    "soft_prompt": lambda t5, **kw: SoftPrompt(
        backbone=t5, virtual_tokens=5, decoding=DECODING, **kw
    ),
}
ADAPTERS: dict[str, Any] = {
    "lora": METHODS["lora"],
    "dora": lambda t5, **kw: METHODS["lora"](t5, use_dora=True, **kw),
    "rslora": lambda t5, **kw: METHODS["lora"](t5, use_rslora=True, **kw),
    "soft_prompt": METHODS["soft_prompt"],
}


def adamw(lr: float) -> Any:
    return lambda parameters: torch.optim.AdamW(parameters, lr=lr)


@pytest.mark.parametrize("name", METHODS | ADAPTERS)
def test_every_trained_weight_moves_and_no_other(name: str, t5: str, tmp_path: Path) -> None:
    module = settle((METHODS | ADAPTERS)[name](t5, optimizer=adamw(0.01)))
    before = {n: p.clone() for n, p in module.named_parameters()}
    batch = make_batch(t5)
    make_trainer(tmp_path, max_epochs=2).fit(module, loader(batch))
    for n, p in module.named_parameters():
        assert torch.equal(p, before[n]) != p.requires_grad, n


def test_loss_is_the_mean_over_real_tokens(t5: str) -> None:
    module = settle(FullFT(backbone=t5, dropout=0.0))
    batch = make_batch(t5)
    loss_sum, tokens = module.sum_losses(batch)
    slow, count = torch.zeros(()), 0
    for row in range(len(batch["ids"])):
        source = batch["input_ids"][row][batch["attention_mask"][row].bool()]
        target = batch["labels"][row][batch["labels"][row] != -100]
        assert target[-1] == 1
        decoder_input = torch.cat([torch.tensor([0]), target[:-1]])
        logits = module.model(input_ids=source[None], decoder_input_ids=decoder_input[None]).logits
        slow = slow + F.cross_entropy(logits[0], target, reduction="sum")
        count += len(target)
    assert int(tokens) == count
    torch.testing.assert_close(loss_sum, slow, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("name", METHODS)
def test_a_checkpoint_holds_trained_weights_only(name: str, t5: str, tmp_path: Path) -> None:
    module = METHODS[name](t5, optimizer=adamw(0.01))
    trainer = make_trainer(tmp_path)
    trainer.fit(module, loader(make_batch(t5)))
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    state = torch.load(tmp_path / "a.ckpt", weights_only=True)["state_dict"]
    assert set(state) == {n for n, p in module.named_parameters() if p.requires_grad}
    again = METHODS[name](t5)
    make_trainer(tmp_path).validate(
        again, loader(make_batch(t5)), ckpt_path=tmp_path / "a.ckpt", weights_only=True
    )
    for n, p in again.named_parameters():
        torch.testing.assert_close(p, dict(module.named_parameters())[n])


def test_a_checkpoint_of_another_run_is_refused(t5: str, tmp_path: Path) -> None:
    batch = make_batch(t5)
    trainer = make_trainer(tmp_path)
    trainer.fit(METHODS["lora"](t5), loader(batch))
    trainer.save_checkpoint(tmp_path / "lora.ckpt")
    for other, message in (
        (METHODS["full_ft"](t5), "this run is"),
        (LoRA(backbone=t5, r=4, target_modules=["q"]), "train different weights"),
    ):
        with pytest.raises(ValueError, match=message):
            make_trainer(tmp_path).test(
                other, loader(batch), ckpt_path=tmp_path / "lora.ckpt", weights_only=True
            )


def test_a_checkpoint_whose_backbone_has_moved_is_of_its_run(
    t5: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    old, new = tmp_path / "old", tmp_path / "new"
    shutil.copytree(t5, old)
    shutil.copytree(t5, new)
    batch, path = make_batch(t5), tmp_path / "lora.ckpt"
    trainer = make_trainer(tmp_path)
    trainer.fit(METHODS["lora"](str(old)), loader(batch))
    trainer.save_checkpoint(path)

    def test() -> None:
        module = METHODS["lora"](str(new))
        make_trainer(tmp_path).test(module, loader(batch), ckpt_path=path, weights_only=True)

    with pytest.raises(ValueError, match=r"this checkpoint is of .*old"):
        test()  # as long as it is there, it is another model
    shutil.rmtree(old)
    test()
    assert f"was trained on {old}; assuming that {new} is the same model" in caplog.text


PLAIN = """
import sys, torch
from peft import PeftModel
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer
folder, backbone, *methods = sys.argv[1:]
for method in methods:
    export = f"{folder}/{method}/export"
    if method == "full_ft":
        model = AutoModelForSeq2SeqLM.from_pretrained(export)
    else:
        model = PeftModel.from_pretrained(AutoModelForSeq2SeqLM.from_pretrained(backbone), export)
    inputs = torch.load(f"{folder}/batch.pt")
    tokens = model.eval().generate(**inputs, max_new_tokens=8, do_sample=False)
    texts = AutoTokenizer.from_pretrained(export).batch_decode(tokens, skip_special_tokens=True)
    torch.save([text.strip() for text in texts], f"{folder}/{method}/texts.pt")
"""


def test_exports_give_the_same_texts_in_another_process(t5: str, tmp_path: Path) -> None:
    """With plain transformers and peft, without this project."""
    batch = make_batch(t5)
    inputs = {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"]}
    torch.save(inputs, tmp_path / "batch.pt")
    texts = {"plain": settle(InContext(backbone=t5, decoding=DECODING)).eval().generate(batch)}
    modules = METHODS | ADAPTERS
    for name, make in modules.items():
        module = make(t5, optimizer=adamw(0.1 if name == "soft_prompt" else 0.01))
        make_trainer(tmp_path, max_epochs=3).fit(module, loader(batch))
        module.export(tmp_path / name / "export")
        texts[name] = module.eval().generate(batch)
        model, _ = load_exported(tmp_path / name / "export")
        assert {p.dtype for p in model.parameters()} == {torch.float32}
        assert not head_is_tied(model if name == "full_ft" else model.get_base_model())
        tokens = model.generate(**inputs, **DECODING.arguments())
        assert module.backbone.decode(tokens) == texts[name], name
    subprocess.run([sys.executable, "-c", PLAIN, tmp_path, t5, *modules], check=True)
    for name in modules:
        assert torch.load(tmp_path / name / "texts.pt") == texts[name], name
        assert texts[name] != texts["plain"], name


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: SoftPrompt(backbone="x", virtual_tokens=0), "at least 1"),
        (lambda: FullFT(backbone="x", warmup_fraction=1.0), "warmup_fraction"),
        (lambda: FullFT(backbone="x", dropout=1.0), "dropout"),
        (lambda: Decoding(max_new_tokens=0, num_beams=0), "max_new_tokens.*num_beams"),
        (lambda: Decoding(temperature=0.5), "temperature would have no effect without do_sample"),
        (lambda: Decoding(top_k=5, top_p=0.9, num_beams=4), "top_k, top_p would have no effect"),
        (lambda: Decoding(length_penalty=2.0), "length_penalty would have no effect.*num_beams"),
        (lambda: Decoding(early_stopping=True, do_sample=True), "early_stopping would have"),
        (lambda: Decoding(max_new_tokens=8, min_new_tokens=9), "from 0 to max_new_tokens, got 9"),
        (lambda: Decoding(no_repeat_ngram_size=-1), "no_repeat_ngram_size must be 0 or more"),
        (lambda: Decoding(do_sample=True, top_p=0.0, top_k=-1), "top_k must.*top_p must be in"),
        (lambda: Decoding(do_sample=True, temperature=0.0), "above 0"),
    ],
)
def test_settings_out_of_range_are_refused(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


SAMPLE = {"do_sample": True, "temperature": 2.0}


@pytest.mark.parametrize(
    ("change", "beside"),
    [
        ({"num_beams": 4}, {}),
        ({"no_repeat_ngram_size": 1}, {}),
        (SAMPLE, {}),
        (SAMPLE, {"num_beams": 4}),
        ({"temperature": 0.01}, SAMPLE),
        ({"top_k": 1}, SAMPLE),
        ({"top_p": 0.01}, SAMPLE),
        ({"num_beams": 4}, SAMPLE | {"top_k": 20, "top_p": 0.9}),
        ({"length_penalty": -5.0}, {"num_beams": 4}),
        ({"early_stopping": True}, {"num_beams": 4}),
        ({"min_new_tokens": 8}, {}),
        ({"min_new_tokens": 8}, {"num_beams": 4}),
    ],
)
def test_every_decoding_setting_changes_the_text(
    change: dict[str, Any], beside: dict[str, Any], t5: str
) -> None:
    batch = make_batch(t5)
    module = settle(InContext(backbone=t5, decoding=Decoding(max_new_tokens=8, **beside))).eval()
    # Surer of its tokens, and a third of them end the text: then lengths and repeats matter.
    generator = torch.Generator().manual_seed(0)
    weight = module.model.lm_head.weight.data
    weight.copy_(torch.randn(weight.shape, generator=generator))
    module.model.generation_config.eos_token_id = list(range(1, 90))

    def generate(**settings: Any) -> list[list[int]]:
        torch.manual_seed(0)
        arguments = Decoding(max_new_tokens=8, **settings).arguments()
        inputs = {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"]}
        return module.model.generate(**inputs, **arguments).tolist()

    assert generate(**beside) == generate(**beside)
    assert generate(**beside) != generate(**(beside | change))


@pytest.mark.parametrize("name", METHODS)
def test_every_method_decodes_in_every_way(name: str, t5: str) -> None:
    module = settle(METHODS[name](t5)).eval()
    batch = make_batch(t5)
    for settings in ({}, {"num_beams": 3}, SAMPLE, SAMPLE | {"num_beams": 3, "top_k": 9}):
        module.decoding = Decoding(max_new_tokens=6, **settings)
        assert len(module.generate(batch)) == 6


def test_a_nan_loss_stops_the_run_and_names_the_rows(t5: str, tmp_path: Path) -> None:
    module = settle(FullFT(backbone=t5))
    module.model.lm_head.weight.data.fill_(torch.nan)
    with pytest.raises(FloatingPointError, match="row_0"):
        make_trainer(tmp_path).fit(module, loader(make_batch(t5)))


def test_a_need_above_the_free_memory_is_said_before_the_start(
    t5: str, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch = make_batch(t5)
    for free, said in ((10**12, False), (1000, True), (None, False)):
        caplog.clear()
        monkeypatch.setattr(base, "measure_free_memory", lambda device, free=free: free)
        make_trainer(tmp_path).fit(FullFT(backbone=t5), loader(batch))
        assert ("Adam's moments alone take" in caplog.text) == said
