"""Which numbers the pixels and readings become, and what stands beside them."""

from __future__ import annotations

import io
from typing import Any, get_args

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as st_numpy
from numpy.typing import NDArray
from PIL import Image

from gateway.flow.preprocess import prepare_picture, prepare_window
from gateway.flow.tensors import NUMPY_TYPES
from gateway.models.input_plan import ExtraInput, InputPlan, Meaning, WindowPlan
from gateway.models.preprocessing_spec import PreprocessingSpec, SensorSpec
from tests.flow.picture_files import LIMIT, encode, exif, gradient, noise, plan, prepare, spec

FLAT = encode(Image.new("RGB", (8, 8), (200, 100, 50)), "PNG")
GREY = 0.299 * 200 + 0.587 * 100 + 0.114 * 50  # ITU-R 601
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def pixel(payload: bytes, plan: InputPlan | None = None, **more: Any) -> NDArray[Any]:
    """The numbers in the middle of the tensor."""
    plan = plan or InputPlan("images", 64, 96)
    tensor = prepare(payload, spec(**more), plan)[0]
    middle: NDArray[Any] = tensor[0, 32, 48, :] if plan.channels_last else tensor[0, :, 32, 48]
    return middle


# --- colours ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("picture", "expected"),
    [
        (Image.new("RGB", (8, 8), (200, 100, 50)), (200, 100, 50)),
        (Image.new("RGBA", (8, 8), (200, 100, 50, 10)), (200, 100, 50)),
        (Image.new("L", (8, 8), 77), (77, 77, 77)),
        (Image.new("LA", (8, 8), (77, 3)), (77, 77, 77)),
        (Image.new("1", (8, 8), 1), (255, 255, 255)),
        (Image.new("RGB", (8, 8), (200, 100, 50)).quantize(4), (200, 100, 50)),
        (Image.fromarray(np.full((8, 8), 0x4DFF, np.uint16)), (0x4D, 0x4D, 0x4D)),
    ],
    ids=["RGB", "RGBA", "L", "LA", "1", "P", "I;16"],
)
def test_every_kind_of_picture_becomes_rgb(picture: Image.Image, expected: tuple[int, ...]) -> None:
    assert pixel(encode(picture, "PNG")).tolist() == list(expected)


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
@pytest.mark.parametrize("resample", ["bilinear", "opencv"])
def test_grey_is_luma_in_one_channel_or_in_three(kind: str, resample: str) -> None:
    payload = encode(Image.new("RGB", (400, 300), (200, 100, 50)), kind, **({"quality": 100} if kind == "JPEG" else {}))
    one = InputPlan("images", 64, 96, channels=1)

    for plan_, more in ((one, {}), (one, {"color": "GRAY"}), (None, {"color": "GRAY"})):
        values = pixel(payload, plan_, resample=resample, **more)
        assert values.shape == ((1,) if plan_ else (3,))
        np.testing.assert_allclose(values, GREY, atol=1.01)
    assert pixel(encode(Image.new("L", (8, 8), 77), kind), one).tolist() == [77]


def test_colour_order_mean_and_std() -> None:
    assert pixel(FLAT, color="BGR").tolist() == [50, 100, 200]
    np.testing.assert_allclose(pixel(FLAT, normalize=True), np.array([200, 100, 50]) / 255, atol=1e-6)
    np.testing.assert_allclose(
        pixel(FLAT, normalize=True, mean=MEAN, std=STD), (np.array([200, 100, 50]) / 255 - MEAN) / STD, atol=1e-5
    )
    np.testing.assert_allclose(
        pixel(FLAT, normalize=True, mean=MEAN, std=STD, color="BGR"),
        (np.array([50, 100, 200]) / 255 - MEAN) / STD,
        atol=1e-5,
    )


def test_one_number_stands_for_all_channels_and_one_channel_takes_the_first() -> None:
    assert PreprocessingSpec(mean=0.5, std=0.25) == PreprocessingSpec(mean=(0.5,) * 3, std=(0.25,) * 3)
    np.testing.assert_allclose(
        pixel(FLAT, InputPlan("images", 64, 96, channels=1), normalize=True, mean=MEAN, std=STD),
        (round(GREY) / 255 - MEAN[0]) / STD[0],
        atol=0.02,
    )


def test_padding_is_normalised_like_the_picture() -> None:
    payload = encode(Image.new("RGB", (8, 8)), "PNG")
    given = spec(normalize=True, pad_value=51, mean=(0.1, 0, 0), std=(0.5, 1, 1))

    for channels_last in (False, True):
        tensor, _ = prepare(payload, given, plan(channels_last=channels_last))
        corner = tensor[0, 0, 0] if channels_last else tensor[0, :, 0, 0]
        np.testing.assert_allclose(corner, [0.2, 0.2, 0.2], atol=1e-6)


# --- axes and datatypes -----------------------------------------------------------------------------------


@pytest.mark.parametrize("datatype", ["FP32", "FP16", "UINT8", "INT8"])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("mode", ["letterbox", "crop", "stretch", "tiles"])
def test_the_order_of_the_axes_changes_no_number(datatype: Any, channels: Any, mode: str) -> None:
    payload, given = encode(noise(150, 110), "PNG"), spec(mode=mode, normalize=True, mean=MEAN, std=STD)
    first = plan(datatype=datatype, channels=channels)
    last = plan(datatype=datatype, channels=channels, channels_last=True)

    prepared = prepare_picture(payload, given, [first, last], LIMIT)
    tensors = [prepared[one].tensors["images"] for one in (first, last)]

    tiles = 5 if mode == "tiles" else 1
    assert tensors[0].shape == (tiles, channels, 64, 96)
    assert tensors[1].shape == (tiles, 64, 96, channels)
    assert prepared[first].count == len(prepared[first].geometries) == tiles
    np.testing.assert_array_equal(tensors[0].transpose(0, 2, 3, 1), tensors[1])
    assert {tensor.dtype for tensor in tensors} == {np.dtype(NUMPY_TYPES[datatype])}
    assert all(tensor.flags.c_contiguous for tensor in tensors)


@pytest.mark.parametrize("mode", ["letterbox", "tiles"])
def test_whole_numbers_are_the_pixels_as_they_are(mode: str) -> None:
    payload = encode(noise(150, 110), "PNG")
    plain, _ = prepare(payload, spec(mode=mode), plan())
    normal = spec(mode=mode, normalize=True, mean=MEAN, std=STD)

    unsigned, _ = prepare(payload, normal, plan(datatype="UINT8"))
    signed, _ = prepare(payload, normal, plan(datatype="INT8"))
    half, _ = prepare(payload, normal, plan(datatype="FP16"))

    np.testing.assert_array_equal(unsigned, plain)
    np.testing.assert_array_equal(signed.astype(int), plain - 128)
    np.testing.assert_array_equal(half, prepare(payload, normal, plan())[0].astype(np.float16))


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("datatype", ["FP32", "FP16", "UINT8", "INT8"])
def test_the_numbers_are_written_into_the_memory_that_is_given(datatype: Any, channels_last: bool) -> None:
    """It may be a slot that Triton reads, full of the numbers of another picture: each of them is overwritten."""
    payload, given = encode(noise(150, 110), "PNG"), spec(mode="tiles", normalize=True, mean=MEAN, std=STD, color="BGR")
    wanted = plan(datatype=datatype, channels_last=channels_last)
    slots: list[NDArray[Any]] = []

    def allocate(shape: tuple[int, ...], kind: np.dtype[Any]) -> NDArray[Any]:
        slots.append(np.full(np.prod(shape) * kind.itemsize, 0x55, np.uint8).view(kind).reshape(shape))
        return slots[-1]

    tensor = prepare_picture(payload, given, [wanted], LIMIT, allocate)[wanted].tensors["images"]

    assert tensor is slots[0]
    assert len(slots) == 1
    np.testing.assert_array_equal(tensor, prepare(payload, given, wanted)[0])


# --- resampling -------------------------------------------------------------------------------------------


def by_opencv(picture: Image.Image, width: int, height: int, interpolation: int = cv2.INTER_LINEAR) -> NDArray[Any]:
    return np.asarray(cv2.resize(np.asarray(picture), (width, height), interpolation=interpolation))


@settings(deadline=None, max_examples=60)
@given(
    size=st.tuples(st.integers(1, 300), st.integers(1, 300)),
    wanted=st.tuples(st.integers(8, 200), st.integers(8, 200)),
    grey=st.booleans(),
)
def test_opencv_gives_the_pixels_of_opencv(size: tuple[int, int], wanted: tuple[int, int], grey: bool) -> None:
    picture = noise(*size).convert("L" if grey else "RGB")
    tensor, _ = prepare(
        encode(picture, "PNG"), spec(mode="stretch", resample="opencv"), plan(*wanted, channels=1 if grey else 3)
    )
    expected = by_opencv(picture, wanted[1], wanted[0]).reshape(*wanted, -1)

    assert np.abs(tensor[0].transpose(1, 2, 0) - expected).max() <= 1


def test_opencv_leans_to_no_side() -> None:
    picture = noise(640, 480)
    tensor, _ = prepare(encode(picture, "PNG"), spec(mode="stretch", resample="opencv"), plan())

    assert np.mean(tensor[0].transpose(1, 2, 0) != by_opencv(picture, 96, 64)) < 0.01


def test_opencv_decodes_a_jpeg_in_full_and_upright() -> None:
    payload = encode(noise(640, 480), "JPEG", exif=exif(6), quality=95)
    upright = cv2.cvtColor(cv2.imdecode(np.frombuffer(payload, np.uint8), cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB)
    expected = cv2.resize(upright, (48, 64), interpolation=cv2.INTER_LINEAR)

    tensor, _ = prepare(payload, spec(resample="opencv"), plan())

    assert upright.shape == (640, 480, 3)
    assert np.abs(tensor[0, :, :, 24:72].transpose(1, 2, 0) - expected).max() <= 3  # the two libjpegs differ by one


def test_opencv_crops_after_it_resized() -> None:
    picture = noise(300, 200)
    tensor, _ = prepare(encode(picture, "PNG"), spec(mode="crop", resample="opencv"), plan(64, 64))
    expected = by_opencv(picture, 96, 64)[:, 16:80]

    assert np.abs(tensor[0].transpose(1, 2, 0) - expected).max() <= 1


@pytest.mark.parametrize("resample", ["bilinear", "bicubic"])
@pytest.mark.parametrize("size", [(52, 135), (300, 200), (1280, 720)])
def test_a_crop_has_the_pixels_of_torchvision_and_timm(size: tuple[int, int], resample: str) -> None:
    picture = noise(*size)
    payload = encode(picture, "JPEG", quality=95)
    given = spec(mode="crop", crop_fraction=0.875, resample=resample, decode="full")
    tensor, _ = prepare(payload, given, plan(56, 56))
    width, height = (64 if side == min(size) else 64 * side // min(size) for side in size)
    whole = Image.open(io.BytesIO(payload)).resize((width, height), Image.Resampling[resample.upper()])
    left, top = round((whole.width - 56) / 2), round((whole.height - 56) / 2)
    expected = np.asarray(whole.crop((left, top, left + 56, top + 56)))

    np.testing.assert_array_equal(tensor[0].transpose(1, 2, 0), expected)


@pytest.mark.parametrize("decode", ["scaled", "full"])
@pytest.mark.parametrize("resample", ["bilinear", "bicubic"])
def test_the_others_smooth_what_they_shrink(resample: str, decode: str) -> None:
    """The fast way rounds differently now and then; `decode: full` has Pillow's own pixels."""
    picture = noise(960, 640)
    given = spec(mode="stretch", resample=resample, decode=decode)
    tensor, _ = prepare(encode(picture, "PNG"), given, plan())
    expected = np.asarray(picture.resize((96, 64), Image.Resampling[resample.upper()]))

    apart = tensor[0].transpose(1, 2, 0) - expected
    assert np.abs(apart).max() <= (0 if decode == "full" else 1)
    assert abs(apart.mean()) < 0.1
    assert np.std(tensor) < 20 < np.std(by_opencv(picture, 96, 64))


def test_a_letterboxed_picture_looks_as_with_opencv() -> None:
    tensor, _ = prepare(encode(gradient(400, 200), "PNG"), spec(), plan())
    expected = cv2.copyMakeBorder(
        by_opencv(gradient(400, 200), 96, 48, cv2.INTER_AREA), 8, 8, 0, 0, cv2.BORDER_CONSTANT, value=(114,) * 3
    )

    assert np.abs(tensor[0].transpose(1, 2, 0) - expected)[:, 2:-2].max() < 4


# --- what stands beside the picture -----------------------------------------------------------------------


@pytest.mark.parametrize("datatype", ["INT64", "INT32", "FP32", "FP16"])
def test_sizes_and_scales_are_those_of_the_input(datatype: str) -> None:
    extras = tuple(ExtraInput(meaning, meaning, datatype) for meaning in get_args(Meaning)[:3])
    asked = plan(extras=extras)

    tensors = prepare_picture(encode(noise(192, 64), "PNG"), spec(mode="tiles"), [asked], LIMIT)[asked].tensors

    assert list(tensors) == ["images", "input_height_width", "input_width_height", "scale_height_width"]
    assert tensors["input_height_width"].tolist() == [[64, 96]] * 4
    assert tensors["input_width_height"].tolist() == [[96, 64]] * 4
    assert tensors["scale_height_width"].tolist() == [[1, 1]] * 4
    assert {tensors[extra.name].dtype for extra in extras} == {np.dtype(NUMPY_TYPES[datatype])}


@pytest.mark.parametrize("datatype", ["BOOL", "INT64", "FP32", "UINT8"])
@pytest.mark.parametrize("mode", ["letterbox", "crop", "stretch", "tiles"])
def test_the_mask_is_one_where_picture_is(mode: str, datatype: str) -> None:
    asked = plan(extras=(ExtraInput("pixel_mask", "mask", datatype),))
    white = encode(Image.new("RGB", (150, 200), (255,) * 3), "PNG")
    padding = {"pad_value": 0} if mode in ("letterbox", "tiles") else {}

    tensors = prepare_picture(white, spec(mode=mode, **padding), [asked], LIMIT)[asked].tensors

    assert tensors["pixel_mask"].dtype == NUMPY_TYPES[datatype]
    np.testing.assert_array_equal(tensors["pixel_mask"].astype(bool), tensors["images"][:, 0] > 0)


# --- readings ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shape", "turned"),
    [((4, 2), False), ((2, 4), True), ((8,), False), ((1, 4, 2), False), ((1, 2, 4), True), ((2, 1, 4), True)],
)
def test_readings_take_the_shape_that_the_model_wants(shape: tuple[int, ...], turned: bool) -> None:
    readings = np.arange(8, dtype=np.float64).reshape(4, 2)
    wanted = WindowPlan("values", shape)

    prepared = prepare_window(readings, SensorSpec(window=4, channels=2), [wanted])[wanted]

    assert (prepared.geometries, prepared.count) == ((), 1)
    expected = (readings.T if turned else readings).reshape(1, *shape)
    np.testing.assert_array_equal(prepared.tensors["values"], expected)
    assert prepared.tensors["values"].dtype == np.float32


def test_one_reading_is_a_row_of_channels() -> None:
    wanted = WindowPlan("values", (3,), "FP16")
    given = SensorSpec(channels=3, mean=(1.0, 2.0, 3.0), std=(2.0, 4.0, 0.5))

    tensor = prepare_window(np.array([[3.0, 2.0, 1.0]]), given, [wanted])[wanted].tensors["values"]

    assert tensor.tolist() == [[1.0, 0.0, -4.0]]
    assert tensor.dtype == np.float16


@given(
    readings=st_numpy.arrays(np.float64, (3, 2), elements=st.floats(allow_nan=False, allow_infinity=False)),
    datatype=st.sampled_from(["FP32", "FP16"]),
)
def test_readings_stay_finite(readings: NDArray[np.float64], datatype: Any) -> None:
    wanted = WindowPlan("values", (3, 2), datatype)

    tensor = prepare_window(readings, SensorSpec(window=3, channels=2), [wanted])[wanted].tensors["values"]

    assert np.isfinite(tensor).all()


def test_normalising_does_not_change_the_readings() -> None:
    readings = np.ones((1, 1))
    wanted = WindowPlan("values", (1,))
    prepare_window(readings, SensorSpec(mean=(5.0,), std=(2.0,)), [wanted])

    assert readings.tolist() == [[1.0]]
