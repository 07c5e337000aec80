"""A variant that is given up is seen in /ready, in the API and on the model's topic; it makes nothing unready."""

from __future__ import annotations

from pathlib import Path

from gateway.admin.api import model_state
from gateway.errors import BackendRejected
from tests.flow.builders import jpeg
from tests.harness import site, until


async def test_an_open_breaker_is_shown_until_the_variant_answers_again(tmp_path: Path) -> None:
    async with site(tmp_path, breaker_failures=2, breaker_open_s=0.05) as place:
        place.triton.fail("detector-onnx", BackendRejected("CUDA error"))
        for number in range(2):
            place.snapshot(jpeg(seed=number))
            await place.answered(number + 1)
        report = place.gateway.health.report()
        assert report.ready
        assert [reason for reason in report.degraded if "onnx is not asked for now" in reason]
        models = place.gateway.models
        state = model_state(models.current.named("detector"), models.given_up)
        assert (state["variants"]["onnx"]["breaker"], state["variants"]["torch"]["breaker"]) == ("open", "closed")

        def said() -> str:
            return str(place.of("ai_model")[-1]["variants"]["onnx"]["breaker"])

        await until(lambda: said() == "open", "the model's topic")
        place.triton.fail("detector-onnx", None)
        seeds = iter(range(100, 1000))

        def closed() -> bool:
            place.snapshot(jpeg(seed=next(seeds)))
            return not models.given_up

        await until(closed, "the breaker to close")
        await until(lambda: said() == "closed", "the model's topic")
        assert not place.gateway.health.report().degraded
