"""The one seam of all changes of the disk: tests kill the process there, or record what a power cut would leave."""

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
