"""The gateway's messages as one readable line each."""

from __future__ import annotations

import time
from typing import Any

import msgspec

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
            case "ai_status":
                text = f"status    {message['status']}" + "".join(
                    f"; {reason}" for reason in message.get("reasons", [])
                )
            case _:
                return None
    except (KeyError, TypeError, AttributeError, ValueError):
        return f"{topic}: a message of type {kind} that is not as documented"
    # What a camera calls itself must not steer the terminal.
    return f"{time.strftime('%H:%M:%S')}  {''.join(c if c.isprintable() else '?' for c in text)}"


def parse_message(payload: bytes) -> dict[str, Any] | None:
    """The JSON object in a payload, or None."""
    try:
        message = msgspec.json.decode(payload)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
        return None
    return message if isinstance(message, dict) else None


def _result(message: dict[str, Any]) -> str:
    seen = message["predictions"]
    named = ", ".join(f"{item['class']} {item['confidence']:.2f}" for item in seen[:MAX_NAMED])
    more = f" and {len(seen) - MAX_NAMED} more" if len(seen) > MAX_NAMED else ""
    total = message["metadata"]["timings_ms"]["total"]
    alert = "  ALERT" if message["metadata"]["alert_triggered"] else ""
    return (
        f"result    {message['device_id']:<12} {message['model_name']} v{message['model_version']} "
        f"{message['backend_used']:<5} {message['inference_time_ms']:6.1f} ms of {total:6.1f} ms  "
        f"{named or 'nothing seen'}{more}{alert}"
    )


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
