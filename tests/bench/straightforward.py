"""The script that one would write instead of a gateway: the baseline of `edge-gateway bench`. Needs no gateway package.

One callback does everything: JSON, base64, Pillow, numpy, a blocking call of Triton, and the result is published. It
leaves out nothing that makes it fast without effort, and has nothing that takes effort: no threads, no errors handled.
Pictures are resized with Pillow's default filter, bicubic, because nobody who writes this chooses one.
"""

import argparse
import base64
import io
import json
import time
from collections.abc import Iterable, Sequence

import numpy as np
import paho.mqtt.client as mqtt
import tritonclient.grpc as grpcclient
from numpy.typing import NDArray
from paho.mqtt.enums import CallbackAPIVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from PIL import Image


def read_snapshot(payload: bytes, user_properties: Iterable[tuple[str, str]] = ()) -> tuple[str, bytes]:
    """The device and the bytes of the picture."""
    if payload[:1] == b"{":
        snapshot = json.loads(payload)
        return snapshot["device_id"], base64.b64decode(snapshot["image_data"])
    return dict(user_properties)["device_id"], payload


def make_tensor(
    jpeg: bytes, height: int, width: int, mean: Sequence[float] = (0, 0, 0), std: Sequence[float] = (1, 1, 1)
) -> NDArray[np.float32]:
    """Letterboxed on grey and normalised, (1, 3, height, width)."""
    image = Image.open(io.BytesIO(jpeg)).convert("RGB")
    scale = min(width / image.width, height / image.height)
    size = round(image.width * scale), round(image.height * scale)
    canvas = Image.new("RGB", (width, height), (114, 114, 114))
    canvas.paste(image.resize(size), ((width - size[0]) // 2, (height - size[1]) // 2))
    pixels = np.asarray(canvas, dtype=np.float32)
    tensor = (pixels / 255.0 - np.array(mean, np.float32)) / np.array(std, np.float32)
    return np.ascontiguousarray(np.expand_dims(tensor.transpose(2, 0, 1), 0))


def make_result(device: str, outputs: dict[str, NDArray[np.float32]], started: float) -> str:
    """The best class of each variant's answer, as JSON."""
    best = {name: output.reshape(-1) for name, output in outputs.items()}
    predictions = {name: {"class_id": int(v.argmax()), "confidence": float(v.max())} for name, v in best.items()}
    latency_ms = (time.time() - started) * 1000
    body = {"message_type": "ai_inference_result", "device_id": device, "timestamp": time.time()}
    return json.dumps({**body, "predictions": predictions, "latency_ms": latency_ms})


def main() -> None:
    """Serve until killed."""
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("--port", "--height", "--width"):
        parser.add_argument(name, type=int, required=True)
    for name in ("--triton", "--models", "--mean", "--std", "--subscribe", "--publish"):
        parser.add_argument(name, required=True)
    given = parser.parse_args()
    models = given.models.split(",")
    mean, std = (list(map(float, values.split(","))) for values in (given.mean, given.std))
    triton = grpcclient.InferenceServerClient(given.triton)

    def on_message(client: mqtt.Client, userdata: object, message: mqtt.MQTTMessage) -> None:
        started = time.time()
        properties = message.properties
        device, jpeg = read_snapshot(bytes(message.payload), getattr(properties, "UserProperty", ()))
        tensor = make_tensor(jpeg, given.height, given.width, mean, std)
        outputs = {}
        for model in models:
            entry = grpcclient.InferInput("images", tensor.shape, "FP32")
            entry.set_data_from_numpy(tensor)
            outputs[model] = triton.infer(model, [entry]).as_numpy("output0")
        answer = Properties(PacketTypes.PUBLISH)  # type: ignore[no-untyped-call]
        answer.CorrelationData = getattr(properties, "CorrelationData", b"")
        client.publish(given.publish, make_result(device, outputs, started), qos=1, properties=answer)

    client = mqtt.Client(CallbackAPIVersion.VERSION2, protocol=mqtt.MQTTv5)
    client.on_subscribe = lambda *_: print("ready", flush=True)
    client.on_message = on_message
    client.connect("127.0.0.1", given.port)
    client.subscribe(given.subscribe, qos=1)
    client.loop_forever()


if __name__ == "__main__":
    main()
