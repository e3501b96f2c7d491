"""The one hook before each change of the disk. Tests kill the process there, or record the state of a power cut."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

step_hook: Callable[[str, str, Any], None] | None = None
"""Called before each operation with its name, the path and its data. For tests alone."""


def step(operation: str, path: Path | str, data: Any = None) -> None:
    """Report an operation that is about to change the disk."""
    if step_hook is not None:
        step_hook(operation, str(path), data)
