"""`edge-gateway camera`: IP cameras or files as the cameras of a site, for as long as it runs."""

from __future__ import annotations

import asyncio
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from gateway.commands.options import FILE, FiniteRange, examples

if TYPE_CHECKING:
    from gateway.cameras.sending import Feed
    from gateway.cameras.spec import CameraSource
    from gateway.config import Settings


@click.command(
    epilog=examples(
        "edge-gateway camera --cameras cameras.yaml --health-file /run/cameras.json",
        "edge-gateway camera rtsp://192.0.2.7/stream --device gate-2 --rate 2",
        "edge-gateway camera pictures/ --device camera-01",
        "edge-gateway camera --check-health /run/cameras.json",
    )
)
@click.argument("source", required=False)
@click.option("--device", help="Camera to appear as.  [default: camera-01]")
@click.option("--rate", type=FiniteRange(0.0001, 60), help="Snapshots a second at most.  [default: 1]")
@click.option("--as", "form", type=click.Choice(["json", "raw"]), help="As with send.  [default: json]")
@click.option("--topic", help="Topic to publish to.  [default: the first of MQTT_INPUT_TOPICS that fits]")
@click.option("--quality", type=click.IntRange(1, 100), help="JPEG quality of frames.  [default: 90]")
@click.option("--max-width", type=click.IntRange(16, 16_384), help="Pixels; wider frames are made smaller.")
@click.option("--keyframes", is_flag=True, default=None, help="Decode key frames alone, for a fraction of the work.")
@click.option("--cameras", "listed", type=FILE, help="YAML file of several cameras, in place of all the above.")
@click.option("--health-file", type=FILE, help="File to write every 5 s: which camera sends.")
@click.option("--check-health", type=FILE, help="Read such a file; exit code 1 where no camera sends.")
def camera(
    source: str | None, listed: Path | None, health_file: Path | None, check_health: Path | None, **given: Any
) -> None:
    """Publish the newest picture of SOURCE again and again, as a camera would.

    SOURCE is the address of a camera (rtsp://, http://), a video, a picture, or a folder of them. A camera that does
    not answer is tried again, ever less often; without a broker pictures are left out, never queued. Ends with SIGTERM
    or Ctrl-C. An address with a password belongs into the file of --cameras: other users see the command line.
    """
    given = {name: value for name, value in given.items() if value is not None}
    if check_health is not None:
        if source or listed or health_file or given:
            raise click.UsageError("--check-health goes alone")
        sys.exit(_say_health(check_health))
    if (source is None) == (listed is None) or (listed is not None and given):
        raise click.UsageError("either SOURCE with its options, or --cameras")
    from gateway.cameras.spec import CameraSource, read_cameras
    from gateway.config_reading import load_settings
    from gateway.logs import configure_logging
    from gateway.schema import parse_secret

    if listed is not None:
        cameras = read_cameras(listed)
    else:
        cameras = (parse_secret(CameraSource, {"device": "camera-01", "source": source} | given, "camera"),)
    settings = load_settings()
    configure_logging(settings.log_level, settings.log_format)
    sys.exit(asyncio.run(_run(settings, cameras, health_file)))


def _say_health(path: Path) -> int:
    from gateway.cameras.status import read_health
    from gateway.terminal.printable import printable

    healthy, lines = read_health(path)
    for line in lines:
        click.echo(printable(line))
    return 0 if healthy else 1


async def _run(settings: Settings, cameras: tuple[CameraSource, ...], health_file: Path | None) -> int:
    from gateway.adapters.mqtt import MqttBroker
    from gateway.cameras.sending import run_cameras
    from gateway.commands.broker import mqtt_settings, visitor_id

    feeds = [_feed(settings, each) for each in cameras]
    broker = MqttBroker(mqtt_settings(settings, client_id=visitor_id("camera"), session_expiry_s=0))
    stopping = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stopping.set)
    await run_cameras(broker, feeds, stopping, health_file)
    return 0


def _feed(settings: Settings, camera: CameraSource) -> Feed:
    from gateway.cameras.reading import source_of
    from gateway.cameras.sending import Feed
    from gateway.terminal.send import default_topic

    topic = camera.topic or default_topic(settings, camera.form, camera.device)
    return Feed(camera, source_of(camera, settings.max_image_pixels, settings.max_payload_bytes), topic)
