"""PreferenceModule: losses by hand and by a slow loop, its start, what it learns and leaves."""

import copy
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional as F
from transformers import AutoTokenizer

from datamodules import DPODataModule
from lightning_modules import PreferenceModule
from lightning_modules.policies.gate import GateError
from lightning_modules.policies.kinds import (
    FullPolicy,
    LoRAPolicy,
)
from lightning_modules.preference import Scores
from lightning_modules.preference_losses import LOSSES, Pairs
from lightning_modules.summarization import Decoding
from tests.batches import make_trainer, settle
from tests.ppo.kinds import KINDS, adamw
from tests.rows import write_rows

DECODING = Decoding(max_new_tokens=8)
ANSWERS = [
    {"id": "0", "dialogue": "#Person1#: Hello there, Ann!", "completions": ["yes", "no, never"],
     "ranks": [1, 2]},
    {"id": "1", "dialogue": "#Person2#: Tea?", "completions": ["tea", "a", "b c d"],
     "ranks": [1, 3, 2]},
    {"id": "2", "dialogue": "#Person1#: The train leaves at six.", "completions": ["x y", "six"],
     "ranks": [2, 1]},
]  # fmt: skip
DIALOGUES = [
    {"id": f"d{i}", "dialogue": f"#Person1#: {i} apples" + " please" * i, "summary": "They talk."}
    for i in range(3)
]


def make_data(t5: str, folder: Path, **settings: Any) -> DPODataModule:
    write_rows(folder / "answers", train=ANSWERS, validation=ANSWERS, test=ANSWERS)
    write_rows(folder / "dialogues", train=DIALOGUES, validation=DIALOGUES, test=DIALOGUES)
    return DPODataModule(str(folder / "answers"), t5, str(folder / "dialogues"), **settings)


def make_module(t5: str, **settings: Any) -> PreferenceModule:
    defaults: dict[str, Any] = {
        "policy": LoRAPolicy(r=4, alpha=8), "decoding": DECODING, "optimizer": adamw(0.01),
    }  # fmt: skip
    return PreferenceModule(t5, **(defaults | settings))


def make_batch(data: DPODataModule) -> Any:
    data.setup("validate")
    return data.collate(data.splits["validation"])


# The loss -----------------------------------------------------------------------------------------


def log_sigmoid(x: float) -> float:
    return -math.log(1 + math.exp(-x))


def odds(logp: float) -> float:
    return math.exp(logp) / (1 - math.exp(logp))


# Policy -2 and -5, reference -3 and -4: a lead of 1 - -1 = 2 nats.
HANDWORKED: dict[str, tuple[dict[str, float], float]] = {
    "sigmoid": ({"beta": 0.5}, -log_sigmoid(1)),
    "conservative": (
        {"beta": 0.5, "label_smoothing": 0.1}, -0.9 * log_sigmoid(1) - 0.1 * log_sigmoid(-1)
    ),
    "robust": (
        {"beta": 0.5, "label_smoothing": 0.1},
        (-0.9 * log_sigmoid(1) + 0.1 * log_sigmoid(-1)) / 0.8,
    ),
    "hinge": ({"beta": 0.2}, 0.6),
    "ipo": ({"beta": 0.25}, 0.0),
    "kto": ({"beta": 0.5}, 1 - 0.5 * (1 / (1 + math.exp(-0.35)) + 1 / (1 + math.exp(-0.65)))),
    "slic": ({"margin": 4.0}, 1.0),
    "simpo": ({"beta": 2.0, "margin": 1.0}, -log_sigmoid(5)),
    "cpo": ({"beta": 0.5}, -log_sigmoid(1.5)),
    "orpo": ({"beta": 0.1}, -0.1 * log_sigmoid(math.log(odds(-2) / odds(-5)))),
}  # fmt: skip


@pytest.mark.parametrize("name", HANDWORKED)
def test_the_losses_by_hand(name: str) -> None:
    settings, expected = HANDWORKED[name]
    pairs = Pairs(*(torch.tensor([x]) for x in (-2.0, -5.0, -3.0, -4.0)), kl=torch.tensor(0.3))
    found = LOSSES["sigmoid" if name == "conservative" else name].compute(pairs, **settings)
    assert found.tolist() == pytest.approx([expected], abs=1e-6)


def test_the_gradient_of_the_loss_is_that_of_the_paper() -> None:
    # Rafailov et al. 2023, section 4: -beta sigmoid(r_l - r_w) for y_w, the contrary for y_l.
    chosen, rejected = (torch.tensor([x], requires_grad=True) for x in (0.3, 1.1))
    LOSSES["sigmoid"].compute(Pairs(chosen, rejected, *torch.zeros(2, 1)), beta=0.2).backward()
    expected = 0.2 / (1 + math.exp(-0.2 * (1.1 - 0.3)))
    assert chosen.grad is not None and rejected.grad is not None
    assert [chosen.grad.item(), rejected.grad.item()] == pytest.approx([-expected, expected])


@torch.no_grad()
def slow_logprob(model: Any, tokenizer: Any, prompt: str, response: str) -> float:
    """One completion by itself, without padding, and one token after the other."""
    source = tokenizer(prompt, return_tensors="pt").input_ids
    tokens = tokenizer(response).input_ids
    total = 0.0
    for place, token in enumerate(tokens):
        start = torch.tensor([[0, *tokens[:place]]])
        logits = model(input_ids=source, decoder_input_ids=start).logits[0, -1]
        total += F.log_softmax(logits, dim=-1)[token].item()
    return total


@torch.no_grad()
def slow_loss(module: Any, tokenizer: Any, sft_weight: float, per_token: bool) -> float:
    """Pair by pair, and the mean over dialogues of the means over their pairs."""
    models = (module.model, module.reference)
    prompts = [
        f"Summarize the following conversation.\n\n{answer['dialogue']}\n\nSummary:"
        for answer in ANSWERS
    ]
    total, shifts = 0.0, []
    for number, answer in enumerate(ANSWERS):
        for text in answer["completions"]:
            other = prompts[(number + 1) % len(ANSWERS)]
            policy, reference = (slow_logprob(m, tokenizer, other, text) for m in models if m)
            shifts.append(policy - reference)
    kl = max(0.0, sum(shifts) / len(shifts))
    for prompt, answer in zip(prompts, ANSWERS, strict=True):
        ranked = sorted(zip(answer["ranks"], answer["completions"], strict=True))
        texts = [text for _, text in ranked]
        pairs = [(texts[i], texts[j]) for i in range(len(texts)) for j in range(i + 1, len(texts))]
        for pair in pairs:
            lengths = [len(tokenizer(text).input_ids) if per_token else 1 for text in pair]
            found = [
                torch.tensor([slow_logprob(m, tokenizer, prompt, text) / length])
                for m in models
                for text, length in zip(pair, lengths, strict=True)
            ]
            loss = module.loss.compute(Pairs(*found, kl=torch.tensor(kl)), **module.settings)
            sft = -slow_logprob(module.model, tokenizer, prompt, pair[0])
            sft /= len(tokenizer(pair[0]).input_ids)
            total += (loss.item() + sft_weight * sft) / len(pairs) / len(ANSWERS)
    return total


def move(module: Any, seed: int = 1) -> None:
    """Take the policy away from its reference."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in module.parameters():
        if parameter.requires_grad:
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.data += 0.1 * noise


@pytest.mark.parametrize("seed", [1, 5])  # KTO's z_0 is 0 with the first, 0.6 with the second
@pytest.mark.parametrize(
    ("settings", "sft_weight", "per_token"),
    [
        ({"beta": 0.7}, 0, False),
        ({"beta": 0.7, "sft_weight": 0.5}, 0.5, False),
        ({"loss": "robust", "beta": 0.7, "length_normalized": True}, 0, True),
        ({"loss": "kto", "beta": 0.5}, 0, False),
        ({"loss": "ipo"}, 0, False),
        ({"loss": "slic", "margin": 0.3}, 1, False),
        ({"loss": "simpo"}, 0, True),
        ({"loss": "cpo", "sft_weight": 0.0}, 0, False),
        ({"loss": "orpo"}, 1, True),
    ],
)
def test_the_loss_of_a_batch_is_that_of_a_slow_loop(
    settings: dict[str, Any],
    sft_weight: float,
    per_token: bool,
    seed: int,
    t5: str,
    tmp_path: Path,
) -> None:
    module = settle(make_module(t5, policy=FullPolicy(), **settings))
    data = make_data(t5, tmp_path)
    if module.reference is None:  # only the slow loop needs one; the loss must not read it
        assert not module.loss.needs_reference
        module.reference = copy.deepcopy(module.model)
    move(module, seed)
    module.eval()
    tokenizer = AutoTokenizer.from_pretrained(t5)
    expected = slow_loss(module, tokenizer, sft_weight, per_token)
    loss, count = take(module, data)
    assert count == 3
    assert (loss / count).item() == pytest.approx(expected, rel=1e-5)
    plain, _ = take(settle(make_module(t5, policy=FullPolicy())), data)
    assert loss.item() != pytest.approx(plain.item(), rel=1e-2)


def take(module: Any, data: DPODataModule) -> tuple[torch.Tensor, int]:
    batch = make_batch(data)
    return module.compute_loss(module.score(batch), batch), len(batch["ids"])


def test_what_is_logged_by_hand(t5: str, tmp_path: Path) -> None:
    module, data = settle(make_module(t5, beta=0.5)), make_data(t5, tmp_path)
    batch = make_batch(data)
    # Completions in the order of the alphabet: no, yes | a, b c d, tea | six, x y.
    policy = torch.tensor([-1.0, -3.0, -1.0, -2.0, -2.0, -4.0, -4.0])
    reference = torch.tensor([-2.0, -2.0, -1.0, -1.0, -1.0, -4.0, -4.0])
    found = module.measure(Scores(policy, reference, policy[:, None], torch.ones(7)), batch)
    rewards = [0.5, -0.5, 0.0, -0.5, -0.5, 0.0, 0.0]
    # Pairs: yes > no | tea > b c d, tea > a, b c d > a | six > x y.
    assert float(found["rewards/chosen"]) == pytest.approx((rewards[1] + (-1.5 / 3) + 0) / 3)
    assert float(found["rewards/margin"]) == pytest.approx((-1 + (0 - 0.5 - 0.5) / 3 + 0) / 3)
    assert float(found["rewards/accuracy"]) == pytest.approx((0 + (0.5 + 0 + 0) / 3 + 0.5) / 3)
    assert float(found["logps/rejected"]) == pytest.approx((-1 + (-2 - 1 - 1) / 3 - 4) / 3)


def test_kto_has_no_kl_without_another_prompt(t5: str, tmp_path: Path) -> None:
    module = settle(make_module(t5, policy=FullPolicy(), loss="kto"))
    data = make_data(t5, tmp_path)
    move(module, seed=5)
    assert float(module.score(make_batch(data)).kl) > 0
    assert module.score(data.collate(data.splits["validation"][:1])).kl == 0


# The start ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_starts_at_its_reference_and_leaves_it(
    kind: str, t5: str, tmp_path: Path, trained_adapter: str, trained_soft_prompt: str
) -> None:
    policy, start_from = KINDS[kind]
    adapter = {"lora": trained_adapter, "soft": trained_soft_prompt, None: None}[start_from]
    rate = adamw(0.3 if "soft" in kind else 0.01)
    module = settle(make_module(t5, policy=policy, adapter=adapter, optimizer=rate))
    data = make_data(t5, tmp_path)
    batch = make_batch(data)
    start = module.score(batch)
    assert (start.policy - start.reference).abs().max() < 1e-4
    assert module.compute_loss(start, batch).item() == pytest.approx(3 * math.log(2), rel=1e-4)
    make_trainer(tmp_path, max_epochs=25, limit_val_batches=0).fit(module, data)
    module.eval()
    end = module.score(batch)
    torch.testing.assert_close(end.reference, start.reference, atol=1e-4, rtol=1e-4)
    assert float(module.measure(end, batch)["rewards/accuracy"]) > 0.8  # it was 0.5
    assert module.compute_loss(end, batch).item() < 3 * math.log(2) - 0.05


def test_a_policy_that_is_not_its_reference_is_stopped(
    t5: str, tmp_path: Path, trained_adapter: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = make_module(t5, adapter=trained_adapter)
    module.configure_model()
    before = {name: p.detach().clone() for name, p in module.named_parameters()}
    # As if the backbone alone stood for a trained adapter's start.
    del module.model.peft_config["reference"]
    with pytest.raises(GateError, match="reference is not the policy"):
        make_trainer(tmp_path, limit_val_batches=0).fit(module, make_data(t5, tmp_path))
    assert all(torch.equal(before[name], p) for name, p in module.named_parameters())


@pytest.mark.parametrize("fault", ["ratio", "nan", "mask"])
def test_given_completions_can_stop_a_run_too(
    fault: str, t5: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = make_module(t5)
    real = PreferenceModule.score

    def score(self: Any, batch: Any) -> Scores:
        if fault == "mask":
            batch["mask"][0, -1] = True
            return real(self, batch)
        wrong = {"ratio": 1e-3, "nan": math.nan}[fault]
        return real(self, batch)._replace(ratios=torch.tensor([[0.0, wrong]]))

    monkeypatch.setattr(PreferenceModule, "score", score)
    with pytest.raises(GateError, match=r"on the given completions policy and reference differ"):
        make_trainer(tmp_path, limit_val_batches=0).fit(module, make_data(t5, tmp_path))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"beta": 0.0}, "beta must be above 0, got 0.0"),
        ({"label_smoothing": 0.5}, r"label_smoothing must be in \[0, 0.5\)"),
        ({"loss": "slic", "margin": -1.0}, "margin must be 0 or more"),
        ({"sft_weight": -1.0}, "sft_weight must be 0 or more"),
        ({"margin": 1.0}, "margin would have no effect with the loss sigmoid"),
        ({"loss": "slic", "beta": 0.1}, "beta would have no effect with the loss slic"),
        ({"loss": "simpo", "length_normalized": True}, "length_normalized would have no effect"),
        ({"adapter": "nowhere"}, "is not an exported adapter"),
    ],
)
def test_settings_that_cannot_work_are_refused(
    settings: dict[str, Any], message: str, t5: str
) -> None:
    with pytest.raises(ValueError, match=message):
        make_module(t5, **settings)


@pytest.mark.parametrize("loss", LOSSES)
def test_every_loss_raises_what_was_preferred_over_the_rest(
    loss: str, t5: str, tmp_path: Path
) -> None:
    module = make_module(t5, policy=FullPolicy(), loss=loss, optimizer=adamw(1e-3))
    data = make_data(t5, tmp_path)
    batch = make_batch(data)
    start = settle(module).measure(module.score(batch), batch)["rewards/margin"]
    make_trainer(tmp_path, max_epochs=25, limit_val_batches=0).fit(module, data)
    module.eval()
    assert (module.reference is None) == (loss in ("slic", "simpo", "cpo", "orpo"))
    assert module.measure(module.score(batch), batch)["rewards/margin"] > start + 0.05
    data.setup("test")
    dialogues, _ = data.test_dataloader()
    output = module.test_step(next(iter(dialogues)), 0)
    assert ("predictions_before" in output) == (module.reference is not None)


# What a run leaves --------------------------------------------------------------------------------


def test_a_fit_and_a_test_log_and_generate_before_and_after(t5: str, tmp_path: Path) -> None:
    module, data = make_module(t5), make_data(t5, tmp_path)
    trainer = make_trainer(tmp_path, max_epochs=2, log_every_n_steps=1)
    trainer.fit(module, data)
    names = set(trainer.callback_metrics)
    assert names >= {"train/loss", "val/loss", "val/accuracy", "val/margin"}
    assert names >= {f"rewards/{k}" for k in ("chosen", "rejected", "margin", "accuracy")}
    trainer.validate(module, data, verbose=False)
    module.eval()
    expected = module.measure(module.score(make_batch(data)), make_batch(data))
    assert float(trainer.callback_metrics["val/margin"]) == pytest.approx(
        float(expected["rewards/margin"]), rel=1e-4
    )
    data.setup("test")
    dialogues, pairs = data.test_dataloader()
    output = module.test_step(next(iter(dialogues)), 0)
    assert len(output["predictions"]) == len(output["predictions_before"]) == 3
    with module.open_reference() as start:
        assert output["predictions_before"] == start.generate(
            next(iter(dialogues)), module.decoding
        )
    module.log = lambda *_, **__: None  # type: ignore[method-assign]
    assert module.test_step(next(iter(pairs)), 0) is None


def test_a_checkpoint_of_another_reference_is_refused(
    t5: str, tmp_path: Path, trained_adapter: str
) -> None:
    module = settle(make_module(t5, adapter=trained_adapter))
    checkpoint: dict[str, Any] = {"state_dict": module.state_dict()}
    module.on_save_checkpoint(checkpoint)
    module.on_load_checkpoint(checkpoint)
    with pytest.raises(ValueError, match="the reference is not that of the run"):
        module.on_load_checkpoint(checkpoint | {"reference": "other"})
