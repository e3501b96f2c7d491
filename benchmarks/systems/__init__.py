"""The systems that are compared: one file each, found by glob, so that adding one is adding a file."""

from __future__ import annotations

import importlib
from pathlib import Path

from benchmarks.systems.base import Rows, System, Unsupported

__all__ = ["Rows", "System", "Unsupported", "found", "load", "modules"]


def modules() -> list[str]:
    """Names of the files that hold systems; embstore first, since all others are compared with it."""
    names = {path.stem for path in Path(__file__).parent.glob("[a-z]*.py")} - {"base", "loading"}
    return sorted(names, key=lambda name: (name != "embstore_raw", name))


def load(module: str, name: str) -> System:
    """Return one system, importing its file alone."""
    systems: list[System] = importlib.import_module(f"benchmarks.systems.{module}").SYSTEMS
    return next(system for system in systems if system.name == name)


def found() -> tuple[dict[str, tuple[str, System]], dict[str, str]]:
    """Return all systems that are installed, by name, each with its file; and why the others are not."""
    here: dict[str, tuple[str, System]] = {}
    absent: dict[str, str] = {}
    for module in modules():
        try:
            here |= {
                system.name: (module, system)
                for system in importlib.import_module(f"benchmarks.systems.{module}").SYSTEMS
            }
        except ImportError as error:
            absent[module] = str(error)
    return here, absent
