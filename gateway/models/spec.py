"""What a model.yaml says: the decision record's keys, and what it leaves out."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import structlog
from pydantic import Field, field_validator, model_validator

from gateway import layouts, topics
from gateway.errors import ConfigError
from gateway.models.inference_spec import MAX_NAME, AlertsSpec, CameraSpec, InferenceSpec, nearest_of
from gateway.models.preprocessing_spec import PreprocessingSpec, SensorSpec
from gateway.models.rollout_spec import RolloutSpec
from gateway.regular_file import open_regular
from gateway.schema import ANSWER_PARTS, StrictModel, output_topic, parse, read_yaml

log = structlog.get_logger(__name__)

MAX_LABELS = 10_000
MAX_LABELS_BYTES = 1 << 20
MAX_FILE_NAME_BYTES = 255
"""What Linux allows in one folder."""
MAX_VARIANTS = 8
VARIANT_NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,31}")
USUAL_LAYOUTS = {
    "object-detection": "yolov8",
    "image-classification": "classification",
    "instance-segmentation": "yolov8-seg",
    "anomaly-detection": "anomaly-map",
    "sensor-anomaly": "reconstruction",
    "sensor-classification": "sensor-classification",
    "sensor-regression": "values",
}
READ_BY = {
    "masks": ("instance-segmentation", "anomaly-detection"),
    "top_k": ("image-classification", "sensor-classification"),
    "anomaly_threshold": ("anomaly-detection", "sensor-anomaly"),
}
"""Keys of `inference` that only some models read."""
NEED_A_THRESHOLD = ("reconstruction", "reconstruction-flat")
NATIVE_VARIANT = "torch"
"""Which of our variants stands for the decision record's `candle`: the one that runs the framework's own format."""
CANDLE = "candle"


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
    alert_topic_template: str | None = None
    """Topic of alerts in place of ALERT_TOPIC; same named parts."""

    @property
    def templates(self) -> tuple[str, ...]:
        """Those of its own topics that the model has."""
        own = (self.output_topic_template, self.comparison_topic_template, self.error_topic_template)
        return tuple(text for text in (*own, self.alert_topic_template) if text)

    @field_validator("input_topics")
    @classmethod
    def _valid_filters(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for text in value:
            if problem := topics.problem(text):
                raise ValueError(f"'{text}' is no topic filter: {problem}")
        return tuple(topics.TopicPattern(text).subscription for text in value)

    @field_validator(
        "output_topic_template", "comparison_topic_template", "error_topic_template", "alert_topic_template"
    )
    @classmethod
    def _valid_template(cls, value: str | None) -> str | None:
        return value if value is None else output_topic(value, ANSWER_PARTS)


class ModelSpec(StrictModel):
    """One logical model: what its variants share."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$")
    """Name of the model in messages and metrics: letters, digits, `.`, `_`, `-`."""
    model_type: layouts.Task
    """What the model does; has to agree with `inference.output`."""
    backend: str | None = None
    """Which variant answers, or `dual`; without it DEFAULT_BACKEND and ENABLE_DUAL_BACKEND decide."""
    model_path: str | None = None
    """Of the decision record: the name of this file gives the variants their Triton models, as `name` may differ."""
    labels: str | tuple[str, ...] = "labels.txt"
    """A file beside model.yaml with one class a line, or the classes; without both what the ONNX file says."""
    variants: dict[str, str] = Field(default_factory=dict)
    """Variant name to Triton model name; without it `<folder>-onnx` and `<folder>-torch`."""
    preprocessing: PreprocessingSpec = PreprocessingSpec()
    """How a picture becomes the input tensor."""
    sensor: SensorSpec = SensorSpec()
    """How readings become the input tensor of a `sensor-` model."""
    inference: InferenceSpec = InferenceSpec()
    """How the output tensors become predictions."""
    alerts: AlertsSpec = AlertsSpec()
    """When a sighting of one of `inference.alert_classes` is an event."""
    cameras: dict[str, CameraSpec] = Field(default_factory=dict)
    """Regions by device_id; `*` and `?` stand for any characters, the first entry that fits holds."""
    mqtt: MqttSpec = MqttSpec()
    """Which topics the model takes and where its results go."""
    rollout: RolloutSpec = RolloutSpec()
    """What a new version has to pass before it serves; `immediate` leaves out shadow and canary."""

    @property
    def takes_pictures(self) -> bool:
        """False for a model on plain numbers."""
        return not self.model_type.startswith("sensor-")

    @property
    def layout(self) -> layouts.Layout:
        """How its output tensors are read."""
        return layouts.named(self.inference.output or USUAL_LAYOUTS[self.model_type])

    @field_validator("labels", mode="before")
    @classmethod
    def _labels_are_text(cls, value: object) -> object:
        if isinstance(value, list | tuple):
            for label in value:
                if not isinstance(label, str):  # YAML reads yes, no, on and 1 as something else
                    raise ValueError(f"a label is text, and YAML reads one of these as {label!r}; put it in quotes")  # noqa: TRY004 - pydantic's way
            if (problem := _problem_of_labels(value, "label")) is not None:
                raise ValueError(problem)
        elif not isinstance(value, str):
            raise ValueError("must be the name of a file or a list of labels")  # noqa: TRY004
        elif not _is_file_name(value):
            raise ValueError("must be the name of a file that lies beside model.yaml, or a list of labels")
        return value

    @field_validator("variants")
    @classmethod
    def _sane_variants(cls, value: dict[str, str]) -> dict[str, str]:
        for name, triton in value.items():
            if not VARIANT_NAME.fullmatch(name) or name == "dual":
                raise ValueError(f"'{name}' is no name for a variant: lower case letters, digits and '-', not 'dual'")
            if not _is_file_name(triton):
                raise ValueError(f"'{name}' needs the name of a Triton model, which is a folder of the repository")
        if len(value) > MAX_VARIANTS:
            raise ValueError(f"{len(value)} variants, at most {MAX_VARIANTS} are served")
        return value

    @model_validator(mode="after")
    def _consistent(self) -> ModelSpec:
        self._check_layout()
        self._check_backend()
        self._check_effects()
        if "sensor" in self.model_fields_set and self.takes_pictures:
            raise ValueError(f"sensor has no effect with model_type '{self.model_type}'")
        if "preprocessing" in self.model_fields_set and not self.takes_pictures:
            raise ValueError(f"preprocessing has no effect with model_type '{self.model_type}'; see sensor")
        return self

    def _check_effects(self) -> None:
        """Nothing is accepted that would have no effect."""
        if self.preprocessing.mode == "tiles" and self.model_type not in ("object-detection", "instance-segmentation"):
            raise ValueError(f"preprocessing.mode 'tiles' is for objects, not for model_type '{self.model_type}'")
        if "alerts" in self.model_fields_set and not self.inference.alert_classes:
            raise ValueError("alerts has no effect without inference.alert_classes")
        for key, model_types in READ_BY.items():
            if key in self.inference.model_fields_set and self.model_type not in model_types:
                raise ValueError(f"inference.{key} has no effect with model_type '{self.model_type}'")

    def _check_layout(self) -> None:
        try:
            layout = self.layout
        except ConfigError as error:
            raise ValueError(f"inference.output: {error.message}") from None
        if layout.task != self.model_type:
            fitting = [name for name in layouts.names() if layouts.named(name).task == self.model_type]
            raise ValueError(
                f"inference.output '{layout.name}' is for model_type '{layout.task}', not '{self.model_type}', "
                f"which has {', '.join(fitting)}"
            )
        for key in ("activation", "box_format", "box_units", "background"):
            value = getattr(self.inference, key)
            if value is not None and (problem := layout.objection(key, value)):
                raise ValueError(f"inference.{key}: {problem}")
        if layout.name in NEED_A_THRESHOLD and self.inference.anomaly_threshold is None:
            raise ValueError(f"inference.anomaly_threshold is missing; '{layout.name}' gives errors without a scale")
        for role in self.inference.outputs:
            if role not in layout.outputs:
                known = tuple(layout.outputs)
                raise ValueError(f"inference.outputs: '{layout.name}' has no '{role}' ({nearest_of(role, known)})")

    def _check_backend(self) -> None:
        if self.variants and self.backend == "dual" and len(self.variants) < 2:
            raise ValueError(f"backend 'dual' needs two variants, the model has '{next(iter(self.variants))}' only")
        if self.variants and self.backend not in (None, "dual", *self.variants):
            hint = nearest_of(str(self.backend), (*self.variants, "dual"))
            raise ValueError(f"backend '{self.backend}' is no variant of the model ({hint})")


def _is_file_name(text: str) -> bool:
    """Whether it can be the name of something in a folder, and leads nowhere else."""
    plain = text.isprintable() and text not in ("", ".", "..") and not set(text) & set("/\\")
    return plain and len(text.encode()) <= MAX_FILE_NAME_BYTES


def _problem_of_labels(labels: Sequence[str], what: str) -> str | None:
    """An empty one would be a class without a name; left out, it would shift the ids of all that follow."""
    for number, label in enumerate(labels, 1):
        if not label.strip():
            return f"{what} {number} is empty, and each is a class"
        if len(label) > MAX_NAME:
            return f"{what} {number} has {len(label)} characters, at most {MAX_NAME} are read"
    return None


def read_spec(path: Path) -> ModelSpec:
    """Read one model.yaml; the Triton models default to `<folder>-onnx` and `<folder>-torch`; raises ConfigError."""
    data = read_yaml(path)
    if not data.get("variants"):
        base = _base_name(path, data)
        data["variants"] = {"onnx": f"{base}-onnx", "torch": f"{base}-torch"}
    variants = data["variants"]
    if data.get("backend") == CANDLE and isinstance(variants, dict) and CANDLE not in variants:
        log.warning(
            "Backend 'candle' is no variant here and is mapped to the variant 'torch'",
            model_yaml=str(path),
            mapped_to=NATIVE_VARIANT,
            fix=f"Write backend: {NATIVE_VARIANT}, or map it: variants: {{candle: <Triton model>, onnx: ...}}",
        )
        data["backend"] = NATIVE_VARIANT
    return parse(ModelSpec, data, where=str(path))


def _base_name(path: Path, data: dict[str, Any]) -> str:
    """What the variants' Triton models are called after: model_path of the decision record, the file, or its folder."""
    if isinstance(data.get("model_path"), str):
        return Path(data["model_path"]).stem
    if path.name != "model.yaml":
        return path.stem
    # A relative path may end in no name, or in `..`; what a link leads to is not what the folder is called.
    return path.parent.resolve().name if path.parent.name in ("", "..") else path.parent.name


def read_labels(spec: ModelSpec, path: Path) -> tuple[str, ...]:
    """The class names by class id, for the model.yaml at `path`; () when there is no labels file.

    Raises ConfigError when it cannot be read.
    """
    where = f"{path}: labels"
    labels = spec.labels
    if isinstance(labels, str):
        try:
            with open_regular(path.parent / labels) as file:
                content = file.read(MAX_LABELS_BYTES + 1)
            labels = _labels_in(content, labels, where)
        except (OSError, ValueError) as error:
            if isinstance(error, FileNotFoundError) and "labels" not in spec.model_fields_set:
                return ()
            reason = "it is not UTF-8" if isinstance(error, UnicodeDecodeError) else getattr(error, "strerror", error)
            raise ConfigError(
                f"the labels file '{labels}' cannot be read: {reason}",
                where=where,
                fix="Write one class a line, in UTF-8",
            ) from error
    if not labels or len(labels) > MAX_LABELS:
        raise ConfigError(f"{len(labels)} labels", where=where, fix=f"Name 1 to {MAX_LABELS} classes, one a line")
    return labels


def _labels_in(content: bytes, name: str, where: str) -> tuple[str, ...]:
    """The lines of a labels file, but for empty ones at its end; raises ConfigError, and UnicodeDecodeError."""
    if len(content) > MAX_LABELS_BYTES:
        raise ConfigError(
            f"the labels file '{name}' is larger than {MAX_LABELS_BYTES >> 20} MiB",
            where=where,
            fix=f"Name 1 to {MAX_LABELS} classes, one a line",
        )
    labels = tuple(line.strip() for line in content.decode("utf-8-sig").rstrip().splitlines())
    if (problem := _problem_of_labels(labels, f"'{name}': line")) is not None:
        raise ConfigError(problem, where=where, fix="Write the name of that class there, or delete the line")
    return labels
