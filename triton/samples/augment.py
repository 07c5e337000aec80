"""Batches for training, varied at random: mirrored, moved, scaled, recoloured."""

import numpy as np
import recipe
import torch
from dataset import Letterbox, Split
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

MIN_LEFT = 0.4  # an object of which the shift leaves less is forgotten


def letterboxed(frames: Tensor) -> Tensor:
    """uint8 (batch, height, width, 3) -> the detector's input, padded as the gateway pads."""
    box = Letterbox.fit(*recipe.CAMERA_SIZE)
    below = recipe.DETECTOR_HEIGHT - box.top - box.height
    right = recipe.DETECTOR_WIDTH - box.left - box.width
    padded = functional.pad(frames.permute(0, 3, 1, 2), (box.left, right, box.top, below), value=recipe.PAD_VALUE)
    return padded.to(torch.float32).div_(255).contiguous(memory_format=torch.channels_last)


def normalised(squares: Tensor) -> Tensor:
    """uint8 (batch, 224, 224, 3) -> the classifier's input."""
    pixels = (squares.to(torch.float32) / 255 - torch.tensor(recipe.MEAN)) / torch.tensor(recipe.STD)
    return pixels.permute(0, 3, 1, 2).contiguous(memory_format=torch.channels_last)


def _recoloured(images: Tensor, rng: np.random.Generator) -> Tensor:
    """Brightness, contrast and a colour cast, per picture, in 0..1."""
    size = (len(images), 1, 1, 1)
    gain = torch.from_numpy(rng.uniform(0.75, 1.25, size)).float()
    cast = torch.from_numpy(rng.uniform(0.93, 1.07, (len(images), 3, 1, 1))).float()
    contrast = torch.from_numpy(rng.uniform(0.8, 1.2, size)).float()
    mean = images.mean((1, 2, 3), keepdim=True)
    return (((images - mean) * contrast + mean) * gain * cast).clamp_(0, 1)


def _affine(
    images: Tensor, scale: NDArray[np.float64], shift: NDArray[np.float64], sign: NDArray[np.float64], fill: float
) -> Tensor:
    """Scales about the middle, shifts by a share of the picture, mirrors where sign is -1."""
    theta = np.zeros((len(images), 2, 3))
    theta[:, 0, 0], theta[:, 1, 1] = sign / scale, 1 / scale
    theta[:, 0, 2], theta[:, 1, 2] = -sign * 2 * shift[:, 0] / scale, -2 * shift[:, 1] / scale
    grid = functional.affine_grid(torch.from_numpy(theta).float(), list(images.shape), align_corners=False)
    return functional.grid_sample(images - fill, grid, padding_mode="zeros", align_corners=False) + fill


def detector_batch(
    split: Split, indices: NDArray[np.int64], rng: np.random.Generator, plain: bool
) -> tuple[Tensor, Tensor]:
    """Images and truth (batch, objects, 5) in input pixels; `plain` only mirrors and recolours."""
    count, box = len(indices), Letterbox.fit(*recipe.CAMERA_SIZE)
    width, height = recipe.DETECTOR_WIDTH, recipe.DETECTOR_HEIGHT
    images = _recoloured(letterboxed(torch.from_numpy(split.frames[indices])), rng)
    truth = split.boxes[indices].copy()
    empty = truth[..., 0] < 0
    truth[..., 1:] += np.array([box.left, box.top] * 2, np.float32)
    sign = rng.choice((-1.0, 1.0), count)
    spread = 0.0 if plain else 1.0
    scale = np.exp(rng.uniform(-0.2, 0.35, count) * spread)
    shift = rng.uniform(-0.12, 0.12, (count, 2)) * spread
    images = _affine(images, scale, shift, sign, recipe.PAD_VALUE / 255)
    x = (truth[..., 1::2] - width / 2) * sign[:, None, None]
    x = np.sort(x, axis=-1) * scale[:, None, None] + width / 2 + (shift[:, 0] * width)[:, None, None]
    y = (truth[..., 2::2] - height / 2) * scale[:, None, None] + height / 2 + (shift[:, 1] * height)[:, None, None]
    cut_x, cut_y = x.clip(0, width), y.clip(0, height)
    area = np.diff(x, axis=-1)[..., 0] * np.diff(y, axis=-1)[..., 0]
    left = np.diff(cut_x, axis=-1)[..., 0] * np.diff(cut_y, axis=-1)[..., 0]
    # Without its head nobody can say whether a person wears a helmet.
    headless = (truth[..., 0] < 2) & (y[..., 0] < -0.03 * height)
    truth[..., 1::2], truth[..., 2::2] = cut_x, cut_y
    truth[..., 0] = np.where(empty | headless | (left < MIN_LEFT * area), -1, truth[..., 0])
    return images.contiguous(memory_format=torch.channels_last), torch.from_numpy(truth)


def classifier_batch(split: Split, indices: NDArray[np.int64], rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    """Images and labels; shifts stay small, because the walkway may run along the picture's edge."""
    count = len(indices)
    pixels = torch.from_numpy(split.squares[indices]).permute(0, 3, 1, 2).float() / 255
    scale, shift = np.exp(rng.uniform(-0.06, 0.08, count)), rng.uniform(-0.04, 0.04, (count, 2))
    sign = rng.choice((-1.0, 1.0), count)
    pixels = _affine(_recoloured(pixels, rng), scale, shift, sign, recipe.PAD_VALUE / 255)
    mean, std = torch.tensor(recipe.MEAN).view(3, 1, 1), torch.tensor(recipe.STD).view(3, 1, 1)
    images = ((pixels - mean) / std).contiguous(memory_format=torch.channels_last)
    return images, torch.from_numpy(split.walkway[indices])
