"""The command line: `edge-gateway`. Errors of the user are one line with the fix, exit code 2, no traceback."""

from __future__ import annotations

import contextlib
import errno
import os
import platform
import signal
import sys
from typing import Any

import click

from gateway import __version__
from gateway.commands.bench import bench
from gateway.commands.broker import mqtt_settings
from gateway.commands.camera import camera
from gateway.commands.completion import completion
from gateway.commands.config import config
from gateway.commands.doctor import doctor
from gateway.commands.embedded import demo, stack, triton
from gateway.commands.models import models
from gateway.commands.send import send
from gateway.commands.serve import serve
from gateway.commands.watch import watch
from gateway.errors import GatewayError
from gateway.terminal.overview import Overview

NO_SUBCOMMAND = getattr(click.exceptions, "NoArgsIsHelpError", ())
"""A group without a command of its own; older versions of click show its help by themselves."""

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)
"""What writing ends with where the disk is full or gone."""

__all__ = ["cli", "main", "mqtt_settings"]


@click.group(
    cls=Overview,
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
)
@click.version_option(
    __version__,
    prog_name="edge-gateway",
    message=f"%(prog)s, version %(version)s (Python {platform.python_version()})",
)
@click.pass_context
def cli(context: click.Context) -> None:
    """Camera snapshots over MQTT, answered by two variants of a model on an NVIDIA Triton server."""
    if context.invoked_subcommand is None:
        click.echo(context.get_help())


# In the order in which the overview shows them.
for _command in (demo, stack, triton, serve, camera, send, watch, doctor, bench, models, config, completion):
    cli.add_command(_command)


def main() -> None:
    """Entry point: errors that a person can mend end in one line and exit code 2."""
    try:
        try:
            _main()
        finally:
            _flush()
    except OSError as error:
        if not _is_full(error):
            raise
        _give_up_stdout()
        sys.exit(_complain(_in_words(error)))


def _main() -> None:
    try:
        code = cli.main(prog_name="edge-gateway", standalone_mode=False)
    except click.UsageError as error:
        if not isinstance(error, NO_SUBCOMMAND):
            sys.exit(_complain(_usage_error(error)))
        click.echo(error.ctx.get_help() if error.ctx else error.format_message())
        sys.exit(0)
    except click.ClickException as error:
        sys.exit(_complain(_usage_error(error)))
    except click.Abort:
        sys.exit(128 + signal.SIGINT)
    except GatewayError as error:
        sys.exit(_complain(str(error)))
    except BaseExceptionGroup as group:
        errors, defects = group.split(lambda error: isinstance(error, GatewayError) or _is_full(error))
        if errors is None or defects is not None:
            raise
        lines = dict.fromkeys(map(_in_words, _leaves(errors)))
        if any(map(_is_full, _leaves(errors))):
            _give_up_stdout()
        sys.exit(_complain(*lines))
    sys.exit(code)


def _is_full(error: BaseException) -> bool:
    return isinstance(error, OSError) and error.errno in FULL


def _in_words(error: BaseException) -> str:
    return f"cannot write: {error.strerror}" if isinstance(error, OSError) else str(error)


def _flush() -> None:
    """Here rather than at exit, where what goes wrong ends in a traceback; a pipe nobody reads is left to that."""
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except OSError as error:
        if _is_full(error):
            raise


def _give_up_stdout() -> None:
    """What is left in its buffer goes nowhere, or the flush at exit fails once more."""
    with contextlib.suppress(OSError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _usage_error(error: click.ClickException) -> str:
    text = " ".join(error.format_message().split())
    context = error.ctx if isinstance(error, click.UsageError) else None
    path = context.command_path if context else "edge-gateway"
    return f"{text}{'' if text.endswith(('.', '?')) else '.'} See {path} --help"


def _complain(*lines: str) -> int:
    with contextlib.suppress(OSError):  # stderr may be as full
        for line in lines:
            click.echo(f"edge-gateway: {line}", err=True)
    return 2


def _leaves(group: BaseExceptionGroup[Any]) -> list[BaseException]:
    return [
        leaf
        for error in group.exceptions
        for leaf in (_leaves(error) if isinstance(error, BaseExceptionGroup) else [error])
    ]
