"""`edge-gateway completion`: what a shell needs to complete commands and options."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

from gateway.commands.options import examples

PROGRAM = "edge-gateway"
VARIABLE = "_EDGE_GATEWAY_COMPLETE"


@click.command(
    epilog=examples(
        'bash   eval "$(edge-gateway completion bash)"           in ~/.bashrc',
        'zsh    eval "$(edge-gateway completion zsh)"            in ~/.zshrc',
        "fish   edge-gateway completion fish | source            in ~/.config/fish/config.fish",
    )
)
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def completion(context: click.Context, shell: str) -> None:
    """Print the script that completes commands and options in SHELL."""
    kind = get_completion_class(shell)
    if kind is None:
        raise click.UsageError(f"this version of click completes nothing in {shell}")
    made = kind(context.find_root().command, {}, PROGRAM, VARIABLE)
    # Not made.source(), which for bash first starts one to ask for its version.
    click.echo(made.source_template % made.source_vars())
