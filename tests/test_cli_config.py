"""`edge-gateway config`: what holds and why, everything that is wrong at once, and schemas that fit what is read."""

from __future__ import annotations

import json
import os
import shlex
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from gateway.config import RELOADABLE, Settings
from gateway.config_reading import load_settings
from gateway.models.spec import ModelSpec
from tests.command_line import ROOT
from tests.front_door import Done, run_here


class Shell:
    """A folder with a repository of one model, and the command line in it."""

    def __init__(self, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.file = folder / "gateway.yaml"
        self.model = folder / "model_repository" / "detector" / "model.yaml"
        self.model.parent.mkdir(parents=True)
        self.model.write_text("name: detector\nmodel_type: object-detection\n")
        self._capsys = capsys

    def __call__(self, *arguments: str) -> Done:
        return run_here(self._capsys, "config", *arguments)

    def json(self, *arguments: str) -> Any:
        done = self(*arguments)
        assert (done.code, done.err) == (0, "")
        return json.loads(done.out)


@pytest.fixture
def shell(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Shell:
    for name in os.environ:
        if name.lower() in {*Settings.model_fields, "gateway_config", "rust_log"}:
            monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    return Shell(tmp_path, capsys)


# --- show -----------------------------------------------------------------------------------------------


def test_show_names_what_is_set_and_where(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    shell.file.write_text("\nfacility: 'no'\nhttp_port: 1111\nmqtt_input_topics: [a, 'b/{camera}']\n")
    monkeypatch.setenv("GATEWAY_CONFIG", "gateway.yaml")
    monkeypatch.setenv("HTTP_PORT", "2222")
    monkeypatch.setenv("AIO_MQTT_USE_TLS", "true")
    assert shell("show").out.splitlines() == [
        "aio_mqtt_use_tls: true  # environment, AIO_MQTT_USE_TLS",
        "mqtt_input_topics: [a, 'b/{camera}']  # gateway.yaml, line 4",
        "facility: 'no'  # gateway.yaml, line 2",
        "http_port: 2222  # environment, HTTP_PORT (over gateway.yaml, line 3)",
    ]


def test_show_says_that_nothing_is_set(shell: Shell) -> None:
    assert shell("show").out == "# Nothing is set; --all shows the defaults\n"
    assert shell.json("show", "--format", "json") == {}


def test_show_as_json_has_every_setting_with_its_source(shell: Shell) -> None:
    shell.file.write_text("log_level: debug\n")
    found = shell.json("show", "--all", "--config", "gateway.yaml", "--format", "json")
    assert list(found) == list(Settings.model_fields)
    assert found["log_level"] == {"value": "debug", "source": "file", "place": "gateway.yaml, line 1", "reload": True}
    assert found["http_port"] == {"value": 8080, "source": "default", "place": "default", "reload": False}
    assert {name for name, entry in found.items() if entry["reload"]} == RELOADABLE


@pytest.mark.parametrize("form", ["yaml", "env"])
def test_what_show_prints_gives_the_same_settings_again(
    shell: Shell, monkeypatch: pytest.MonkeyPatch, form: str
) -> None:
    shell.file.write_text(
        "gateway_id: \"it's 007\"\nmqtt_input_topics: [a/+, '$share/g/b/#']\nenable_dual_backend: on\n"
        "aio_mqtt_username: '0123'\ninfer_timeout_ms: 12.5\n"
    )
    wanted = load_settings(shell.file)
    printed = shell("show", "--all", "--config", "gateway.yaml", "--format", form).out
    if form == "yaml":
        shell.file.write_text(printed)
    else:
        shell.file.write_text("")
        for word in shlex.split(printed, comments=True):
            name, _, value = word.partition("=")
            monkeypatch.setenv(name, value)
    assert load_settings(shell.file) == wanted


def test_show_never_shows_a_secret(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    secret = shell.file.parent / "password"
    secret.write_text("hunter2")
    shell.file.write_text(f"aio_mqtt_username: gw\naio_mqtt_password_file: {secret}\napi_token_file: {secret}\n")
    monkeypatch.setenv("TRITON_METRICS_URL", "http://admin:hunter2@triton:8002/metrics")
    monkeypatch.setenv("GATEWAY_CONFIG", "gateway.yaml")
    for form in ("yaml", "json", "env"):
        printed = shell("show", "--all", "--format", form).out
        assert str(secret) in printed
        assert "http://***@triton:8002/metrics" in printed
        assert "hunter2" not in printed


def test_show_refuses_what_cannot_hold(shell: Shell) -> None:
    shell.file.write_text("http_prot: 1\n")
    done = shell("show", "--config", "gateway.yaml")
    assert (done.code, done.out) == (2, "")
    assert done.err.startswith("edge-gateway: gateway.yaml: line 1: unknown key 'http_prot'")


# --- check ----------------------------------------------------------------------------------------------


def test_check_says_ok_with_what_would_be_served(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    shell.file.write_text("facility: hall-2\n")
    monkeypatch.setenv("LOG_LEVEL", "debug")
    done = shell("check", "gateway.yaml")
    assert (done.code, done.err) == (0, "")
    assert done.out == "ok: gateway.yaml; 1 setting from the environment; model detector (onnx, torch)\n"


def test_check_names_everything_at_once(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    shell.file.write_text("facilty: hall-2\nlog_format: xml\n")
    monkeypatch.setenv("HTTP_PORT", "many")
    shell.model.write_text("name: detector\nmodel_type: x\n")
    done = shell("check", "gateway.yaml")
    assert (done.code, done.out) == (2, "4 problems\n")
    said = [
        "gateway.yaml: line 1: unknown key",
        "environment: HTTP_PORT: must",
        "gateway.yaml: line 2: log_f",
        "model_repository/detector/model.yaml: line 2: model_type: must be",
    ]
    assert len(done.err.splitlines()) == 4
    for line, text in zip(done.err.splitlines(), said, strict=True):
        assert line.startswith(f"edge-gateway: {text}")


def test_check_names_missing_files_loops_and_models_at_once(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("API_TOKEN_FILE", "nowhere")
    monkeypatch.setenv("LAYOUTS_DIR", "nowhere")
    monkeypatch.setenv("MQTT_INPUT_TOPICS", "edge-ai/#")
    shell.model.write_text("name: detector\nmodel_type: x\n")
    done = shell("check")
    assert (done.code, done.out) == (2, "4 problems\n")
    for text in ("LAYOUTS_DIR: ", "detector/model.yaml: ", "API_TOKEN_FILE: ", "MQTT_INPUT_TOPICS: "):
        assert text in done.err


def test_check_warns_of_what_hardly_works_and_ends_well(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DEFAULT_BACKEND", "tensorflow")
    monkeypatch.setenv("HTTP_PROT", "1")
    monkeypatch.setenv("RUST_LOG", "debug")
    done = shell("check")
    assert done.code == 0
    assert done.err.splitlines() == [
        "edge-gateway: warning: HTTP_PROT is not a setting; did you mean HTTP_PORT?",
        "edge-gateway: warning: RUST_LOG is not read; LOG_LEVEL=info",
        "edge-gateway: warning: DEFAULT_BACKEND=tensorflow is a variant of no model; use one of: onnx, torch",
    ]


def test_check_warns_of_a_repository_without_models(shell: Shell) -> None:
    shell.model.unlink()
    done = shell("check")
    assert (done.code, done.out) == (0, "ok: no gateway.yaml; 0 settings from the environment\n")
    assert done.err == ("edge-gateway: warning: no folder in model_repository has a model.yaml, so nothing is served\n")


def test_check_reads_the_layouts_of_the_user(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = shell.file.parent / "layouts"
    folder.mkdir(mode=0o755)
    (folder / "broken.py").write_text("import nothing_of_that_name\n")
    (folder / "broken.py").chmod(0o644)
    monkeypatch.setenv("LAYOUTS_DIR", str(folder))
    done = shell("check")
    assert done.code == 2
    assert done.err.startswith(f"edge-gateway: {folder / 'broken.py'}:1: ModuleNotFoundError")


# --- schema ---------------------------------------------------------------------------------------------


@pytest.fixture
def schemas(shell: Shell) -> dict[str, jsonschema.Draft202012Validator]:
    found = {}
    for which in ("gateway", "model"):
        schema = shell.json("schema", which)
        jsonschema.Draft202012Validator.check_schema(schema)
        assert schema["$schema"] == "https://json-schema.org/draft/2020-12/schema"
        found[which] = jsonschema.Draft202012Validator(schema)
    return found


def mistakes(validator: jsonschema.Draft202012Validator, text: str) -> list[str]:
    return [error.message for error in validator.iter_errors(yaml.safe_load(text))]


def test_the_sample_models_fit_the_schema(schemas: dict[str, jsonschema.Draft202012Validator]) -> None:
    paths = list((ROOT / "model_repository").glob("*/model.yaml"))
    assert paths
    for path in paths:
        assert mistakes(schemas["model"], path.read_text()) == []


MODEL = "name: x\nmodel_type: object-detection\n"


@pytest.mark.parametrize(
    ("which", "text"),
    [
        ("gateway", "mqtt_protocol: 5\nhttp_port: 80\nmqtt_input_topics: [a/+]\naio_sat_file: null\ngpu_enabled: true"),
        ("model", MODEL + "mqtt:\npreprocessing:\ncameras: {c: {ignore: [[[0, 0], [1, 0], [1, 1]]]}}"),
        ("model", MODEL + "preprocessing: {resize: 640, mode: tiles, tiles: {size: 640}}\nlabels: [a, b]"),
        ("model", MODEL + "preprocessing: {resize: [480, 640]}\nlabels: labels.txt\nvariants: {onnx: a, fast: b}"),
    ],
)
def test_what_is_read_fits_the_schema(
    schemas: dict[str, jsonschema.Draft202012Validator], which: str, text: str
) -> None:
    kind = Settings if which == "gateway" else ModelSpec
    kind.model_validate(yaml.safe_load(text))
    assert mistakes(schemas[which], text) == []


@pytest.mark.parametrize(
    ("which", "text"),
    [
        ("gateway", "facilty: hall-2"),
        ("gateway", "http_port: 80000"),
        ("gateway", "log_format: xml"),
        ("gateway", "mqtt_protocol: 4"),
        ("model", "name: x"),
        ("model", MODEL + "preprocesing: {}"),
        ("model", MODEL + "preprocessing: {rezise: [64, 64]}"),
        ("model", MODEL + "inference: {confidence_threshold: 70}"),
        ("model", MODEL + "inference: {alert_classes: person}"),
        ("model", MODEL + "cameras: {c: {region: []}}"),
    ],
)
def test_a_typo_does_not_fit_the_schema(
    schemas: dict[str, jsonschema.Draft202012Validator], which: str, text: str
) -> None:
    assert mistakes(schemas[which], text)


def test_every_key_of_the_schemas_has_a_description(shell: Shell) -> None:
    for which in ("gateway", "model"):
        schema = shell.json("schema", which)
        for record in (schema, *schema.get("$defs", {}).values()):
            assert record["additionalProperties"] is False
            for name, field in record["properties"].items():
                assert field.get("description") or "$ref" in field, f"{which}: {name}"
