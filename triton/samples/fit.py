"""Trains the two networks."""

import copy
import math
import time
from typing import Generic, TypeVar

import numpy as np
import recipe
import torch
from augment import classifier_batch, detector_batch, letterboxed, normalised
from classifier import Classifier
from dataset import Letterbox, Split
from decode import Detection, detections
from detector import Detector
from detector_loss import detector_loss
from evaluate import DetectionFigures, accuracy, detection_figures
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

BATCH = 16
PEAK_RATE = 2.5e-3

Network = TypeVar("Network", bound=nn.Module)


class Average(Generic[Network]):
    """A running mean of the weights, which generalises better than the last step and makes short training do."""

    def __init__(self, model: Network) -> None:
        self.model, self.steps = copy.deepcopy(model).eval(), 0

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        self.steps += 1
        decay = 0.998 * (1 - math.exp(-self.steps / 300))
        for mine, theirs in zip(self.model.state_dict().values(), model.state_dict().values(), strict=True):
            if mine.dtype.is_floating_point:
                mine.lerp_(theirs, 1 - decay)
            else:
                mine.copy_(theirs)


def _optimiser(
    model: nn.Module, steps: int, rate: float
) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler]:
    decayed = [p for p in model.parameters() if p.ndim > 1]
    plain = [p for p in model.parameters() if p.ndim <= 1]
    optimiser = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": 0.02}, {"params": plain, "weight_decay": 0.0}], lr=rate
    )
    return optimiser, torch.optim.lr_scheduler.OneCycleLR(
        optimiser, rate, total_steps=steps, pct_start=0.08, final_div_factor=200
    )


def fit_detector(train: Split, validation: Split, epochs: int) -> Detector:
    """Trains the detector and returns the averaged network; a checkpoint is kept after every epoch."""
    torch.manual_seed(recipe.SEED)
    rng = np.random.default_rng(recipe.SEED)
    model: Detector = Detector().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    average, steps = Average(model), len(train) // BATCH
    optimiser, schedule = _optimiser(model, steps * epochs, PEAK_RATE)
    for epoch in range(epochs):
        model.train()
        began, sums = time.perf_counter(), np.zeros(3)
        order = rng.permutation(len(train))
        plain = epoch >= epochs - 2  # the last epochs see the pictures as they will come
        for step in range(steps):
            images, truth = detector_batch(train, np.sort(order[step * BATCH : (step + 1) * BATCH]), rng, plain)
            parts = detector_loss(*model.raw(images), model.centres, truth)
            optimiser.zero_grad(set_to_none=True)
            torch.autograd.backward(parts)
            nn.utils.clip_grad_norm_(model.parameters(), 10.0)
            optimiser.step()
            schedule.step()
            average.update(model)
            sums += [part.item() for part in parts]
        torch.save(average.model.state_dict(), recipe.CACHE / "detector.pt")
        figures = validate_detector(average.model, validation)
        losses = ", ".join(f"{name} {v:.3f}" for name, v in zip(("box", "score", "helmet"), sums / steps, strict=True))
        found = ", ".join(f"{name} {f.average_precision:.3f}" for name, f in figures.classes.items())
        print(f"  detector {epoch + 1}/{epochs} in {time.perf_counter() - began:.0f} s: loss {losses}", flush=True)
        print(f"    validation: mAP50 {figures.map50:.3f} ({found})", flush=True)
    return average.model


@torch.no_grad()
def validate_detector(model: Detector, split: Split) -> DetectionFigures:
    """Figures over a rendered split, with the thresholds that the gateway will apply."""
    model.eval()
    width, height = recipe.CAMERA_SIZE
    box = Letterbox.fit(width, height)
    truths, found = [], []
    for start in range(0, len(split), BATCH):
        images = letterboxed(torch.tensor(split.frames[start : start + BATCH]))
        found += [detections(output, box, (width, height)) for output in model(images).numpy()]
        truths += [true_objects(objects, box) for objects in split.boxes[start : start + BATCH]]
    return detection_figures(truths, found, recipe.DETECTOR_LABELS)


def true_objects(objects: NDArray[np.float32], box: Letterbox) -> list[Detection]:
    """The stored truth of one scene, in pixels of the original picture."""
    return [
        Detection(int(o[0]), 1.0, (o[1] / box.scale, o[2] / box.scale, o[3] / box.scale, o[4] / box.scale))
        for o in objects
        if o[0] >= 0
    ]


def fit_classifier(train: Split, validation: Split, epochs: int, detector: Detector) -> Classifier:
    """Trains the classifier, from the detector's layers on, and returns the averaged network."""
    torch.manual_seed(recipe.SEED)
    rng = np.random.default_rng(recipe.SEED)
    model: Classifier = Classifier()
    model.start_from(detector)
    model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    average, batch = Average(model), 2 * BATCH
    steps = len(train) // batch
    optimiser, schedule = _optimiser(model, steps * epochs, PEAK_RATE)
    for epoch in range(epochs):
        model.train()
        began, total = time.perf_counter(), 0.0
        order = rng.permutation(len(train))
        for step in range(steps):
            images, labels = classifier_batch(train, np.sort(order[step * batch : (step + 1) * batch]), rng)
            loss = functional.cross_entropy(model(images), labels, label_smoothing=0.03)
            optimiser.zero_grad(set_to_none=True)
            torch.autograd.backward(loss)
            optimiser.step()
            schedule.step()
            average.update(model)
            total += loss.item()
        torch.save(average.model.state_dict(), recipe.CACHE / "classifier.pt")
        right = validate_classifier(average.model, validation)
        print(f"  classifier {epoch + 1}/{epochs} in {time.perf_counter() - began:.0f} s: loss {total / steps:.3f}")
        print(f"    validation: accuracy {right:.3f}", flush=True)
    return average.model


@torch.no_grad()
def validate_classifier(model: Classifier, split: Split) -> float:
    """Accuracy over a rendered split."""
    model.eval()
    named: list[int] = []
    for start in range(0, len(split), BATCH):
        logits: Tensor = model(normalised(torch.tensor(split.squares[start : start + BATCH])))
        named += logits.argmax(1).tolist()
    return accuracy(split.walkway.tolist(), named)
