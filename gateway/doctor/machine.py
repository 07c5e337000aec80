"""This machine: settings, disks, clock by its files, and what the gateway is made of."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from gateway import __version__
from gateway.adapters.spool import SpoolFailed
from gateway.adapters.spool_inspection import set_aside_in, waiting_in
from gateway.certificate_dates import ends_at
from gateway.config import Settings
from gateway.config_files import certificate_files, missing_files
from gateway.config_reading import given_variables, named_file
from gateway.config_warnings import settings_warnings
from gateway.doctor.files import check_folders, check_secrets, disk, existing, unwritable
from gateway.doctor.findings import Area, Finding
from gateway.doctor.resources import check_resources
from gateway.errors import ConfigError
from gateway.models.repository import LogicalModel

CONFIGURATION = Area("Configuration")
MODELS = Area("Models")
MACHINE = Area("Machine")
CLOCK = Area("Clock")
PACKAGES = ("paho-mqtt", "tritonclient", "grpcio", "numpy", "pillow", "msgspec", "pydantic")
AHEAD_S = 5.0
DAY_S = 86_400
CERTIFICATE_DAYS = 7
MAX_FILES_SEEN = 10_000


def check_configuration(settings: Settings, file: Path | None) -> list[Finding]:
    """Where the settings come from, and what is odd about them; those that are wrong never come here."""
    path, count = file or named_file(), len(given_variables(os.environ))
    sources = f"{path or 'no gateway.yaml'}; {count} setting{'s' * (count != 1)} from the environment"
    fix = "See `edge-gateway config show`"
    return [
        CONFIGURATION.ok(f"gateway '{settings.gateway_id}', {sources}"),
        *(CONFIGURATION.warning(text, fix=fix) for text in settings_warnings(settings, os.environ)),
        *(CONFIGURATION.failed(error) for error in missing_files(settings)),
        *check_secrets(settings),
        *_certificates(settings),
    ]


def _certificates(settings: Settings) -> Iterator[Finding]:
    """Our own, and those of authorities: until when they hold."""
    for setting, path in certificate_files(settings):
        end = ends_at(path)
        days = (end - time.time()) / DAY_S
        if days < CERTIFICATE_DAYS:
            text = f"'{path}' holds a certificate that " + (f"ends in {days:.0f} days" if days > 0 else "has ended")
            fix = "Renew it in place; no restart is needed"
            yield CONFIGURATION.warning(text, where=setting, fix=fix)
        elif days >= CERTIFICATE_DAYS:  # never so for NaN, of a file that cannot be read
            text = f"'{path}' holds until {time.strftime('%Y-%m-%d', time.gmtime(end))}"
            yield CONFIGURATION.ok(text, where=setting)


def check_models(settings: Settings, models: list[LogicalModel], errors: list[ConfigError]) -> list[Finding]:
    """The model.yaml files; what they name at Triton is looked at elsewhere."""
    found = [MODELS.failed(error) for error in errors]
    if not models and not errors:
        fix = "Put a folder with a model.yaml there, or correct MODEL_REPOSITORY"
        where = str(settings.model_repository)
        found.append(MODELS.warning("there is no model.yaml, so nothing is served", where=where, fix=fix))
    return found


def check_machine(settings: Settings) -> list[Finding]:
    """Python and packages, disks, processors and memory, and times that lie in the future."""
    packages = ", ".join(f"{name} {_version(name)}" for name in PACKAGES)
    return [
        MACHINE.ok(f"edge-gateway {__version__}, Python {platform.python_version()} on {sys.platform}; {packages}"),
        *disk(settings.model_repository, "models"),
        *disk(Path(tempfile.gettempdir()), "temporary files"),
        *_spool(settings),
        *check_folders(settings),
        *check_resources(settings),
        *_clock(settings.model_repository),
    ]


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "(not installed)"


def _spool(settings: Settings) -> Iterator[Finding]:
    """Whether answers can wait on disk, and how many do."""
    folder = settings.spool_dir
    if folder is None:
        return
    where, fix = str(folder), "Make SPOOL_DIR a folder that the gateway may write"
    if problem := unwritable(folder):
        yield MACHINE.problem(f"answers cannot wait on disk: {problem}", where=where, fix=fix)
        return
    yield from disk(existing(folder), "answers that wait for the broker")
    if damaged := set_aside_in(folder, settings.gateway_id):
        text = f"{len(damaged)} damaged file{'s' * (len(damaged) != 1)} with answers that are not sent"
        fix = "Check the disk; delete the file when nobody wants to look at it"
        yield MACHINE.warning(text, where=str(damaged[-1]), fix=fix)
    try:
        waiting = waiting_in(folder, settings.gateway_id)
    except SpoolFailed as failure:
        fix = "Start the gateway, which sets a damaged file aside, or look into the folder"
        yield MACHINE.warning(f"the answers that wait cannot be counted: {failure}", where=where, fix=fix)
        return
    if waiting is None:
        yield MACHINE.ok("the gateway runs and has its spool open; edge_gateway_spool_messages counts", where=where)
    else:
        yield MACHINE.ok(f"{waiting} answer{'s' * (waiting != 1)} wait{'s' * (waiting == 1)} on disk", where=where)


def _clock(repository: Path) -> Iterator[Finding]:
    """A file from the future means that this clock, or the one of whoever copied it, is wrong."""
    newest, path = 0.0, repository
    try:
        for number, each in enumerate(repository.glob("*/**/*")):
            if number >= MAX_FILES_SEEN:
                break
            changed = each.stat().st_mtime
            newest, path = max((newest, path), (changed, each))
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", error)
        yield CLOCK.unknown(f"the times of the models' files cannot be read: {reason}", where=str(repository))
        return
    ahead = newest - time.time()
    if ahead > AHEAD_S:
        yield CLOCK.warning(
            f"was changed {ahead:.0f} s in the future: this clock, or that of the machine it came from, is wrong, and "
            "Triton tells changed files by their time",
            where=str(path),
            fix="Let both machines follow a time server (NTP), then touch the file",
        )
    elif newest:
        yield CLOCK.ok("no file of the models is from the future")
