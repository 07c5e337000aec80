"""Takes docs/img/watch.svg: what `edge-gateway watch` shows of a running system, as a drawing.

`python docs/terminal_picture.py` with the settings of that system in the environment; `photograph` for other scripts.
"""
# ruff: noqa: INP001 - a script for people, not a package

from __future__ import annotations

import asyncio
import io
import re
import time
from pathlib import Path

from rich.console import Console
from rich.terminal_theme import MONOKAI

from gateway.commands.broker import address, visitor
from gateway.config import Settings
from gateway.config_reading import load_settings
from gateway.terminal.session import session
from gateway.terminal.site_state import SiteState
from gateway.terminal.view import Frame, view
from gateway.terminal.watch import watched_topics

PICTURE = Path(__file__).parent / "img" / "watch.svg"
SECONDS = 35.0
"""Longer than the time between two summaries, of which the rate of a gateway is made."""
SIZE = (110, 24)
BROKER_LIMIT_S = 15.0
_FROM_OUTSIDE = re.compile(r"@font-face \{.*?\}\s*|<!-- Generated with .*?-->", re.DOTALL)


def photograph(
    settings: Settings, path: Path = PICTURE, *, seconds: float = SECONDS, size: tuple[int, int] = SIZE
) -> None:
    """Watch the system that `settings` lead to for some seconds and write what the terminal would show.

    `size` in columns and lines. Raises BrokerUnavailable where there is none.
    """
    broker = visitor(settings, "picture", watched_topics(settings, live=True))

    async def look() -> SiteState:
        state = SiteState()
        async with session(broker, address(settings), limit_s=BROKER_LIMIT_S):
            try:
                async with asyncio.timeout(seconds):
                    async for message in broker.messages():
                        broker.acknowledge(message)
                        state.see(message, time.monotonic())
            except TimeoutError:
                return state
        return state

    path.write_text(svg(asyncio.run(look()), address(settings), size), "utf-8")


def svg(state: SiteState, place: str, size: tuple[int, int]) -> str:
    """The view as SVG that loads nothing from anywhere: the fonts are those of whoever looks."""
    console = Console(record=True, width=size[0], height=size[1], file=io.StringIO(), force_terminal=True)
    console.print(view(state, Frame(*size, time.monotonic(), place)))
    drawing = console.export_svg(title="edge-gateway watch", theme=MONOKAI, unique_id="watch")
    return (
        _FROM_OUTSIDE.sub("", drawing).replace("Fira Code, monospace", "ui-monospace, Menlo, Consolas, monospace")
        + "\n"
    )


if __name__ == "__main__":
    photograph(load_settings())
