"""What the demo shows of the messages that come by: lines, annotated pictures, and figures at the end."""

from __future__ import annotations

import asyncio
import contextlib
import re
import sys
from collections import Counter
from pathlib import Path
from typing import Any

from gateway.config import Settings
from gateway.errors import SnapshotError
from gateway.flow.identify import identify
from gateway.flow.ingest import open_message, take_contents
from gateway.local.annotate import annotate
from gateway.messages import Message, Reading
from gateway.terminal.lines import parse_message, readable_line

KEPT_PICTURES = 5
RECENT_SNAPSHOTS = 64
MAX_NAME = 100
_NOT_IN_NAMES = re.compile(r"[^\w.-]")


class Show:
    """What came by: the lines, the figures for the summary, the last annotated pictures."""

    def __init__(self, settings: Settings, output: Path) -> None:
        self._settings = settings
        self._output = output
        self._snapshots: dict[str, bytes] = {}
        self._pictures: Counter[str] = Counter()
        self._sensors: set[str] = set()
        self._writing = True
        self.counts: Counter[str] = Counter()
        self.match: Counter[object] = Counter()
        self.total_ms: list[float] = []
        self.variant_ms: dict[str, list[float]] = {}

    async def see(self, message: Message) -> None:
        """Take one message off the broker, whoever sent it; only a terminal that is gone ends the show."""
        line = readable_line(message.topic, message.payload)
        if line is not None:
            print(line, flush=True)
        try:
            if line is None:
                self._remember(message)
            else:
                await self._count(parse_message(message.payload) or {})
        except Exception as error:  # noqa: BLE001 - anybody can publish anything here, and the next message counts
            print(f"{message.topic}: a message that cannot be shown ({error!r})", file=sys.stderr, flush=True)

    async def _count(self, body: dict[str, Any]) -> None:
        match body.get("message_type"):
            case "ai_inference_result" if "window" in body["metadata"]:
                self.counts["windows"] += 1
            case "ai_alert":
                self.counts["alerts"] += body["event"] == "start"
            case "dual_backend_comparison" if body["device_id"] in self._sensors:
                return  # the figures are of snapshots
            case "ai_inference_result":
                took, total = float(body["inference_time_ms"]), float(body["metadata"]["timings_ms"]["total"])
                if body["metadata"]["selection"]["policy"] != "dual":  # otherwise the comparison has the times of both
                    self.variant_ms.setdefault(str(body["backend_used"]), []).append(took)
                self.total_ms.append(total)
                self.counts["results"] += 1
                self.counts["asked of both"] += body["metadata"]["selection"]["policy"] == "dual"
                await self._draw(body)
            case "dual_backend_comparison":
                for name, entry in body["backends"].items():
                    if "error" not in entry:
                        self.variant_ms.setdefault(name, []).append(float(entry["inference_time_ms"]))
                self.match[body["performance_delta"]["predictions_match"]] += 1
                self.counts["comparisons"] += 1
            case "ai_inference_error":
                self.counts["errors"] += 1

    def _remember(self, message: Message) -> None:
        origin = identify(message, self._settings.patterns, self._settings.place)
        with contextlib.suppress(SnapshotError):  # no picture; the gateway answers it with an error
            contents = take_contents(open_message(message, origin, self._settings.max_payload_bytes))
            if isinstance(contents, Reading):
                self.counts["readings"] += 1
                self._sensors.add(contents.origin.device_id)
                return
            self._snapshots[origin.result_id] = contents.image
        self.counts["snapshots"] += 1
        while len(self._snapshots) > RECENT_SNAPSHOTS:
            del self._snapshots[next(iter(self._snapshots))]

    async def _draw(self, body: dict[str, Any]) -> None:
        image = self._snapshots.get(body["result_id"])
        if image is None or not self._writing:
            return
        device = _NOT_IN_NAMES.sub("_", body["device_id"])[:MAX_NAME]
        path = self._output / f"{device}-{self._pictures[device] % KEPT_PICTURES + 1}.jpg"
        try:
            await asyncio.to_thread(self._save, image, body, path)
        except OSError as error:
            self._writing = False
            print(f"Pictures are no longer saved in {self._output}: {error.strerror}", file=sys.stderr)
        else:
            self._pictures[device] += 1

    def _save(self, image: bytes, body: dict[str, Any], path: Path) -> None:
        drawn = annotate(image, body, self._settings.max_image_pixels)
        if drawn is not None:
            temporary = path.with_suffix(".part")
            temporary.write_bytes(drawn)
            temporary.replace(path)

    @property
    def settled(self) -> bool:
        """Whether every snapshot that came by has its answer, and its comparison where both variants were asked."""
        answered = self.counts["results"] + self.counts["errors"] >= self.counts["snapshots"]
        return answered and self.counts["comparisons"] >= self.counts["asked of both"]

    def summary(self) -> str:
        """The figures at the end."""
        lines = [
            "",
            f"snapshots    {self.counts['snapshots']}",
            f"results      {self.counts['results']}",
            f"comparisons  {self.counts['comparisons']} ({self.match[True]} with the same predictions)",
            f"errors       {self.counts['errors']}",
            f"readings     {self.counts['readings']} in {self.counts['windows']} windows",
            f"alerts       {self.counts['alerts']}",
            "",
            "milliseconds           p50      p95      p99",
            f"snapshot to result {_percentiles(self.total_ms)}",
        ]
        lines += [f"variant {name:<10} {_percentiles(times)}" for name, times in sorted(self.variant_ms.items())]
        if self._pictures:
            lines += ["", f"Annotated pictures: {self._output.resolve()}"]
        return "\n".join(lines)


def _percentiles(values: list[float]) -> str:
    if not values:
        return "       -        -        -"
    ordered = sorted(values)
    return " ".join(f"{ordered[min(len(ordered) - 1, int(share * len(ordered)))]:8.1f}" for share in (0.5, 0.95, 0.99))
