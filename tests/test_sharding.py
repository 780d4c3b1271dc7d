"""FSDP2: what the ranks divide among them is the model of rank 0."""

import os
from pathlib import Path

import torch
from torch.distributed.device_mesh import init_device_mesh

from lightning_modules.backbones import load_backbone
from lightning_modules.lora_adapter import LoRASettings, attach_lora
from lightning_modules.sharding import divide, full
from tests.launching import last_words, run_ranks


def test_what_each_rank_drew_at_random_is_rank_0s_when_divided(t5: str, tmp_path: Path) -> None:
    def draw_and_divide() -> None:
        rank = int(os.environ["RANK"])
        torch.distributed.init_process_group("gloo")
        torch.manual_seed(rank)
        model = attach_lora(load_backbone(t5), LoRASettings(r=4, alpha=8))
        drawn = {name: p.detach().clone() for name, p in model.named_parameters()}
        divide(model, init_device_mesh("cpu", (2,)), torch.device("cpu"))
        divided = {name: full(p.detach()) for name, p in model.named_parameters()}
        torch.save((drawn, divided), tmp_path / f"{rank}.pt")
        torch.distributed.destroy_process_group()

    codes = run_ranks(draw_and_divide, tmp_path)
    assert codes == [0, 0], last_words(tmp_path)
    (drawn, divided), (others, seen) = (torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1))
    differing = {name for name in drawn if not torch.equal(drawn[name], others[name])}
    assert differing == {name for name in drawn if "lora_A" in name}
    for name, weight in drawn.items():
        assert torch.equal(divided[name], weight), name
        assert torch.equal(seen[name], weight), name
