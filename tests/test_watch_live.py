"""`edge-gateway watch` on a terminal: the view at every size, whatever names come, and the terminal afterwards."""

from __future__ import annotations

import importlib.util
import io
import json
import re
import signal
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len
from rich.console import Console

from gateway.config import Settings
from gateway.local.broker import EmbeddedBroker
from gateway.messages import Message
from gateway.terminal import site_state
from gateway.terminal.site_state import SiteState
from gateway.terminal.view import Frame, Order, sparkline, view
from tests.command_line import ROOT, leading_to, start
from tests.e2e.site import until
from tests.pseudo_terminal import on_terminal
from tests.test_watch import ALERT, RESULT, RESULTS, publish

STATUS: dict[str, Any] = {
    "message_type": "ai_status",
    "status": "ready",
    "gateway_id": "gw-1",
    "reasons": [],
    "degraded": [],
}
SUMMARY: dict[str, Any] = {
    "message_type": "ai_metrics",
    "timestamp": 1000.0,
    "gateway_id": "gw-1",
    "snapshots_received": 130,
    "snapshots": {"published": 100, "dropped_full": 7},
    "queue_messages": 3,
    "spool_messages": 2,
}
ERROR: dict[str, Any] = {
    "message_type": "ai_inference_error",
    "device_id": "cam9",
    "error": {"code": "QUEUE_FULL", "message": "no room", "fix": "Send less"},
}
COMPARISON: dict[str, Any] = {
    "message_type": "dual_backend_comparison",
    "device_id": "cam7",
    "model_name": "detector",
    "backends": {"onnx": {"inference_time_ms": 3.0}, "torch": {"inference_time_ms": 4.0}},
    "performance_delta": {"predictions_match": False, "agreement": {"mean_iou": 0.5}},
}
MODEL: dict[str, Any] = {
    "message_type": "ai_model",
    "model_name": "detector",
    "status": "rolling_out",
    "version": 3,
    "rollout": {"version": 5, "step": "canary", "ending": "under_way", "percent": 25, "progress": "120 of 200 answers"},
}
HOSTILE = (
    "\x1b]0;owned\x07\x1b[2J\x1b[31m",
    "[red]x[/red][/]",
    "<img src=x onerror=alert(1)>",
    "世界" * 400,
    "a" + "\u0301" * 5000,
    "\u202eevil\u2066",
    "line\nbreak\r\ttab\x00\x9b31m",
    "\U0001f468\u200d\U0001f469\u200d\U0001f467",
    "",
)


def tell(state: SiteState, message: dict[str, Any], now: float = 100.0) -> None:
    state.see(Message("t", json.dumps(message).encode(), 0.0), now)


def drawn(state: SiteState, width: int = 100, height: int = 24, now: float = 100.0, **more: Any) -> list[str]:
    """The lines of the view, as plain text."""
    out = io.StringIO()
    console = Console(
        file=out, width=width, height=height, color_system=None, force_terminal=True, legacy_windows=False
    )
    console.print(view(state, Frame(width, height, now, "localhost:1883", clock="12:00:00", **more)))
    return out.getvalue().removesuffix("\n").split("\n")


# --- what it shows --------------------------------------------------------------------------------------


def test_a_camera_is_a_line_with_all_that_is_known_of_it() -> None:
    state = SiteState()
    for number in range(40):
        body = {**RESULT, "metadata": {"alert_triggered": False, "timings_ms": {"total": 10.0 + number}}}
        tell(state, body, 100.0 + number / 4)
    tell(state, {**ERROR, "device_id": "cam7"}, 110.0)
    (line,) = [line for line in drawn(state, 130, now=110.0) if line.startswith("cam7")]
    words = line.split()
    assert words[:7] == ["cam7", "detector", "1", "onnx", "4.1", "0", "s"]
    assert words[7].endswith("█")
    assert len(words[7]) == 12, "a bar for each of the last latencies"
    assert words[8:] == ["49.0", "1", "forklift", "0.87"]


def test_at_80_columns_nothing_is_wider_and_the_columns_are_there() -> None:
    state = SiteState()
    tell(state, {**RESULT, "device_id": "a-camera-with-quite-a-long-name-indeed"})
    lines = drawn(state, 80)
    (head,) = [line for line in lines if line.startswith("Camera")]
    assert head.split() == ["Camera", "Model", "By", "/s", "Age", "Latency", "ms", "Err", "Seen"]
    (row,) = [line for line in lines if line.startswith("a-camera")]
    assert "…" in row
    assert "forklift 0.87" in row
    assert "q ends" in lines[-1]


def test_the_gateways_and_models_stand_above() -> None:
    state = SiteState()
    for message in (STATUS, SUMMARY, MODEL):
        tell(state, message)
    tell(state, {**SUMMARY, "timestamp": 1030.0, "snapshots": {"published": 400, "dropped_full": 7}})
    tell(state, {**STATUS, "gateway_id": "gw-2", "status": "not_ready", "reasons": ["no session with the broker"]})
    lines = drawn(state)
    assert lines[1] == "gw-2  not ready: no session with the broker", "the one in trouble comes first"
    assert lines[2] == "gw-1  ready  10.0 results/s  queue 3  on disk 2  received 130  dropped full 7"
    assert lines[3] == "Models  detector 3 (to 5: canary 120 of 200 answers)"


def test_alerts_errors_and_disagreements_stand_below_and_an_alert_is_marked_until_it_ends() -> None:
    state = SiteState()
    for message in (RESULT, ALERT, COMPARISON, ERROR):
        tell(state, message)
    text = "\n".join(drawn(state, 130))
    assert "! fire  differ 1  forklift 0.87" in text
    assert "critical: fire 0.91 after 3 frames" in text
    assert "PREDICTIONS DIFFER" in text
    assert "QUEUE_FULL: no room. Send less" in text
    tell(state, {**ALERT, "event": "end", "duration_s": 3.0, "reason": "gone"})
    assert "! fire" not in "\n".join(drawn(state, 130))


def test_many_cameras_those_heard_of_last_first() -> None:
    state = SiteState()
    for number in range(50):
        tell(state, {**RESULT, "device_id": f"cam-{number:02}"}, 100.0 if number % 2 else 20.0)
    lines = drawn(state)
    names = [line.split()[0] for line in lines if line.startswith("cam-")]
    assert names == [f"cam-{number:02}" for number in range(1, 50, 2)][: len(names)]
    assert f"... and {50 - len(names)} more" in lines


@pytest.mark.parametrize(("order", "first"), [("recent", "cam-1"), ("name", "cam-0"), ("slowest", "cam-2")])
def test_the_cameras_can_be_sorted(order: Order, first: str) -> None:
    state = SiteState()
    for number, (at, total) in enumerate([(10.0, 5.0), (99.0, 6.0), (20.0, 70.0)]):
        body = {**RESULT, "device_id": f"cam-{number}", "metadata": {"timings_ms": {"total": total}}}
        tell(state, {**body, "metadata": {"alert_triggered": False, **body["metadata"]}}, at)
    assert next(line for line in drawn(state, order=order) if line.startswith("cam-")).startswith(first)


def test_a_lost_broker_is_the_first_thing_to_see() -> None:
    assert "no session with the broker: refused" in drawn(SiteState(), trouble="refused")[0]


def test_a_sparkline_goes_from_nothing_to_the_highest() -> None:
    assert sparkline([0, 1, 2, 4, 8], 4) == "▂▃▅█"
    assert sparkline([0, 0], 8) == "▁▁"
    assert sparkline([], 8) == ""


# --- whatever comes -------------------------------------------------------------------------------------

texts = st.one_of(st.sampled_from(HOSTILE), st.text(max_size=60))
anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
of_kind = st.sampled_from([RESULT, ALERT, ERROR, COMPARISON, STATUS, SUMMARY, MODEL])


@st.composite
def messages(draw: st.DrawFn) -> dict[str, Any]:
    """A message of ours with names from hell, and here and there a value of any type."""
    body = dict(draw(of_kind))
    for key in ("device_id", "model_name", "class_name", "gateway_id", "status"):
        if key in body:
            body[key] = draw(texts)
    if draw(st.booleans()):
        body[draw(st.sampled_from(sorted(body)[1:]))] = draw(anything)
    return body


@given(st.lists(messages(), max_size=8), st.integers(1, 160), st.integers(1, 40))
def test_whatever_comes_the_view_keeps_its_shape(bodies: list[dict[str, Any]], width: int, height: int) -> None:
    state = SiteState()
    for body in bodies:
        tell(state, body)
    lines = drawn(state, width, height)
    assert all(line.isprintable() for line in lines), "nothing steers the terminal"
    if width >= 40:
        assert all(cell_len(line) <= width for line in lines)
        assert len(lines) == height or height < 16


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_name_is_a_name(name: str) -> None:
    state = SiteState()
    tell(state, {**RESULT, "device_id": name, "predictions": [{**RESULT["predictions"][0], "class": name}]})
    tell(state, {**ALERT, "device_id": name, "class_name": name})
    lines = drawn(state, 80)
    assert len(lines) == 24
    assert all(line.isprintable() and cell_len(line) <= 80 for line in lines)
    if name.startswith("["):
        assert any(line.startswith(name[:11]) for line in lines), "markup is text"


def test_what_names_make_grow_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    for limit in ("MAX_CAMERAS", "MAX_GATEWAYS", "MAX_MODELS", "MAX_ALERTS"):
        monkeypatch.setattr(site_state, limit, 4)
    state = SiteState()
    for number in range(30):
        tell(state, {**RESULT, "device_id": f"{number}" * 5000})
        tell(state, {**RESULT, "device_id": "one"})
        tell(state, {**ALERT, "device_id": "one", "class_name": f"{number}"})
        tell(state, {**STATUS, "gateway_id": f"{number}", "reasons": ["x" * 5000] * 100})
        tell(state, {**MODEL, "model_name": f"{number}"})
    assert len(state.cameras) == len(state.gateways) == len(state.models) == 4
    assert all(len(name) <= 100 for name in state.cameras)
    assert len(state.cameras["one"].alerts) == 4
    assert len(state.events) <= site_state.MAX_EVENTS
    assert all(len(event.line) <= 400 for event in state.events)


# --- on a terminal --------------------------------------------------------------------------------------


def test_the_view_comes_and_goes_with_a_key(tmp_path: Path, at: dict[str, str]) -> None:
    # As some programs export them for those that they start; the window says otherwise.
    with on_terminal("watch", COLUMNS="80", LINES="24", **at) as terminal:
        terminal.shows("Nothing has come yet")
        assert terminal.attributes != terminal.before, "keys come one by one"
        publish(tmp_path / "x.json", {**RESULT, "device_id": "cam7\x1b]0;owned\x07"}, at)
        terminal.shows("forklift 0.87")
        terminal.resize(60, 20)
        terminal.process.send_signal(signal.SIGWINCH)
        terminal.shows_like(r"Camera +Age")
        terminal.press("s")
        terminal.shows("by name")
        terminal.press("p")
        terminal.shows("PAUSED")
        terminal.press("\x1b[C")  # an arrow key means nothing
        terminal.press("q")
        assert terminal.wait() == 0
        assert terminal.attributes == terminal.before
    assert terminal.written.count("\x1b[?1049h") == terminal.written.count("\x1b[?1049l") == 1
    assert terminal.written.count("\x1b[?25h") >= 1, "the cursor is back"
    assert "\x07" not in terminal.written
    assert "saw 1 results, 0 errors and 0 alerts" in terminal.written


@pytest.mark.parametrize(("how", "code"), [("\x03", 128 + signal.SIGINT), (signal.SIGTERM, 128 + signal.SIGTERM)])
def test_whatever_ends_it_the_terminal_is_as_before(how: Any, code: int, at: dict[str, str]) -> None:
    with on_terminal("watch", **at) as terminal:
        terminal.shows("Nothing has come yet")
        terminal.press(how) if isinstance(how, str) else terminal.process.send_signal(how)
        assert terminal.wait() == code
        assert terminal.attributes == terminal.before
    assert terminal.written.rstrip().endswith(("\x1b[?1049l", "\x1b[?25h", " s")), repr(terminal.written[-200:])
    assert "Traceback" not in terminal.written


def test_ctrl_z_gives_the_terminal_back_until_it_goes_on(at: dict[str, str]) -> None:
    with on_terminal("watch", **at) as terminal:
        terminal.shows("Nothing has come yet")
        terminal.press("\x1a")
        until(lambda: psutil.Process(terminal.process.pid).status() == psutil.STATUS_STOPPED, "it stopped")
        assert terminal.attributes == terminal.before
        terminal.drain()  # what it drew before it stopped; a key would be lost that comes before it has begun again
        terminal.process.send_signal(signal.SIGCONT)
        terminal.shows("Nothing has come yet")
        terminal.press("q")
        assert terminal.wait() == 0
    assert terminal.written.count("\x1b[?1049h") == terminal.written.count("\x1b[?1049l") == 2


def test_a_broker_that_goes_away_is_said_in_the_view(tmp_path: Path) -> None:
    with EmbeddedBroker() as short_lived:
        terminals = on_terminal("watch", **leading_to(short_lived))
        with terminals as terminal:
            terminal.shows("Nothing has come yet")
            short_lived.stop()
            terminal.shows("no session with the broker")
            terminal.press("q")
            assert terminal.wait() == 0
    assert terminal.written.rsplit("\x1b[?1049l", 1)[1].count("edge-gateway:") == 1, "the log did not go to stderr"


@pytest.mark.parametrize(("arguments", "settings"), [(["--plain"], {}), ([], {"TERM": "dumb"}), (["--json"], {})])
def test_who_wants_lines_gets_lines(
    tmp_path: Path, arguments: list[str], settings: dict[str, str], at: dict[str, str]
) -> None:
    with on_terminal("watch", "--count", "1", *arguments, **{**at, **settings}) as terminal:
        terminal.shows("Watching")
        publish(tmp_path / "x.json", RESULT, at)
        assert terminal.wait() == 0
    assert "forklift" in terminal.written
    assert "\x1b" not in terminal.written


def test_no_color_leaves_the_view_without_colours(tmp_path: Path, at: dict[str, str]) -> None:
    with on_terminal("watch", "--count", "1", NO_COLOR="1", **at) as terminal:
        terminal.shows("Nothing has come yet")
        publish(tmp_path / "a.json", ALERT, at, "edge-ai/bu/plant/gw/ai/alerts")
        terminal.shows("! fire")
        publish(tmp_path / "x.json", RESULT, at, RESULTS)
        assert terminal.wait() == 0
    assert "\x1b[3" not in terminal.written.replace("\x1b[3J", ""), "neither 30 to 37 nor 38;5"


def test_plain_and_json_exclude_each_other() -> None:
    with start("watch", "--plain", "--json") as both:
        assert both.wait() == 2
    assert "--plain and --json exclude each other" in both.err[0]


# --- the picture in the documentation ------------------------------------------------------------------


def test_the_picture_of_the_view_is_whole_and_loads_nothing(tmp_path: Path, broker: EmbeddedBroker) -> None:
    spec = importlib.util.spec_from_file_location("terminal_picture", ROOT / "docs" / "terminal_picture.py")
    assert spec is not None
    assert spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    state = SiteState()
    for name in HOSTILE:
        tell(state, {**RESULT, "device_id": name})
    drawing = script.svg(state, "localhost:1883", (100, 24))
    root = ElementTree.fromstring(drawing)
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    assert "forklift" in "".join(root.itertext())
    assert set(re.findall(r"https?://[^\"'\s]+", drawing)) == {"http://www.w3.org/2000/svg"}
    assert "@font-face" not in drawing
    assert "onerror" not in {attribute for element in root.iter() for attribute in element.attrib}
    settings = Settings(aio_broker_hostname=broker.host, aio_broker_tcp_port=broker.port, mqtt_protocol=broker.protocol)
    script.photograph(settings, tmp_path / "watch.svg", seconds=0.2)
    text = "".join(ElementTree.parse(tmp_path / "watch.svg").getroot().itertext())
    assert "Nothing has come yet" in text.replace("\xa0", " ")
