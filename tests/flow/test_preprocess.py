"""Step 4 as a whole: pictures into the inputs of every variant, each pixel where the geometry says."""

from __future__ import annotations

import io
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pydantic import ValidationError

from gateway.flow.preprocess import prepare_picture
from gateway.models.input_plan import ExtraInput, InputPlan
from gateway.models.preprocessing_spec import PreprocessingSpec, SensorSpec
from tests.flow.picture_files import LIMIT, SEEDS, encode, gradient, noise, plan, prepare, spec

MODES: dict[str, dict[str, Any]] = {
    "letterbox": {"mode": "letterbox"},
    "top-left": {"mode": "letterbox", "align": "top-left"},
    "stretch": {"mode": "stretch"},
    "crop": {"mode": "crop"},
    "crop 0.8": {"mode": "crop", "crop_fraction": 0.8},
    "tiles": {"mode": "tiles", "tiles": {"max_tiles": 6}},
}


@pytest.mark.parametrize("resample", ["bilinear", "bicubic", "opencv"])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("size", [(640, 480), (480, 640), (1920, 1080), (96, 64), (33, 17), (1000, 3), (7, 5)])
@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_each_pixel_lands_where_the_geometry_says(mode: str, size: tuple[int, int], kind: str, resample: str) -> None:
    width, height = size
    more = {"quality": 95, "subsampling": 0} if kind == "JPEG" else {}
    payload = encode(gradient(width, height), kind, **more)

    tensor, geometries = prepare(payload, spec(resample=resample, **MODES[mode]), plan())

    assert tensor.shape == (len(geometries), 3, 64, 96)
    assert tensor.dtype == np.float32
    for one, geometry in zip(tensor, geometries, strict=True):
        assert (geometry.width, geometry.height) == size
        left, top, right, bottom = geometry.box or (0, 0, width, height)
        for axis, start, end, scale, offset in (
            (1, left, right, geometry.scale_x, geometry.offset_x),
            (0, top, bottom, geometry.scale_y, geometry.offset_y),
        ):
            position = (np.arange(one.shape[1 + axis]) + 0.5 - offset) / scale - 0.5
            margin = 4 / scale + 2  # the filter's reach at the picture's edge
            inside = (start + margin < position) & (position < end - 1 - margin)
            if min(size) > 16 and inside.any():
                middle = (top + bottom) / 2 * geometry.scale_y + geometry.offset_y, 0
                across = (left + right) / 2 * geometry.scale_x + geometry.offset_x
                line = one[0, int(middle[0]), :] if axis else one[1, :, int(across)]
                expected = position / ((width if axis else height) - 1) * 255
                np.testing.assert_allclose(line[inside], expected[inside], atol=4)


def test_letterbox_pads_on_both_sides_or_right_and_below() -> None:
    payload = encode(gradient(40, 40), "PNG")
    tensor, (geometry,) = prepare(payload, spec(pad_value=114), plan())

    assert (geometry.scale_x, geometry.scale_y, geometry.offset_x, geometry.offset_y) == (1.6, 1.6, 16, 0)
    assert (tensor[..., :16] == 114).all()
    assert (tensor[..., 80:] == 114).all()
    assert (tensor[0, 2, :, 16:80] == 50).all()

    tensor, (geometry,) = prepare(payload, spec(pad_value=114, align="top-left"), plan())

    assert (geometry.scale_x, geometry.scale_y, geometry.offset_x, geometry.offset_y) == (1.6, 1.6, 0, 0)
    assert (tensor[..., 64:] == 114).all()
    assert (tensor[0, 2, :, :64] == 50).all()


def test_a_tile_shows_its_part_of_the_picture_pixel_by_pixel() -> None:
    picture = noise(200, 120)
    tensor, geometries = prepare(encode(picture, "PNG"), spec(mode="tiles", tiles={"max_tiles": 9}), plan())

    assert geometries[0].box is None
    assert len(geometries) == 1 + 3 * 3
    for one, geometry in zip(tensor[1:], geometries[1:], strict=True):
        assert geometry.box is not None
        assert (geometry.scale_x, geometry.scale_y) == (1, 1)
        left, top, right, bottom = (int(edge) for edge in geometry.box)
        assert (geometry.offset_x, geometry.offset_y) == (-left, -top)
        np.testing.assert_array_equal(one.transpose(1, 2, 0), np.asarray(picture)[top:bottom, left:right])


@pytest.mark.parametrize("mode", MODES)
def test_a_large_jpeg_looks_as_when_it_is_decoded_in_full(mode: str) -> None:
    payload = encode(gradient(1920, 1080), "JPEG", quality=95)
    whole = Image.open(io.BytesIO(payload)).convert("RGB")

    exact, _ = prepare(encode(whole, "PNG"), spec(**MODES[mode]), plan())
    drafted, _ = prepare(payload, spec(**MODES[mode]), plan())

    assert np.abs(exact - drafted).max() < 4


# --- one picture, several variants --------------------------------------------------------------------------


def test_variants_that_want_the_same_share_one_array() -> None:
    size = ExtraInput("size", "input_height_width", "INT64")
    onnx, torch, detr = plan(), InputPlan("INPUT__0", 64, 96), plan(extras=(size,))
    other = plan(datatype="FP16")

    prepared = prepare_picture(SEEDS["JPEG "], spec(), [onnx, torch, detr, other], LIMIT)

    shared = prepared[onnx].tensors["images"]
    assert prepared[torch].tensors["INPUT__0"] is shared
    assert prepared[detr].tensors["images"] is shared
    assert prepared[other].tensors["images"].dtype == np.float16
    assert list(prepared[detr].tensors) == ["images", "size"]


def test_variants_of_different_size_see_the_same_picture() -> None:
    payload = encode(gradient(1920, 1080), "JPEG", quality=95)
    small, large = plan(64, 64), plan(448, 256)

    prepared = prepare_picture(payload, spec(mode="stretch"), [small, large], LIMIT)

    for one in (small, large):
        alone, _ = prepare(payload, spec(mode="stretch"), one)
        tensor = prepared[one].tensors["images"]
        assert tensor.shape == (1, 3, one.height, one.width)
        assert np.abs(tensor - alone).max() < 4
        assert prepared[one].geometries[0].scale_x == one.width / 1920


def test_pictures_are_prepared_side_by_side_in_threads() -> None:
    large = encode(gradient(2600, 1700), "PNG", compress_level=1)
    payloads = [*SEEDS.values(), large, large] * 2
    expected = {payload: prepare(payload, spec(), plan())[0] for payload in set(payloads)}

    with ThreadPoolExecutor(4) as threads:
        tensors = list(threads.map(lambda payload: prepare(payload, spec(), plan())[0], payloads))

    for payload, tensor in zip(payloads, tensors, strict=True):
        np.testing.assert_array_equal(tensor, expected[payload])


# --- what model.yaml may say --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "match"),
    [
        ({"crop_fraction": 0.9}, "crop_fraction has no effect without mode: crop"),
        ({"mode": "crop", "crop_fraction": 0.01}, "greater than or equal to 0.1"),
        ({"tiles": {"size": 640}}, "tiles has no effect without mode: tiles"),
        ({"mode": "tiles", "tiles": {"size": 5}}, "between 8 and"),
        ({"mode": "crop", "align": "top-left"}, "align has no effect"),
        ({"mode": "stretch", "pad_value": 0}, "pad_value has no effect"),
        ({"normalize": False, "mean": 0.5}, "mean has no effect without normalize: true"),
        ({"std": 0}, "each value must be above 0"),
        ({"mean": float("nan")}, "finite"),
        ({"std": float("inf")}, "finite"),
        ({"mean": True}, "valid tuple"),
    ],
)
def test_what_has_no_effect_or_no_sense_is_refused(given: dict[str, Any], match: str) -> None:
    with pytest.raises(ValidationError, match=match):
        PreprocessingSpec(**given)


def test_tiles_may_lie_as_a_letterbox_does() -> None:
    assert PreprocessingSpec(mode="tiles", align="top-left").align == "top-left"


def test_the_mean_of_a_sensor_is_finite() -> None:
    with pytest.raises(ValidationError, match="finite"):
        SensorSpec(mean=(float("nan"),))
