"""Writes the model card beside a logical model."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import recipe

DETECTOR_TEXT = """\
Finds people with a safety helmet, people without one, and forklifts in the picture of a fixed camera some three
metres above the floor. Made to show and to test the gateway, not to protect anybody.

## Model

Convolutional network of 0.83 million parameters with feature pyramid and an anchor-free head on strides 8, 16
and 32; its output has the layout of YOLOv8: `(batch, 7, 2352)`, that is centre x, centre y, width, height in
input pixels and three class scores. Input `(batch, 3, 256, 448)`: RGB, letterboxed with grey 114, divided by
255.
"""

CLASSIFIER_TEXT = """\
Says whether the walkway that is marked on the floor is clear or blocked by things standing on it. People who
walk on it do not block it. Made to show and to test the gateway, not to protect anybody.

## Model

Convolutional network of 0.53 million parameters; output `(batch, 2)` logits. Input `(batch, 3, 224, 224)`: RGB,
the whole picture stretched to the square, normalised with mean 0.485, 0.456, 0.406 and standard deviation
0.229, 0.224, 0.225.
"""

SENSOR_TEXT = """\
Says whether the last {window} readings of a thermometer in a heated hall are unusual: a spike, a stuck, jumping or
drifting thermometer, one that does not answer. Made to show and to test the gateway, not to protect anything.

## Model

Autoencoder of 7,600 parameters with a code of 7 numbers. Input `(batch, {window}, 1)`: readings in degrees Celsius,
the oldest first, minus {mean}, divided by {std}; output: the same window as far as the model knows it. The gateway
takes the mean squared error between the two; confidence = error / (error + threshold), so 0.5 at the threshold.
The code is brought to length 1, which leaves no way to draw a flat line: a thermometer that is stuck stands out
because a healthy one is never still.
"""

DATA_TEXT = """\
## Data

Drawn, not photographed: `gateway/local/scenes.py` renders scenes of 1920x1080 pixels with workers, forklifts,
clutter, changing light, size and occlusion. {train} scenes to train on, {validation} to watch the training,
{test} to test; their seeds do not overlap. Every scene went through JPEG and the decoding that the gateway
uses. An object of which less than 35 % is in view, or a person whose head is hidden, is not part of the truth.

## Limits

**It has never seen a photograph.** On real pictures its answers mean nothing; train a model of your own for
them and put it into the same folders. No statement about people's safety may rest on it.

## Again

`make sample-models` renders, trains, exports and tests everything from fixed seeds. Other processors and
versions of PyTorch round differently, so the weights come out similar, not identical.
"""

SENSOR_DATA_TEXT = """\
## Data

Computed, not measured: `gateway/local/thermometer.py` simulates halls with an on/off heating. One reading stands for
five minutes. Healthy readings have the sawtooth of the heating, a daily cycle and weather that drifts, set points that
change at 6:00, at 20:00 and now and then by hand, noise, and steps of 1/16 degree. Faults: a spike of 2 to 10
degrees in one reading; stuck, a jump by 2 to 6 degrees, or a drift of 0.1 to 0.3 degrees a reading, each for 36 to
72 readings; 1 to 6 readings without an answer, handed on as 0.0. {train} sensors to train on, healthy windows only;
{validation} healthy ones to choose the threshold, which 99.9 % of their windows stay below; {test} healthy and
{faulty} faulty ones to test. Their seeds do not overlap. The size of the code was chosen on faulty sensors of
the validation seeds: with 8 numbers in place of 7, no stuck thermometer is found.

## Limits

**It has never seen a real thermometer**, and only halls of this kind: with another heating, rhythm or temperature
everything is unusual, or nothing. Train a model on readings of your own and put it into the same folders. A change
that stays inside what is usual is not found: a slow drift not before it has left the usual temperatures, and a
sensor that sticks not before the window is mostly flat.

## Again

`make sample-models` does this too; by itself, in seconds: `python triton/samples/train.py --only sensor`. Everything
comes from fixed seeds, and the same processor and versions give the same files; others round differently.
"""


def write_model_card(path: Path, figures: Mapping[str, Any]) -> None:
    """Writes the card. `figures` needs `model` (the logical name), `measured` (one line on how and where) and `rows`:
    a list of (what, figure), both text. Keys that it does not know are an error.
    """
    unknown = set(figures) - {"model", "measured", "rows"}
    if unknown:
        raise ValueError(f"unknown figures: {', '.join(sorted(unknown))}")
    text, data = _texts(figures["model"])
    table = "\n".join(f"| {what} | {figure} |" for what, figure in figures["rows"])
    results = f"## Figures\n\n{figures['measured']}\n\n| what | figure |\n|---|---|\n{table}\n"
    path.write_text(f"# {figures['model']}\n\n{text}\n{results}\n{data}")


def _texts(model: str) -> tuple[str, str]:
    """What a model is, and what it was made from."""
    if model == recipe.SENSOR_NAME:
        about = SENSOR_TEXT.format(window=recipe.WINDOW, mean=recipe.SENSOR_MEAN, std=recipe.SENSOR_STD)
        return about, SENSOR_DATA_TEXT.format(**recipe.SENSORS)
    text = DETECTOR_TEXT if model == recipe.DETECTOR_NAME else CLASSIFIER_TEXT
    return text, DATA_TEXT.format(**recipe.SCENES)
