"""Models and messages of many kinds through the whole gateway."""

from __future__ import annotations

import asyncio
import io
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from gateway.errors import ConfigError
from gateway.layouts.custom import load_custom_layouts
from gateway.messages import MessageProperties, ModelSignature, TensorSpec
from gateway.models.catalog import ServedVariant
from gateway.models.repository import read_model
from gateway.models.signature import fit
from gateway.models.spec import read_spec
from gateway.testing import MemoryTriton
from tests.flow.builders import SNAPSHOT_TOPIC, head, jpeg, sensor_spec, signature, snapshot_json
from tests.harness import site, until, write_model

Arrays = Mapping[str, NDArray[Any]]


def model(
    answer: Any, inputs: tuple[TensorSpec, ...], outputs: tuple[TensorSpec, ...], max_batch_size: int = 0
) -> MemoryTriton:
    """A Triton whose detector takes and gives these."""
    triton = MemoryTriton()
    for variant in ("detector-onnx", "detector-torch"):
        triton.add_model(ModelSignature(variant, "1", inputs, outputs, max_batch_size), answer)
    return triton


IMAGES = TensorSpec("images", "FP32", (-1, 3, 64, 64))
OUTPUT = TensorSpec("output0", "FP32", (-1, 7, 10))
IN_THE_MIDDLE = (32.0, 32.0, 20.0, 20.0, 0, 0.9)


async def test_the_answer_also_goes_where_the_message_asks_for_it(tmp_path: Path) -> None:
    async with site(tmp_path) as place:
        asker = place.broker.client("asker", ["answers/#"])
        properties = MessageProperties(response_topic="answers/7", correlation_data=b"7")
        running = asyncio.create_task(asker.run())
        await until(lambda: asker.connected, "the asker")
        place.snapshot(snapshot_json(jpeg()), properties=properties)
        place.snapshot(b"no snapshot", properties=properties)
        got = []
        async for message in asker.messages():
            asker.acknowledge(message)
            got.append(msgspec.json.decode(message.payload)["message_type"])
            assert message.properties.correlation_data == b"7"
            if len(got) == 2:
                break
        await place.answered(2)
        await asker.close()
        await running
    assert sorted(got) == ["ai_inference_error", "ai_inference_result"]


@pytest.mark.parametrize(
    ("tensor", "dtype"),
    [
        (TensorSpec("images", "UINT8", (-1, 64, 64, 3)), np.uint8),
        (TensorSpec("images", "FP16", (-1, 3, 64, 64)), np.float16),
        (TensorSpec("images", "INT8", (-1, 1, 64, 64)), np.int8),
    ],
)
async def test_the_input_is_as_the_model_wants_it(tmp_path: Path, tensor: TensorSpec, dtype: Any) -> None:
    write_model(tmp_path, preprocessing={"mode": "letterbox"})
    triton = model(lambda _: {"output0": head(IN_THE_MIDDLE)}, (tensor,), (OUTPUT,), 8)
    async with site(tmp_path, triton=triton) as place:
        place.snapshot(jpeg())
        await place.answered(1)
        (request,) = place.triton.requests
    assert request.inputs["images"].dtype == dtype
    assert request.inputs["images"].shape == (1, *tensor.shape[1:])
    assert len(place.results) == 1


async def test_variants_of_other_types_each_get_their_own_input(tmp_path: Path) -> None:
    write_model(tmp_path, backend="dual")
    triton = MemoryTriton()
    answer = {"output0": head(IN_THE_MIDDLE)}
    half = TensorSpec("images", "FP16", (-1, 3, 64, 64))
    triton.add_model(ModelSignature("detector-onnx", "1", (half,), (OUTPUT,), 8), lambda _: answer)
    triton.add_model(ModelSignature("detector-torch", "1", (IMAGES,), (OUTPUT,), 8), lambda _: answer)
    async with site(tmp_path, triton=triton) as place:
        place.snapshot(jpeg())
        await until(lambda: bool(place.of("dual_backend_comparison")), "the comparison")
    types = {request.model: request.inputs["images"].dtype for request in place.triton.requests}
    assert types == {"detector-onnx": np.float16, "detector-torch": np.float32}
    assert place.of("dual_backend_comparison")[0]["performance_delta"]["predictions_match"]


@pytest.mark.parametrize(("max_batch", "batch_size", "requests"), [(8, 1, 5), (8, 4, 2), (2, 8, 3)])
async def test_tiles_are_asked_in_batches_and_merged(
    tmp_path: Path, max_batch: int, batch_size: int, requests: int
) -> None:
    """Every tile sees one object in its middle; the picture of 200x200 has 2x2 tiles and the whole."""
    write_model(
        tmp_path,
        preprocessing={"mode": "tiles", "tiles": {"size": 110, "overlap": 0.1}},
        inference={"output": "yolov8", "batch_size": batch_size},
    )
    triton = model(
        lambda inputs: {"output0": np.repeat(head(IN_THE_MIDDLE), len(inputs["images"]), axis=0)},
        (IMAGES,), (OUTPUT,), max_batch,
    )  # fmt: skip
    async with site(tmp_path, triton=triton) as place:
        place.snapshot(jpeg(200, 200))
        await place.answered(1)
        assert len(place.triton.requests) == requests
        assert sum(len(request.inputs["images"]) for request in place.triton.requests) == 5
    (result,) = place.results
    centres = sorted(((b[0] + b[2]) / 2, (b[1] + b[3]) / 2) for b in (p["bbox"] for p in result["predictions"]))
    expected = [(55, 55), (55, 145), (100, 100), (145, 55), (145, 145)]
    assert centres == [pytest.approx(each, abs=0.01) for each in expected]


async def test_a_detector_that_is_told_the_size_of_its_input(tmp_path: Path) -> None:
    write_model(tmp_path, inference={"output": "boxes"})

    def answer(inputs: Arrays) -> Arrays:
        width, height = inputs["orig_target_sizes"][0].tolist()
        box = [width / 4, height / 4, width / 2, height / 2]
        return {
            "labels": np.array([[1, 0]], np.int64),
            "boxes": np.array([[box, box]], np.float32),
            "scores": np.array([[0.9, 0.1]], np.float32),
        }

    outputs = (
        TensorSpec("labels", "INT64", (-1, 2)),
        TensorSpec("boxes", "FP32", (-1, 2, 4)),
        TensorSpec("scores", "FP32", (-1, 2)),
    )
    triton = model(answer, (IMAGES, TensorSpec("orig_target_sizes", "INT64", (-1, 2))), outputs)
    async with site(tmp_path, triton=triton) as place:
        place.snapshot(jpeg(128, 128))
        await place.answered(1)
    (prediction,) = place.results[0]["predictions"]
    assert (prediction["class"], prediction["bbox"]) == ("person_without_helmet", [32.0, 32.0, 64.0, 64.0])


async def test_a_picture_that_lies_on_its_side_is_seen_upright(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (120, 60), "red").save(buffer, "JPEG", exif=exif)
    async with site(tmp_path) as place:
        place.snapshot(buffer.getvalue())
        await place.answered(1)
    assert place.results[0]["metadata"]["image"] == {"width": 60, "height": 120}


async def test_outlines_of_objects(tmp_path: Path) -> None:
    write_model(tmp_path, model_type="instance-segmentation", inference={"output": "yolov8-seg"})
    output = np.zeros((1, 7 + 32, 10), np.float32)
    output[0, :4, 0], output[0, 4, 0], output[0, 7, 0] = (32, 32, 20, 20), 0.9, 1.0
    prototypes = np.full((1, 32, 16, 16), -5, np.float32)
    prototypes[0, 0, 4:12, 4:12] = 5  # an object in the middle half
    triton = model(
        lambda _: {"output0": output, "output1": prototypes},
        (IMAGES,),
        (TensorSpec("output0", "FP32", (-1, 39, 10)), TensorSpec("output1", "FP32", (-1, 32, 16, 16))),
        8,
    )
    async with site(tmp_path, triton=triton) as place:
        place.snapshot(jpeg(64, 64))
        await place.answered(1)
    (prediction,) = place.results[0]["predictions"]
    (polygon,) = prediction["polygons"]
    xs, ys = [x for x, _ in polygon], [y for _, y in polygon]
    assert (min(xs), min(ys), max(xs), max(ys)) == pytest.approx((22, 22, 42, 42), abs=1.5)


async def test_where_a_picture_is_unusual(tmp_path: Path) -> None:
    write_model(
        tmp_path, model_type="anomaly-detection", labels=["normal", "anomaly"], inference={"output": "anomaly-map"}
    )
    heat = np.full((1, 1, 64, 64), 0.1, np.float32)
    heat[0, 0, 10:20, 30:40] = 0.8
    triton = model(lambda _: {"map": heat}, (IMAGES,), (TensorSpec("map", "FP32", (-1, 1, 64, 64)),), 8)
    async with site(tmp_path, triton=triton) as place:
        place.snapshot(jpeg(64, 64))
        await place.answered(1)
    (result,) = place.results
    (prediction,) = result["predictions"]
    assert result["anomaly_score"] == pytest.approx(0.8)
    assert (prediction["class"], prediction["bbox"]) == ("anomaly", [30.0, 10.0, 40.0, 20.0])
    assert prediction["polygons"]


CUSTOM = '''
import numpy as np
from gateway.layouts import Detections, layout

@layout("breadth-test", task="object-detection", outputs={"found": ("N", 5)})
def found(outputs, head):
    """Rows of x1, y1, x2, y2, score."""
    rows = outputs["found"]
    return Detections(rows[:, :4], rows[:, 4], np.zeros(len(rows), np.intp))
'''


async def test_a_layout_of_ones_own(tmp_path: Path) -> None:
    folder = tmp_path / "layouts"
    folder.mkdir()
    (folder / "mine.py").write_text(CUSTOM)
    load_custom_layouts(folder)
    models = tmp_path / "models"
    write_model(models, inference={"output": "breadth-test"})
    rows = [np.array([[[1, 2, 30, 40, 0.9]]], np.float32), np.array([[[1, 2, 30, 40, np.nan]]], np.float32)]
    triton = model(lambda _: {"rows": rows[0]}, (IMAGES,), (TensorSpec("rows", "FP32", (-1, 1, 5)),), 8)
    async with site(models, triton=triton) as place:
        place.snapshot(jpeg(64, 64))
        await place.answered(1)
        rows.pop(0)
        place.snapshot(jpeg(64, 64, seed=1))
        await place.answered(2)
    assert place.results[0]["predictions"][0]["bbox"] == [1.0, 2.0, 30.0, 40.0]
    assert place.errors[0]["error"]["code"] == "BACKEND_INVALID_RESPONSE"


def test_a_layout_that_is_not_there_names_the_nearest(tmp_path: Path) -> None:
    folder = write_model(tmp_path, inference={"output": "yolov9"})
    with pytest.raises(ConfigError, match=r"unknown layout 'yolov9' \(did you mean 'yolov8'\?\)"):
        read_spec(folder / "model.yaml")


async def test_classes_can_be_renamed_chosen_and_held_to_their_own_thresholds(tmp_path: Path) -> None:
    write_model(
        tmp_path,
        inference={
            "output": "yolov8",
            "classes": ["person_with_helmet", "person_without_helmet"],
            "class_thresholds": {"person_with_helmet": 0.95, "person_without_helmet": 0.2},
            "rename": {"person_without_helmet": "no_helmet"},
            "alert_classes": ["no_helmet"],
        },
    )
    everything = head((10, 10, 8, 8, 0, 0.9), (30, 10, 8, 8, 1, 0.3), (50, 10, 8, 8, 2, 0.9))
    triton = model(lambda _: {"output0": everything}, (IMAGES,), (OUTPUT,), 8)
    async with site(tmp_path, triton=triton) as place:
        place.snapshot(snapshot_json(jpeg(64, 64)), topic=SNAPSHOT_TOPIC)
        await place.answered(1)
    (result,) = place.results
    assert [(item["class"], item["class_id"]) for item in result["predictions"]] == [("no_helmet", 1)]
    assert result["metadata"]["alert_triggered"]


async def test_all_tiles_together_keep_the_deadline_of_the_snapshot(tmp_path: Path) -> None:
    """Each wave of tiles has what is left of the time, not the whole again."""
    write_model(
        tmp_path,
        preprocessing={"mode": "tiles", "tiles": {"size": 64, "overlap": 0, "max_tiles": 64}},
        inference={"output": "yolov8"},
    )
    triton = MemoryTriton()
    for variant in ("detector-onnx", "detector-torch"):
        triton.add_model(
            ModelSignature(variant, "1", (IMAGES,), (OUTPUT,), 1),
            lambda _: {"output0": head(IN_THE_MIDDLE)},
            latency_s=0.3,
        )
    async with site(tmp_path, triton=triton, snapshot_deadline_ms=1000) as place:
        place.snapshot(jpeg(512, 512))
        await place.answered(1)
        asked = len(place.triton.requests)
    assert place.errors[0]["error"]["code"] == "DEADLINE_EXCEEDED"
    assert asked < 65


async def test_a_snapshot_whose_model_has_become_another_meanwhile_is_answered(tmp_path: Path) -> None:
    write_model(tmp_path, preprocessing={"mode": "letterbox"})
    async with site(tmp_path, max_in_flight=1) as place:
        place.triton.hold("detector-onnx")
        place.snapshot(jpeg())
        await place.triton.wait_until_held("detector-onnx")
        place.snapshot(jpeg(seed=1))
        await until(lambda: place.received == 2, "the second")
        models = place.gateway.models
        served = models.current.models["detector"]
        models.put(replace(served, spec=sensor_spec("detector")))
        place.triton.release("detector-onnx")
        await place.answered(2)
    assert place.errors[0]["error"]["code"] == "PAYLOAD_INVALID"
    assert "has changed" in place.errors[0]["error"]["message"]


def test_an_input_that_would_fill_the_memory_is_refused_at_load_time(tmp_path: Path) -> None:
    folder = write_model(tmp_path, preprocessing={"mode": "tiles", "tiles": {"max_tiles": 64}})
    wide = ModelSignature("m", "1", (TensorSpec("images", "FP32", (-1, 3, 640, 640)),), (OUTPUT,), 8)
    with pytest.raises(ConfigError, match=r"305 MiB for one snapshot \(65 of 640x640 FP32\), the limit is 64 MiB"):
        fit(wide, read_model(folder / "model.yaml"), ServedVariant("onnx", "m"))


HOSTILE = '''
import sys, threading
from gateway.layouts import Detections, layout

release = threading.Event()

@layout("breadth-leaves", task="object-detection", outputs={"found": ("N", 5)})
def leaves(outputs, head):
    """Calls sys.exit()."""
    sys.exit(3)

@layout("breadth-sleeps", task="object-detection", outputs={"found": ("N", 5)})
def sleeps(outputs, head):
    """Does not come back."""
    release.wait(60)
    raise ValueError("too late")

@layout("breadth-cancels", task="object-detection", outputs={"found": ("N", 5)})
def cancels(outputs, head):
    """Raises what asyncio takes for a cancellation."""
    import asyncio
    raise asyncio.CancelledError

@layout("breadth-floods", task="object-detection", outputs={"found": ("N", 5)})
def floods(outputs, head):
    """Sees two million things."""
    import numpy as np
    n = 2_000_000
    return Detections(np.zeros((n, 4)), np.zeros(n), np.zeros(n, int))
'''


async def test_a_layout_that_leaves_hangs_or_floods_harms_only_its_own_answers(tmp_path: Path) -> None:
    folder = tmp_path / "layouts"
    folder.mkdir()
    (folder / "mine.py").write_text(HOSTILE)
    load_custom_layouts(folder)
    models, triton = tmp_path / "models", MemoryTriton()
    for kind in ("leaves", "cancels", "sleeps", "floods"):
        write_model(models, kind, inference={"output": f"breadth-{kind}"})
        for variant in (f"{kind}-onnx", f"{kind}-torch"):
            rows = (TensorSpec("rows", "FP32", (-1, 1, 5)),)
            triton.add_model(
                ModelSignature(variant, "1", (IMAGES,), rows, 8), lambda _: {"rows": np.zeros((1, 1, 5), np.float32)}
            )
    write_model(models, "detector")
    for variant in ("detector-onnx", "detector-torch"):
        triton.add_model(signature(variant), lambda _: {"output0": head(IN_THE_MIDDLE)})
    async with site(models, triton=triton, snapshot_deadline_ms=1500) as place:
        for kind in ("leaves", "cancels", "sleeps", "floods"):
            place.snapshot(snapshot_json(jpeg(), model_name=kind))
        place.snapshot(snapshot_json(jpeg(), model_name="detector"))
        await place.answered(5)
        await until(lambda: place.metrics.value("unacknowledged_messages") == 0, "every acknowledgement")
        assert place.gateway.stuck
        sys.modules[f"layout file {folder / 'mine.py'}"].release.set()
        await until(lambda: not place.gateway.stuck, "the end of the layout")
    assert [result["model_name"] for result in place.results] == ["detector"]
    said = {error["model_name"]: error["error"] for error in place.errors}
    assert {error["code"] for error in said.values()} == {"BACKEND_INVALID_RESPONSE"}
    assert "SystemExit" in said["leaves"]["message"]
    assert "CancelledError" in said["cancels"]["message"]
    assert "not done within the deadline" in said["sleeps"]["message"]
    assert "2000000 objects" in said["floods"]["message"]


async def test_boxes_of_which_nothing_is_in_the_picture_are_left_out(tmp_path: Path) -> None:
    beyond = head((1e30, 1e30, 1e30, 1e30, 1, 0.9), (32.0, 2.0, 4.0, 2.0, 1, 0.8), IN_THE_MIDDLE)
    write_model(tmp_path)
    triton = model(lambda _: {"output0": beyond}, (IMAGES,), (OUTPUT,), 8)
    async with site(tmp_path, triton=triton) as place:
        place.snapshot(jpeg(64, 32))  # letterboxed: rows 16 to 48 of the input are picture
        await place.answered(1)
    (prediction,) = place.results[0]["predictions"]
    assert prediction["class"] == "person_with_helmet"
    assert not place.results[0]["metadata"]["alert_triggered"]


async def test_an_error_names_the_model_that_the_topic_found(tmp_path: Path) -> None:
    async with site(tmp_path) as place:
        place.snapshot(snapshot_json(jpeg(), backend_preference="tensorflow"))
        await place.answered(1)
    assert (place.errors[0]["error"]["code"], place.errors[0]["model_name"]) == ("VARIANT_UNKNOWN", "detector")


async def test_an_error_names_the_sender_though_a_field_has_the_wrong_type(tmp_path: Path) -> None:
    async with site(tmp_path) as place:
        place.snapshot(snapshot_json(jpeg(), device_id="cam-9", timestamp=5, priority="1"))
        place.snapshot(b'{"device_id": ["x"], "image_data": 5}')
        await place.answered(2)
    assert [(error["device_id"], error["timestamp"] == 5) for error in place.errors] == [("cam-9", True), ("gw", False)]


async def test_layouts_that_never_come_back_are_not_asked_for_ever(tmp_path: Path) -> None:
    folder = tmp_path / "layouts"
    folder.mkdir()
    (folder / "mine.py").write_text(HOSTILE)
    load_custom_layouts(folder)
    write_model(tmp_path / "models", inference={"output": "breadth-sleeps"})
    rows = (TensorSpec("rows", "FP32", (-1, 1, 5)),)
    triton = model(lambda _: {"rows": np.zeros((1, 1, 5), np.float32)}, (IMAGES,), rows, 8)
    async with site(tmp_path / "models", triton=triton, snapshot_deadline_ms=400) as place:
        for number in range(12):
            place.snapshot(snapshot_json(jpeg(seed=number)))
        await place.answered(12)
        assert place.gateway.stuck
        place.snapshot(snapshot_json(jpeg(seed=99)))
        await place.answered(13)
        assert "cannot run: others have not come back" in place.errors[-1]["error"]["message"]
        sys.modules[f"layout file {folder / 'mine.py'}"].release.set()
        await until(lambda: not place.gateway.stuck, "the end of the layouts")
