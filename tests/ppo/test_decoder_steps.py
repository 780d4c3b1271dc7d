"""Compiled decoding steps draw what the plain ones do, in fixed shapes at fixed addresses."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

import train
from common.run_folder import RunFolder
from lightning_modules import linear
from lightning_modules.backbones import load_backbone
from lightning_modules.kernels import quicken
from lightning_modules.ppo import decoder_steps
from lightning_modules.ppo.sampling import Samples, Sampling, sample
from tests.batches import make_batch
from tests.breaking import without_clocks
from tests.compiled import Counting, nothing_compiled
from tests.ppo.test_rollout import EOS, likely_to_end

SETTINGS = Sampling(max_new_tokens=12, temperature=0.7, eos_id=EOS, pad_id=0)


@pytest.fixture(autouse=True)
def afresh(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with nothing_compiled(monkeypatch):
        yield


@pytest.fixture(scope="module")
def model(t5: str) -> Any:
    torch.manual_seed(0)
    return quicken(likely_to_end(load_backbone(t5, dropout=0.0)))


def draw(model: Any, t5: str, backend: str | None, rows: int = 6, seed: int = 1) -> Samples:
    batch = make_batch(t5, rows)
    with torch.no_grad():
        hidden = model.get_encoder()(
            input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]
        ).last_hidden_state
    torch.manual_seed(seed)
    return sample(model, hidden, batch["attention_mask"], SETTINGS._replace(compile=backend))


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_the_same_tokens_and_log_probabilities(model: Any, t5: str, backend: str) -> None:
    for seed, rows in ((1, 6), (2, 6), (3, 4)):
        plain = draw(model, t5, None, rows, seed)
        compiled = draw(model, t5, backend, rows, seed)
        # Rows end at different steps, so that some are dropped on the way.
        assert len((plain.responses == EOS).int().argmax(dim=1).unique()) > 1
        assert torch.equal(compiled.responses, plain.responses)
        torch.testing.assert_close(compiled.logprobs, plain.logprobs, rtol=0, atol=1e-5)
        torch.testing.assert_close(compiled.entropy, plain.entropy, rtol=0, atol=1e-5)


def test_a_step_is_one_graph_whose_tensors_stay_where_they_are(model: Any, t5: str) -> None:
    """What a CUDA graph asks for; that it is captured only a GPU can show."""
    counting, steps, places = Counting(), 0, []
    for seed in (1, 2):
        drawn = draw(model, t5, counting, seed=seed)  # type: ignore[arg-type]
        steps += drawn.responses.shape[1] - 1  # the first is not compiled
        (cache,) = decoder_steps._KEPT[model]._caches.values()
        layers = (*cache.self_attention_cache.layers, *cache.cross_attention_cache.layers)
        places.append([layer.keys.data_ptr() for layer in layers])
    assert (counting.graphs, counting.runs) == (1, steps)
    assert places[0] == places[1]


def test_weights_are_bf16_beforehand_and_as_they_are_now(
    model: Any, t5: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also in a second rollout, after an update, in the same memory."""
    monkeypatch.setattr(linear, "LEAST_WEIGHTS", 0)
    monkeypatch.setattr(decoder_steps, "_KEPT", type(decoder_steps._KEPT)())
    head = model.get_output_embeddings()
    found = []
    with torch.autocast("cpu", torch.bfloat16):
        for _ in range(2):
            draw(model, t5, "eager")
            copy = decoder_steps._KEPT[model].copies[head]
            assert copy.dtype == torch.bfloat16
            assert torch.equal(copy, head.weight.to(torch.bfloat16))
            found.append(copy.data_ptr())
            with torch.no_grad():
                head.weight.mul_(1.5)
    assert found[0] == found[1]
    assert head.packed is None


@pytest.mark.skipif(not linear.AVAILABLE, reason="this torch lacks MKL or oneDNN")
def test_an_uncompiled_rollout_has_its_own_layout(
    model: Any, t5: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The two ways are two: what is laid out for a CPU's kernels cannot be traced."""
    monkeypatch.setattr(linear, "LEAST_WEIGHTS", 0)
    seen = []
    head = model.get_output_embeddings()
    hook = head.register_forward_pre_hook(lambda layer, _: seen.append(layer.packed is not None))
    draw(model, t5, None)
    draw(model, t5, "eager")
    hook.remove()
    assert set(seen[: len(seen) // 2]) == {True}
    assert seen[-1] is False


DECODING = ("--model.ppo.compile_decoding", "eager")


@pytest.mark.parametrize(
    "settings",
    [DECODING, pytest.param((*DECODING, "--model.compile", "eager"), marks=pytest.mark.slow)],
)
def test_a_ppo_run_is_the_same(
    settings: Sequence[str], tiny_ppo: list[str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    found = []
    short = [
        "--trainer.max_epochs", "1", "--trainer.limit_train_batches", "1",
        "--trainer.limit_val_batches", "1", "--trainer.val_check_interval", "1.0",
    ]  # fmt: skip
    for name, more in {"plain": (), "compiled": settings}.items():
        run = tmp_path / name
        train.main(["fit", *tiny_ppo, *short, "--run_dir", str(run), *more])
        rows = [without_clocks(dict(row)) for row in RunFolder(run).read_metrics_csv()]
        found.append({key: value for row in rows for key, value in row.items() if value})
    plain, compiled = found
    assert plain.keys() == compiled.keys()
    for key, value in plain.items():
        assert float(compiled[key]) == pytest.approx(float(value), rel=1e-3, abs=1e-4), key
    assert "recompile_limit" not in caplog.text
