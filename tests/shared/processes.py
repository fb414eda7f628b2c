"""Processes that tests start."""

import subprocess
import sys
from pathlib import Path

PATIENCE = 600.0
"""Seconds that a process may take before a test gives it up: far more than on any machine."""


def python(code: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """What a fresh interpreter made of some code."""
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=cwd, timeout=PATIENCE
    )
