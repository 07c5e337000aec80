"""What is remembered of each model, in memory and on the volume, and who wants to know when it changes."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Mapping
from typing import Any

import msgspec
import structlog

from gateway.rollout.lease import Lease
from gateway.rollout.state import ModelState
from gateway.rollout.store import StateNotKept, StateStore

log = structlog.get_logger(__name__)


class Ledger:
    """Writes through to the store while the lease is held, and follows it while somebody else writes."""

    def __init__(self, store: StateStore, lease: Lease, gateway_id: str) -> None:
        self.store = store
        self._lease = lease
        self._gateway_id = gateway_id
        self._states = store.read_all()
        self._print = store.fingerprint()
        self._changed = asyncio.Event()
        self._writing = asyncio.Lock()
        self.problem = ""
        """Why the last state could not be written; empty while all are."""

    @property
    def states(self) -> Mapping[str, ModelState]:
        """By model."""
        return self._states

    def get(self, model: str) -> ModelState:
        """What is remembered of a model, perhaps nothing but its name."""
        return self._states.get(model) or ModelState(model)

    @property
    def writable(self) -> bool:
        """Whether this gateway is the one that writes."""
        return self._lease.check()

    @property
    def why_not_writable(self) -> str:
        """Why nobody here is."""
        return self._lease.problem

    async def put(self, model: str, **changes: Any) -> ModelState:
        """Remember something, on the volume before anywhere else; raises StateNotKept."""
        async with self._writing:
            if not self._lease.check():
                await self._regain(model)
            state = self._changed_state(model, changes)
            try:
                await asyncio.to_thread(self.store.write, state)
            except StateNotKept as error:
                self.problem = error.message
                raise
            self.problem = ""
            self._take(state)
            return state

    async def _regain(self, model: str) -> None:
        """Hold the lease again, and know what others have written meanwhile; raises StateNotKept."""
        if not await self._lease.hold():
            problem = self._lease.problem
            raise StateNotKept(
                problem or "another gateway runs the rollouts now",
                where=f"model '{model}'",
                fix="" if problem else "Nothing: it goes on there",
            )
        await asyncio.to_thread(self.refresh)

    async def note(self, model: str, **changes: Any) -> ModelState:
        """Remember something, in memory alone where the volume does not take it."""
        try:
            return await self.put(model, **changes)
        except StateNotKept as error:
            log.error("Not remembered", model=model, reason=error.message, fix=error.fix)
            state = self._changed_state(model, changes)
            self._take(state)
            return state

    def write_now(self, model: str, **changes: Any) -> None:
        """Remember something at the end, when there is no time to wait; blocking, and never raises."""
        state = self._changed_state(model, changes)
        with contextlib.suppress(StateNotKept):
            if self._lease.check():
                self.store.write(state)

    def progress(self, model: str, text: str) -> None:
        """Say how far the step of a rollout is; in memory only."""
        state = self.get(model)
        if state.rollout is not None and state.rollout.progress != text:
            self._take(msgspec.structs.replace(state, rollout=msgspec.structs.replace(state.rollout, progress=text)))

    def refresh(self) -> set[str]:
        """Read what others have written; returns the models whose state has changed. Touches the disk."""
        now = self.store.fingerprint()
        if now == self._print:
            return set()
        self._print = now
        states = self.store.read_all()
        changed = {name for name in states.keys() | self._states.keys() if states.get(name) != self._states.get(name)}
        self._states = states
        return changed

    async def changed(self) -> None:
        """Return at the next change."""
        await self._changed.wait()

    def say_changed(self) -> None:
        """Let those look again who wait in `changed`."""
        self._changed.set()
        self._changed = asyncio.Event()

    def _changed_state(self, model: str, changes: Mapping[str, Any]) -> ModelState:
        return msgspec.structs.replace(
            self.get(model), **changes, roller=self._gateway_id, written_at=round(time.time(), 3)
        )

    def _take(self, state: ModelState) -> None:
        self._states = {**self._states, state.model: state}
        self.say_changed()
