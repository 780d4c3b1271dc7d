"""Random numbers that are a function of where a run stands, and not of how it got there."""

import random

import numpy as np
import torch


def seed_at(seed: int, *place: int) -> None:
    """Seed Python's, numpy's and torch's generators, on all devices, for one place of a run.

    As JAX's ``fold_in``: who comes to the same place gets the same numbers. So a resumed run needs
    no generator's state, on any number of ranks and devices, to go on exactly.

    Args:
        seed: The run's seed.
        place: Whole numbers from 0 that name the place, such as rank, epoch and batch; as many for
            every place, for zeros at the end count for nothing.
    """
    wide = np.random.SeedSequence((seed, *place)).generate_state(1, np.uint64)
    narrow = int(wide[0]) >> 32
    random.seed(narrow)
    np.random.seed(narrow)
    torch.manual_seed(int(wide[0]))


def take_state(device: torch.device) -> list[torch.Tensor]:
    """Give the state of torch's generators: the CPU's, and that of a CUDA device."""
    on_device = [torch.cuda.get_rng_state(device)] if device.type == "cuda" else []
    return [torch.get_rng_state(), *on_device]


def put_state(state: list[torch.Tensor], device: torch.device) -> None:
    """Put torch's generators back where they were."""
    torch.set_rng_state(state[0])
    if device.type == "cuda":
        torch.cuda.set_rng_state(state[1], device)
