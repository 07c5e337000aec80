"""What `edge-gateway` shows of itself: its commands by purpose, and the nearest one to a mistyped name."""

from __future__ import annotations

import difflib

import click

GROUPS = {
    "Try it on this machine": ("demo", "stack", "triton"),
    "Run it": ("serve", "camera"),
    "Send and see": ("send", "watch"),
    "Look into it": ("doctor", "bench", "models", "config"),
}
"""Commands by purpose; those that stand in none of them come last."""
REST = "More"
EXAMPLES = (
    ("edge-gateway demo", "everything on this machine, results before your eyes"),
    ("edge-gateway stack", "a broker and a Triton to try things on; says what to export"),
    ("edge-gateway serve", "the gateway itself"),
    ("edge-gateway watch", "cameras, results and alerts, live"),
    ("edge-gateway send photo.jpg", "a picture for it to answer"),
    ("edge-gateway doctor", "what is wrong with an installation, and how to mend it"),
)


class Commands(click.Group):
    """A group that lists its commands in the order of use and names the nearest one to a typo."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """In the order of declaration, which is the order of use."""
        return list(self.commands)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """As click does; an unknown name is an error that names the nearest command."""
        name = args[0]
        if self.get_command(ctx, name) is None and not name.startswith("-"):
            nearest = difflib.get_close_matches(name.lower(), self.commands, n=1, cutoff=0.5)
            hint = f"did you mean '{nearest[0]}'?" if nearest else f"commands: {', '.join(self.commands)}."
            raise click.UsageError(f"no command '{name}'; {hint}", ctx)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """With the whole first sentence of each."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, summary(command)) for name, command in self.commands.items()])


def summary(command: click.Command) -> str:
    """The first sentence of its help, never cut off."""
    return command.get_short_help_str(100)


class Overview(Commands):
    """All commands by purpose, and how to begin."""

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """One section a purpose."""
        grouped = {name for names in GROUPS.values() for name in names}
        rest = tuple(name for name in self.commands if name not in grouped)
        width = max(map(len, self.commands))
        for title, names in {**GROUPS, REST: rest}.items():
            found = [self.commands[name] for name in names if name in self.commands]
            rows = [(f"{command.name or '':<{width}}", summary(command)) for command in found]
            if rows:
                with formatter.section(title):
                    formatter.write_dl(rows)

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """A first walk through the commands."""
        with formatter.section("To begin with, each in a terminal of its own"):
            formatter.write_dl(EXAMPLES)
        with formatter.section("Settings"):
            formatter.write_text(
                "From the environment (AIO_BROKER_HOSTNAME, TRITON_GRPC_URL, MODEL_REPOSITORY, ...) and from the YAML "
                "file that GATEWAY_CONFIG names; docs/configuration.md has them all, `edge-gateway config show` those "
                "that hold."
            )
