"""A planned model has the weights of the real one."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import hub
from lightning_modules import (
    DPO,
    Classifier,
    FullFT,
    InContext,
    LoRA,
    PPOPolicy,
    RewardModel,
    SoftPrompt,
)
from lightning_modules.adapters import count_parameters
from lightning_modules.ppo.policy_kinds import (
    FullPolicy,
    LoRAPolicy,
    MergedPolicy,
    SoftPromptPolicy,
)
from planning.phases import trace_module
from planning.shapes import HATE_CLASSIFIER, build_classifier, build_seq2seq, find_blueprint
from tests.batches import settle
from tests.planning.tracing import FP32, SHORT


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("google/flan-t5-small", 76_961_152),
        ("google/flan-t5-base", 247_577_856),
        ("google/t5-v1_1-base", 247_577_856),
        ("google/flan-t5-large", 783_150_080),
        ("google/flan-t5-xl", 2_849_757_184),
        ("google/flan-t5-xxl", 11_135_332_352),
    ],
)
def test_known_models_have_their_published_sizes(name: str, parameters: int) -> None:
    with torch.device("meta"):
        model = build_seq2seq(find_blueprint(name))
    assert count_parameters(model)[1] == parameters


def test_the_known_classifier_has_its_published_size() -> None:
    with torch.device("meta"):
        model = build_classifier(find_blueprint(HATE_CLASSIFIER, "classifier"))
    assert count_parameters(model)[1] == 124_647_170


def test_saved_weights_say_whether_the_head_is_tied(t5: str, tmp_path: Path) -> None:
    """transformers wrote into this config that it is tied, and saved two matrices."""
    assert json.loads((Path(t5) / "config.json").read_text())["tie_word_embeddings"] is True
    assert not find_blueprint(t5).tied
    (tmp_path / "config.json").write_text((Path(t5) / "config.json").read_text())
    assert find_blueprint(str(tmp_path)).tied  # without weights the config is believed
    with torch.device("meta"):
        sizes = [count_parameters(build_seq2seq(find_blueprint(f)))[1] for f in (t5, str(tmp_path))]
    assert sizes[0] - sizes[1] == 259 * 32


def test_an_unknown_model_is_refused_with_the_known_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "reachable", lambda: False)
    with pytest.raises(ValueError, match=r"no config.json of 'no/such' .* google/flan-t5-base"):
        find_blueprint("no/such")


def test_a_classifier_is_no_backbone_of_a_summariser(roberta: str) -> None:
    with pytest.raises(ValueError, match="not an encoder-decoder"):
        find_blueprint(roberta)


def test_the_parameters_are_those_of_really_built_models(t5: str, roberta: str) -> None:
    for module in (
        FullFT(t5), InContext(t5), LoRA(backbone=t5, r=4, target_modules=["q", "wo"]),
        SoftPrompt(backbone=t5, virtual_tokens=7), PPOPolicy(t5, roberta), RewardModel(roberta),
        DPO(t5), Classifier(roberta, labels=["a", "b", "c"]),
    ):  # fmt: skip
        traced = trace_module(module, SHORT, FP32)
        assert module.model is None  # the module itself is left as it was
        assert (traced.size.trainable, traced.total) == settle(module).count_parameters()


def test_methods_train_on_flan_t5_base_what_the_papers_say() -> None:
    base = "google/flan-t5-base"
    assert trace_module(LoRA(backbone=base), SHORT, FP32, trains=False).size.trainable == 3_538_944
    assert (
        trace_module(SoftPrompt(backbone=base), SHORT, FP32, trains=False).size.trainable == 76_800
    )


@pytest.fixture(scope="module")
def adapters(t5: str, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """A LoRA's and a soft prompt's export folders."""
    folders = []
    for module in (LoRA(backbone=t5, r=4), SoftPrompt(backbone=t5, virtual_tokens=7)):
        folder = tmp_path_factory.mktemp("adapter")
        settle(module).export(folder)
        folders.append(str(folder))
    return folders[0], folders[1]


@pytest.mark.parametrize(
    "make",
    [
        lambda lora, soft: {"policy": LoRAPolicy(r=4, use_dora=True)},
        lambda lora, soft: {"adapter": lora},
        lambda lora, soft: {"adapter": lora, "policy": MergedPolicy(r=3)},
        lambda lora, soft: {"policy": SoftPromptPolicy(5, "text", "Sum up:")},
        lambda lora, soft: {"adapter": soft, "policy": SoftPromptPolicy(7)},
        lambda lora, soft: {"policy": FullPolicy(train_encoder=False)},
    ],
    ids=["fresh", "trained", "merged", "soft", "trained_soft", "full"],
)
def test_every_kind_of_policy_has_the_parameters_of_a_real_one(
    t5: str, roberta: str, adapters: tuple[str, str], make: Any
) -> None:
    """With the reference's: a frozen adapter, or, for all weights, a second model."""
    module = PPOPolicy(t5, roberta, **make(*adapters))
    traced = trace_module(module, SHORT, FP32)
    assert (traced.size.trainable, traced.total) == settle(module).count_parameters()
