"""The page draws the outlines that the gateway publishes: its reading of run lengths gives back the mask."""

from __future__ import annotations

import re

import numpy as np
import pytest
from numpy.typing import NDArray
from playwright.async_api import Browser

from gateway.flow.outlines import rle_of
from gateway.layouts.base import Mask
from gateway.messages import Geometry
from tests.console.shown import Shown

pytestmark = pytest.mark.asyncio(loop_scope="session")

DRAW = """async masks => {
  const { maskPath } = await import(new URL("console/masks.js", document.baseURI));
  return masks.map(maskPath);
}"""
BAR = re.compile(r"M(\d+) (\d+)h1v(\d+)h-1z")


def masks() -> list[NDArray[np.bool_]]:
    """Full, nearly empty and random ones, some of them wider than high."""
    random = np.random.default_rng(5)
    single = np.zeros((5, 7), dtype=np.bool_)
    single[4, 6] = True
    noise = [
        random.random((height, width)) < share for height, width in ((9, 4), (4, 9), (40, 30)) for share in (0.1, 0.9)
    ]
    return [np.ones((3, 4), dtype=np.bool_), single, *noise]


async def test_a_mask_is_drawn_as_it_was(shown: Shown, browser: Browser) -> None:
    wanted = masks()
    sent = []
    for mask in wanted:
        height, width = mask.shape
        rle = rle_of(Mask(mask), Geometry(width, height, 1, 1, 0, 0))
        assert rle is not None
        sent.append({"size": [height, width], "counts": rle.counts})
    async with shown.visit(browser) as visit:
        await visit.go("try")
        paths = await visit.page.evaluate(DRAW, sent)
    for mask, path in zip(wanted, paths, strict=True):
        drawn = np.zeros_like(mask)
        for x, y, length in (map(int, bar) for bar in BAR.findall(path)):
            drawn[y : y + length, x] = True
        assert np.array_equal(drawn, mask)
