"""A running gateway follows its files, takes over what is right, and keeps what it has otherwise."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from gateway.config import RELOADABLE, Settings
from gateway.config_reading import load_settings
from gateway.config_reload import Reloader
from gateway.errors import ConfigError
from gateway.live import Live
from gateway.local.processes import free_ports
from gateway.metrics import Metrics
from gateway.models.repository import LogicalModel, read_repository
from tests.command_line import start
from tests.flow.builders import jpeg, snapshot_json
from tests.harness import site, until, write_model

POLL_S = 0.005


@dataclass
class Site:
    """A reloader at work on a folder, and what it did."""

    file: Path
    live: Live
    metrics: Metrics
    logs: list[Any]
    reloader: Reloader = field(init=False)
    logging: list[tuple[str, str]] = field(default_factory=list)
    applied: list[list[LogicalModel]] = field(default_factory=list)
    beyond: list[str] = field(default_factory=list)
    refusal: Exception | None = None

    def apply(self, models: list[LogicalModel]) -> list[str]:
        if self.refusal is not None:
            raise self.refusal
        self.applied.append(models)
        return self.beyond

    def set_logging(self, level: str, log_format: str) -> None:
        self.logging.append((level, log_format))

    @property
    def successful(self) -> float:
        return self.metrics.value("config_last_reload_successful")

    @property
    def timestamp(self) -> float:
        return self.metrics.value("config_last_reload_success_timestamp_seconds")

    @property
    def repository(self) -> Path:
        return self.live.current.model_repository

    def said(self, event: str) -> list[Any]:
        return [entry for entry in self.logs if entry["event"].startswith(event)]

    async def until_said(self, event: str, times: int = 1) -> Any:
        await until(lambda: len(self.said(event)) >= times, f"'{event}', {times} times, in {self.logs}")
        return self.said(event)[-1]

    async def again(self) -> Any:
        """What is said of a reload that is asked for now; it has then seen all that was written before."""
        done = [*self.said(READ), *self.said(REFUSED)]
        self.reloader.request()
        await until(lambda: len([*self.said(READ), *self.said(REFUSED)]) > len(done), "the reload that was asked for")
        return self.logs[-1]


READ, REFUSED, RESTART = "Configuration read again", "The configuration is not taken over", "Some changes need"


def read_all(settings: Settings) -> list[LogicalModel]:
    models, errors = read_repository(settings.model_repository)
    for error in errors:
        raise error
    return models


@pytest.fixture(autouse=True)
def _nothing_is_set(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in os.environ:
        if name.lower() in {*Settings.model_fields, "gateway_config"}:
            monkeypatch.delenv(name)


@contextlib.asynccontextmanager
async def following(folder: Path, text: str = "", poll_s: float = POLL_S) -> AsyncIterator[Site]:
    """A reloader on a gateway.yaml and a repository with one model."""
    repository, file = folder / "models", folder / "gateway.yaml"
    write_model(repository)
    file.write_text(f"model_repository: {repository}\n{text}")
    live, metrics = Live(load_settings(file)), Metrics()

    with capture_logs() as logs:
        site = Site(file, live, metrics, logs)
        site.reloader = Reloader(
            live, file, read_all, site.apply, metrics, set_logging=site.set_logging, poll_s=poll_s, settle_s=poll_s
        )
        running = asyncio.create_task(site.reloader.run())
        try:
            yield site
        finally:
            running.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await running


def change(path: Path, edit: Callable[[str], str]) -> None:
    """Replace a file at once, as editors and Kubernetes do."""
    new = path.with_suffix(".new")
    new.write_text(edit(path.read_text()))
    new.replace(path)


async def test_a_changed_file_is_taken_over(tmp_path: Path) -> None:
    async with following(tmp_path, "infer_timeout_ms: 100\n") as site:
        change(site.file, lambda text: text.replace("100", "200") + "result_topic: a/{device_id}\n")
        said = await site.until_said(READ)
        assert said["changed"] == ["RESULT_TOPIC", "INFER_TIMEOUT_MS"]
        assert (site.live.current.infer_timeout_ms, site.live.current.result_topic) == (200, "a/{device_id}")
        assert site.successful == 1
        assert not site.said(RESTART)


async def test_nothing_happens_while_nothing_changes(tmp_path: Path) -> None:
    async with following(tmp_path) as site:
        before = site.live.current
        change(site.file, lambda text: text + "log_level: info\n")  # the default: a change of the file alone
        await site.until_said(READ)
        assert site.live.current == before
        assert site.said(READ)[0]["changed"] == []
    assert len(site.said(READ)) == 1


async def test_a_request_reads_at_once(tmp_path: Path) -> None:
    async with following(tmp_path, poll_s=3600) as site:
        change(site.file, lambda text: text + "gpu_enabled: true\n")
        assert (await site.again())["changed"] == ["GPU_ENABLED"]
        assert site.live.current.gpu_enabled is True


async def test_what_is_wrong_leaves_everything_as_it_was_and_is_said_once(tmp_path: Path) -> None:
    async with following(tmp_path, "infer_timeout_ms: 100\n") as site:
        before, since = site.live.current, site.timestamp
        change(site.file, lambda text: text.replace("100", "200") + "log_levl: debug\n")
        said = await site.until_said(REFUSED)
        assert (said["where"], said["fix"], said["log_level"]) == (str(site.file), "Correct the key", "error")
        assert said["reason"] == "line 3: unknown key 'log_levl' (did you mean 'log_level'?)"
        assert site.successful == 0
        assert site.timestamp == since
        change(site.file, lambda text: text.replace("levl", "level"))
        await site.until_said(READ)
        assert len(site.said(REFUSED)) == 1
        assert site.live.current != before
        assert site.successful == 1
        assert site.timestamp >= since


async def test_a_wrong_model_keeps_right_settings_from_being_taken_over(tmp_path: Path) -> None:
    async with following(tmp_path, poll_s=3600) as site:
        before = site.live.current
        (site.repository / "detector" / "model.yaml").write_text("name: detector\nmodel_type: x\n")
        change(site.file, lambda text: text + "drain_timeout_s: 1\n")
        assert "model_type: must be" in (await site.again())["reason"]
        assert site.live.current is before
        assert site.applied == []


async def test_a_refusal_of_whoever_applies_the_models_leaves_the_settings(tmp_path: Path) -> None:
    async with following(tmp_path, poll_s=3600) as site:
        before, site.refusal = site.live.current, ConfigError("too many models", where="here", fix="Take one away")
        change(site.file, lambda text: text + "drain_timeout_s: 1\n")
        assert (await site.again())["reason"] == "too many models"
        assert site.live.current is before


async def test_what_needs_a_restart_is_named_and_not_taken_over(tmp_path: Path) -> None:
    async with following(tmp_path, poll_s=3600) as site:
        change(site.file, lambda text: text + "http_port: 1234\nfacility: hall-2\ndrain_timeout_s: 1\n")
        site.beyond = ["detector"]
        said = await site.again()
        assert (said["event"][: len(RESTART)], said["settings"], said["models"]) == (
            RESTART,
            ["FACILITY", "HTTP_PORT"],
            ["detector"],
        )
        assert site.said(READ)[0]["changed"] == ["DRAIN_TIMEOUT_S"]
        current = site.live.current
        assert (current.http_port, current.facility, current.drain_timeout_s) == (8080, "default", 1)
        await site.again()
        assert len(site.said(RESTART)) == 1, "the same is said once"


OTHERS = {
    "log_level": "error", "log_format": "text", "default_backend": "torch", "enable_dual_backend": "true",
    "infer_timeout_ms": "1", "snapshot_deadline_ms": "1", "max_image_pixels": "5000", "queue_max_messages": "5",
    "queue_max_bytes": "1048577", "drain_timeout_s": "1", "gpu_enabled": "true", "dead_letters_per_minute": "1",
    "rate_limit_per_device": "1", "rate_limit_per_topic": "1", "repeat_window_s": "1", "repeat_max_messages": "1",
    "breaker_failures": "1", "breaker_open_s": "1", "infer_concurrency": "3", "otel_traces_sampler_arg": "0.5",
}  # fmt: skip


@pytest.mark.parametrize("name", sorted(RELOADABLE))
async def test_each_setting_that_says_so_is_taken_over(tmp_path: Path, name: str) -> None:
    async with following(tmp_path, poll_s=3600) as site:
        change(site.file, lambda text: f"{text}{name}: {OTHERS.get(name, 'somewhere/else')}\n")
        assert (await site.again())["changed"] == [name.upper()]
        assert site.live.current == load_settings(site.file)


async def test_the_environment_still_wins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOG_LEVEL", "warning")
    async with following(tmp_path, poll_s=3600) as site:
        change(site.file, lambda text: text + "log_level: debug\n")
        assert (await site.again())["changed"] == []
        assert site.live.current.log_level == "warning"


async def test_the_log_follows(tmp_path: Path) -> None:
    async with following(tmp_path, "log_level: warning\n", poll_s=3600) as site:
        change(site.file, lambda text: text.replace("warning", "debug"))
        await site.again()
        change(site.file, lambda text: text.replace("debug", "debug\nlog_format: text"))
        await site.again()
        await site.again()
        assert site.logging == [("debug", "json"), ("debug", "text")], "each change once"


@pytest.mark.parametrize("name", ["model.yaml", "labels.txt"])
async def test_models_and_their_labels_are_followed(tmp_path: Path, name: str) -> None:
    async with following(tmp_path) as site:
        edits = {
            "model.yaml": lambda text: text.replace("name: detector", "name: other"),
            "labels.txt": lambda text: text + "\nanother",
        }
        change(site.repository / "detector" / name, edits[name])
        await site.until_said(READ)
        (model,) = site.applied[-1]
        assert (model.spec.name == "other", model.labels[-1] == "another") == (
            name == "model.yaml",
            name != "model.yaml",
        )


@pytest.mark.parametrize("name", ["classes.names", "labels", "names.txt"])
async def test_the_labels_file_that_model_yaml_names_is_followed(tmp_path: Path, name: str) -> None:
    async with following(tmp_path) as site:
        folder = write_model(site.repository, labels=name)  # refused, since there is no such file
        await site.until_said(REFUSED)
        (folder / "labels.txt").rename(folder / name)
        await site.until_said(READ)
        change(folder / name, lambda text: text + "\nanother")
        await site.until_said(READ, times=2)
        assert site.applied[-1][0].labels[-1] == "another"


@pytest.mark.parametrize("keys", [{"labels": "a" * 300}, {"labels": "a\0b"}, {"variants": {"onnx": "a" * 300}}])
async def test_names_that_no_file_can_have_are_refused_and_the_next_change_is_seen(
    tmp_path: Path, keys: dict[str, Any]
) -> None:
    async with following(tmp_path) as site:
        before = site.live.current
        write_model(site.repository, **keys)
        said = await site.until_said(REFUSED)
        assert said["where"] == str(site.repository / "detector" / "model.yaml")
        assert site.live.current is before
        assert site.applied == []
        write_model(site.repository)
        await site.until_said(READ)


async def test_a_defect_leaves_what_holds_and_is_said_with_its_traceback(tmp_path: Path) -> None:
    async with following(tmp_path, poll_s=3600) as site:
        before, site.refusal = site.live.current, KeyError("a defect")
        change(site.file, lambda text: text + "drain_timeout_s: 1\n")
        said = await site.again()
        assert (said["event"][: len(REFUSED)], said["log_level"], said["exc_info"]) == (REFUSED, "error", True)
        assert said["reason"] == "a defect of the gateway"
        assert site.live.current is before
        assert site.successful == 0
        site.refusal = None
        await site.again()
        assert site.live.current.drain_timeout_s == 1
        assert site.successful == 1


async def test_a_repository_that_is_gone_for_a_while_leaves_what_holds(tmp_path: Path) -> None:
    async with following(tmp_path) as site:
        away = site.repository.rename(tmp_path / "away")
        site.repository.symlink_to(site.repository)  # reading it is an error of the system: too many links
        assert "MODEL_REPOSITORY" in (await site.until_said(REFUSED))["where"]
        site.repository.unlink()
        away.rename(site.repository)
        await site.until_said(READ)


async def test_a_new_model_and_a_removed_one_are_seen(tmp_path: Path) -> None:
    async with following(tmp_path) as site:
        change(write_model(tmp_path / "drop", "second") / "model.yaml", str)
        (tmp_path / "drop" / "second").rename(site.repository / "second")
        assert (await site.until_said(READ))["models"] == ["detector", "second"]
        (site.repository / "second" / "model.yaml").unlink()
        await site.until_said(READ, times=2)
        assert site.said(READ)[-1]["models"] == ["detector"]


async def test_the_swapped_link_of_a_config_map_is_seen(tmp_path: Path) -> None:
    async with following(tmp_path) as site:
        for number, text in enumerate((site.file.read_text(), site.file.read_text() + "drain_timeout_s: 3\n")):
            (tmp_path / f"..{number}").mkdir()
            (tmp_path / f"..{number}" / "gateway.yaml").write_text(text)
            (tmp_path / "..new").symlink_to(f"..{number}")
            (tmp_path / "..new").replace(tmp_path / "..data")
            if number == 0:  # the mounted file is a link into ..data from the beginning
                site.file.unlink()
                site.file.symlink_to("..data/gateway.yaml")
                await site.again()
        await until(lambda: site.live.current.drain_timeout_s == 3, "the swapped file")


async def test_a_file_that_vanishes_leaves_what_holds(tmp_path: Path) -> None:
    async with following(tmp_path) as site:
        before = site.live.current
        site.file.unlink()
        assert (await site.until_said(REFUSED))["reason"] == "cannot be read: No such file or directory"
        assert site.live.current is before


async def test_without_a_file_models_and_requests_still_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_model(tmp_path / "model_repository")
    with capture_logs() as logs:
        live, metrics = Live(load_settings()), Metrics()
        site = Site(tmp_path, live, metrics, logs)
        site.reloader = Reloader(live, None, read_all, site.apply, metrics)
        running = asyncio.create_task(site.reloader.run())
        assert (await site.again())["models"] == ["detector"]
        running.cancel()


async def test_a_new_threshold_in_model_yaml_holds_for_the_next_snapshot(tmp_path: Path) -> None:
    async with site(tmp_path) as place:
        place.snapshot(snapshot_json(jpeg()))
        await place.answered(1)
        change(
            tmp_path / "detector" / "model.yaml",
            lambda text: text.replace("output: yolov8", "confidence_threshold: 0.95\n  output: yolov8"),
        )
        before = place.metrics.value("config_last_reload_success_timestamp_seconds")
        place.gateway.reload()
        await until(
            lambda: place.metrics.value("config_last_reload_success_timestamp_seconds") > before, "the new model.yaml"
        )
        place.snapshot(snapshot_json(jpeg()))
        await place.answered(2)
        (tmp_path / "detector" / "model.yaml").write_text("name: detector\nmodel_type: nothing\n")
        place.gateway.reload()
        await until(lambda: place.metrics.value("config_last_reload_successful") == 0, "the refusal")
        place.snapshot(snapshot_json(jpeg()))
        await place.answered(3)
        assert [len(result["predictions"]) for result in place.results] == [1, 0, 0]


def test_a_running_gateway_takes_sighup_and_changes_of_its_file(tmp_path: Path) -> None:
    write_model(tmp_path / "models")
    file = tmp_path / "gateway.yaml"
    file.write_text(f"model_repository: {tmp_path / 'models'}\nhttp_host: 127.0.0.1\nhttp_port: 0\nlog_level: info\n")
    mqtt, triton = free_ports(2)
    away = {"AIO_BROKER_TCP_PORT": str(mqtt), "TRITON_GRPC_URL": f"127.0.0.1:{triton}", "GATEWAY_CONFIG": str(file)}
    with start("serve", **away) as gateway:
        gateway.says("Waiting for Triton")
        change(file, lambda text: text + "facility: hall-2\ninfer_timeout_ms: 1000\n")
        gateway.interrupt(signal.SIGHUP)
        gateway.says(RESTART)
        change(file, lambda text: text + "log_format: txt\n")
        gateway.says("line 7: log_format: must be 'json' or 'text', not 'txt'")
        change(file, lambda text: text.replace("txt", "text"))
        gateway.until(lambda: any(READ in line and not line.startswith("{") for line in gateway.err), "a line of text")
        gateway.interrupt(signal.SIGTERM)
        assert gateway.wait() == 0
    entries = [json.loads(line) for line in gateway.err if line.startswith("{")]
    (read,) = [entry for entry in entries if entry["event"] == READ]
    (restart,) = [entry for entry in entries if entry["event"].startswith(RESTART)]
    assert (read["changed"], restart["settings"]) == (["INFER_TIMEOUT_MS"], ["FACILITY"])
