"""The backbone: its head as it was trained, its dropout as it was asked for."""

import re
from pathlib import Path

import pytest
import torch
from transformers import AutoModel, AutoModelForSeq2SeqLM, AutoTokenizer, RobertaConfig

from common.hub import resolve_model
from lightning_modules import FullFT
from lightning_modules.backbones import (
    find_precision_problem,
    head_is_tied,
    load_backbone,
    set_dropout,
)
from lightning_modules.reward_scorer import RewardScorer
from lightning_modules.summarization import Decoding
from tests.batches import loader, make_batch, make_trainer
from tests.models import save_tied_t5
from tests.test_adapters import logits


def test_the_head_stays_untied_through_load_tie_weights_and_save(t5: str, tmp_path: Path) -> None:
    model = load_backbone(t5)
    assert not head_is_tied(model)
    expected = logits(model, t5)
    # What merging, resuming or another library may call.
    model.tie_weights()
    assert not head_is_tied(model)
    torch.testing.assert_close(logits(model, t5), expected)
    model.save_pretrained(tmp_path)
    plain = AutoModelForSeq2SeqLM.from_pretrained(tmp_path)
    assert not head_is_tied(plain)
    assert plain.config.scale_decoder_outputs is False
    torch.testing.assert_close(logits(plain, t5), expected)


def test_a_tied_head_stays_tied_and_scaled(tmp_path: Path) -> None:
    """One matrix, and the decoder's output times d_model^-0.5."""
    model = load_backbone(save_tied_t5(tmp_path))
    assert head_is_tied(model)
    assert model.config.tie_word_embeddings is True
    assert model.config.scale_decoder_outputs is True


def test_the_head_stays_untied_through_checkpoint_resume_and_export(
    t5: str, tmp_path: Path
) -> None:
    batch = make_batch(t5)

    def make() -> FullFT:
        return FullFT(
            backbone=t5,
            decoding=Decoding(max_new_tokens=8),
            optimizer=lambda parameters: torch.optim.AdamW(parameters, lr=0.01),
        )

    module = make()
    trainer = make_trainer(tmp_path)
    trainer.fit(module, loader(batch))
    path = tmp_path / "one.ckpt"
    trainer.save_checkpoint(path)
    again = make()
    make_trainer(tmp_path, max_epochs=2).fit(
        again, loader(batch), ckpt_path=path, weights_only=True
    )
    assert not head_is_tied(again.model)
    again.export(tmp_path / "export")
    plain = AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "export")
    torch.testing.assert_close(logits(plain, t5), logits(again.model, t5))


def test_dropout_is_on_in_training_and_zero_when_told(t5: str) -> None:
    batch = make_batch(t5)
    for dropout, differs in ((None, True), (0.0, False), (0.5, True)):
        module = FullFT(backbone=t5, dropout=dropout)
        module.configure_model()
        losses = {float(module.sum_losses(batch)[0]) for _ in range(3)}
        assert (len(losses) > 1) == differs, dropout
    rates = {m.p for m in module.model.modules() if isinstance(m, torch.nn.Dropout)}
    # 0.5 was asked for; the decoder's and encoder's attention dropout too.
    assert rates == {0.5}
    assert module.model.encoder.block[0].layer[0].SelfAttention.dropout == 0.5
    set_dropout(module.model, 0.0)
    assert module.model.config.dropout_rate == 0.0


def test_weights_are_fp32_whatever_the_file_holds(t5: str, tmp_path: Path) -> None:
    AutoModelForSeq2SeqLM.from_pretrained(t5, dtype=torch.bfloat16).save_pretrained(tmp_path)
    assert {p.dtype for p in load_backbone(str(tmp_path)).parameters()} == {torch.float32}


def test_a_model_without_decoder_is_refused(tmp_path: Path) -> None:
    RobertaConfig(architectures=["RobertaForMaskedLM"]).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="generates no text"):
        load_backbone(str(tmp_path))


def test_weights_that_would_stay_random_are_refused(t5: str, tmp_path: Path) -> None:
    model = AutoModelForSeq2SeqLM.from_pretrained(t5)
    kept = {k: v for k, v in model.state_dict().items() if "decoder.final" not in k}
    model.save_pretrained(tmp_path / "t5", state_dict=kept)
    with pytest.raises(ValueError, match=r"decoder\.final_layer_norm\.weight is missing"):
        load_backbone(str(tmp_path / "t5"))
    encoder = RobertaConfig(hidden_size=16, num_attention_heads=2, num_hidden_layers=1)
    AutoModel.from_config(encoder).save_pretrained(tmp_path / "encoder")
    AutoTokenizer.from_pretrained(resolve_model("mini", "classifier")).save_pretrained(
        tmp_path / "encoder"
    )
    with pytest.raises(ValueError, match=r"classifier\.dense\.bias is missing, and 3 more"):
        RewardScorer(str(tmp_path / "encoder"), "LABEL_0")


@pytest.mark.parametrize(
    ("precision", "model_type", "problem"),
    [
        *((precision, "t5", "65,504.*bf16-mixed") for precision in ("16-mixed", "16-true", 16)),
        ("bf16-true", "t5", "rounds to nothing"),
        *(("16-mixed", kind, None) for kind in ("bart", "marian", "roberta")),
        *((precision, "t5", None) for precision in ("32-true", "bf16-mixed", 32, None, "64-true")),
    ],
)
def test_low_precision_is_refused_where_it_fails(
    precision: str | int | None, model_type: str, problem: str | None
) -> None:
    found = find_precision_problem(precision, model_type)
    assert found is None if problem is None else re.search(problem, str(found))


def test_fp16_is_refused_by_the_module_too(t5: str, tmp_path: Path) -> None:
    module = FullFT(backbone=t5)
    trainer = make_trainer(tmp_path)
    module.trainer = trainer
    trainer.strategy.precision_plugin.precision = "16-mixed"  # type: ignore[assignment]
    with pytest.raises(ValueError, match="fp16"):
        module.setup("fit")


def test_names_become_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert resolve_model("google/flan-t5-base") == "google/flan-t5-base"
    assert resolve_model("mini").endswith("assets/mini/t5")
    assert resolve_model("mini", "classifier").endswith("assets/mini/roberta")
    (tmp_path / "model").mkdir()
    monkeypatch.chdir(tmp_path)
    assert resolve_model("model") == str(tmp_path / "model")
