"""Step 4: a picture, or a window of readings, becomes the input tensors, written once for all variants.

`picture_headers` reads sizes before anything is decoded, `pictures` decodes, `placement` and `tiles` say where which
part goes, `drawing` and `resizing` bring it to its size, `tensors` writes the numbers.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from math import ceil
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gateway.flow.drawing import draw
from gateway.flow.pictures import decode, open_picture, turn_to_hold
from gateway.flow.placement import Placement, boxes_to_picture, place
from gateway.flow.tensors import Allocate, extra_tensor, picture_tensor, window_tensor
from gateway.messages import PreparedInput, Snapshot, Window
from gateway.models.catalog import ServedVariant
from gateway.models.input_plan import InputPlan, WindowPlan
from gateway.models.preprocessing_spec import PreprocessingSpec, SensorSpec
from gateway.models.spec import ModelSpec

__all__ = ["boxes_to_picture", "decoded_size", "prepare", "prepare_picture", "prepare_window"]

SPARE = 1.25
"""How much larger than its input a picture is decoded at least. What is decoded just as large and then resized by a
little is 2 to 3 grey levels off the full picture in the mean, otherwise 1; the sample detector loses 0.003 of mAP50."""
SMALL_INPUT = 256
"""Longest side of an input for which it may be just as large: small objects are not looked for in that, and the larger
scale would take 12 % more of the decoder's time."""


def prepare(
    snapshot: Snapshot | Window,
    spec: ModelSpec,
    variants: Collection[ServedVariant],
    max_image_pixels: int,
    allocate: Allocate = np.empty,
) -> dict[str, PreparedInput]:
    """The input of each of these variants by name; equal inputs are made once. Safe to run in threads.

    A variant whose plan does not fit the snapshot's kind is left out. Raises as `prepare_picture` does.
    """
    made: dict[Any, PreparedInput] = {}
    if isinstance(snapshot, Window):
        windows = {variant.plan for variant in variants if isinstance(variant.plan, WindowPlan)}
        made.update(prepare_window(snapshot.readings, spec.sensor, windows))
    else:
        pictures = {variant.plan for variant in variants if isinstance(variant.plan, InputPlan)}
        made.update(prepare_picture(snapshot.image, spec.preprocessing, pictures, max_image_pixels, allocate))
    return {variant.name: made[variant.plan] for variant in variants if variant.plan in made}


def prepare_picture(
    image: bytes,
    spec: PreprocessingSpec,
    plans: Collection[InputPlan],
    max_image_pixels: int,
    allocate: Allocate = np.empty,
) -> dict[InputPlan, PreparedInput]:
    """The inputs of each plan and how the picture lies in them; safe to run in threads.

    The picture is decoded once, and plans that want the same numbers share one array. Raises ImageUndecodable for
    anything but a whole picture of a format that is read, ImageTooLarge by the size in its header.
    """
    picture = open_picture(image, max_image_pixels)
    sizes = {(plan.height, plan.width) for plan in plans}
    placed = {size: place(picture.width, picture.height, spec, size) for size in sizes}
    grey = spec.color == "GRAY" or all(plan.channels == 1 for plan in plans)
    # OpenCV's own way has no scaled decoding; its pixels come from the whole picture.
    full = spec.resample == "opencv" or spec.decode == "full"
    scaled_to = None if full else decoded_size(placed)
    with turn_to_hold(picture, scaled_to):
        decoded = decode(picture, scaled_to, grey=grey)
        drawn = {size: [draw(decoded, one, spec) for one in parts] for size, parts in placed.items()}
    tensors: dict[InputPlan, NDArray[np.generic]] = {}
    prepared = {}
    for plan in plans:
        size = (plan.height, plan.width)
        # The same numbers whatever the input is called and whatever stands beside it.
        numbers = InputPlan("", *size, plan.channels, plan.channels_last, plan.datatype)
        if numbers not in tensors:
            tensors[numbers] = picture_tensor(drawn[size], placed[size], spec, plan, allocate)
        extras = {extra.name: extra_tensor(extra, plan, placed[size]) for extra in plan.extras}
        prepared[plan] = PreparedInput(
            {plan.name: tensors[numbers], **extras}, tuple(placement.geometry for placement in placed[size])
        )
    return prepared


def decoded_size(placed: Mapping[tuple[int, int], Sequence[Placement]]) -> tuple[int, int]:
    """The least width and height at which a picture is decoded for inputs of these sizes (height, width)."""
    wholes = [placement.whole for placements in placed.values() for placement in placements]
    spare = 1.0 if max(max(size) for size in placed) <= SMALL_INPUT else SPARE
    return ceil(max(width for width, _ in wholes) * spare), ceil(max(height for _, height in wholes) * spare)


def prepare_window(
    readings: NDArray[np.float64], spec: SensorSpec, plans: Collection[WindowPlan]
) -> dict[WindowPlan, PreparedInput]:
    """The input of each plan from the last readings (window, channels), oldest first; without geometries."""
    return {plan: PreparedInput({plan.name: window_tensor(readings, spec, plan)}) for plan in plans}
