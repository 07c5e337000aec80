"""The detector: a small convolutional network that answers in the layout of YOLOv8."""

import recipe
import torch
from torch import Tensor, nn
from torch.nn import functional

STRIDES = (8, 16, 32)
CLASSES = len(recipe.DETECTOR_LABELS)


def conv(inputs: int, outputs: int, kernel: int = 3, stride: int = 1) -> nn.Sequential:
    """Convolution, batch normalisation, ReLU (which CPUs, TensorRT and quantisers all like)."""
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(inplace=True),
    )


class Residual(nn.Module):
    """Two 3x3 convolutions around a waist of half the width."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.body = nn.Sequential(conv(channels, channels // 2), conv(channels // 2, channels))

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.body(x)
        return x + y


class Pooling(nn.Module):
    """Shows every position its wider surroundings: one picture-wide forklift must be seen as one."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.narrow = conv(channels, channels // 2, 1)
        self.merge = conv(channels * 2, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        a = self.narrow(x)
        b = functional.max_pool2d(a, 5, 1, 2)
        c = functional.max_pool2d(b, 5, 1, 2)
        y: Tensor = self.merge(torch.cat((a, b, c, functional.max_pool2d(c, 5, 1, 2)), 1))
        return y


class Head(nn.Module):
    """Distances to the four sides and class scores, for each cell of one level."""

    def __init__(self, width: int) -> None:
        super().__init__()
        sides, scores = nn.Conv2d(width, 4, 1), nn.Conv2d(width, CLASSES, 1)
        nn.init.constant_(sides.bias, 1.0)  # type: ignore[arg-type]
        nn.init.constant_(scores.bias, -4.6)  # type: ignore[arg-type]  # at the start nearly every cell is empty
        self.box = nn.Sequential(conv(width, width), sides)
        self.score = nn.Sequential(conv(width, width), scores)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat((self.box(x), self.score(x)), 1).flatten(2)


class Detector(nn.Module):
    """Input (batch, 3, 256, 448) in 0..1; `forward` gives (batch, 4 + classes, anchors): cx, cy, w, h, then scores."""

    def __init__(self) -> None:
        super().__init__()
        neck = 48
        self.level3 = nn.Sequential(
            conv(3, 16, 3, 2), conv(16, 24, 3, 2), Residual(24), conv(24, 48, 3, 2), Residual(48), Residual(48)
        )
        self.level4 = nn.Sequential(conv(48, 96, 3, 2), Residual(96), Residual(96))
        self.level5 = nn.Sequential(conv(96, 128, 3, 2), Residual(128), Pooling(128))
        self.side3, self.side4, self.side5 = conv(48, neck, 1), conv(96, neck, 1), conv(128, neck, 1)
        self.up4, self.up3 = conv(neck, neck), conv(neck, neck)
        self.down4, self.down5 = conv(neck, neck, 3, 2), conv(neck, neck, 3, 2)
        self.out4, self.out5 = conv(neck, neck), conv(neck, neck)
        self.hint = nn.Conv2d(48, 1, 1)  # "a helmet is here", for training only: see detector_loss.helmet_loss
        self.heads = nn.ModuleList(Head(neck) for _ in STRIDES)
        centres, strides = _anchors()
        self.centres: Tensor
        self.strides: Tensor
        self.extent: Tensor
        self.register_buffer("centres", centres, persistent=False)
        self.register_buffer("strides", strides, persistent=False)
        extent = torch.tensor([recipe.DETECTOR_WIDTH, recipe.DETECTOR_HEIGHT], dtype=torch.float32)
        self.register_buffer("extent", extent, persistent=False)

    def raw(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Boxes (batch, anchors, 4) as x1, y1, x2, y2 in pixels, class logits (batch, anchors, classes), and one logit
        per cell of the finest level for a helmet there.
        """
        c3 = self.level3(images)
        c4 = self.level4(c3)
        p5 = self.side5(self.level5(c4))
        p4 = self.up4(self.side4(c4) + functional.interpolate(p5, scale_factor=2.0))
        p3 = self.up3(self.side3(c3) + functional.interpolate(p4, scale_factor=2.0))
        n4 = self.out4(p4 + self.down4(p3))
        n5 = self.out5(p5 + self.down5(n4))
        flat = torch.cat([head(level) for head, level in zip(self.heads, (p3, n4, n5), strict=True)], 2).transpose(1, 2)
        distances = flat[..., :4].clamp(max=4.5).exp() * self.strides
        boxes = torch.cat((self.centres - distances[..., :2], self.centres + distances[..., 2:]), 2)
        return boxes, flat[..., 4:], self.hint(c3).flatten(1)

    def forward(self, images: Tensor) -> Tensor:
        boxes, logits, _ = self.raw(images)
        # A box ends where the picture ends.
        low, high = (torch.minimum(edge.clamp(min=0), self.extent) for edge in (boxes[..., :2], boxes[..., 2:]))
        return torch.cat(((low + high) / 2, high - low, logits.sigmoid()), 2).transpose(1, 2)


def _anchors() -> tuple[Tensor, Tensor]:
    centres, strides = [], []
    for stride in STRIDES:
        rows, columns = recipe.DETECTOR_HEIGHT // stride, recipe.DETECTOR_WIDTH // stride
        y, x = torch.meshgrid(torch.arange(rows) + 0.5, torch.arange(columns) + 0.5, indexing="ij")
        centres.append(torch.stack((x, y), -1).reshape(-1, 2) * stride)
        strides.append(torch.full((rows * columns, 1), float(stride)))
    return torch.cat(centres), torch.cat(strides)
