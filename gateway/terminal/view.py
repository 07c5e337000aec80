"""The live view of `edge-gateway watch`: what SiteState knows, laid out for a terminal of any size, by rich.

Names and texts from outside become `Text`, never markup, so that `[red]` in a name is five letters.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from gateway.terminal.site_state import NOTE, Camera, Event, Gateway, SiteState

BARS = "▁▂▃▄▅▆▇█"
SILENT_S = 10.0
"""After which a camera gives way to those that are heard, and its age is marked."""
GONE_S = 60.0
WIDE, USUAL = 110, 70
"""Columns of the terminal from which there is room for all of it, and for most."""
SHOWN_GATEWAYS = 3
EVENT_STYLES = {
    "ai_alert": "bold red",
    "ai_inference_error": "red",
    "dual_backend_comparison": "yellow",
    "ai_status": "cyan",
    NOTE: "yellow",
}

Order = Literal["recent", "name", "slowest"]
ORDERS: tuple[Order, ...] = get_args(Order)
Column = tuple[str, int, Literal["left", "right"]]
WIDE_COLUMNS: tuple[Column, ...] = (
    ("Camera", 18, "left"),
    ("Model", 21, "left"),
    ("By", 6, "left"),
    ("/s", 4, "right"),
    ("Age", 4, "right"),
    ("Latency", 12, "left"),
    ("ms", 4, "right"),
    ("Err", 4, "right"),
)
USUAL_COLUMNS: tuple[Column, ...] = (
    ("Camera", 12, "left"),
    ("Model", 12, "left"),
    ("By", 5, "left"),
    ("/s", 4, "right"),
    ("Age", 4, "right"),
    ("Latency", 8, "left"),
    ("ms", 4, "right"),
    ("Err", 4, "right"),
)
NARROW_COLUMNS: tuple[Column, ...] = (("Camera", 10, "left"), ("Age", 4, "right"), ("ms", 4, "right"))


@dataclass(frozen=True, slots=True)
class Frame:
    """What a picture of the view depends on beside the state; `now` is of the monotonic clock."""

    width: int
    height: int
    now: float
    address: str
    trouble: str = ""
    """Why the session with the broker is not up; empty while it is."""
    order: Order = "recent"
    paused: bool = False
    keys: bool = True
    """Whether keys are read, so that it is worth naming them."""
    clock: str = ""
    """The time of day to show; empty: now."""


def view(state: SiteState, frame: Frame) -> Group:
    """Header, cameras, last events and keys: exactly `frame.height` lines where it has at least a handful."""
    head = [_title(state, frame), *_gateways(state, frame), *_models(state)]
    foot_lines = min(max(1, frame.height // 4), 8, max(1, len(state.events)))
    room = max(1, frame.height - len(head) - foot_lines - 5)  # blank, columns, blank, title of the events, keys
    cameras = _ordered(state, frame)
    shown = cameras if len(cameras) <= room else cameras[: max(1, room - 1)]
    parts: list[RenderableType] = [*head, Text(), _table(shown, frame)]
    lines = len(head) + 2 + len(shown)
    if not cameras:
        asks = "Nothing has come yet: `edge-gateway send photo.jpg` in another terminal asks"
        parts.append(_one_line(Text(asks, style="dim")))
        lines += 1
    if hidden := len(cameras) - len(shown):
        parts.append(_one_line(Text(f"... and {hidden} more", style="dim")))
        lines += 1
    foot = [Text(), *_events(list(state.events)[-foot_lines:]), _keys(frame)]
    blank = max(0, frame.height - lines - len(foot))
    return Group(*parts, *[Text() for _ in range(blank)], *map(_one_line, foot))


def _one_line(text: Text) -> Text:
    text.no_wrap, text.overflow = True, "ellipsis"
    return text


def _title(state: SiteState, frame: Frame) -> Text:
    clock = frame.clock or time.strftime("%H:%M:%S")
    parts = [
        _counted(len(state.cameras), "camera"),
        f"{state.rate(frame.now):.1f}/s",
        _counted(state.results, "result"),
        _counted(state.errors, "error"),
        _counted(state.alerts, "alert"),
    ]
    parts += [f"{state.malformed} not as documented"] * bool(state.malformed)
    parts.append(frame.address)
    text = Text.assemble((clock, "bold"), "  ", ("PAUSED  " if frame.paused else "", "bold yellow"), " · ".join(parts))
    if frame.trouble:
        text = Text.assemble((clock, "bold"), "  ", (f"no session with the broker: {frame.trouble}", "bold red"))
    return _one_line(text)


def _counted(number: int, what: str) -> str:
    return f"{number} {what}{'s' * (number != 1)}"


def _gateways(state: SiteState, frame: Frame) -> Iterator[Text]:
    # Those in trouble first: of twenty gateways only a few have room.
    found = sorted(state.gateways.values(), key=lambda gateway: (gateway.status == "ready", gateway.name))
    most = SHOWN_GATEWAYS if frame.height >= 16 else 1
    for gateway in found[:most]:
        yield _one_line(_gateway(gateway))
    if len(found) > most:
        yield _one_line(Text(f"... and {len(found) - most} more gateways", style="dim"))


def _gateway(gateway: Gateway) -> Text:
    style = {"ready": "bold green", "not_ready": "bold yellow"}.get(gateway.status, "bold red")
    text = Text.assemble((gateway.name, "bold"), "  ", (gateway.status.replace("_", " "), style))
    if gateway.reasons:
        text.append(f": {'; '.join(gateway.reasons)}", style="yellow")
    if gateway.summary_at:
        rate = "" if gateway.rate is None else f"  {gateway.rate:.1f} results/s"
        lost = {name: count for name, count in gateway.outcomes.items() if count and name != "published"}
        told = "".join(f"  {name.replace('_', ' ')} {_count(count)}" for name, count in lost.items())
        spool = f"  on disk {_count(gateway.spool)}" if gateway.spool else ""
        text.append(f"{rate}  queue {_count(gateway.queue)}{spool}  received {_count(gateway.received)}{told}")
    return text


def _models(state: SiteState) -> list[Text]:
    if not state.models:
        return []
    return [_one_line(Text.assemble(("Models  ", "bold"), " · ".join(sorted(state.models.values()))))]


def _ordered(state: SiteState, frame: Frame) -> Sequence[Camera]:
    """The cameras in the order asked for; of those heard just now by name, so that no line moves without a reason."""
    cameras = state.cameras.values()
    if frame.order == "name":
        return sorted(cameras, key=lambda camera: camera.name)
    if frame.order == "slowest":
        return sorted(cameras, key=lambda camera: (-max(camera.latencies_ms, default=0.0), camera.name))
    return sorted(cameras, key=lambda camera: (_steps_old(frame.now - camera.last_at), camera.name))


def _steps_old(age: float) -> int:
    return int(age // SILENT_S)


def columns(width: int) -> tuple[Column, ...]:
    """Title, width and side of each column of a terminal; the last takes what is left."""
    fixed = WIDE_COLUMNS if width >= WIDE else USUAL_COLUMNS if width >= USUAL else NARROW_COLUMNS
    return *fixed, ("Seen", max(4, width - sum(column[1] + 1 for column in fixed)), "left")


def _table(cameras: Iterable[Camera], frame: Frame) -> Table:
    table = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False, header_style="bold", collapse_padding=True)
    layout = columns(frame.width)
    for title, width, side in layout:
        # As wide as it says whatever is in it, and one line: rows must neither grow nor move.
        table.add_column(title, width=width, justify=side, no_wrap=True, overflow="ellipsis")
    for camera in cameras:
        cells = _cells(camera, frame)
        table.add_row(*(cells[title] if title != "Latency" else _spark(camera, width) for title, width, _ in layout))
    return table


def _cells(camera: Camera, frame: Frame) -> dict[str, Text]:
    age = frame.now - camera.last_at
    silent = "dim" if age > GONE_S else "yellow" if age > SILENT_S else ""
    model = f"{camera.model} {camera.version}".strip() if frame.width >= WIDE else camera.model
    return {
        "Camera": Text(camera.name, style="bold red" if camera.alerts else "bold"),
        "Model": Text(model, style=silent),
        "By": Text(camera.variant, style=silent),
        "/s": Text(_short(camera.rate(frame.now))),
        "Age": Text(_age(age), style=silent),
        "ms": Text(_short(camera.latencies_ms[-1]) if camera.latencies_ms else ""),
        "Err": Text(_count(camera.errors) if camera.errors else "", style="red"),
        "Seen": _seen(camera, silent),
    }


def _spark(camera: Camera, width: int) -> Text:
    return Text(sparkline(list(camera.latencies_ms), width), style="green")


def _seen(camera: Camera, style: str) -> Text:
    """The alerts that go on, marked by more than a colour, and then what was seen last."""
    text = Text()
    if camera.alerts:
        text.append(f"! {', '.join(name for _, name in camera.alerts)}  ", style="bold red")
    if camera.differing:
        text.append(f"differ {_count(camera.differing)}  ", style="yellow")
    return text.append(camera.seen, style=style)


def sparkline(values: Sequence[float], width: int) -> str:
    """The last `width` values, at least 0, as bars from nothing to the highest of them."""
    last = values[-width:]
    highest = max(last, default=0.0)
    if highest <= 0:
        return BARS[0] * len(last)
    return "".join(BARS[min(len(BARS) - 1, int(value / highest * len(BARS)))] for value in last)


def _events(events: Iterable[Event]) -> Iterator[Text]:
    yield Text("Alerts, errors and disagreements", style="bold")
    found = [Text(event.line, style=EVENT_STYLES.get(event.kind, "")) for event in events]
    yield from found or [Text("none so far", style="dim")]


def _keys(frame: Frame) -> Text:
    if not frame.keys:
        return Text("Ctrl-C ends", style="dim")
    order = {"recent": "by name, silent ones last", "name": "by name", "slowest": "slowest first"}[frame.order]
    return Text(f"q ends   p {'goes on' if frame.paused else 'pauses'}   s sorts ({order})", style="dim")


def _age(seconds: float) -> str:
    """In at most four characters."""
    for limit, unit, name in ((60, 1, "s"), (3600, 60, "m"), (360_000, 3600, "h")):
        if seconds < limit:
            return f"{int(max(seconds, 0) // unit)} {name}"
    return "days"


def _short(number: float) -> str:
    """In at most four characters, from 0.1 to 9999."""
    if number >= 10_000:
        return "10k+"
    return f"{number:.0f}" if number >= 99.95 else f"{number:.1f}"


def _count(number: int) -> str:
    """In at most four characters."""
    for unit, name in ((10**9, "G"), (10**6, "M"), (10**3, "k")):
        if number >= unit:
            return f"{number // unit}{name}" if number < 1000 * unit else "1T+"
    return str(max(number, 0))
