"""`edge-gateway models promote|rollback|load|unload`: commands to a running gateway, over its API."""

from __future__ import annotations

import contextlib
import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from gateway.commands.options import CONFIG, FILE, JSON, examples
from gateway.config import Settings
from gateway.config_reading import load_settings
from gateway.errors import ConfigError
from gateway.regular_file import open_regular

if TYPE_CHECKING:
    from gateway.commands.models.api_client import GatewayApi, ModelAnswer, Rollout

EVERYWHERE = ("0.0.0.0", "::")  # noqa: S104 - read, not bound  # nosec B104
MAX_TOKEN_BYTES = 65_536
MAX_VERSION = 2**31 - 1
UNDER_WAY = "under_way"
TRYING = ("promote", "load")
"""The commands that are for a new version, so that its failure is theirs."""
POLL_S = 0.5
AWAY_LIMIT_S = 60.0
"""For how long a gateway may be away, as in a restart, while somebody waits for a rollout."""


def _command(action: str, text: str, *lines: str) -> click.Command:
    @click.command(action, help=text, epilog=examples(*lines))
    @click.argument("name")
    @click.argument("version", required=False, type=click.IntRange(1, MAX_VERSION))
    @click.option("--url", help="Address of the gateway.  [default: this machine at HTTP_PORT]")
    @click.option("--token-file", type=FILE, help="File with the gateway's token.  [default: API_TOKEN_FILE]")
    @click.option("--wait", is_flag=True, help="Follow the rollout to its end; exit code 1 when the version fails.")
    @CONFIG
    @JSON
    def command(
        name: str,
        version: int | None,
        url: str | None,
        token_file: Path | None,
        wait: bool,
        config: Path | None,
        as_json: bool,
    ) -> None:
        from gateway.commands.models.api_client import GatewayApi

        settings = load_settings(config)
        token = _token(token_file or settings.api_token_file)
        with contextlib.closing(GatewayApi(url or _own_address(settings), token)) as api:
            sys.exit(_carry_out(api, action, name, version, wait=wait, as_json=as_json))

    return command


ACTIONS = (
    _command(
        "promote",
        "End the trial of the version under way and let it serve. VERSION: let that one serve, without any trial.",
        "edge-gateway models promote industrial-safety",
        "edge-gateway models promote industrial-safety 4 --token-file token",
    ),
    _command(
        "rollback",
        "Give up the version under way, or else serve the one before. VERSION: let that one serve again.",
        "edge-gateway models rollback industrial-safety",
        "edge-gateway models rollback industrial-safety 2 --url http://edge-7:8080",
    ),
    _command(
        "load",
        "Bring an unloaded model back. VERSION: try that one, also when it has been refused before.",
        "edge-gateway models load industrial-safety",
        "edge-gateway models load industrial-safety 4 --wait",
    ),
    _command(
        "unload",
        "Take a model out of service. VERSION: only that one, which must not be the one that serves.",
        "edge-gateway models unload industrial-safety",
        "edge-gateway models unload industrial-safety 3",
    ),
)
"""The four commands, in the order in which the help shows them."""


def _own_address(settings: Settings) -> str:
    """Where `serve` with these settings listens."""
    if settings.http_port == 0:
        raise ConfigError("it is 0, so the port is not known", where="HTTP_PORT", fix="Name the address with --url")
    host = "127.0.0.1" if settings.http_host in EVERYWHERE else settings.http_host
    return f"http://{f'[{host}]' if ':' in host else host}:{settings.http_port}"


def _token(path: Path | None) -> str | None:
    """The token in a file; raises ConfigError for what cannot be one."""
    if path is None:
        return None
    fix = "Name the file of the gateway's API_TOKEN_FILE with --token-file"
    try:
        with open_regular(path) as file:
            token = file.read(MAX_TOKEN_BYTES).decode().strip()
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "it is no text"
        raise ConfigError(f"the token cannot be read: {reason}", where=str(path), fix=fix) from error
    if not token.isascii() or not token.isprintable() or " " in token or not token:
        raise ConfigError("holds no token: one word of letters, digits and signs", where=str(path), fix=fix)
    return token


def _carry_out(api: GatewayApi, action: str, name: str, version: int | None, *, wait: bool, as_json: bool) -> int:
    """Send the command, and follow what it began; returns the exit code."""
    before = api.model(name).rollout if wait else None
    over = before.started_at if before is not None and before.ending != UNDER_WAY else None
    message = api.command(name, action, version)
    if not as_json:
        click.echo(message)
    answer = _follow(api, name, over, say=not as_json) if wait else None
    if as_json:
        model = {"model": answer.body} if answer else {}
        click.echo(json.dumps({"ok": True, "message": message, **model}, indent=2, ensure_ascii=False))
    rollout = _begun(answer, over) if answer else None
    return int(action in TRYING and rollout is not None and rollout.ending != "promoted")


def _begun(answer: ModelAnswer, over: float | None) -> Rollout | None:
    """The rollout, unless it is the one that was over before the command, which then took effect without any."""
    return None if answer.rollout is None or answer.rollout.started_at == over else answer.rollout


def _follow(api: GatewayApi, name: str, over: float | None, *, say: bool) -> ModelAnswer:
    """Wait until no rollout is under way, writing each step as it is done; raises UserError."""
    from gateway.terminal.progress import busy, say_above

    said: list[str] = []
    with busy(f"Following the rollout of {name}", quiet=not say) as bar:
        while True:
            answer = _patiently(api, name)
            rollout = _begun(answer, over)
            lines = [*_lines(rollout)] if say and rollout else []
            for line in lines:
                if line not in said:
                    say_above(line)
            said = lines
            if rollout is None or rollout.ending != UNDER_WAY:
                return answer
            bar.advance(0, f"{name} {rollout.version}: {rollout.step.replace('_', ' ')} {rollout.progress}")
            time.sleep(POLL_S)


def _patiently(api: GatewayApi, name: str) -> ModelAnswer:
    """How the model stands, as soon as the gateway is back where it is away."""
    from gateway.commands.models.api_client import GatewayUnreachable

    give_up_at = time.monotonic() + AWAY_LIMIT_S
    while True:
        try:
            return api.model(name)
        except GatewayUnreachable:
            if time.monotonic() > give_up_at:
                raise
        time.sleep(POLL_S)


def _lines(rollout: Rollout) -> Iterator[str]:
    """Each step that is done, and where the rollout stands now."""
    import msgspec

    from gateway.admin.model_report import printable, rollout_in_words, step_in_words

    for step in rollout.steps:
        yield printable(f"  {step_in_words(msgspec.to_builtins(step))}")
    yield printable(rollout_in_words(msgspec.to_builtins(rollout)))
