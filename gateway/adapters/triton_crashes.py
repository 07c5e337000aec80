"""Versions that Triton lists as ready though the process that runs them has crashed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection


class Crashes:
    """What failed requests have told: Triton starts a crashed process never again, and no question shows it.

    A request without a version went to the highest; it is noted as version "".
    """

    def __init__(self) -> None:
        self._crashed: set[tuple[str, str]] = set()
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
            self._crashed.add((model, version))

    def answered(self, model: str, *versions: str) -> None:
        """These versions answer, so somebody else has loaded them again."""
        if self._crashed:
            self._crashed.difference_update((model, version) for version in versions)

    def loaded(self, model: str) -> None:
        """Nothing of before holds: the model was loaded again or unloaded."""
        self._loads[model] += 1
        self._crashed = {crash for crash in self._crashed if crash[0] != model}

    def among(self, model: str, listed: Collection[int]) -> frozenset[int]:
        """Those of the listed versions that have crashed; forgets what is not listed any more."""
        gone = {version for name, version in self._crashed if name == model} - {"", *map(str, listed)}
        self._crashed.difference_update((model, version) for version in gone)
        highest = max(listed, default=0)
        return frozenset(
            version
            for version in listed
            if (model, str(version)) in self._crashed or (version == highest and (model, "") in self._crashed)
        )
