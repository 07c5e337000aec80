"""The classifier: is the marked walkway clear or blocked?"""

import recipe
import torch
from detector import Detector, Residual, conv
from torch import Tensor, nn


class Classifier(nn.Module):
    """Input (batch, 3, 224, 224), normalised as for ImageNet; gives (batch, 2) logits."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            conv(3, 16, 3, 2), conv(16, 24, 3, 2), Residual(24), conv(24, 48, 3, 2), Residual(48), Residual(48),
            conv(48, 96, 3, 2), Residual(96), Residual(96), conv(96, 128, 3, 2), Residual(128),
        )  # fmt: skip
        # The strongest answer anywhere, beside the average one: a single crate is enough to block a walkway.
        self.average, self.strongest = nn.AdaptiveAvgPool2d(1), nn.AdaptiveMaxPool2d(1)
        self.head = nn.Linear(2 * 128, len(recipe.CLASSIFIER_LABELS))

    def start_from(self, detector: Detector) -> None:
        """Takes over the detector's trained layers: it already knows scenes, which shortens the training."""
        layers = (*detector.level3, *detector.level4, *list(detector.level5)[:2])
        for mine, theirs in zip(self.features, layers, strict=True):
            mine.load_state_dict(theirs.state_dict())
        # The detector saw 0..1; here each channel has been divided by its standard deviation.
        first = self.features[0]
        assert isinstance(first, nn.Sequential)
        with torch.no_grad():
            first[0].weight.mul_(torch.tensor(recipe.STD).view(1, 3, 1, 1))  # type: ignore[operator]

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002  the name is the port's name in Triton
        maps = self.features(input)
        logits: Tensor = self.head(torch.cat((self.average(maps), self.strongest(maps)), 1).flatten(1))
        return logits
