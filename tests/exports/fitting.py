"""Fits a small model to a few pictures, the same way for every tool."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


def fit(net: Any, loss_of: Callable[[], Any], steps: int, rate: float) -> None:
    """That many steps of AdamW down the loss, which is computed on the same pictures every time."""
    import torch

    optimiser = torch.optim.AdamW(net.parameters(), lr=rate, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, rate, total_steps=steps, pct_start=0.1)
    for _ in range(steps):
        optimiser.zero_grad()
        loss = loss_of()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 10.0)
        optimiser.step()
        schedule.step()
    print(f"  fitted: {sum(p.numel() for p in net.parameters()):,} parameters, last loss {float(loss.detach()):.3f}")


def settle(net: Any, forward: Callable[[], Any]) -> None:
    """Lets the running averages of the normalisation catch up; after so few steps a model is another one without."""
    import torch

    for module in net.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = 0.3
    with torch.no_grad():
        for _ in range(20):
            forward()
