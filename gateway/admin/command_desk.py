"""Where commands to models come in, whichever way they took: read, checked, carried out, logged and counted."""

from __future__ import annotations

import structlog

from gateway.admin.command_bodies import INVALID_FIX, MAX_SHOWN
from gateway.admin.model_report import known_models
from gateway.errors import CommandRefused, GatewayError
from gateway.metrics import Metrics
from gateway.models.catalog import Models
from gateway.rollout.commands import Action, Command, Commands
from gateway.topics import safe_text

log = structlog.get_logger(__name__)

MAX_VERSION = 2**31 - 1


class CommandDesk:
    """Hands commands on to who carries them out; what is not known never gets there."""

    def __init__(self, commands: Commands, models: Models, metrics: Metrics) -> None:
        self._commands = commands
        self._models = models
        self._metrics = metrics

    async def carry_out(self, command: Command) -> str:
        """What happens now, in one line; raises CommandRefused."""
        try:
            self._require_known(command.model)
            message = await self._commands.execute(command)
        except CommandRefused as error:
            self.refused(error, command.by, command.action)
            raise
        except GatewayError as error:
            failure = CommandRefused("COMMAND_FAILED", error.message, fix=error.fix, where=error.where)
            self.refused(failure, command.by, command.action)
            raise failure from error
        except Exception as error:
            log.exception("A defect of the gateway", action=command.action.value, model=command.model)
            fix = "Report it with the log lines of this moment"
            failure = CommandRefused("COMMAND_FAILED", f"unexpected {type(error).__name__}", fix=fix)
            self.refused(failure, command.by, command.action)
            raise failure from error
        self._metrics.model_commands.labels(command.action.value, "ok").inc()
        log.info(
            "Command carried out",
            action=command.action.value,
            model=command.model,
            version=command.version,
            by=command.by,
        )
        return message

    def refused(self, error: CommandRefused, by: str, action: Action | None = None) -> None:
        """Log and count a command that is not carried out; `action` None: it could not be read."""
        name = action.value if action else "none"
        self._metrics.model_commands.labels(name, error.code).inc()
        if error.code != "TOO_MANY_FAILURES":  # which is logged once, where it begins
            log.warning("Command refused", action=name, by=by, code=error.code, reason=str(error))

    def _require_known(self, model: str) -> None:
        known = known_models(self._models, self._commands)
        if model not in known:
            names = ", ".join(sorted(known)[:20]) or "none"
            shown = safe_text(model[:MAX_SHOWN])
            raise CommandRefused("MODEL_UNKNOWN", f"no model '{shown}' (known: {names})", fix="Name one of these")


def version_of(given: object) -> int | None:
    """The version of a command, None where it names none; raises CommandRefused."""
    if given is None:
        return None
    if type(given) is not int or not 1 <= given <= MAX_VERSION:  # True is an int, and 3.0 could be 2.9999
        text = f"'version' is a whole number from 1 to {MAX_VERSION}"
        raise CommandRefused("COMMAND_INVALID", text, fix="Name the version, or leave it out")
    return given


def action_of(given: object) -> Action:
    """The action of a command; raises CommandRefused."""
    if isinstance(given, str):
        try:
            return Action(given)
        except ValueError:
            pass
    shown = f", not '{safe_text(given[:MAX_SHOWN])}'" if isinstance(given, str) else ""
    raise CommandRefused("COMMAND_INVALID", f"'action' is one of {', '.join(Action)}{shown}", fix=INVALID_FIX)


def model_of(given: object) -> str:
    """The model of a command; raises CommandRefused."""
    if not isinstance(given, str) or not given:
        raise CommandRefused("COMMAND_INVALID", "'model' is the name of a model", fix=INVALID_FIX)
    return given
