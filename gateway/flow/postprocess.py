"""7: tensors become predictions in pixels of the original picture."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from gateway.errors import BackendInvalidResponse, SnapshotError
from gateway.flow.filters import camera_of, keep, published, which_count
from gateway.flow.outlines import outlines
from gateway.flow.preprocess import boxes_to_picture
from gateway.flow.regions import regions
from gateway.layouts import AnomalyMap, Classes, Detections, Head, Masks, Seen, Values
from gateway.layouts.binding import read
from gateway.layouts.boxes import NotFinite, best_first, suppress
from gateway.messages import (
    Answer,
    Answered,
    Geometry,
    Outline,
    Predicted,
    Prediction,
    PreparedInput,
    Rle,
    VariantResult,
    Window,
)
from gateway.models.catalog import ServedModel, ServedVariant
from gateway.models.heads import head_of
from gateway.models.spec import MAX_LABELS

ANOMALY = 1
"""The class id of an anomaly."""


@dataclass(frozen=True, slots=True, eq=False)
class _Found:
    """Objects in pixels of the picture, best first; `masks` leads to each one's shape, where there are any."""

    boxes: NDArray[np.float32]
    scores: NDArray[np.float32]
    class_ids: NDArray[np.intp]
    masks: tuple[tuple[Masks, int, Geometry], ...] = ()


def postprocess(answered: Answered) -> Predicted:
    """Decode every answer; one that cannot be decoded becomes that variant's error. Safe to run in threads."""
    started = time.monotonic()
    job = answered.job
    results = {name: _decode(answer, answered.inputs.get(name), answered) for name, answer in answered.answers.items()}
    geometries = next(iter(answered.inputs.values())).geometries
    return Predicted(
        job=job,
        picture=(geometries[0].width, geometries[0].height) if geometries else None,
        selection=answered.selection,
        results=results,
        queued_ms=answered.queued_ms,
        preprocess_ms=answered.preprocess_ms,
        postprocess_ms=(time.monotonic() - started) * 1000,
    )


def _decode(answer: Answer, given: PreparedInput | None, answered: Answered) -> VariantResult:
    result = VariantResult(answer.variant, answer.model_version, answer.infer_ms, error=answer.error)
    if answer.error is not None or given is None:
        return result
    model = answered.job.model
    variant = model.variants[answer.variant]
    question = None
    if isinstance(answered.job.snapshot, Window):
        question = next(iter(given.tensors.values()))[0]
    head = head_of(model, variant, question)
    try:
        seen = [read(model.spec.layout, outputs, head) for outputs in answer.outputs]
        return _in_the_picture(result, seen, given, answered, head)
    except NotFinite as error:
        return replace(result, error=_naming_tensors(error, variant, answer))
    except SnapshotError as error:
        return replace(result, error=error)


def _naming_tensors(error: NotFinite, variant: ServedVariant, answer: Answer) -> NotFinite:
    """The error with the names of the tensors that have such values, which a layout knows by their roles only."""
    odd = [
        repr(variant.outputs[role].tensor)
        for role in variant.outputs
        if any(not np.isfinite(outputs[role]).all() for outputs in answer.outputs)
    ]
    if not odd:  # finite ones that exceed single floats, or arithmetic that does
        return error
    return NotFinite(f"output {' and '.join(odd)} has values that are not finite", where=error.where, fix=error.fix)


def _in_the_picture(
    result: VariantResult, seen: list[Seen], given: PreparedInput, answered: Answered, head: Head
) -> VariantResult:
    model = answered.job.model
    spec = model.spec.inference
    camera = camera_of(model.spec.cameras, answered.job.snapshot.origin.device_id)
    picture = (given.geometries[0].width, given.geometries[0].height) if given.geometries else None
    match seen[0]:
        case Values(values):
            return replace(result, values=tuple(values.tolist()))
        case Classes(class_ids, scores):
            pairs = zip(class_ids.tolist(), scores.tolist(), strict=True)
            predictions = tuple(_prediction(model, class_id, score) for class_id, score in pairs)
        case AnomalyMap() as anomaly:
            predictions = _anomalies(anomaly, given, model, head)
            result = replace(result, score=anomaly.score)
        case _:
            tiles = [each for each in seen if isinstance(each, Detections)]
            found = _merged([_tile(*pair) for pair in zip(tiles, given.geometries, strict=True)], head)
            predictions = _objects(found, model)
            if found.masks and spec.masks != "none":
                # Room for shapes is limited: none is spent on what does not count.
                count = which_count(predictions, spec, camera, picture)
                shapes = outlines([found.masks[index] for index in count], spec.masks)
                kept = [published(predictions[index], spec) for index in count]
                drawn = tuple(replace(item, mask=shape) for item, shape in zip(kept, shapes, strict=True))
                return replace(result, predictions=drawn)
    return replace(result, predictions=keep(predictions, spec, camera, picture))


def _objects(found: _Found, model: ServedModel) -> tuple[Prediction, ...]:
    return tuple(
        _prediction(model, class_id, score, (box[0], box[1], box[2], box[3]))
        for box, score, class_id in zip(
            found.boxes.tolist(), found.scores.tolist(), found.class_ids.tolist(), strict=True
        )
    )


def _tile(seen: Detections, geometry: Geometry) -> _Found:
    boxes = boxes_to_picture(seen.boxes, geometry)
    # Nothing is left of a box that lies in the padding, or of one without any size.
    visible = np.flatnonzero((boxes[:, 2:] > boxes[:, :2]).all(axis=1))
    masks = () if seen.masks is None else tuple((seen.masks, int(index), geometry) for index in visible)
    return _Found(boxes[visible], seen.scores[visible], seen.class_ids[visible], masks)


def _merged(tiles: list[_Found], head: Head) -> _Found:
    """The objects of all tiles, best first, each once: what lies in an overlap is seen twice."""
    if len(tiles) == 1:
        return tiles[0]
    boxes = np.concatenate([tile.boxes for tile in tiles])
    scores = np.concatenate([tile.scores for tile in tiles])
    class_ids = np.concatenate([tile.class_ids for tile in tiles])
    masks = [mask for tile in tiles for mask in tile.masks]
    order = best_first(scores, len(scores))
    kept = order[suppress(boxes[order], class_ids[order], head.iou_threshold, head.max_detections)]
    return _Found(boxes[kept], scores[kept], class_ids[kept], tuple(masks[index] for index in kept) if masks else ())


def _anomalies(seen: AnomalyMap, given: PreparedInput, model: ServedModel, head: Head) -> tuple[Prediction, ...]:
    """Where it is unusual; without a map, or with none of it above the threshold, only that it is."""
    spec = model.spec.inference
    places = []
    if seen.heat is not None and given.geometries:
        size = (head.height, head.width)
        places = regions(seen.heat, spec.confidence_threshold, given.geometries[0], size, spec.masks)
    if not places and seen.score > spec.confidence_threshold:
        return (_prediction(model, ANOMALY, seen.score),)
    return tuple(_prediction(model, ANOMALY, place.peak, place.bbox, place.shape) for place in places)


def _prediction(
    model: ServedModel,
    class_id: int,
    score: float,
    bbox: tuple[float, float, float, float] | None = None,
    mask: Outline | Rle | None = None,
) -> Prediction:
    if not 0 <= class_id < MAX_LABELS:
        raise BackendInvalidResponse(f"the output names the class {class_id}; a model has at most {MAX_LABELS}")
    name = model.labels[class_id] if class_id < len(model.labels) else f"class_{class_id}"
    return Prediction(class_name=name, class_id=class_id, confidence=score, bbox=bbox, mask=mask)
