"""The command `embstore`: it calls functions of the library and prints their results as text or JSON.

`encoding`, `stores`, `copies`, `files` and `caches` have the commands, `options` has shared options, `output` prints,
`exits` has the exit statuses. The module of a command is imported when the command is run: `embstore info` has to
answer at once.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import Final

import click

from embstore import __version__
from embstore.cli.exits import DONE, EXITS, INTERRUPTED, UNREAD, WRONG, status_of
from embstore.cli.output import printable
from embstore.errors import EmbstoreError

_COMMANDS: Final = {
    **dict.fromkeys(("embed", "why", "check"), "encoding"),
    **dict.fromkeys(("info", "ls", "get", "verify", "salvage", "compact", "merge"), "stores"),
    **dict.fromkeys(("push", "pull", "tidy"), "copies"),
    **dict.fromkeys(("import", "export", "plot", "explore"), "files"),
    **{"cache": "caches", "completion": "completion"},
}
"""The module of each command."""

_NAME: Final = "embstore"
_COMPLETION: Final = "_EMBSTORE_COMPLETE"


class _Commands(click.Group):
    """Commands that are imported when they are run."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _COMMANDS:
            return None
        found = vars(import_module(f"embstore.cli.{_COMMANDS[cmd_name]}")).values()
        return next(one for one in found if isinstance(one, click.Command) and one.name == cmd_name)


def _epilog() -> str:
    lines = (f"{status:>3}  {meaning}" for status, meaning in EXITS.items())
    return "\b\nExit status:\n" + "\n".join(lines)


_SETTINGS: Final = {"help_option_names": ["-h", "--help"], "max_content_width": 120}


@click.group(cls=_Commands, epilog=_epilog(), context_settings=_SETTINGS)
@click.version_option(__version__, package_name=_NAME, prog_name=_NAME, message="%(prog)s %(version)s")
def group() -> None:
    """Run a frozen encoder once, and store its embeddings."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command, and return its exit status (see `exits`)."""
    logging.basicConfig(format="%(message)s", level=logging.ERROR)
    _write_anything()
    try:
        status = _run(sys.argv[1:] if arguments is None else arguments)
    except click.ClickException as error:
        with contextlib.suppress(OSError):
            error.show()
        status = WRONG
    except BrokenPipeError:
        status = UNREAD
    except (EmbstoreError, OSError, ValueError, ImportError) as error:
        if logging.getLogger("embstore").isEnabledFor(logging.INFO):
            logging.getLogger("embstore").exception("refused")
        _say(str(error) or type(error).__name__)
        status = status_of(error)
    except (KeyboardInterrupt, click.Abort) as error:
        _say(": ".join(["interrupted", *getattr(error, "__notes__", ())]))
        status = INTERRUPTED
    return _flushed(status)


def _run(words: Sequence[str]) -> int:
    """Run a command line. Unlike click's own `main`, return a status and raise the errors of the output."""
    if _COMPLETION in os.environ:  # a shell asks for completions
        group.main(list(words), prog_name=_NAME)
    try:
        with group.make_context(_NAME, list(words)) as context:
            result = group.invoke(context)
    except click.exceptions.Exit as done:
        return done.exit_code
    return result if isinstance(result, int) else DONE


def _say(text: str) -> None:
    """Write one line to standard error. A closed standard error is ignored."""
    with contextlib.suppress(OSError):
        print(f"embstore: {printable(text)}", file=sys.stderr)


def _write_anything() -> None:
    """Escape characters that the encoding of the terminal lacks, and redirect closed streams to /dev/null."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115 - until the process ends
        elif getattr(stream, "errors", None) == "strict" and hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


def _flushed(status: int) -> int:
    """Flush standard output. If that fails, redirect it, so that the interpreter does not report it again at exit."""
    try:
        sys.stdout.flush()
    except OSError as error:
        with contextlib.suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if isinstance(error, BrokenPipeError):
            return UNREAD
        _say(str(error))
        return status_of(error)
    return status
