"""`edge-gateway watch`: what the gateways answer."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from gateway.commands.broker import address, run_visit, visitor
from gateway.commands.options import FILE, examples
from gateway.config import Settings
from gateway.config_reading import load_settings

if TYPE_CHECKING:
    from gateway.messages import Message
    from gateway.terminal.save import PictureOf


@click.command(
    epilog=examples(
        "edge-gateway watch",
        "edge-gateway watch --json | jq .predictions",
        "edge-gateway watch --save answers --keep 200",
    )
)
@click.option("--count", type=click.IntRange(1), help="End after so many results and errors.")
@click.option("--json", "raw", is_flag=True, help="Print the messages themselves, one a line.")
@click.option("--save", type=FILE, help="Folder for a JSON file of each message, and the picture of each result.")
@click.option(
    "--keep", default=1000, show_default=True, type=click.IntRange(1), help="Messages that --save keeps; the last ones."
)
def watch(count: int | None, raw: bool, save: Path | None, keep: int) -> None:
    """Show results, comparisons, errors, alerts and status live.

    With --save it also listens to the pictures themselves, so that each stands beside its result.
    """
    from gateway.terminal.save import Album
    from gateway.terminal.watch import watch as show_all
    from gateway.terminal.watch import watched_topics
    from gateway.topics import TopicPattern, without_share

    settings = load_settings()
    topics, album = watched_topics(settings), None
    if save is not None:
        album = Album(save, keep, _picture_of(settings))
        # Without $share/: a member of the group would take snapshots away from the gateways.
        inputs = [TopicPattern(without_share(text)).subscription for text in settings.mqtt_input_topics]
        topics = tuple(dict.fromkeys((*topics, *inputs)))
    broker = visitor(settings, "watch", topics)
    sys.exit(run_visit(show_all(broker, address(settings), count=count, raw=raw, album=album)))


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
