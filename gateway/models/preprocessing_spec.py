"""`preprocessing` and `sensor` in model.yaml: how a picture or a window of readings becomes the input tensor."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, FiniteFloat, field_validator, model_validator

from gateway.models.input_plan import Meaning
from gateway.schema import StrictModel

MAX_SIDE = 4096


class TilesSpec(StrictModel):
    """How a large picture is cut, so that small objects keep their pixels."""

    size: tuple[int, int] | None = None
    """Height and width of a tile in pixels of the picture; without it those of the model's input."""
    overlap: float = Field(0.2, ge=0, le=0.5)
    """Share of a tile that its neighbour sees too; an object should fit into it."""
    whole: bool = True
    """Whether the whole picture is asked as well, for the objects larger than a tile."""
    max_tiles: int = Field(8, ge=1, le=64)
    """Most tiles of one picture, the whole one not counted; for a larger picture the tiles grow."""

    @field_validator("size", mode="before")
    @classmethod
    def _square(cls, value: Any) -> Any:
        return square(value)

    @field_validator("size")
    @classmethod
    def _sane_size(cls, value: tuple[int, int] | None) -> tuple[int, int] | None:
        return sane_size(value)


class PreprocessingSpec(StrictModel):
    """How a picture becomes the input tensor; the same for every variant."""

    resize: tuple[int, int] | None = None
    """Height and width of the input in pixels, or one number for both; without it what the loaded model says."""
    mode: Literal["letterbox", "stretch", "crop", "tiles"] = "letterbox"
    """How the picture is fitted: padded in its own proportions, stretched, its middle cut out, or in tiles."""
    align: Literal["center", "top-left"] = "center"
    """Where a letterboxed picture, or tile, lies; YOLOX wants `top-left`."""
    crop_fraction: float = Field(1.0, ge=0.1, le=1)
    """Share of the shorter side that `crop` keeps, timm's crop_pct; 0.875 is "resize to 256, crop 224"."""
    tiles: TilesSpec = TilesSpec()
    """How `mode: tiles` cuts; each tile is letterboxed."""
    resample: Literal["bilinear", "bicubic", "opencv"] = "bilinear"
    """`bilinear` and `bicubic` smooth what they shrink; `opencv` costs a full decode and gives cv2.resize's pixels."""
    decode: Literal["scaled", "full"] = "scaled"
    """`scaled` reads a JPEG at the smallest 1/8, 1/4 or 1/2 that serves; `full` all of it, and Pillow resizes it."""
    pad_value: int = Field(114, ge=0, le=255)
    """Grey of the padding around a letterboxed picture, before normalisation."""
    normalize: bool = True
    """True: (value / 255 - mean) / std. False: the values 0 to 255 as they are. Integer inputs are never normalised."""
    mean: tuple[FiniteFloat, FiniteFloat, FiniteFloat] = (0.0, 0.0, 0.0)
    """Subtracted per colour channel, in the order of `color`, in units of 0 to 1; one number stands for all three."""
    std: tuple[FiniteFloat, FiniteFloat, FiniteFloat] = (1.0, 1.0, 1.0)
    """Divided by per colour channel after `mean`; each above 0; one number stands for all three."""
    color: Literal["RGB", "BGR", "GRAY"] = "RGB"
    """Order of the colour channels that the model expects; a model with one channel gets grey."""
    layout: Literal["NCHW", "NHWC"] | None = None
    """Order of the axes of the input; without it what the loaded model says."""
    inputs: dict[str, Meaning] = Field(default_factory=dict)
    """What inputs beside the picture are told; the usual ones of DETR exports are known by their names."""

    @field_validator("resize", mode="before")
    @classmethod
    def _square(cls, value: Any) -> Any:
        return square(value)

    @field_validator("resize")
    @classmethod
    def _sane_size(cls, value: tuple[int, int] | None) -> tuple[int, int] | None:
        return sane_size(value)

    @field_validator("mean", "std", mode="before")
    @classmethod
    def _for_all_channels(cls, value: Any) -> Any:
        return (value,) * 3 if isinstance(value, int | float) and not isinstance(value, bool) else value

    @field_validator("std")
    @classmethod
    def _no_zero(cls, value: tuple[float, float, float]) -> tuple[float, float, float]:
        if not all(part > 0 for part in value):
            raise ValueError("each value must be above 0")
        return value

    @model_validator(mode="after")
    def _nothing_without_effect(self) -> PreprocessingSpec:
        given = self.model_fields_set
        needs = {
            "crop_fraction": (self.mode == "crop", "mode: crop"),
            "tiles": (self.mode == "tiles", "mode: tiles"),
            "align": (self.mode in ("letterbox", "tiles"), "mode: letterbox or tiles"),
            "pad_value": (self.mode in ("letterbox", "tiles"), "mode: letterbox or tiles"),
            "mean": (self.normalize, "normalize: true"),
            "decode": (self.resample != "opencv", "resample: bilinear or bicubic, as opencv always decodes in full"),
            "std": (self.normalize, "normalize: true"),
        }
        for key, (used, need) in needs.items():
            if key in given and not used:
                raise ValueError(f"{key} has no effect without {need}")
        return self


class SensorSpec(StrictModel):
    """How readings become the input tensor of a model on plain numbers."""

    window: int = Field(1, ge=1, le=4096)
    """Readings of one sensor that one question holds."""
    stride: int = Field(1, ge=1, le=4096)
    """New readings between two questions; at most `window`."""
    channels: int = Field(1, ge=1, le=256)
    """Values in one reading."""
    mean: tuple[FiniteFloat, ...] = ()
    """Subtracted per channel; without it 0."""
    std: tuple[FiniteFloat, ...] = ()
    """Divided by per channel after `mean`, each above 0; without it 1."""

    @model_validator(mode="after")
    def _consistent(self) -> SensorSpec:
        for key in ("mean", "std"):
            if len(getattr(self, key)) not in (0, self.channels):
                raise ValueError(f"{key} needs one value a channel ({self.channels})")
        if not all(part > 0 for part in self.std):
            raise ValueError("std: each value must be above 0")
        if self.stride > self.window:
            raise ValueError(f"stride ({self.stride}) is larger than window ({self.window}): readings would be skipped")
        if self.window * self.channels > 65_536:
            raise ValueError(f"{self.window} readings of {self.channels} values are more than 65536 numbers")
        return self


def square(value: Any) -> Any:
    """One number stands for both sides."""
    return (value, value) if isinstance(value, int) and not isinstance(value, bool) else value


def sane_size(value: tuple[int, int] | None) -> tuple[int, int] | None:
    """The size itself; raises ValueError beyond all reason."""
    if value is not None and not all(8 <= side <= MAX_SIDE for side in value):
        raise ValueError(f"height and width must lie between 8 and {MAX_SIDE} pixels")
    return value
