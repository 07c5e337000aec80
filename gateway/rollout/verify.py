"""Whether a drop may be loaded at all, seen from its files alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from gateway.errors import ConfigError
from gateway.models.drop import Drop, digest_of_all, digests_of, take_drop
from gateway.models.drop_files import SIGNATURE_FILE, FileStamp
from gateway.models.manifest import Manifest, incomplete, read_manifest
from gateway.models.repository import LogicalModel, read_model
from gateway.ports import InferenceServer
from gateway.rollout.state import ReleaseRecord

GPU_SHARE = 1.5
"""Memory that a model takes on a GPU, by the size of its files: weights, and room to work."""

Examine = Callable[[Path, LogicalModel, str, int], ConfigError | None]
"""What is wrong with one variant's folder (folder, model, variant, version), by its files."""
VerifySignature = Callable[[Path, Mapping[str, str], Sequence[str], float | None], object]
"""Raises ConfigError when the signature at this path is not over files with these digests by a trusted key.

The other arguments are folders of compiled Python, which nothing vouches for, and when the signature has to have been
valid, in seconds since 1970, None for now.
"""


@dataclass(frozen=True, slots=True)
class Checks:
    """What adapters know about files; None where it is not configured."""

    examine: Examine | None = None
    verify_signature: VerifySignature | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Verified:
    """A drop that may be loaded."""

    drop: Drop
    digests: Mapping[str, str]
    spoilt: Mapping[str, ConfigError]
    """Variants whose files are no good; there are none unless the caller wanted to know."""

    @property
    def digest(self) -> str:
        """One for all files."""
        return digest_of_all(self.digests)

    @property
    def weights(self) -> dict[str, str]:
        """The digests of the files that Triton loads."""
        return weights_in(self.record(0.0))

    def record(self, promoted_at: float) -> ReleaseRecord:
        """What is remembered of it."""
        placements = self.drop.release.placements
        return ReleaseRecord(
            version=self.drop.version,
            digests=dict(self.digests),
            stamps=dict(self.drop.files),
            placements={name: (place.triton_model, place.version) for name, place in placements.items()},
            promoted_at=promoted_at,
        )


def weights_of(record: ReleaseRecord) -> list[str]:
    """The files that Triton loads: those in the version folders."""
    folders = tuple(f"{triton_model}/{version}/" for triton_model, version in record.placements.values())
    return [path for path in record.digests if path.startswith(folders)]


def weights_in(record: ReleaseRecord) -> dict[str, str]:
    """The digests of the files that Triton loads."""
    return {path: record.digests[path] for path in weights_of(record)}


def are_others(before: Mapping[str, str], now: Mapping[str, str]) -> bool:
    """Whether a file that Triton has had is another one now; a variant that has come since is none of these."""
    return any(before[path] != now[path] for path in before.keys() & now.keys())


class NotComplete(ConfigError):
    """The files of a drop are not all there yet."""


def read_drop(
    path: Path, repository: Path, version: int, max_bytes: int, known: ReleaseRecord | None = None
) -> tuple[Drop, dict[str, str]]:
    """A version on disk and the digests of its files; raises ConfigError, and NotComplete by its SHA256SUMS.

    Files that have the stamps of `known` are not read again. Blocking.
    """
    model = read_model(path, repository, version)
    drop = take_drop(model, repository, version, max_bytes)
    manifest = read_manifest(path.parent)
    _refuse_incomplete(manifest, drop, None)  # what is missing is seen without reading what is there
    digests = digests_of(drop, _known(known))
    _refuse_incomplete(manifest, drop, digests)
    return drop, digests


def _refuse_incomplete(manifest: Manifest | None, drop: Drop, digests: Mapping[str, str] | None) -> None:
    if manifest is not None and (why := incomplete(manifest, drop, digests)):
        raise NotComplete(why, where=str(drop.model.path.parent), fix="Copy what is missing, or write SHA256SUMS anew")


def _known(record: ReleaseRecord | None) -> dict[str, tuple[FileStamp, str]]:
    if record is None:
        return {}
    return {path: (record.stamps[path], digest) for path, digest in record.digests.items() if path in record.stamps}


def verify(drop: Drop, digests: Mapping[str, str], checks: Checks, *, tolerant: bool) -> Verified:
    """Whether the files are signed, if that is asked for, and fit model.yaml; raises ConfigError. Blocking.

    A `tolerant` look leaves out variants whose files are no good while there are others: of a model of which nothing
    serves yet, what works shall.
    """
    if checks.verify_signature is not None:
        checks.verify_signature(drop.model.path.parent / SIGNATURE_FILE, digests, drop.bytecode, None)
    spoilt: dict[str, ConfigError] = {}
    for variant, placement in drop.release.placements.items():
        if checks.examine is None:
            break
        folder = drop.repository / placement.triton_model
        if problem := checks.examine(folder, drop.model, variant, placement.version):
            spoilt[variant] = problem
    if spoilt and (not tolerant or len(spoilt) == len(drop.release.placements)):
        raise next(iter(spoilt.values()))
    return Verified(drop, digests, spoilt)


async def refuse_without_room(drop: Drop, server: InferenceServer) -> None:
    """Raise ConfigError when the GPU has less memory free than the model is likely to take."""
    gpu = await server.gpu_memory()
    if gpu is None:
        return
    need, free = drop.release.file_bytes * GPU_SHARE, gpu.total - gpu.used
    if need > free:
        raise ConfigError(
            f"it takes about {need / 1e6:.0f} MB of GPU memory, {free / 1e6:.0f} MB are free",
            where=f"model '{drop.name}' version {drop.version}",
            fix="Unload other models, or export a smaller one",
        )
