"""The command in a process of its own, and processes that say when they have come to a point."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]

START = """
import os, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # under nohup a process inherits that it is ignored
def reached():
    os.write({writer}, b"x")
"""


def started(code, *words, **options):
    """Start Python with some code, and return the process once the code has called `reached()`."""
    reader, writer = os.pipe()
    command = [sys.executable, "-c", START.format(writer=writer) + code, *map(str, words)]
    process = subprocess.Popen(command, pass_fds=[writer], stdout=subprocess.PIPE, stderr=subprocess.PIPE, **options)
    os.close(writer)
    with os.fdopen(reader, "rb") as events:
        said = events.read(1)  # empty if the process ended before
    if not said:
        raise AssertionError(process.communicate())
    return process


def run(*words, **options):
    """Run the command in a process of its own."""
    options = {"capture_output": True, "text": True, "timeout": 120, "cwd": ROOT, **options}
    return subprocess.run([sys.executable, "-m", "embstore", *map(str, words)], **options)
