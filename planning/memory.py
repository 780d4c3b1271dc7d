"""The memory plan of a run: the largest of its phases, with what the process takes beside it."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from planning.parts import HEAP, LASTING, PROCESS, Computation, Lengths
from planning.phases import Traced
from planning.strategies import Name, place_on_devices

HEAP_SHARE = 0.25
"""Free blocks that glibc's heap keeps, as a share of the tensors that come and go with each step:
measured over the runs of ``benchmarks/memory_plan.py``, where it was 0.14 to 0.31. Blocks below
32 MiB come from one heap, and a small one that stays keeps the free ones around it from being
joined. With MALLOC_MMAP_THRESHOLD_=1048576 it is next to nothing, and a step 40 % slower."""


@dataclass(frozen=True)
class Setting:
    """Where a method runs.

    Args:
        computation: How the numbers are computed.
        strategy: How the devices share the work.
        devices: Number of devices, over all nodes.
    """

    computation: Computation
    strategy: Name = "single"
    devices: int = 1


@dataclass(frozen=True)
class Plan:
    """The memory that one device (on a CPU: the process) will take at its peak, in bytes.

    Args:
        method: The method's name.
        traced: What its trace found.
        setting: Where it runs.
        lengths: Its largest batches.
        process: Bytes of the process before anything is loaded; not a GPU's, so 0 there.
    """

    method: str
    traced: Traced
    setting: Setting
    lengths: Lengths
    process: int

    def at(self, setting: Setting) -> "Plan":
        """Give the plan of the same computation shared among devices in another way."""
        return replace(self, setting=setting)

    @property
    def phases(self) -> dict[str, dict[str, int]]:
        """Bytes by part at the peak of each phase, what a strategy and the process add included."""
        return {name: self._complete(name, parts) for name, parts in self.traced.phases.items()}

    @property
    def peak(self) -> str:
        """The phase that takes most."""
        phases = self.phases
        return max(phases, key=lambda name: sum(phases[name].values()))

    @property
    def parts(self) -> dict[str, int]:
        """Bytes by part in the phase that takes most."""
        return self.phases[self.peak]

    @property
    def total(self) -> int:
        """Bytes of the peak."""
        return sum(self.parts.values())

    def _complete(self, phase: str, parts: Mapping[str, int]) -> dict[str, int]:
        setting = self.setting
        found = place_on_devices(parts, self.traced.size, setting.strategy, setting.devices, phase)
        if not setting.computation.gpu:
            passing = sum(size for part, size in found.items() if part not in LASTING)
            found[HEAP] = int(HEAP_SHARE * passing)
            found[PROCESS] = self.process
        return found
