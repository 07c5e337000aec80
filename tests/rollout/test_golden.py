"""Golden examples: read strictly, asked as snapshots are, and held against what was expected."""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
from collections.abc import AsyncIterator, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from gateway.adapters.triton import TritonServer
from gateway.errors import BackendRejected, BackendUnavailable, ConfigError, ModelUnavailable
from gateway.flow.answering import Answering
from gateway.flow.infer import Inference
from gateway.flow.reading import Reader
from gateway.layouts.binding import BoundOutput
from gateway.live import Live
from gateway.local.tritonserver import EmbeddedTriton
from gateway.messages import ModelSignature, Prediction, TensorSpec, VariantResult
from gateway.models.catalog import ServedModel, ServedVariant, State
from gateway.models.input_plan import WindowPlan
from gateway.models.repository import read_model
from gateway.models.signature import fit
from gateway.ports import InferenceServer
from gateway.rollout.golden import (
    MAX_EXAMPLES,
    MAX_PICTURE_BYTES,
    Example,
    Expected,
    ExpectedPrediction,
    GoldenReport,
    check_golden,
    difference,
    read_golden,
)
from gateway.rollout.warm import warm
from gateway.testing import MemoryTriton
from tests.flow.builders import head, jpeg, sensor_spec, served, settings, signature, spec

REPOSITORY = Path(__file__).parents[2] / "model_repository"
Arrays = Mapping[str, NDArray[Any]]
SEEN = (32.0, 32.0, 20.0, 40.0, 0, 0.9)
"""In the input of 64x64; the picture is 64x48, so that it lies 8 pixels below the upper edge."""
FOUND = {"class": "person_with_helmet", "class_id": 0, "confidence": 0.9, "bbox": [22, 4, 42, 44]}


def write(folder: Path, *entries: Any, text: str | None = None) -> Path:
    """The folder of a logical model with this expected.json and two pictures beside it."""
    golden = folder / "golden"
    golden.mkdir(parents=True, exist_ok=True)
    (golden / "a.jpg").write_bytes(jpeg())
    (golden / "b.jpg").write_bytes(jpeg(seed=1))
    (golden / "expected.json").write_text(json.dumps(entries) if text is None else text)
    return folder


def entry(*predictions: Any, image: str = "a.jpg", **more: Any) -> dict[str, Any]:
    return {"image": image, "predictions": list(predictions), **more}


# --- reading ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["industrial-safety", "walkway", "temperature-anomaly"])
def test_the_samples_are_read(name: str) -> None:
    examples = read_golden(REPOSITORY / name)
    assert len(examples) >= 4
    assert all(example.path.is_file() and example.expected.predictions is not None for example in examples)


def test_a_model_without_golden_examples_has_none(tmp_path: Path) -> None:
    assert read_golden(tmp_path) == ()
    (tmp_path / "golden").mkdir()
    assert read_golden(tmp_path) == ()
    assert read_golden(write(tmp_path)) == ()


def test_predictions_may_be_copied_from_a_result_message(tmp_path: Path) -> None:
    copied = {**FOUND, "polygons": [[[1, 2], [3, 4], [5, 6]]], "rle": {"size": [4, 4], "counts": "04"}}
    (example,) = read_golden(write(tmp_path, entry(copied)))
    assert example.name == "a.jpg"
    assert example.expected.predictions is not None
    assert example.expected.predictions[0].bbox == (22, 4, 42, 44)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "cannot be understood"),
        ("{}", "Expected `array`, got `object`"),
        ("\xff", "cannot be understood"),
        ("[" * 100_000, "cannot be understood"),
        ('[{"image": "a.jpg", "predictions": [{"class": "x"}]}]', "missing required field `confidence`"),
        ('[{"image": "a.jpg", "predictions": [{"class": "x", "confidence": 2}]}]', "<= 1"),
        ('[{"image": "a.jpg", "predictions": [{"class": "x", "confidence": NaN}]}]', "cannot be understood"),
        ('[{"image": "a.jpg", "predictoins": []}]', "unknown field `predictoins`"),
        ('[{"image": "a.jpg"}]', "nothing is expected of it"),
        ('[{"predictions": []}]', "either an image or readings"),
        ('[{"image": "a.jpg", "readings": "b.jpg", "predictions": []}]', "either an image or readings"),
        ('[{"image": "missing.jpg", "predictions": []}]', "No such file"),
        ('[{"image": "../model.yaml", "predictions": []}]', "no name of a file beside it"),
        ('[{"image": "/etc/passwd", "predictions": []}]', "no name of a file beside it"),
        ('[{"image": "..", "predictions": []}]', "no name of a file beside it"),
        ('[{"image": "a\\u0000.jpg", "predictions": []}]', "no name of a file beside it"),
        ("[" + ",".join(['{"image": "a.jpg", "predictions": []}'] * (MAX_EXAMPLES + 1)) + "]", "1001 examples"),
        ('[{"image": "a.jpg", "values": [' + "1," * 2_500_000 + "1]}]", "larger than 4 MiB"),
    ],
    ids=range(18),
)
def test_a_malformed_list_is_refused_with_a_reason(tmp_path: Path, text: str, said: str) -> None:
    folder = write(tmp_path, text=text)
    if text == "\xff":
        (folder / "golden" / "expected.json").write_bytes(b'[{"image": "\xff"}]')
    with pytest.raises(ConfigError) as caught:
        read_golden(folder)
    assert said in str(caught.value)
    assert "golden" in caught.value.where
    assert caught.value.fix


@pytest.mark.parametrize("what", ["expected.json", "a.jpg"])
@pytest.mark.parametrize("kind", ["outside", "dangling", "circle", "fifo", "folder"])
def test_only_regular_files_of_the_model_itself_are_read(tmp_path: Path, what: str, kind: str) -> None:
    folder = write(tmp_path / "model", entry())
    path = folder / "golden" / what
    (tmp_path / "outside").write_bytes(path.read_bytes())
    path.unlink()
    match kind:
        case "outside":
            path.symlink_to(tmp_path / "outside")
        case "dangling":
            path.symlink_to("nowhere")
        case "circle":
            path.symlink_to(path.name)
        case "fifo":
            os.mkfifo(path)
        case "folder":
            path.mkdir()
    with pytest.raises(ConfigError, match=r"leads out|cannot be read"):
        read_golden(folder)


def test_links_within_the_folder_are_followed_as_a_mounted_configmap_needs(tmp_path: Path) -> None:
    folder = write(tmp_path, entry())
    (folder / "golden" / "..data").mkdir()
    for name in ("expected.json", "a.jpg"):
        (folder / "golden" / name).rename(folder / "golden" / "..data" / name)
        (folder / "golden" / name).symlink_to(Path("..data") / name)
    assert [example.name for example in read_golden(folder)] == ["a.jpg"]


def test_a_huge_picture_is_refused_before_it_is_read(tmp_path: Path) -> None:
    folder = write(tmp_path, entry())
    os.truncate(folder / "golden" / "a.jpg", MAX_PICTURE_BYTES + 1)
    with pytest.raises(ConfigError, match="larger than 64 MiB"):
        read_golden(folder)


@given(st.binary(max_size=200) | st.recursive(st.none() | st.integers() | st.text(max_size=5), st.lists).map(
    lambda value: json.dumps(value).encode()))  # fmt: skip
def test_any_bytes_are_examples_or_a_config_error(content: bytes) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = write(Path(name))
        (folder / "golden" / "expected.json").write_bytes(content)
        with contextlib.suppress(ConfigError):
            read_golden(folder)


# --- asking -------------------------------------------------------------------------------------------


@contextlib.contextmanager
def answering_of(server: InferenceServer, **more: Any) -> Iterator[Answering]:
    """The steps of the flow without a gateway around them."""
    live = Live(settings(**more))
    with ThreadPoolExecutor(1) as threads:
        reader = Reader(threads)
        yield Answering(Inference(server, None, live), reader, threads, live, None)
        reader.close()


class Trial:
    """Version 2 of a detector beside version 1, which sees nothing."""

    def __init__(self, **more: Any) -> None:
        self.triton = MemoryTriton()
        model = served(spec(**more))
        variants = {
            name: replace(variant, version="2", pinned=True, max_batch=8) for name, variant in model.variants.items()
        }
        self.candidate = replace(model, variants=variants, version=2)
        for name in variants:
            self.serve(name, 1)
            self.serve(name, 2, SEEN)

    def serve(self, variant: str, version: int, *seen: tuple[float, float, float, float, int, float]) -> None:
        drop = replace(signature(f"detector-{variant}"), version=str(version))
        self.triton.add_model(drop, lambda _inputs: {"output0": head(*seen)})

    async def check(self, folder: Path, *entries: Any) -> GoldenReport:
        for variant in self.candidate.variants.values():
            await self.triton.load(variant.triton_model, (1, 2))
        return await self.ask(folder, *entries)

    async def ask(self, folder: Path, *entries: Any) -> GoldenReport:
        with answering_of(self.triton) as answering:
            return await check_golden(read_golden(write(folder, *entries)), self.candidate, answering)


async def test_what_is_expected_passes_with_every_variant_of_the_candidates_version(tmp_path: Path) -> None:
    trial = Trial()
    report = await trial.check(tmp_path, entry(FOUND), entry(FOUND, image="b.jpg"))
    assert report == GoldenReport(2, ("onnx", "torch"))
    assert report.passed
    assert [(each.model, each.version) for each in trial.triton.requests] == [
        ("detector-onnx", "2"),
        ("detector-torch", "2"),
    ] * 2


async def test_the_first_failure_names_example_variant_and_what_came(tmp_path: Path) -> None:
    trial = Trial()
    trial.serve("torch", 2, (32.0, 32.0, 20.0, 40.0, 1, 0.9))
    report = await trial.check(tmp_path, entry(FOUND))
    assert not report.passed
    assert report.failure == (
        "a.jpg, torch: expected person_with_helmet 0.90 at [22, 4, 42, 44], "
        "came person_without_helmet 0.90 at [22, 4, 42, 44]"
    )
    assert "expected.json" in report.fix


async def test_what_is_not_expected_fails(tmp_path: Path) -> None:
    report = await Trial().check(tmp_path, entry())
    assert (
        report.failure
        == "a.jpg, onnx: person_with_helmet 0.90 at [22, 4, 42, 44] came and is not expected (nothing is)"
    )


async def test_a_variant_that_this_version_does_not_bring_is_not_asked(tmp_path: Path) -> None:
    trial = Trial()
    absent = replace(trial.candidate.variants["torch"], state=State.ABSENT)
    trial.candidate = trial.candidate.with_variant(absent)
    assert (await trial.check(tmp_path, entry(FOUND))).variants == ("onnx",)


async def test_regions_of_cameras_do_not_hold(tmp_path: Path) -> None:
    corner = [[0.9, 0.9], [1, 0.9], [1, 1]]
    assert (await Trial(cameras={"*": {"regions": [corner]}}).check(tmp_path, entry(FOUND))).passed


async def test_variants_that_each_fit_but_differ_fail_by_each_other(tmp_path: Path) -> None:
    trial = Trial(rollout={"golden_iou": 0.3}, inference={"output": "yolov8", "match_iou": 0.9})
    trial.serve("torch", 2, (36.0, 32.0, 20.0, 40.0, 0, 0.9))
    report = await trial.check(tmp_path, entry(FOUND))
    assert report.failure.startswith("onnx and torch agree by 0.00 on the golden examples, at least 0.90 is due")
    assert "a.jpg" in report.failure


async def test_an_error_of_the_model_is_a_failure(tmp_path: Path) -> None:
    trial = Trial()
    trial.triton.fail("detector-torch", BackendRejected("division by zero", fix="See the log"), version=2)
    report = await trial.check(tmp_path, entry(FOUND))
    assert (report.failure, report.fix) == ("a.jpg, torch: division by zero", "See the log")


async def test_a_triton_that_is_away_is_no_failure(tmp_path: Path) -> None:
    trial = Trial()
    with pytest.raises(ModelUnavailable):
        await trial.ask(tmp_path, entry(FOUND))
    trial.triton.stop()
    with pytest.raises(BackendUnavailable):
        await trial.ask(tmp_path, entry(FOUND))


@pytest.mark.parametrize(
    ("content", "said"), [(b"no picture", "picture"), (b"", "picture"), (None, "cannot be read")], ids=range(3)
)
async def test_a_picture_that_is_none_or_has_gone_is_a_failure(
    tmp_path: Path, content: bytes | None, said: str
) -> None:
    trial = Trial()
    examples = read_golden(write(tmp_path, entry(FOUND)))
    examples[0].path.unlink()
    if content is not None:
        examples[0].path.write_bytes(content)
    with answering_of(trial.triton) as answering:
        report = await check_golden(examples, trial.candidate, answering)
    assert report.failure.startswith("a.jpg")
    assert said in report.failure


async def test_a_picture_with_too_many_pixels_is_a_failure(tmp_path: Path) -> None:
    folder = write(tmp_path, entry(FOUND))
    (folder / "golden" / "a.jpg").write_bytes(jpeg(200, 100))
    with answering_of(MemoryTriton(), max_image_pixels=4096) as answering:
        report = await check_golden(read_golden(folder), Trial().candidate, answering)
    assert report.failure == "a.jpg: 200x100 pixels, more than 4096"


# --- models on plain numbers --------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def thermometer() -> AsyncIterator[tuple[ServedModel, Answering]]:
    """A model that gives nothing back, so that the error is the mean of the squares."""
    model, triton = sensor_spec(), MemoryTriton()
    name = "thermometer-onnx"
    drop = ModelSignature(name, "1", (TensorSpec("x", "FP32", (-1, 4, 1)),), (TensorSpec("y", "FP32", (-1, 4, 1)),), 8)
    triton.add_model(drop, lambda inputs: {"y": np.zeros_like(inputs["x"])})
    await triton.load(name)
    variant = ServedVariant("onnx", name, State.READY, "", version="1", plan=WindowPlan("x", (4, 1)),
                            outputs={"reconstruction": BoundOutput("y", batch_axis=True)})  # fmt: skip
    with answering_of(triton) as answering:
        yield ServedModel(model, ("normal", "anomaly"), {"onnx": variant}), answering


def write_readings(folder: Path, readings: Any, **expected: Any) -> tuple[Example, ...]:
    (folder / "golden").mkdir()
    (folder / "golden" / "w.json").write_text(readings if isinstance(readings, str) else json.dumps(readings))
    (folder / "golden" / "expected.json").write_text(json.dumps([{"readings": "w.json", **expected}]))
    return read_golden(folder)


@pytest.mark.parametrize(("score", "failure"), [(0.5, ""), (0.3, "w.json, onnx: expected anomaly_score 0.3, came 0.5")])
async def test_readings_and_their_anomaly_score(tmp_path: Path, score: float, failure: str) -> None:
    examples = write_readings(tmp_path, {"readings": [[1], [1], [1], [1]]}, anomaly_score=score)
    async with thermometer() as (model, answering):
        assert (await check_golden(examples, model, answering)).failure == failure


@pytest.mark.parametrize(
    ("readings", "said"),
    [
        ({"readings": [[1], [1]]}, "it has 2 of 1 readings, the model takes 4 of 1"),
        ({"readings": [[1], [1, 2]]}, "cannot be understood"),
        ({"readings": []}, "it has 0 readings"),
        ("[1, 2", "cannot be understood"),
    ],
)
async def test_readings_that_are_no_window_of_the_model_are_a_failure(tmp_path: Path, readings: Any, said: str) -> None:
    examples = write_readings(tmp_path, readings, predictions=[])
    async with thermometer() as (model, answering):
        report = await check_golden(examples, model, answering)
    assert said in report.failure
    assert report.fix


async def test_a_picture_for_a_model_on_readings_is_a_failure(tmp_path: Path) -> None:
    async with thermometer() as (model, answering):
        report = await check_golden(read_golden(write(tmp_path, entry())), model, answering)
    assert report.failure == "a.jpg: the model takes readings"


# --- holding answers against them ---------------------------------------------------------------------

MODEL = served(spec(inference={"output": "yolov8", "confidence_threshold": 0.4, "rename": {"forklift": "truck"},
                               "class_thresholds": {"forklift": 0.7}}))  # fmt: skip


def wanted(name: str, confidence: float, *bbox: float) -> ExpectedPrediction:
    return ExpectedPrediction(name, confidence, bbox=bbox or None)  # type: ignore[arg-type]


def came(name: str, confidence: float, *bbox: float) -> Prediction:
    return Prediction(name, 0, confidence, bbox or None)  # type: ignore[arg-type]


BOX = (0.0, 0.0, 10.0, 10.0)
BESIDE = (100.0, 0.0, 110.0, 10.0)


@pytest.mark.parametrize(
    ("expected", "seen", "fits"),
    [
        ([wanted("helmet", 0.9, *BOX)], [came("helmet", 0.85, *BOX)], True),
        ([wanted("helmet", 0.9, *BOX)], [came("helmet", 0.75, *BOX)], False),
        ([wanted("helmet", 0.9, *BOX)], [came("helmet", 0.9, 0.0, 0.0, 10.0, 8.0)], True),
        ([wanted("helmet", 0.9, *BOX)], [came("helmet", 0.9, 0.0, 0.0, 10.0, 6.0)], False),
        ([wanted("helmet", 0.9, *BOX)], [came("forklift", 0.9, *BOX)], False),
        ([wanted("helmet", 0.9, *BOX)], [], False),
        ([wanted("helmet", 0.5, *BOX)], [], True),  # it may lie below the threshold of 0.4 today
        ([wanted("helmet", 0.51, *BOX)], [], False),
        ([], [came("helmet", 0.5, *BOX)], True),
        ([], [came("helmet", 0.51, *BOX)], False),
        ([], [came("truck", 0.8, *BOX)], True),  # the label's own threshold of 0.7, under the name of messages
        ([], [came("truck", 0.81, *BOX)], False),
        ([wanted("helmet", 0.9)], [came("helmet", 0.9, *BOX)], True),
        ([wanted("helmet", 0.9, *BOX)], [came("helmet", 0.9)], False),
        (
            [wanted("helmet", 0.9, *BOX), wanted("helmet", 0.8, *BESIDE)],
            [came("helmet", 0.8, *BESIDE), came("helmet", 0.9, *BOX)],
            True,
        ),
        ([wanted("helmet", 0.9, *BOX)], [came("helmet", 0.9, *BOX), came("helmet", 0.9, *BOX)], False),
    ],
)
def test_predictions_are_matched_one_to_one_within_tolerance(
    expected: list[ExpectedPrediction], seen: list[Prediction], fits: bool
) -> None:
    found = difference(Expected(predictions=tuple(expected)), VariantResult("v", "1", 1.0, tuple(seen)), MODEL)
    assert (found == "") is fits
    assert "\n" not in found


def test_the_class_id_counts_where_it_is_given() -> None:
    given_id = ExpectedPrediction("helmet", 0.9, class_id=3, bbox=BOX)
    assert difference(
        Expected(predictions=(given_id,)), VariantResult("v", "1", 1.0, (came("helmet", 0.9, *BOX),)), MODEL
    )


@pytest.mark.parametrize(
    ("expected", "values", "said"),
    [
        ((20.0, -0.5), (21.9, 0.1), ""),
        ((20.0, -0.5), (22.1, -0.5), "expected 20 as value 1, came 22.1"),
        ((20.0,), (20.0, 1.0), "expected 1 values, came 2"),
        ((20.0,), None, "expected 1 values, came 0"),
        ((0.0,), (0.0005,), ""),
    ],
)
def test_numbers_may_differ_by_a_share_of_the_largest(
    expected: tuple[float, ...], values: tuple[float, ...] | None, said: str
) -> None:
    found = difference(Expected(values=expected), VariantResult("v", "1", 1.0, values=values), MODEL)
    assert found.startswith(said) if said else not found


boxes = st.tuples(*[st.integers(0, 40)] * 2, *[st.integers(50, 90)] * 2).map(lambda b: tuple(float(side) for side in b))
predictions = st.lists(
    st.builds(lambda name, share, box: came(name, share, *box), st.sampled_from("ab"), st.floats(0, 1), boxes),
    max_size=6,
)


@given(predictions)
def test_what_came_once_is_what_may_be_expected_from_then_on(seen: list[Prediction]) -> None:
    copied = tuple(ExpectedPrediction(item.class_name, item.confidence, item.class_id, item.bbox) for item in seen)
    again = VariantResult("v", "1", 1.0, tuple(reversed(seen)))
    found = difference(Expected(predictions=copied), again, MODEL)
    # Two in the very same place may be told apart by their confidence only, which is not what pairs them.
    assert not found or len({item.bbox for item in seen}) < len(seen)


def test_each_of_a_thousand_finds_its_own() -> None:
    many = [came("helmet", 0.9, float(x), 0.0, float(x) + 50, 10.0) for x in range(1000)]
    copied = tuple(wanted(item.class_name, item.confidence, *(item.bbox or ())) for item in reversed(many))
    assert not difference(Expected(predictions=copied), VariantResult("v", "1", 1.0, tuple(many)), MODEL)


# --- the real thing -----------------------------------------------------------------------------------


@pytest.mark.triton
async def test_the_sample_models_are_warmed_up_and_say_what_their_examples_say() -> None:
    with EmbeddedTriton(REPOSITORY) as triton:
        server = TritonServer(triton.grpc_url)
        for name, asked in (("industrial-safety", ("onnx", "torch")), ("temperature-anomaly", ("onnx",))):
            logical = read_model(REPOSITORY / name / "model.yaml", REPOSITORY)
            variants = {}
            for variant in asked:
                triton_model = logical.spec.variants[variant]
                await server.load(triton_model)
                described = await server.describe(triton_model)
                variants[variant] = replace(fit(described, logical, ServedVariant(variant, triton_model)), pinned=True)
            model = ServedModel(logical.spec, logical.labels, variants, version=1)
            assert await warm(model, server, 60) >= len(asked) * 8
            with answering_of(server) as answering:
                report = await check_golden(read_golden(REPOSITORY / name), model, answering)
            assert report.passed, report.failure
            assert report.variants == asked
        await server.close()
