"""The gateway's messages as one readable line each."""

from __future__ import annotations

import json
import time
from typing import Any

import msgspec

from gateway.terminal.printable import printable

MAX_NAMED = 4


def readable_line(topic: str, payload: bytes) -> str | None:
    """One line for a message of the gateway, or None for one of another kind; never raises."""
    message = parse_message(payload)
    if message is None:
        return None
    kind = message.get("message_type")
    try:
        match kind:
            case "ai_inference_result":
                text = _result(message)
            case "dual_backend_comparison":
                text = _comparison(message)
            case "ai_inference_error":
                text = _error(message)
            case "ai_alert":
                text = _alert(message)
            case "ai_status":
                text = f"status    {message['status']}" + "".join(
                    f"; {reason}" for reason in message.get("reasons", [])
                )
            case _:
                return None
    except (KeyError, TypeError, AttributeError, ValueError):
        return f"{topic}: a message of type {kind} that is not as documented"
    return f"{time.strftime('%H:%M:%S')}  {printable(text)}"


def json_line(payload: bytes) -> str:
    """A message that parse_message can read, as one line of JSON that steers no terminal."""
    text = msgspec.json.format(payload, indent=-1).decode("utf-8", "replace")
    return text if text.isprintable() else "".join(one if one.isprintable() else json.dumps(one)[1:-1] for one in text)


def parse_message(payload: bytes) -> dict[str, Any] | None:
    """The JSON object in a payload, or None."""
    try:
        message = msgspec.json.decode(payload)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
        return None
    return message if isinstance(message, dict) else None


def _result(message: dict[str, Any]) -> str:
    total = message["metadata"]["timings_ms"]["total"]
    alert = "  ALERT" if message["metadata"]["alert_triggered"] else ""
    return (
        f"result    {message['device_id']:<12} {message['model_name']} v{message['model_version']} "
        f"{message['backend_used']:<5} {message['inference_time_ms']:6.1f} ms of {total:6.1f} ms  "
        f"{seen_in_words(message)}{alert}"
    )


def seen_in_words(message: dict[str, Any]) -> str:
    """Predictions of a result, the score of the whole and the values of a regression, as far as there are any.

    Raises KeyError, TypeError, AttributeError or ValueError for a result that is not as documented.
    """
    seen = message["predictions"]
    parts = [", ".join(f"{item['class']} {item['confidence']:.2f}" for item in seen[:MAX_NAMED])] if seen else []
    if len(seen) > MAX_NAMED:
        parts[0] += f" and {len(seen) - MAX_NAMED} more"
    if (score := message.get("anomaly_score")) is not None:
        parts.append(f"anomaly score {score:.2f}")
    if (values := message.get("values")) is not None:
        more = f" and {len(values) - MAX_NAMED} more" if len(values) > MAX_NAMED else ""
        parts.append(f"values {', '.join(f'{value:g}' for value in values[:MAX_NAMED])}{more}")
    return "; ".join(parts) or "nothing seen"


def _alert(message: dict[str, Any]) -> str:
    head = (
        f"alert     {message['device_id']:<12} {message['model_name']} {message['severity']}: {message['class_name']}"
    )
    if message["event"] == "start":
        return f"{head} {message['confidence']:.2f} after {_frames(message['frames'])}"
    reason = "" if message["reason"] == "gone" else f" ({message['reason']})"
    return f"{head} ended after {message['duration_s']:.1f} s and {_frames(message['frames'])}{reason}"


def _frames(count: int) -> str:
    return f"{count} frame{'s' * (count != 1)}"


def _comparison(message: dict[str, Any]) -> str:
    delta = message["performance_delta"]
    times = ", ".join(f"{name} {entry['inference_time_ms']:.1f} ms" for name, entry in message["backends"].items())
    agreement = delta["agreement"]
    if agreement is None:
        failed = [name for name, entry in message["backends"].items() if "error" in entry]
        return f"compare   {message['device_id']:<12} {times}: {' and '.join(failed)} failed"
    verdict = "same predictions" if delta["predictions_match"] else "PREDICTIONS DIFFER"
    iou = "" if agreement["mean_iou"] is None else f", mean IoU {agreement['mean_iou']:.3f}"
    return f"compare   {message['device_id']:<12} {times}: {verdict}{iou}"


def _error(message: dict[str, Any]) -> str:
    error = message["error"]
    return f"error     {message['device_id']:<12} {error['code']}: {error['message']}. {error['fix']}"
