"""Versions that Triton lists as ready though the process that runs them has crashed."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable, Collection

SETTLED_S = 5.0  # a crashed process among others fails one request each second, as long as there are any


class Crashes:
    """What failed requests have told: Triton starts a crashed process never again, and no question shows it.

    A request without a version went to the highest; it is noted as version "".
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._crashed: dict[tuple[str, str], float] = {}
        self._loads: Counter[str] = Counter()

    def loads(self, model: str) -> int:
        """How often the model was loaded; a request says with it which load it was sent to."""
        return self._loads[model]

    def known(self, model: str) -> bool:
        """Whether a version of the model is noted."""
        return any(name == model for name, _ in self._crashed)

    def crashed(self, model: str, version: str, loads: int) -> None:
        """A request that was sent after that many loads found the process gone.

        One from before the last load tells nothing: the crashed process answers those that queue for it, one each
        second, long after another has taken over.
        """
        if loads == self._loads[model]:
            self._crashed[model, version] = self._clock()

    def answered(self, model: str, *versions: str) -> None:
        """These versions answer: forget a crash after which no request has failed for a while, for then somebody
        else has loaded the version again. Until then it may be another process of the same version that answers.
        """
        if self._crashed:
            settled = self._clock() - SETTLED_S
            for version in versions:
                if self._crashed.get((model, version), math.inf) < settled:
                    del self._crashed[model, version]

    def loaded(self, model: str) -> None:
        """Nothing of before holds: the model was loaded again or unloaded."""
        self._loads[model] += 1
        self._crashed = {crash: at for crash, at in self._crashed.items() if crash[0] != model}

    def among(self, model: str, listed: Collection[int]) -> frozenset[int]:
        """Those of the listed versions that have crashed; forgets what is not listed any more."""
        still = {"", *map(str, listed)} if listed else set()
        for name, version in list(self._crashed):
            if name == model and version not in still:
                del self._crashed[name, version]
        highest = max(listed, default=0)
        return frozenset(
            version
            for version in listed
            if (model, str(version)) in self._crashed or (version == highest and (model, "") in self._crashed)
        )
