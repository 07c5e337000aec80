"""The sensor model: gives a window of temperatures back as far as it has learned what a healthy thermometer says."""

import re

import numpy as np
import recipe
import torch
from readings import healthy_windows
from torch import Tensor, nn
from torch.nn import functional

BATCH = 256
PEAK_RATE = 6e-3
HIDDEN = 96
# Chosen on validation sensors, faulty ones too: with six, spikes begin to slip through; with eight, a stuck thermometer
# is given back as well as a healthy one and never found.
CODE = 7


class SensorAutoencoder(nn.Module):
    """Input (batch, 32, 1), normalised; gives the same shape back.

    The code in the middle is brought to length 1. A plain autoencoder gives a flat line back better than anything it
    was trained on, and so misses 99 of 100 thermometers that are stuck. This one has no code for "nothing happens".
    """

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(recipe.WINDOW, HIDDEN), nn.Tanh(), nn.Linear(HIDDEN, CODE))
        self.decoder = nn.Sequential(nn.Linear(CODE, HIDDEN), nn.Tanh(), nn.Linear(HIDDEN, recipe.WINDOW))

    def forward(self, window: Tensor) -> Tensor:
        code = self.encoder(window.flatten(1))
        code = code / torch.sqrt((code * code).sum(1, keepdim=True) + 1e-6)
        reconstruction: Tensor = self.decoder(code).unsqueeze(2)
        return reconstruction


def fit_sensor(epochs: int) -> SensorAutoencoder:
    """Trains on healthy windows only and returns the network; keeps a checkpoint at the end."""
    torch.manual_seed(recipe.SEED)
    rng = np.random.default_rng(recipe.SEED)
    windows = torch.from_numpy(healthy_windows("train"))
    model, steps = SensorAutoencoder(), len(windows) // BATCH
    optimiser = torch.optim.AdamW(model.parameters(), weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, PEAK_RATE, total_steps=steps * epochs)
    for epoch in range(epochs):
        order, total = torch.from_numpy(rng.permutation(len(windows))), 0.0
        for step in range(steps):
            batch = windows[order[step * BATCH : (step + 1) * BATCH]]
            loss = functional.mse_loss(model(batch), batch)
            optimiser.zero_grad(set_to_none=True)
            torch.autograd.backward(loss)
            optimiser.step()
            schedule.step()
            total += loss.item()
        if (epoch + 1) % 10 == 0:
            print(f"  sensor {epoch + 1}/{epochs}: loss {total / steps:.4f}", flush=True)
    recipe.CACHE.mkdir(parents=True, exist_ok=True)
    torch.save(model.state_dict(), recipe.CACHE / "sensor.pt")
    return model


@torch.no_grad()
def write_threshold(model: SensorAutoencoder) -> float:
    """Puts the error that all but a thousandth of the healthy validation windows stay below into the model.yaml."""
    windows = torch.from_numpy(healthy_windows("validation"))
    errors = (model(windows) - windows).pow(2).mean((1, 2)).numpy()
    threshold = float(f"{np.quantile(errors, recipe.HEALTHY_SHARE):.3g}")
    path = recipe.REPOSITORY / recipe.SENSOR_NAME / "model.yaml"
    text, count = re.subn(r"(?m)^(  anomaly_threshold:) \S+", rf"\1 {threshold:g}", path.read_text())
    if count != 1:
        raise ValueError(f"{path} has {count} lines '  anomaly_threshold: ...' instead of one; write one")
    path.write_text(text)
    return threshold
