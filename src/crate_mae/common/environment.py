"""Versions, hardware and packages: what a bug report or a repeat of a run needs."""

import os
import platform
import subprocess
import sys
from functools import cache
from importlib.metadata import distributions
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

import crate_mae
from crate_mae.common.text_tables import named_values

OPTIONAL = {"datasets": "hf", "transformers": "hf", "timm": "bench", "webdataset": "wds"}


def environment() -> dict[str, Any]:
    """Versions, hardware and packages, JSON-able: what a bug report or a repeat needs."""
    return {
        "crate_mae": crate_mae.__version__,
        "git": _git_commit(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processor": processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "memory_gib": _memory_gib(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda if torch.cuda.is_available() else None,
        "devices": _devices(),
        "packages": dict(_packages()),
    }


@cache
def _packages() -> list[tuple[str, str]]:
    """Name and version of what is installed, by name; read once, for reading takes its time."""
    found = (dist.metadata for dist in distributions())
    versions = {str(facts["Name"]): str(facts["Version"]) for facts in found}
    return sorted(versions.items(), key=lambda item: item[0].lower())


def _devices() -> list[str]:
    names = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    return [*names, "Apple GPU (mps)"] if torch.backends.mps.is_available() else names


@cache
def _git_commit() -> str | None:
    """The commit of the package's own checkout, with "+" when it has changes; else None.

    As it was when first asked for: what is imported stays as it is.
    """
    here = Path(crate_mae.__file__).parent

    def git(*words: str) -> str:
        done = subprocess.run(
            ["git", "-C", str(here), *words], capture_output=True, text=True, timeout=10, check=True
        )
        return done.stdout.strip()

    try:
        git("ls-files", "--error-unmatch", "__init__.py")
        return git("rev-parse", "HEAD") + ("+" if git("status", "--porcelain", "-uno") else "")
    except (OSError, subprocess.SubprocessError):
        return None


def processor() -> str:
    """The name of the CPU, as far as the system tells it."""
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def _memory_gib() -> float | None:
    if sys.platform == "win32":
        return None
    return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1)


def doctor_table(facts: dict[str, Any]) -> str:
    """The facts of `environment` that matter in a bug thread, as aligned text."""
    packages = facts["packages"]
    shown = ("torchvision", "lightning", "jsonargparse", "safetensors", "huggingface_hub", "numpy")
    rows = [
        ("crate-mae", facts["crate_mae"] + (f" ({facts['git']})" if facts["git"] else "")),
        ("python", facts["python"]),
        ("platform", facts["platform"]),
        ("processor", f"{facts['processor']}, {facts['cores']} cores, {facts['threads']} threads"),
        ("memory", f"{facts['memory_gib']} GiB"),
        ("torch", facts["torch"]),
        ("accelerators", ", ".join(facts["devices"]) or "none"),
        *((name, packages.get(name, "missing")) for name in shown),
    ]
    for module, extra in OPTIONAL.items():
        found = find_spec(module) is not None
        hint = f'not installed; pip install "crate-mae[{extra}]"'
        rows.append((f"{module} (optional)", packages.get(module, "present") if found else hint))
    return "\n".join(named_values(rows))
