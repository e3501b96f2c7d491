"""The command `completion`: print a script that makes a shell complete the words of `embstore`."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

from embstore.cli.options import command


@command("completion")
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print a script for a shell that completes commands, options and classes.

    For bash, in ~/.bashrc: eval "$(embstore completion bash)"
    """
    found = get_completion_class(shell)
    assert found is not None, shell
    print(found(click.get_current_context().find_root().command, {}, "embstore", "_EMBSTORE_COMPLETE").source())
