"""The machine that plans, and the hardware that a recipe asks for."""

from dataclasses import dataclass

import torch

from crate_mae.common import budgets
from crate_mae.common.environment import processor
from crate_mae.training.config import TrainerConfig


@dataclass(frozen=True, kw_only=True)
class Machine:
    """What this machine computes with."""

    device: str
    """cpu, cuda or mps."""
    name: str
    count: int
    """Devices of this kind; one CPU is one device."""
    threads: int
    free: int | None
    """Free memory of one device in bytes; None where the system does not tell."""
    processes: int = 1
    """Processes of the run that share a device: several on one CPU do."""

    @property
    def share(self) -> int | None:
        """Free memory for each of the processes on a device."""
        return None if self.free is None else self.free // self.processes


@dataclass(frozen=True, kw_only=True)
class Hardware:
    """What a recipe's trainer section asks for."""

    device: str
    """cpu, cuda or mps; cuda for any GPU that is not here."""
    devices: int
    """On each node; on a CPU these are processes that share its cores and memory."""
    nodes: int

    @property
    def world(self) -> int:
        """Devices in all."""
        return self.devices * self.nodes

    @property
    def units(self) -> int:
        """What computes side by side: devices, but of CPUs one a node, whatever shares it."""
        return self.nodes if self.device == "cpu" else self.world

    def is_here(self, machine: Machine) -> bool:
        """Whether this machine alone is what the recipe asks for."""
        enough = self.device == "cpu" or self.devices <= machine.count
        return self.nodes == 1 and self.device == machine.device and enough


def asked_hardware(trainer: TrainerConfig) -> Hardware:
    """The hardware of a trainer section; "auto" means what is here.

    Raises ValueError for devices that are no number, "auto" or list of numbers.
    """
    if trainer.accelerator in ("gpu", "cuda", "mps"):
        apple = trainer.accelerator == "mps" or _accelerator() == "mps"
        device = "mps" if apple else "cuda"
    elif trainer.accelerator == "auto":
        device = _accelerator()
    else:
        device = "cpu"
    return Hardware(
        device=device, devices=_devices(trainer.devices, device), nodes=trainer.num_nodes
    )


def _devices(given: int | str, device: str) -> int:
    here = max(1, torch.cuda.device_count()) if device == "cuda" else 1
    words = str(given).strip("[] ")
    if words in ("auto", "-1"):
        return here
    parts = words.split(",")
    if not all(part.strip().isdecimal() for part in parts):
        raise ValueError(f'trainer.devices must be a number or "auto", not {given!r}')
    count = len(parts) if len(parts) > 1 or "[" in str(given) else int(parts[0])
    if count < 1:
        raise ValueError(f"trainer.devices must be at least 1, not {given!r}")
    return count


def this_machine(asked: Hardware) -> Machine:
    """This machine as far as it can stand in for the hardware asked for: its GPU, else its CPU."""
    device = asked.device if asked.device in ("cpu", _accelerator()) else "cpu"
    name, count = processor(), 1
    if device == "cuda":
        name, count = torch.cuda.get_device_name(), torch.cuda.device_count()
    return Machine(
        device=device,
        name="Apple GPU" if device == "mps" else name,
        count=count,
        threads=torch.get_num_threads(),
        free=free_memory(device),
        processes=asked.devices if asked.device == "cpu" else 1,
    )


def _accelerator() -> str:
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def free_memory(device: str = "cpu") -> int | None:
    """Bytes that a new process could take on the device; None where the system does not tell."""
    return int(torch.cuda.mem_get_info()[0]) if device == "cuda" else budgets.free_memory()
