"""What the flow gives the gallery: results before anybody reads them, comparisons of variants and of versions."""

from __future__ import annotations

import msgspec
from structlog.testing import capture_logs

from gateway.flow.alerts import Alert
from gateway.flow.gallery import Gallery
from gateway.flow.observer import Answer
from gateway.messages import Origin, Publication
from tests.flow.builders import jpeg, message, snapshot_json
from tests.flow.trial_site import Flow, Witness, flow, on_trial, release
from tests.harness import HELMET, NO_HELMET, sees, until


def gallery_of(place: Flow) -> Gallery:
    assert place.pipeline.gallery is not None
    return place.pipeline.gallery


async def test_a_version_in_shadow_is_compared_with_the_one_that_answers() -> None:
    async with flow() as place:
        await place.add(1, sees(HELMET))
        await place.add(2, sees(NO_HELMET))
        gallery = gallery_of(place)
        gallery.pictures.look()
        place.models.put(on_trial(release(1), release(2), Witness(pairs=2)))
        picture = jpeg(seed=7)
        place.send("camera-01", picture)
        await until(lambda: any(gallery.disagreements()), "the comparison")
        ((key, agreement),) = gallery.agreements
        (pair,) = gallery.disagreements()
        message = msgspec.json.decode(pair.payload)
        kept = gallery.pictures.find(pair.result_id)
        assert place.of("dual_backend_comparison") == [], "nobody is told of it over MQTT"
    assert key == ("detector", "shadow")
    assert (agreement.totals, pair.kind) == ([0, 1, 0], "shadow")
    assert set(message["backends"]) == set(agreement.latency) == {"onnx v1", "onnx v2"}
    assert message["backends"]["onnx v2"]["predictions"][0]["class"] == "person_without_helmet"
    assert kept is not None
    assert kept[1] == picture


async def test_what_two_versions_say_to_one_who_asks_over_http_is_not_shown() -> None:
    async with flow() as place:
        await place.add(1, sees(HELMET))
        await place.add(2, sees(NO_HELMET))
        gallery, jury = gallery_of(place), Witness(pairs=2)
        place.models.put(on_trial(release(1), release(2), jury))
        reply = await place.pipeline.intake.ask(message(snapshot_json(jpeg(), device_id="camera-01")))
        await until(lambda: any(each.candidate for each in jury.seen), "the shadow")
        assert reply.error is None
        assert not gallery.cameras
        assert not list(gallery.agreements)
        assert not list(gallery.disagreements())


async def test_the_very_bytes_that_are_published_are_kept_and_the_very_picture_that_came() -> None:
    async with flow(1) as place:
        gallery = gallery_of(place)
        gallery.pictures.look()
        place.models.put(release(1))
        place.send("camera-01", jpeg())
        await place.answered(1)
        entry = gallery.cameras["camera-01"].history[-1]
        assert msgspec.json.decode(entry.payload) == place.results[0]
        repeats = place.pipeline.replies._repeats._answers[entry.result_id]
        assert repeats.repeat.answers[0].payload is entry.payload, "a reference, not a copy"


async def test_without_a_console_there_is_no_gallery_and_everything_else_goes_on() -> None:
    async with flow(1, 2, console="off", enable_dual_backend=True) as place:
        assert place.pipeline.gallery is None
        place.models.put(on_trial(release(1), release(2), jury := Witness(pairs=1)))
        place.send("camera-01")
        place.send("camera-01", b"no picture")
        await place.answered(2)
        await until(lambda: any(each.candidate for each in jury.seen), "the shadow")
        assert (len(place.results), len(place.errors)) == (1, 1)


class Broken:
    """Fails at all that it is told."""

    def answered(self, answer: Answer) -> None:
        raise RuntimeError("a defect")

    def failed(self, origin: Origin, message: Publication) -> None:
        raise RuntimeError("a defect")

    def alerted(self, alert: Alert, message: Publication) -> None:
        raise RuntimeError("a defect")


async def test_an_observer_that_fails_harms_neither_the_snapshot_nor_the_others() -> None:
    async with flow(1, observers=[Broken()]) as place:
        place.models.put(release(1))
        with capture_logs() as logs:
            place.send("camera-01", jpeg())
            place.send("camera-02", b"no picture")
            await until(lambda: len(gallery_of(place).cameras) == 2, "both in the gallery")
            place.send("camera-03", jpeg())
            await until(lambda: len(gallery_of(place).cameras) == 3, "the next one")
    assert len(place.of("ai_inference_result")) == 2
    assert len(place.of("ai_inference_error")) == 1
    assert [each["event"] for each in logs if each["log_level"] == "error"] == [
        "A defect of the gateway: what was published is not shown"
    ] * 3
