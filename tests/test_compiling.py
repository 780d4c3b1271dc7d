"""Compiled blocks compute what the plain ones do."""

from collections.abc import Iterator

import pytest
import torch

from lightning_modules.backbones import set_dropout
from lightning_modules.compiling import compile_blocks, find_compile_problem
from lightning_modules.sharding import find_blocks
from tests.batches import make_batch, settle
from tests.compiled import Counting, nothing_compiled
from tests.test_adapters import shake
from tests.test_modules import METHODS


@pytest.fixture(autouse=True)
def afresh(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with nothing_compiled(monkeypatch):
        yield


@pytest.mark.parametrize(
    ("name", "backend", "checkpointing"),
    [("full_ft", "aot_eager", False), ("lora", "eager", True), ("soft_prompt", "eager", False)],
)
def test_loss_and_gradients_are_the_same(
    name: str, backend: str, checkpointing: bool, t5: str
) -> None:
    batch = make_batch(t5)
    found = []
    for is_compiled in (False, True):
        module = settle(METHODS[name](t5, gradient_checkpointing=checkpointing))
        set_dropout(module.model, 0.0)
        shake(module.model)
        if is_compiled:
            # AOTAutograd traces the backward pass too, which takes its time: of one block, then.
            part = module.model if backend == "eager" else module.model.get_decoder().block[-1]
            compile_blocks(part, backend)
        loss, _ = module.token_loss(batch)
        loss.backward()
        gradients = {n: p.grad for n, p in module.named_parameters() if p.requires_grad}
        found.append((loss.detach(), gradients, module.state_dict().keys()))
    (plain_loss, plain, names), (loss, compiled, its_names) = found
    assert its_names == names
    torch.testing.assert_close(loss, plain_loss, rtol=1e-5, atol=0)
    assert compiled.keys() == plain.keys()
    for n, gradient in plain.items():
        assert float((compiled[n] - gradient).norm()) <= 1e-5 * float(gradient.norm()), n


def test_blocks_share_their_code_and_generation_is_left_alone(t5: str) -> None:
    # Without dropout, of which a CPU has our own: it breaks graphs, and a GPU has torch's.
    module = settle(METHODS["full_ft"](t5, dropout=0.0))
    counting = Counting()
    compile_blocks(module.model, counting)
    blocks = find_blocks(module.model)
    batch = make_batch(t5)
    module.generate(batch)
    assert counting.graphs == 0
    module.token_loss(batch)
    # The first block of each stack makes the position bias.
    assert (len(blocks), counting.graphs, counting.runs) == (4, 4, 4)
    for rows in (2, 5):
        module.token_loss(make_batch(t5, rows))
    assert (counting.graphs, counting.runs) == (4, 12)


def test_what_cannot_be_compiled_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr("shutil.which", lambda name: None)
    assert find_compile_problem("model.compile", None, "auto") is None
    assert find_compile_problem("model.compile", "eager", "cpu") is None
    for backend, words in {
        "fast": "there is no backend 'fast'", "inductor": "needs a C++ compiler",
        "cudagraphs": "a CUDA GPU",
    }.items():  # fmt: skip
        problem = find_compile_problem("model.compile", backend, "auto")
        assert problem is not None
        assert problem.startswith("model.compile: ")
        assert words in problem
    monkeypatch.setattr("shutil.which", lambda name: "/usr/bin/g++" if name == "g++" else None)
    assert find_compile_problem("model.compile", "inductor", "cpu") is None
