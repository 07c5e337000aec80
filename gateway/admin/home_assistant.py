"""Cameras and alerts in Home Assistant: each is announced when it is first heard of, and told how it stands."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field

import structlog

from gateway.admin.home_assistant_messages import (
    Components,
    alert_key,
    camera_announcement,
    camera_components,
    camera_id,
    camera_removal,
    camera_state,
    detections_key,
    gateway_announcement,
    gateway_id,
)
from gateway.config import Settings
from gateway.errors import BrokerError
from gateway.flow.alerts import Alert
from gateway.flow.observer import Answer
from gateway.messages import Origin, Publication
from gateway.models.catalog import Models
from gateway.ports import Broker
from gateway.tasks import while_connected

log = structlog.get_logger(__name__)

MAX_CAMERAS = 200
"""Cameras that a process announces; their names come from senders."""
SILENT_S = 600.0
"""Before a camera gives way to a new one: an invented id does in the end, and pushes none out that is at work."""
MAX_MODELS = 8
"""Models of one camera that are announced."""
MAX_ALERTS = 32
"""Alert classes of one camera that are announced, of all its models."""
STATE_INTERVAL_S = 5.0
"""Between two states of a camera; the start and the end of an alert wait for nothing."""


@dataclass(slots=True, eq=False)
class _Camera:
    """What is known of one camera, and what of it has been said."""

    device_id: str
    identity: str
    detections: dict[str, int] = field(default_factory=dict)
    """By model, in its last result."""
    alerts: set[str] = field(default_factory=set)
    """Keys of the open ones."""
    heard_at: float = field(default_factory=time.monotonic)
    last_result: float = 0.0
    """Epoch seconds."""
    announced: Components | None = None
    changed: bool = False
    urgent: bool = False
    """An alert has started or ended."""
    due_at: float = 0.0


class HomeAssistant:
    """Announces the gateway and its cameras by retained discovery messages, and keeps a retained state of each camera.

    All of it is said again with each session: a broker that was restarted may have forgotten it. States of our own,
    for from the results themselves each entity would have to pick its camera's, and after a restart of Home Assistant
    an open alert would not be known.
    """

    def __init__(
        self, settings: Settings, prefix: str, broker: Broker, models: Models, *, announces_gateway: bool
    ) -> None:
        self._settings = settings
        self._prefix = prefix
        self._broker = broker
        self._models = models
        self._announces_gateway = announces_gateway
        self._gateway = gateway_id(settings)
        self._cameras: dict[str, _Camera] = {}
        self._gone: set[str] = set()
        """Identities of cameras that have given way and are still with the broker."""
        self._changed = asyncio.Event()
        self._full = False
        self._complaint = ""
        """Why something was not published, said once."""

    def answered(self, answer: Answer) -> None:
        """A result was published: so many detections now."""
        origin = answer.origin
        camera = self._camera(origin.device_id)
        model = origin.model_name or ""
        if camera is None or (model not in camera.detections and len(camera.detections) >= MAX_MODELS):
            return
        camera.detections[model] = len(answer.classes)
        camera.last_result = time.time()
        self._touch(camera)

    def failed(self, origin: Origin, message: Publication) -> None:
        """Nothing to say: the time of the last result tells that there is none."""

    def alerted(self, alert: Alert, message: Publication) -> None:
        """The start or the end of an alert was published."""
        camera = self._camera(alert.origin.device_id)
        if camera is None:
            return
        key = alert_key(alert.model_name, alert.class_name)
        if alert.event == "start":
            camera.alerts.add(key)
        else:
            camera.alerts.discard(key)
        camera.urgent = True
        self._changed.set()

    async def run(self) -> None:
        """Publish for ever."""
        await while_connected(self._broker, self._while_up, "home assistant: publish")

    async def settle(self) -> None:
        """Say which alerts have ended, for nothing else will."""
        for camera in self._cameras.values():
            if camera.urgent and camera.announced is not None:
                await self._say(camera)

    def _camera(self, device_id: str) -> _Camera | None:
        """The camera of that name, which has been heard now; None where there are too many."""
        camera = self._cameras.get(device_id)
        if camera is not None:
            camera.heard_at = time.monotonic()
            return camera
        if len(self._cameras) >= MAX_CAMERAS and not self._make_room():
            return None
        camera = self._cameras[device_id] = _Camera(device_id, camera_id(self._gateway, device_id))
        self._gone.discard(camera.identity)
        return camera

    def _make_room(self) -> bool:
        """Give up the camera that has been silent for longest, if that is long."""
        silent = min(self._cameras.values(), key=lambda each: each.heard_at)
        if time.monotonic() - silent.heard_at >= SILENT_S:
            del self._cameras[silent.device_id]
            self._gone.add(silent.identity)
            self._changed.set()
            return True
        if not self._full:
            self._full = True
            log.warning("Home Assistant hears of no more cameras", cameras=MAX_CAMERAS)
        return False

    def _touch(self, camera: _Camera) -> None:
        if not camera.changed:
            camera.changed = True
            self._changed.set()

    async def _while_up(self) -> None:
        for camera in self._cameras.values():
            camera.announced, camera.changed, camera.due_at = None, True, 0.0
        if self._announces_gateway:
            await self._send(gateway_announcement(self._settings, self._prefix))
        while True:
            self._changed.clear()
            for gone in tuple(self._gone):
                for publication in camera_removal(self._prefix, gone):
                    await self._send(publication)
                self._gone.discard(gone)
            for camera in [each for each in self._cameras.values() if _is_due(each)]:
                await self._say(camera)
            waiting = [each.due_at for each in self._cameras.values() if each.changed]
            try:
                async with asyncio.timeout(max(0.0, min(waiting) - time.monotonic()) if waiting else None):
                    await self._changed.wait()
            except TimeoutError:
                continue

    async def _say(self, camera: _Camera) -> None:
        camera.changed = camera.urgent = False
        camera.due_at = time.monotonic() + STATE_INTERVAL_S
        components = camera_components(camera.identity, self._classes(camera))
        if components != camera.announced:
            gone = {key: each for key, each in (camera.announced or {}).items() if key not in components}
            camera.announced = components
            await self._send(camera_announcement(self._settings, self._prefix, camera.device_id, components, gone))
        await self._send(camera_state(self._prefix, camera.identity, camera.last_result, _values(camera, components)))

    def _classes(self, camera: _Camera) -> dict[str, tuple[str, ...]]:
        """The alert classes of each model of the camera that is still there."""
        room, classes = MAX_ALERTS, {}
        served = self._models.current.models
        for name in [each for each in camera.detections if each not in served]:
            del camera.detections[name]
        for name in camera.detections:
            classes[name] = served[name].spec.inference.alert_classes[:room]
            room -= len(classes[name])
        return classes

    async def _send(self, publication: Publication) -> None:
        try:
            await self._broker.publish(publication)
        except BrokerError as error:
            if str(error) != self._complaint:
                log.warning("Home Assistant was not told", topic=publication.topic, reason=str(error), fix=error.fix)
            self._complaint = str(error)


def _is_due(camera: _Camera) -> bool:
    return bool(camera.last_result) and (camera.urgent or (camera.changed and time.monotonic() >= camera.due_at))


def _values(camera: _Camera, components: Components) -> dict[str, int | str]:
    alerts = {key: "ON" if key in camera.alerts else "OFF" for key in components if key.startswith("a")}
    return {**{detections_key(model): count for model, count in camera.detections.items()}, **alerts}
