"""`edge-gateway send`: be a camera, or a sensor."""

from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from gateway.commands.broker import address, run_visit, visitor
from gateway.commands.options import JSON_LINES, FiniteRange, examples
from gateway.config import Settings
from gateway.config_reading import load_settings
from gateway.errors import ConfigError

if TYPE_CHECKING:
    from gateway.terminal.send import Source


def _numbers(
    _context: click.Context, _option: click.Parameter, given: tuple[str, ...]
) -> tuple[tuple[float, ...], ...]:
    """The readings as numbers; NaN and infinity are none."""
    return tuple(_reading(text) for text in given)


def _reading(text: str) -> tuple[float, ...]:
    try:
        found = tuple(float(part) for part in text.split(","))
    except ValueError:
        found = ()
    if not found or not all(map(math.isfinite, found)):
        raise click.BadParameter(f"'{text[:60]}' is no list of numbers, such as 21.5,21.7")
    return found


def _named(_context: click.Context, _option: click.Parameter, given: str) -> str:
    """A device has a name."""
    if not given.strip():
        raise click.BadParameter("a name is not empty")
    return given


@click.command(
    epilog=examples(
        "edge-gateway send photo.jpg",
        "edge-gateway send pictures/ --rate 2 --loop --device camera-07",
        "edge-gateway send photo.jpg --model industrial-safety --backend dual",
        "edge-gateway send film.mp4 --every 5",
        "edge-gateway send rtsp://user:secret@192.0.2.7/stream --rate 2 --as raw",
        "edge-gateway send --values 21.5 --values 21.7 --sensor-id t-1 --rate 1",
    )
)
@click.argument("pictures", nargs=-1)
@click.option(
    "--topic", help="Topic to publish to.  [default: the first of MQTT_INPUT_TOPICS that fits, for this place]"
)
@click.option(
    "--as",
    "form",
    type=click.Choice(["json", "raw"]),
    default="json",
    show_default=True,
    help="JSON with the picture in base64 or the values; or the file as it is, or the number.",
)
@click.option("--device", default="camera-01", show_default=True, callback=_named, help="Camera to appear as.")
@click.option("--model", help="model_name to ask for; of a raw picture as a user property of MQTT 5.")
@click.option("--backend", help="backend_preference: onnx, torch or dual; as --model.")
@click.option("--repeat", type=click.IntRange(1), help="Rounds through everything.  [default: 1]")
@click.option("--loop", is_flag=True, help="Rounds through everything, until Ctrl-C.")
@click.option(
    "--rate",
    type=FiniteRange(0, min_open=True),
    help="Items a second at most.  [default: a video's own pace, all else as fast as the broker takes it]",
)
@click.option("--every", default=1, show_default=True, type=click.IntRange(1), help="Of a video every n-th frame.")
@click.option(
    "--values",
    "readings",
    multiple=True,
    callback=_numbers,
    metavar="NUMBERS",
    help="A reading in place of pictures: one number for each channel of the sensor. May be given several times.",
)
@click.option(
    "--sensor-id", "--sensor", default="sensor-01", show_default=True, callback=_named, help="Sensor to appear as."
)
@click.option(
    "--timeout",
    default=15.0,
    show_default=True,
    type=FiniteRange(0, min_open=True),
    help="Seconds to wait for the broker before giving up.",
)
@JSON_LINES
def send(
    pictures: tuple[str, ...],
    topic: str | None,
    form: str,
    device: str,
    model: str | None,
    backend: str | None,
    repeat: int | None,
    loop: bool,
    rate: float | None,
    every: int,
    readings: tuple[tuple[float, ...], ...],
    sensor_id: str,
    timeout: float,
    as_json: bool,
) -> None:
    """Publish PICTURES as a camera would, or readings as a sensor would.

    PICTURES are JPEG, PNG, WebP, BMP or TIFF files, videos, folders of them, or addresses of cameras (rtsp://,
    http://), whose frames are sent as JPEG. The answers come to `edge-gateway watch`.
    """
    from gateway.messages import Publication
    from gateway.terminal.send import default_topic, json_snapshot, unpublishable
    from gateway.terminal.send import send as publish_all

    _require_one_kind(pictures, readings, form)
    if loop and repeat is not None:
        raise click.UsageError("--loop and --repeat exclude each other")
    settings = load_settings()
    if form == "raw" and (model or backend) and (readings or settings.mqtt_protocol != "5"):
        what = "--model and --backend need the JSON form, or pictures and MQTT 5"
        raise ConfigError(what, where="send", fix="Leave --as raw out")
    sender = sensor_id if readings else device
    target = default_topic(settings, form, sender, sensor=bool(readings)) if topic is None else topic
    if problem := unpublishable(target):
        raise ConfigError(f"'{target}' {problem}", where="--topic", fix="Name one topic with --topic")
    asked = {"model_name": model, "backend_preference": backend}
    more = {name: value for name, value in asked.items() if value}
    sources = _readings(readings, form, sender, more) if readings else _pictures(pictures, every, settings)

    def made(content: bytes) -> Publication:
        if readings:
            return Publication(target, content)
        if form == "raw":
            return Publication(target, content, user_properties=tuple(more.items()))
        return Publication(target, json_snapshot(content, device, **more))

    broker = visitor(settings, "send", ())
    rounds = None if loop else repeat or 1
    work = publish_all(
        broker, address(settings), sources, made, repeat=rounds, rate=rate, timeout_s=timeout, as_json=as_json
    )
    sys.exit(run_visit(work))


def _require_one_kind(pictures: tuple[str, ...], readings: tuple[tuple[float, ...], ...], form: str) -> None:
    if not pictures and not readings:
        raise click.UsageError("Missing argument 'PICTURES...' (or --values)")
    if pictures and readings:
        raise click.UsageError("either PICTURES or --values, not both")
    if form == "raw" and any(len(values) > 1 for values in readings):
        raise ConfigError(
            "a plain number is one value; several channels need the JSON form", where="send", fix="Leave --as raw out"
        )


def _readings(readings: tuple[tuple[float, ...], ...], form: str, sensor_id: str, more: dict[str, str]) -> list[Source]:
    from gateway.terminal.send import Still, json_reading

    def content(values: tuple[float, ...]) -> bytes:
        return repr(values[0]).encode() if form == "raw" else json_reading(values, sensor_id, **more)

    def still(values: tuple[float, ...]) -> Still:
        return Still(f"{sensor_id} {', '.join(f'{value:g}' for value in values)}", lambda: content(values))

    return [still(values) for values in readings]


def _pictures(given: tuple[str, ...], every: int, settings: Settings) -> list[Source]:
    """Everything in the order in which it was named."""
    from gateway.terminal.send import find_files, picture
    from gateway.terminal.video import VIDEOS, is_address, open_video

    def film(place: str | Path) -> Source:
        return open_video(place, every, settings.max_image_pixels)

    sources: list[Source] = []
    for text in given:
        if is_address(text):
            sources.append(film(text))
            continue
        found = find_files([Path(text)], VIDEOS)
        sources += [film(path) if path.suffix.lower() in VIDEOS else picture(path) for path in found]
    return sources
