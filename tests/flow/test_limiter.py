"""How the places in flight are shared among models, on a clock that costs no time."""

from __future__ import annotations

from gateway.flow.limiter import IN_SIGHT_S, Limiter, Place
from gateway.live import Live
from gateway.metrics import Metrics
from gateway.models.catalog import Models
from tests.flow.builders import job, served, settings, spec

PLACES = 8


class Floor:
    """A limiter of some models whose variants would take any number at once."""

    def __init__(self, models: int, places: int = PLACES, **more: object) -> None:
        self.now = 0.0
        self._places = places
        self.metrics = Metrics()
        self._models = {f"m{number}": served(spec(f"m{number}")) for number in range(models)}
        catalog = Models()
        for model in self._models.values():
            catalog.put(model)
        live = Live(settings(max_in_flight=places, infer_concurrency=64, **more))
        self.limiter = Limiter(live, catalog, self.metrics, clock=lambda: self.now)
        self.limiter.follow(catalog.current)

    def take(self, model: str) -> Place | None:
        """A place for one more snapshot, when there is room."""
        has_room = self.limiter.room((model, ""))
        return self.limiter.enter(job(model=self._models[model])) if has_room else None

    def take_all(self, model: str) -> list[Place]:
        """As many as there are for it."""
        places: list[Place] = []
        while len(places) < self._places and (place := self.take(model)) is not None:
            places.append(place)
        return places


def leave(*places: Place) -> None:
    for place in places:
        with place:
            pass


def test_a_model_alone_leaves_one_place_to_its_other_variant() -> None:
    assert len(Floor(1).take_all("m0")) == PLACES - 1


def test_two_models_that_are_asked_have_half_each_whichever_comes_first() -> None:
    floor = Floor(2)
    leave(*floor.take_all("m1"))
    assert len(floor.take_all("m0")) in (3, 4)
    assert len(floor.take_all("m1")) >= 3


def test_what_a_model_does_not_ask_for_any_more_is_free_for_others_but_for_one_place() -> None:
    floor = Floor(2)
    leave(*floor.take_all("m1"))
    first = floor.take_all("m0")
    floor.now += 2 * IN_SIGHT_S
    assert len(first) < len(first + floor.take_all("m0")) == PLACES - 3  # two variants of m1, and the other of m0
    assert floor.take("m1") is not None


def test_models_that_are_asked_share_the_memory_for_tensors() -> None:
    floor = Floor(2, places=64, shared_memory_max_bytes=2**20)  # room for 21 of 64 x 64
    leave(*floor.take_all("m0"))
    alone = floor.take_all("m0")
    assert len(alone) == 20  # one is left to its other variant
    limit = {"model": "m0", "variant": "onnx"}
    assert floor.metrics.value("inference_concurrency_limit", **limit) == 20, (
        "what holds it back, though 64 are allowed"
    )
    leave(*alone, *floor.take_all("m1"))
    assert [len(floor.take_all(model)) for model in ("m0", "m1")] == [9, 9]
    assert floor.metrics.value("inference_concurrency_limit", **limit) == 9


def test_many_models_that_are_seldom_asked_leave_half_of_the_places_to_one_that_is_busy() -> None:
    floor = Floor(20)
    for number in range(20):
        leave(*floor.take_all(f"m{number}"))
    assert len(floor.take_all("m0")) == PLACES // 2
    assert all(floor.take(f"m{number}") is not None for number in range(1, 5))


def test_what_is_left_is_counted_no_more_and_a_model_that_goes_takes_its_metrics_along() -> None:
    floor = Floor(1)
    places = floor.take_all("m0")
    assert floor.metrics.value("inference_in_flight", model="m0", variant="onnx") == len(places)
    leave(*places, *places)
    assert floor.metrics.value("inference_in_flight", model="m0", variant="onnx") == 0
    assert len(floor.take_all("m0")) == len(places)
    floor.limiter.follow(Models().current)
    series = {"model": "m0", "variant": "onnx"}
    assert floor.metrics.registry.get_sample_value("edge_gateway_inference_in_flight", series) is None
