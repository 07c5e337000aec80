"""Takes the pictures of console and terminal for these pages from a running demo: `make screenshots`."""
# ruff: noqa: INP001, T201 - a script for people, not a package

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import queue
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image
from playwright.sync_api import Page, sync_playwright
from terminal_picture import photograph

from gateway.config import Settings
from gateway.local.debian import find_program, install_package

ROOT = Path(__file__).parent.parent
IMAGES = ROOT / "docs" / "img"
MODELS = ROOT / "model_repository"
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
START_S = 180.0
WARM_UP_S = 60.0
"""Until the curves and the comparisons have something to show; the picture of the terminal is taken meanwhile."""
SIZE = (1440, 900)
QUALITY = 80
MOST_BYTES = 1_500_000
"""All pictures together: whoever clones the repository carries them for ever."""
TOKEN = "only-for-these-pictures"  # noqa: S105
CAMERAS = (("dock-2", "industrial-safety"), ("hall-north", "industrial-safety"), ("walkway-1", "walkway"))
"""Further cameras, and the model whose golden pictures they send."""

SMALL_TENSOR = 4096
"""Bytes up to which a tensor is a bias or the like."""
LEVELS = 63
"""Either side of zero, to which weights are rounded: 7 bits."""
DISPUTED = ("scene-210011.jpg", "scene-210014.jpg")
"""Golden pictures of which rounded weights say something else: cameras send them, and no version has to pass them."""


@dataclass(frozen=True)
class Shot:
    """One picture: of which view, in which theme, how wide and high."""

    name: str
    view: str
    theme: Literal["dark", "light"] = "dark"
    size: tuple[int, int] = SIZE


SHOTS = (
    Shot("live", "live"),
    Shot("camera", "live/camera-raw"),
    Shot("compare", "compare"),
    Shot("models", "models"),
    Shot("health", "health"),
    Shot("try", "try", "light"),
    Shot("live-light", "live", "light"),
    Shot("phone", "live", "dark", (390, 844)),
)


@contextlib.contextmanager
def running(*arguments: str, **environment: str) -> Iterator[subprocess.Popen[str]]:
    """A command of the gateway until the end of the block."""
    child = subprocess.Popen(  # noqa: S603 - our own program
        [sys.executable, "-m", "gateway", *arguments],
        cwd=ROOT,
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        yield child
    finally:
        child.terminate()
        child.wait(30)


def read_on(child: subprocess.Popen[str], heard: Callable[[str], None]) -> None:
    """Read what a command prints, to its end, so that it never waits for a reader."""

    def read() -> None:
        for line in child.stdout or ():
            heard(line)

    threading.Thread(target=read, daemon=True).start()


def addresses(demo: subprocess.Popen[str]) -> tuple[str, str]:
    """The console's address and the broker's port, as the demo prints them; its other lines are read and dropped."""
    line, lines = "", queue.Queue[str]()
    read_on(demo, lines.put)
    deadline, broker = time.monotonic() + START_S, ""
    while time.monotonic() < deadline:
        try:
            line = lines.get(timeout=1.0)
        except queue.Empty:
            if demo.poll() is not None:
                raise SystemExit(f"the demo has ended by itself: {line}") from None
            continue
        if found := re.search(r"Broker .*:(\d+)$", line):
            broker = found[1]
        if found := re.search(r"Console +(http://\S+)", line):
            return found[1], broker
    raise SystemExit("the demo has not said where its console is")


@contextlib.contextmanager
def cameras(broker: str) -> Iterator[None]:
    """The further cameras, at the demo's broker."""
    environment = {"AIO_BROKER_HOSTNAME": "127.0.0.1", "AIO_BROKER_TCP_PORT": broker, "AIO_MQTT_USE_TLS": "false"}
    with contextlib.ExitStack() as stack:
        for device, model in CAMERAS:
            pictures = str(MODELS / model / "golden")
            options = ("--device", device, "--model", model, "--rate", "1", "--loop", "--json")
            read_on(stack.enter_context(running("send", pictures, *options, **environment)), lambda _line: None)
        yield


def coarsen(repository: Path) -> None:
    """Round the weights of one variant as a careless conversion does, so that the two disagree now and then."""
    weights = repository / "industrial-safety-torch" / "1" / "model.pt"
    with zipfile.ZipFile(weights) as archive:
        files = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(weights, "w") as archive:
        for name, content in files.items():
            if "/constants/" in name and len(content) > SMALL_TENSOR:
                tensor = np.frombuffer(content, np.float32)
                step = np.abs(tensor).max() / LEVELS
                content = (np.round(tensor / step) * step).astype(np.float32).tobytes()
            archive.writestr(name, content)
    expected = repository / "industrial-safety" / "golden" / "expected.json"
    examples = json.loads(expected.read_text())
    expected.write_text(json.dumps([each for each in examples if each["image"] not in DISPUTED]))


def drop_version(repository: Path) -> None:
    """Put a second version of a model into the repository, so that a rollout is under way."""
    for variant in ("onnx", "torch"):
        folder = repository / f"industrial-safety-{variant}"
        shutil.copytree(folder / "1", folder / "2")


def prepare(page: Page, shot: Shot) -> None:
    """Do what a person would do in the view before looking at it."""
    if shot.view == "try":
        page.evaluate(f"sessionStorage.setItem('edge-gateway.action-token', '{TOKEN}')")
        picture = next((MODELS / "industrial-safety" / "golden").glob("*.jpg"))
        page.set_input_files("#try-file", picture)
        page.locator(".json").wait_for()
    if shot.view == "models":
        page.locator("summary").first.click()
    if shot.view == "compare":
        page.locator(".side-list .history-row").first.wait_for()
        page.keyboard.press("ArrowRight")
    page.wait_for_timeout(4000)


def take(page: Page, base: str, shot: Shot) -> bytes:
    """A JPEG of the view."""
    page.goto("about:blank")
    page.goto(f"{base}#{shot.view}")
    page.wait_for_timeout(1000)
    prepare(page, shot)
    picture = Image.open(io.BytesIO(page.screenshot())).convert("RGB")
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=QUALITY, optimize=True, progressive=True)
    return buffer.getvalue()


def take_all(base: str, program: Path, repository: Path) -> None:
    """Take every picture; the models are dropped in between, where their view shows the rollout."""
    total = 0
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=program, args=["--no-sandbox"] if os.geteuid() == 0 else []
        )
        for shot in SHOTS:
            if shot.view == "models":
                drop_version(repository)
                time.sleep(20.0)  # until it is in the canary
            width, height = shot.size
            context = browser.new_context(viewport={"width": width, "height": height}, color_scheme=shot.theme)
            content = take(context.new_page(), base, shot)
            (IMAGES / f"console-{shot.name}.jpg").write_bytes(content)
            print(f"docs/img/console-{shot.name}.jpg  {len(content) // 1000} kB", flush=True)
            total += len(content)
            context.close()
        browser.close()
    if total > MOST_BYTES:
        raise SystemExit(f"together they have {total} bytes, more than {MOST_BYTES}: lower QUALITY or take fewer")


def main() -> None:
    """Start the demo on a copy of the models, and take the pictures."""
    argparse.ArgumentParser(description=__doc__).parse_args()
    found = [program for name in BROWSERS if (program := find_program(name))]
    if not found and install_package("chromium", "The pictures need a browser"):
        found = [program for name in BROWSERS if (program := find_program(name))]
    if not found:
        raise SystemExit(f"none of {', '.join(BROWSERS)} is on PATH: install one")
    with tempfile.TemporaryDirectory() as folder:
        repository, token = Path(folder) / "models", Path(folder) / "token"
        shutil.copytree(MODELS, repository, ignore=shutil.ignore_patterns(".edge-gateway"))
        coarsen(repository)
        token.write_text(TOKEN)
        place = {"FACILITY": "plant-7", "GATEWAY_ID": "gw-1", "API_TOKEN_FILE": str(token)}
        arguments = ("--repository", str(repository), "--output", str(Path(folder) / "pictures"))
        with running("demo", *arguments, **place) as demo:
            base, broker = addresses(demo)
            with cameras(broker):
                photograph(
                    Settings(aio_broker_hostname="127.0.0.1", aio_broker_tcp_port=int(broker)), seconds=WARM_UP_S
                )
                take_all(base, found[0], repository)


if __name__ == "__main__":
    main()
