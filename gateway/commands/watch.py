"""`edge-gateway watch`: what the gateways answer."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from gateway.commands.broker import address, run_visit, visitor
from gateway.commands.options import FILE, JSON_LINES, examples
from gateway.config import Settings
from gateway.config_reading import load_settings

if TYPE_CHECKING:
    from gateway.messages import Message
    from gateway.terminal.save import Album, PictureOf


@click.command(
    epilog=examples(
        "edge-gateway watch",
        "edge-gateway watch --json | jq .predictions",
        "edge-gateway watch --save answers --keep 200",
        "edge-gateway watch --plain --count 10",
    )
)
@click.option("--count", type=click.IntRange(1), help="End after so many results and errors.")
@click.option("--plain", is_flag=True, help="One line a message, as it is in a pipe.")
@JSON_LINES
@click.option(
    "--save", type=FILE, help="Folder for a JSON file of each message, and the picture of each result with its boxes."
)
@click.option(
    "--keep", default=1000, show_default=True, type=click.IntRange(1), help="Messages that --save keeps; the last ones."
)
@click.option("--originals", is_flag=True, help="Save pictures as they came, without boxes.")
def watch(count: int | None, plain: bool, as_json: bool, save: Path | None, keep: int, originals: bool) -> None:
    """Show what the gateways answer, live.

    On a terminal: the cameras with their rate, latency and last detections, the gateways, and the last alerts and
    errors. In a pipe, or with --plain: results, comparisons, errors, alerts and status, a line each. With --save it
    also listens to the pictures, and keeps each with its boxes beside its result.
    """
    from gateway.terminal.ability import can_draw
    from gateway.terminal.watch import watch as show_lines
    from gateway.terminal.watch import watch_live, watched_topics
    from gateway.topics import TopicPattern, without_share

    if plain and as_json:
        raise click.UsageError("--plain and --json exclude each other")
    if originals and save is None:
        raise click.UsageError("--originals says how to --save; name its folder too")
    settings = load_settings()
    live = not plain and not as_json and can_draw(sys.stdout)
    topics, album = watched_topics(settings, live=live), None
    if save is not None:
        album = _album(settings, save, keep, originals=originals)
        # Without $share/: a member of the group would take snapshots away from the gateways.
        inputs = [TopicPattern(without_share(text)).subscription for text in settings.mqtt_input_topics]
        topics = tuple(dict.fromkeys((*topics, *inputs)))
    broker, where = visitor(settings, "watch", topics), address(settings)
    if live:
        sys.exit(run_visit(watch_live(broker, where, count=count, album=album)))
    sys.exit(run_visit(show_lines(broker, where, count=count, as_json=as_json, album=album)))


def _album(settings: Settings, folder: Path, keep: int, *, originals: bool) -> Album:
    from gateway.terminal.save import Album

    if originals:
        return Album(folder, keep, _picture_of(settings))
    from gateway.local.annotate import annotate

    def draw(image: bytes, result: dict[str, Any]) -> bytes | None:
        return annotate(image, result, settings.max_image_pixels)

    return Album(folder, keep, _picture_of(settings), draw)


def _picture_of(settings: Settings) -> PictureOf:
    """Reads a snapshot as the gateway does, so that it gets the same result_id."""
    from gateway.errors import SnapshotError
    from gateway.flow.identify import identify
    from gateway.flow.ingest import open_message, take_contents
    from gateway.messages import Snapshot

    def picture_of(message: Message) -> tuple[str, bytes] | None:
        origin = identify(message, settings.patterns, settings.place)
        try:
            contents = take_contents(open_message(message, origin, settings.max_payload_bytes))
        except SnapshotError:
            return None
        return (origin.result_id, contents.image) if isinstance(contents, Snapshot) else None

    return picture_of
