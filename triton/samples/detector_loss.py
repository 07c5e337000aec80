"""The detector's loss: which cells answer for which object, and how wrong they are."""

import torch
from detector import CLASSES
from torch import Tensor
from torch.nn import functional

CANDIDATES = 10
BOX_WEIGHT, SCORE_WEIGHT, HELMET_WEIGHT = 2.5, 1.0, 2.0


def overlap(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """IoU and generalised IoU of boxes x1, y1, x2, y2 along the last dimension."""
    shared = (torch.minimum(a[..., 2:], b[..., 2:]) - torch.maximum(a[..., :2], b[..., :2])).clamp(min=0).prod(-1)
    area_a, area_b = (a[..., 2:] - a[..., :2]).prod(-1), (b[..., 2:] - b[..., :2]).prod(-1)
    union = area_a + area_b - shared + 1e-7
    hull = (torch.maximum(a[..., 2:], b[..., 2:]) - torch.minimum(a[..., :2], b[..., :2])).prod(-1) + 1e-7
    iou = shared / union
    return iou, iou - (hull - union) / hull


@torch.no_grad()
def assign(boxes: Tensor, scores: Tensor, centres: Tensor, truth: Tensor) -> tuple[Tensor, Tensor]:
    """Task-aligned assignment (Feng et al., TOOD, 2021).

    A cell may answer for an object in whose box its centre lies; the cells whose present answer is best, in score and
    in overlap together, are chosen. `truth` is (batch, objects, 5), class -1 where there is none.
    Returns each cell's target scores (batch, anchors, classes) and its target box (batch, anchors, 4).
    """
    classes, targets = truth[..., 0].long(), truth[..., 1:]
    real = classes >= 0
    inside = (centres > targets[:, :, None, :2]).all(-1) & (centres < targets[:, :, None, 2:]).all(-1) & real[..., None]
    iou, _ = overlap(boxes[:, None], targets[:, :, None])
    iou = iou.clamp(min=0)
    score = scores.transpose(1, 2).gather(1, classes.clamp(min=0)[..., None].expand(-1, -1, scores.shape[1]))
    metric = score.sqrt() * iou.pow(4) * inside + 1e-9 * inside
    chosen = torch.zeros_like(inside).scatter_(2, metric.topk(CANDIDATES, dim=2).indices, True) & inside
    metric, iou = metric * chosen, iou * chosen
    # A cell wanted by two objects goes to the one that it overlaps more.
    owner = torch.where(chosen, iou + 1e-6, torch.zeros_like(iou)).argmax(1)
    mine = chosen & functional.one_hot(owner, truth.shape[1]).transpose(1, 2).bool()
    metric = metric * mine
    strength = metric / metric.amax(2, keepdim=True).clamp(min=1e-9) * (iou * mine).amax(2, keepdim=True)
    weight = strength.amax(1)
    label = classes.clamp(min=0).gather(1, owner)
    target_box = targets.gather(1, owner[..., None].expand(-1, -1, 4))
    return functional.one_hot(label, CLASSES) * weight[..., None], target_box


def helmet_loss(hint: Tensor, centres: Tensor, truth: Tensor) -> Tensor:
    """Whether the cells around each person's head, the strongest of them, say "helmet" rightly.

    The cells that answer for a person lie at the waist, and from there the few pixels of a helmet are found by chance
    only, late or never: without this loss both kinds of people still had the same score after eight epochs.
    """
    classes, boxes = truth[..., 0], truth[..., 1:]
    head = boxes[..., 1] + 0.14 * (boxes[..., 3] - boxes[..., 1])
    x, y = centres[: hint.shape[1]].unbind(1)
    people = (classes == 0) | (classes == 1)
    across = (x > boxes[..., 0, None]) & (x < boxes[..., 2, None])
    near = across & (y > boxes[..., 1, None] - 4) & (y < head[..., None] + 4) & people[..., None]
    strongest = hint[:, None].masked_fill(~near, -1e4).amax(2)
    asked = near.any(2)
    if not asked.any():
        return hint.sum() * 0.0
    return functional.binary_cross_entropy_with_logits(strongest[asked], (classes[asked] == 0).float())


def detector_loss(
    boxes: Tensor, logits: Tensor, hint: Tensor, centres: Tensor, truth: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """The losses over boxes and scores, relative to the weight of all objects, and the helmet loss."""
    target_scores, target_boxes = assign(boxes.detach(), logits.detach().sigmoid(), centres, truth)
    weight = target_scores.sum(-1)
    total = weight.sum().clamp(min=1.0)
    score_loss = functional.binary_cross_entropy_with_logits(logits, target_scores, reduction="sum") / total
    positive = weight > 0
    _, giou = overlap(boxes[positive], target_boxes[positive])
    box_loss = ((1.0 - giou) * weight[positive]).sum() / total
    hints = HELMET_WEIGHT * helmet_loss(hint, centres, truth)
    return BOX_WEIGHT * box_loss, SCORE_WEIGHT * score_loss, hints
