"""Renewed certificates, passwords and tokens while the session is up."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import structlog
from paho.mqtt import MQTTException

from gateway.adapters.mqtt_client import FramedClient
from gateway.adapters.mqtt_settings import MqttSettings
from gateway.errors import ConfigError

log = structlog.get_logger(__name__)


class Renewal:
    """Follows the files with which one connection was made.

    A token is shown to the broker by AUTH, which ends nothing. Certificates and passwords can only be shown with a
    new connection. Files that cannot be used are complained about once, and the session goes on with those before.
    """

    def __init__(self, settings: MqttSettings, client: FramedClient, happened: Callable[[str], None]) -> None:
        self._settings = settings
        self._client = client
        self._happened = happened
        self._loop = asyncio.get_running_loop()
        self._authenticated = asyncio.Event()
        self._defect = ""

    async def needs_connection(self) -> str:
        """Return when files have new content that takes a new connection: what is to be said of it."""
        settings = self._settings
        if not settings.credential_files or not settings.session_expiry_s:
            await self._loop.create_future()  # nothing to follow, or a visit that ends before its credentials do
        if settings.sat_file is not None:
            self._client.on_auth = self._authenticated.set
        while True:
            await asyncio.sleep(settings.look_at_files_s)
            try:
                if renewed := await self._look():
                    return renewed
            except Exception as error:  # nobody would follow the files any more, until the broker refuses the old ones
                if self._defect != (said := repr(error)):
                    self._defect = said
                    log.exception("A defect of the gateway: renewed credentials are not read; it tries again")

    async def _look(self) -> str:
        """Show a renewed token to the broker; what else has changed, so that it takes a new connection."""
        settings = self._settings
        changed = await self._loop.run_in_executor(None, self._client.files.changed)
        if not changed or not await self._usable():
            return ""
        self._client.files.accept()
        if changed != (settings.sat_file,) or not await self._authenticate():
            return f"Renewed credentials: {', '.join(str(path) for path in changed)}"
        log.info("The broker has taken the renewed token", broker=settings.address, file=str(settings.sat_file))
        self._happened("credentials_renewed")
        return ""

    async def _usable(self) -> bool:
        try:
            await self._loop.run_in_executor(None, self._settings.check_renewal)
        except ConfigError as error:
            self._client.files.refuse()
            log.warning(
                "Renewed credentials cannot be used, the ones before hold",
                setting=error.where,
                reason=error.message,
                fix=error.fix,
            )
            return False
        return True

    async def _authenticate(self) -> bool:
        """Whether the broker has accepted the token that its file holds now; one that refuses it ends the session."""
        self._authenticated.clear()
        try:
            self._client.authenticate_again()
            async with asyncio.timeout(self._settings.answer_timeout_s):
                await self._authenticated.wait()
        except (ConfigError, TimeoutError, ValueError, MQTTException):
            return False
        return True
