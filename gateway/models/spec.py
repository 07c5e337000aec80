"""What a model.yaml says: the decision record's keys, and what it leaves out."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, field_validator, model_validator

from gateway import topics
from gateway.errors import ConfigError
from gateway.schema import ANSWER_PARTS, StrictModel, output_topic, parse, read_yaml

MAX_LABELS = 10_000


class PreprocessingSpec(StrictModel):
    """How a picture becomes the input tensor; the same for every variant."""

    resize: tuple[int, int] = (224, 224)
    """Height and width of the input in pixels."""
    mode: Literal["letterbox", "stretch", "crop"] = "letterbox"
    """How the picture is fitted: padded in its own proportions, stretched to the input, or its middle cut out."""
    pad_value: int = Field(114, ge=0, le=255)
    """Grey of the padding around a letterboxed picture, before normalisation."""
    normalize: bool = True
    """True: (value / 255 - mean) / std. False: the values 0 to 255 as they are."""
    mean: tuple[float, float, float] = (0.0, 0.0, 0.0)
    """Subtracted per colour channel, in the order of `color`, in units of 0 to 1."""
    std: tuple[float, float, float] = (1.0, 1.0, 1.0)
    """Divided by per colour channel after `mean`; each above 0."""
    color: Literal["RGB", "BGR"] = "RGB"
    """Order of the colour channels that the model expects."""

    @field_validator("resize")
    @classmethod
    def _sane_size(cls, value: tuple[int, int]) -> tuple[int, int]:
        if not all(8 <= side <= 4096 for side in value):
            raise ValueError("height and width must lie between 8 and 4096 pixels")
        return value

    @field_validator("std")
    @classmethod
    def _no_zero(cls, value: tuple[float, float, float]) -> tuple[float, float, float]:
        if not all(part > 0 for part in value):
            raise ValueError("each value must be above 0")
        return value


class InferenceSpec(StrictModel):
    """How the output tensors become predictions."""

    output: Literal["yolov8", "classification"]
    """Layout of the output tensor: `[4 + classes, anchors]` of a YOLOv8 detector, or one number per class."""
    confidence_threshold: float = Field(0.5, ge=0, le=1)
    """Predictions below this confidence are left out."""
    iou_threshold: float = Field(0.5, ge=0, le=1)
    """Boxes of one class that overlap more than this are one object (NMS)."""
    match_iou: float = Field(0.5, ge=0, le=1)
    """Boxes of two variants that overlap at least this much are the same object (comparison)."""
    max_detections: int = Field(300, ge=1, le=1_000)
    """Most detections per picture, the most confident first."""
    activation: Literal["softmax", "sigmoid", "none"] = "softmax"
    """What turns the numbers of a classifier into confidences; `none` when the model does it itself."""
    top_k: int = Field(1, ge=1, le=1000)
    """Classes that a classifier reports, the most confident first."""
    alert_classes: tuple[str, ...] = ()
    """Labels that set `alert_triggered` in the result."""
    batch_size: int = Field(1, ge=1, le=1)
    """Pictures per request; Triton's dynamic batching joins the requests of different cameras."""


class MqttSpec(StrictModel):
    """Which topics the model takes and where its results go."""

    input_topics: tuple[str, ...] = ()
    """Topics whose snapshots this model answers when the message names no model; the narrowest filter wins."""
    output_topic_template: str | None = None
    """Topic of results in place of RESULT_TOPIC; same named parts."""
    comparison_topic_template: str | None = None
    """Topic of comparisons in place of COMPARISON_TOPIC; same named parts."""
    error_topic_template: str | None = None
    """Topic of errors in place of ERROR_TOPIC; same named parts."""

    @field_validator("input_topics")
    @classmethod
    def _valid_filters(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for text in value:
            if problem := topics.problem(text):
                raise ValueError(f"'{text}' is no topic filter: {problem}")
        return tuple(topics.TopicPattern(text).subscription for text in value)

    @field_validator("output_topic_template", "comparison_topic_template", "error_topic_template")
    @classmethod
    def _valid_template(cls, value: str | None) -> str | None:
        return value if value is None else output_topic(value, ANSWER_PARTS)


class ModelSpec(StrictModel):
    """One logical model: what its variants share."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$")
    """Name of the model in messages and metrics: letters, digits, `.`, `_`, `-`."""
    model_type: Literal["object-detection", "image-classification"]
    """What the model does; has to agree with `inference.output`."""
    backend: Literal["onnx", "torch", "dual"] | None = None
    """Which variant answers; without it DEFAULT_BACKEND and ENABLE_DUAL_BACKEND decide."""
    labels: str | tuple[str, ...] = "labels.txt"
    """A file beside model.yaml with one class a line, or the classes themselves."""
    variants: dict[str, str] = Field(default_factory=dict)
    """Variant name to Triton model name; without it `<folder>-onnx` and `<folder>-torch`."""
    preprocessing: PreprocessingSpec = PreprocessingSpec()
    """How a picture becomes the input tensor."""
    inference: InferenceSpec
    """How the output tensors become predictions."""
    mqtt: MqttSpec = MqttSpec()
    """Which topics the model takes and where its results go."""

    @field_validator("labels", mode="before")
    @classmethod
    def _labels_are_text(cls, value: object) -> object:
        if isinstance(value, list | tuple):
            for label in value:
                if not isinstance(label, str):  # YAML reads yes, no, on and 1 as something else
                    raise ValueError(f"a label is text, and YAML reads one of these as {label!r}; put it in quotes")  # noqa: TRY004 - pydantic's way
        elif not isinstance(value, str):
            raise ValueError("must be the name of a file or a list of labels")  # noqa: TRY004
        return value

    @field_validator("variants")
    @classmethod
    def _known_variants(cls, value: dict[str, str]) -> dict[str, str]:
        for name in value:
            if name not in ("onnx", "torch"):
                raise ValueError(f"unknown variant '{name}'; a model has the variants 'onnx' and 'torch'")
        return value

    @model_validator(mode="after")
    def _consistent(self) -> ModelSpec:
        expected = {"object-detection": "yolov8", "image-classification": "classification"}[self.model_type]
        if self.inference.output != expected:
            raise ValueError(
                f"model_type '{self.model_type}' needs inference.output '{expected}', not '{self.inference.output}'"
            )
        if self.variants and self.backend == "dual" and len(self.variants) < 2:
            raise ValueError(f"backend 'dual' needs two variants, the model has '{next(iter(self.variants))}' only")
        if self.variants and self.backend not in (None, "dual", *self.variants):
            raise ValueError(f"backend '{self.backend}' is no variant of the model; it has {', '.join(self.variants)}")
        return self


def read_spec(path: Path) -> ModelSpec:
    """Read one model.yaml; the Triton models default to `<folder>-onnx` and `<folder>-torch`; raises ConfigError."""
    folder = path.parent.name
    data = read_yaml(path)
    if not data.get("variants"):
        data["variants"] = {"onnx": f"{folder}-onnx", "torch": f"{folder}-torch"}
    return parse(ModelSpec, data, where=str(path))


def read_labels(spec: ModelSpec, folder: Path) -> tuple[str, ...]:
    """The class names by class id; raises ConfigError when missing, empty or naming an unknown alert class."""
    where = f"{folder / 'model.yaml'}: labels"
    if isinstance(spec.labels, tuple):
        labels = spec.labels
    else:
        path = folder / spec.labels
        try:
            with path.open(encoding="utf-8") as file:
                text = file.read(MAX_LABELS * 100)
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(
                f"the labels file cannot be read ({error})", where=where, fix="Write one class a line, in UTF-8"
            ) from error
        labels = tuple(line.strip() for line in text.splitlines() if line.strip())
    if not labels or len(labels) > MAX_LABELS:
        raise ConfigError(f"{len(labels)} labels", where=where, fix=f"Name 1 to {MAX_LABELS} classes, one a line")
    unknown = [name for name in spec.inference.alert_classes if name not in labels]
    if unknown:
        raise ConfigError(
            f"alert_classes names '{unknown[0]}', which is no label",
            where=str(folder / "model.yaml"),
            fix=f"Use some of: {', '.join(labels[:20])}",
        )
    return labels
