"""Hostile messages at a real gateway process: one error each, little memory, and the next snapshot is served."""

from __future__ import annotations

import json
import struct
import zlib
from pathlib import Path

import pybase64

from gateway.local.camera import frame
from gateway.local.scenes import TEST_SEEDS
from gateway.terminal.send import json_snapshot
from tests.e2e.site import RealSite

MEMORY_LIMIT_MB = 150


def png_bomb(side: int) -> bytes:
    """A valid PNG of side x side black pixels, in a few kilobytes of compressed zeros."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    compressor = zlib.compressobj(9)
    row = b"\x00" * (side // 8 + 2)
    body = b"".join(compressor.compress(row) for _ in range(side)) + compressor.flush()
    header = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", body) + chunk(b"IEND", b"")


def hostile(image: bytes) -> dict[str, tuple[bytes, str]]:
    """Name to payload and the code that it is answered with."""
    bomb = png_bomb(30_000)
    deep = b'{"metadata": ' + b'{"a":' * 50_000 + b"1" + b"}" * 50_000 + b', "image_data": ""}'
    fields = json.loads(json_snapshot(image, "cam"))
    return {
        "not JSON": (b"{this is not JSON", "PAYLOAD_INVALID"),
        "no image": (b'{"device_id": "cam", "timestamp": 1}', "PAYLOAD_INVALID"),
        "bad base64": (json.dumps({**fields, "image_data": "%%%%"}).encode(), "PAYLOAD_INVALID"),
        "truncated JPEG": (image[: len(image) // 2], "IMAGE_UNDECODABLE"),
        "truncated in JSON": (json_snapshot(image[:-1000], "cam"), "IMAGE_UNDECODABLE"),
        "0 bytes": (b"", "PAYLOAD_INVALID"),
        "50 MB": (b"\xff\xd8\xff" + b"\x00" * 50_000_000, "PAYLOAD_TOO_LARGE"),
        "PNG bomb": (bomb, "IMAGE_TOO_LARGE"),
        "PNG bomb in JSON": (json_snapshot(bomb, "cam"), "IMAGE_TOO_LARGE"),
        "wrong types": (json.dumps({**fields, "device_id": 5, "metadata": "x"}).encode(), "PAYLOAD_INVALID"),
        "NaN": (json.dumps({**fields, "timestamp": float("nan")}).encode(), "PAYLOAD_INVALID"),
        "nesting": (deep, "PAYLOAD_INVALID"),
        "unknown model": (json_snapshot(image, "cam", model_name="nope"), "MODEL_UNKNOWN"),
        "unknown variant": (json_snapshot(image, "cam", backend_preference="nope"), "VARIANT_UNKNOWN"),
        "a text as picture": (pybase64.b64encode(b"text"), "PAYLOAD_INVALID"),
        "only a magic number": (b"\xff\xd8\xff", "IMAGE_UNDECODABLE"),
        "a name of 6 MB": (json_snapshot(image, "cam", model_name="m" * 6_000_000), "MODEL_UNKNOWN"),
        "metadata of 6 MB": (json_snapshot(image, "cam", metadata={"a": [[]] * 2_000_000}), "PAYLOAD_INVALID"),
        "a control character": (json_snapshot(image[:100], "a\x01b\ufffe"), "IMAGE_UNDECODABLE"),
        "a zip": (b"PK\x03\x04" + bytes(100), "PAYLOAD_INVALID"),
    }


def test_every_hostile_message_is_answered_and_the_next_snapshot_is_served(site: RealSite) -> None:
    image = frame(TEST_SEEDS[3], 0)
    attacks = hostile(image)
    for number, (name, (payload, code)) in enumerate(attacks.items(), start=1):
        site.send(payload, site.raw_topic(f"attack-{number}"))
        site.wait_for(errors=number, results=number - 1)
        error = site.errors[-1]
        assert error["error"]["code"] == code, name
        assert error["error"]["fix"], name
        assert error["input"]["bytes"] == len(payload), name
        assert len(json.dumps(error)) < 4000, "an error message stays small"
        site.send(image, site.raw_topic(f"honest-{number}"))
        site.wait_for(errors=number, results=number)
    assert len(site.errors) == len(attacks)
    # Characters on which a broker hangs up, in a name that goes into the properties of the answer.
    site.send(json_snapshot(image, "x\x01\ufffe\ufeff\U0001fffe\U0010ffff"))
    site.wait_for(errors=len(attacks), results=len(attacks) + 1)
    received = site.metric("edge_gateway_snapshots_received_total")
    assert received == 2 * len(attacks) + 1
    assert site.metric("edge_gateway_snapshots_total") == received
    status = Path(f"/proc/{site.process.pid}/status").read_text(encoding="ascii")
    peak_kb = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM"))
    assert peak_kb / 1024 < MEMORY_LIMIT_MB
    log = "\n".join(site.process.log_tail(500))
    assert "Traceback" not in log
    assert "PK\\u0003" not in log
