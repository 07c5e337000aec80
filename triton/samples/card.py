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


def write_model_card(path: Path, figures: Mapping[str, Any]) -> None:
    """Writes the card. `figures` needs `model` (the logical name), `measured` (one line on how and where) and `rows`:
    a list of (what, figure), both text. Keys that it does not know are an error.
    """
    unknown = set(figures) - {"model", "measured", "rows"}
    if unknown:
        raise ValueError(f"unknown figures: {', '.join(sorted(unknown))}")
    text = DETECTOR_TEXT if figures["model"] == recipe.DETECTOR_NAME else CLASSIFIER_TEXT
    table = "\n".join(f"| {what} | {figure} |" for what, figure in figures["rows"])
    results = f"## Figures\n\n{figures['measured']}\n\n| what | figure |\n|---|---|\n{table}\n"
    path.write_text(f"# {figures['model']}\n\n{text}\n{results}\n{DATA_TEXT.format(**recipe.SCENES)}")
