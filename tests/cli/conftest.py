"""Commands run in this process: those that succeed, and those that are refused."""

import json

import pytest

from embstore.cli import main
from embstore.cli.exits import DONE


@pytest.fixture
def said(capsys):
    """Run a command that succeeds, and return its output: lines, or JSON documents."""

    def said(*words, status=DONE):
        assert main([str(word) for word in words]) == status
        printed = capsys.readouterr()
        assert printed.err == ""
        lines = printed.out.split("\n")[:-1]
        return [json.loads(line) for line in lines] if "--json" in words else lines

    return said


@pytest.fixture
def refused(capsys):
    """Run a command that is refused, and return its message: one line, after the usage if the words are wrong."""

    def refused(status, *words):
        assert main([str(word) for word in words]) == status
        printed = capsys.readouterr()
        assert printed.out == ""
        *usage, line = [line for line in printed.err.splitlines() if line]
        assert line.startswith("Error: ") if usage else line.startswith(("embstore: ", "Error: "))
        assert all(text.startswith(("Usage: ", "Try ")) and words[0] in text for text in usage)
        return line

    return refused
