"""FSDP2: the model that the ranks shard is that of rank 0."""

import os
from pathlib import Path

import torch

from lightning_modules.backbones import load_backbone
from lightning_modules.fsdp import Shards, full
from lightning_modules.policies.adapters import attach_adapter
from lightning_modules.policies.lora import LoRASettings
from tests.launching import last_words, run_ranks


def test_randomly_initialized_weights_are_those_of_rank_0(t5: str, tmp_path: Path) -> None:
    def draw_and_shard() -> None:
        rank = int(os.environ["RANK"])
        torch.distributed.init_process_group("gloo")
        torch.manual_seed(rank)
        model = attach_adapter(load_backbone(t5), LoRASettings(r=4, alpha=8).config())
        drawn = {name: p.detach().clone() for name, p in model.named_parameters()}
        Shards(torch.nn.ModuleList([model]), torch.device("cpu"))
        sharded = {name: full(p.detach()) for name, p in model.named_parameters()}
        torch.save((drawn, sharded), tmp_path / f"{rank}.pt")
        torch.distributed.destroy_process_group()

    codes = run_ranks(draw_and_shard, tmp_path)
    assert codes == [0, 0], last_words(tmp_path)
    (drawn, sharded), (others, seen) = (torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1))
    differing = {name for name in drawn if not torch.equal(drawn[name], others[name])}
    assert differing == {name for name in drawn if "lora_A" in name}
    for name, weight in drawn.items():
        assert torch.equal(sharded[name], weight), name
        assert torch.equal(seen[name], weight), name
