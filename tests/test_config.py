"""What people write into gateway.yaml, the environment and model.yaml, and what they are told when it is wrong."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import hypothesis
import pytest
import yaml
from hypothesis import HealthCheck, given
from hypothesis import strategies as st

from gateway.config import RELOADABLE, Settings
from gateway.config_broker import DEFAULT_INPUT_TOPICS
from gateway.config_files import missing_files, require_files
from gateway.config_reading import load_settings
from gateway.config_warnings import settings_warnings, suspicious_variables
from gateway.errors import ConfigError
from gateway.models.repository import read_model
from gateway.models.spec import ModelSpec, read_spec


@pytest.fixture(autouse=True)
def _nothing_is_set(monkeypatch: pytest.MonkeyPatch) -> None:
    known = {*Settings.model_fields, "gateway_config"}
    for name in os.environ:
        if name.lower() in known:
            monkeypatch.delenv(name)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "gateway.yaml"


def complaint(path: Path | None = None) -> str:
    """The one line that a person reads."""
    with pytest.raises(ConfigError) as caught:
        load_settings(path)
    assert "\n" not in str(caught.value)
    assert caught.value.fix
    return str(caught.value)


# --- gateway.yaml and the environment -------------------------------------------------------------------


def test_the_environment_wins_over_the_file(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file.write_text("http_port: 1111\nfacility: hall-2\n")
    monkeypatch.setenv("HTTP_PORT", "2222")
    settings = load_settings(file)
    assert (settings.http_port, settings.facility) == (2222, "hall-2")


def test_the_file_is_found_by_gateway_config(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file.write_text("business_unit: steel")
    monkeypatch.setenv("GATEWAY_CONFIG", str(file))
    assert load_settings().business_unit == "steel"


def test_an_empty_file_and_empty_variables_leave_the_defaults(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file.write_text("# nothing yet\n")
    for name in (
        "HTTP_PORT",
        "AIO_TLS_CA_FILE",
        "AIO_MQTT_USERNAME",
        "MQTT_INPUT_TOPICS",
        "LOG_LEVEL",
        "GATEWAY_CONFIG",
    ):
        monkeypatch.setenv(name, "")
    settings = load_settings(file)
    assert (settings.http_port, settings.aio_tls_ca_file, settings.aio_mqtt_username) == (8080, None, None)
    assert settings.mqtt_input_topics == DEFAULT_INPUT_TOPICS


@pytest.mark.parametrize(
    ("key", "nearest"),
    [
        ("aio_broker_hostnam", "aio_broker_hostname"),
        ("HTTP_PORT", "http_port"),
        ("mqtt_input_topic", "mqtt_input_topics"),
    ],
)
def test_an_unknown_key_names_the_nearest(file: Path, key: str, nearest: str) -> None:
    file.write_text(f"{key}: 1")
    assert f"unknown key '{key}' (did you mean '{nearest}'?)" in complaint(file)
    assert str(file) in complaint(file)


def test_several_unknown_keys_are_named_at_once(file: Path) -> None:
    file.write_text("max_inflight: 1\nlog_levels: debug")
    assert "'max_in_flight'" in complaint(file)
    assert "'log_level'" in complaint(file)


def test_several_problems_are_named_at_once_each_where_it_stands(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file.write_text("http_port: many\nlog_format: xml\n\nfacility: a/b\nqueue_max_messages: 5\nlog_levle: info\n")
    monkeypatch.setenv("MAX_IN_FLIGHT", "0")
    monkeypatch.setenv("QUEUE_MAX_MESSAGES", "none")
    assert complaint(file) == (
        f"{file}: line 6: unknown key 'log_levle' (did you mean 'log_level'?); "
        "line 1: http_port: must be a valid integer, not 'many'; "
        "line 2: log_format: must be 'json' or 'text', not 'xml'; "
        "line 4: facility: must be one topic level: not empty, without / + #; "
        "environment: MAX_IN_FLIGHT: must be at least 1, not '0'; "
        "QUEUE_MAX_MESSAGES: must be a valid integer, not 'none'. Correct the named settings"
    )


def test_a_wrong_value_in_the_file_that_the_environment_overrides_is_none(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file.write_text("http_port: many\n")
    monkeypatch.setenv("HTTP_PORT", "2222")
    assert load_settings(file).http_port == 2222


def test_a_file_of_nothing_but_mistakes_is_a_short_message(file: Path) -> None:
    file.write_text("".join(f"key_{number}: 1\n" for number in range(10_000)))
    assert len(complaint(file)) < 20_000


def test_what_can_be_taken_over_without_a_restart_is_a_setting() -> None:
    assert Settings.model_fields.keys() >= RELOADABLE


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("HTTP_PORT", "65536"),
        ("AIO_BROKER_TCP_PORT", "0"),
        ("AIO_MQTT_USE_TLS", "perhaps"),
        ("MQTT_PROTOCOL", "4"),
        ("DEFAULT_BACKEND", "dual"),
        ("DEFAULT_BACKEND", "ONNX Runtime"),
        ("GPU_ENABLED", "cuda"),
        ("INFER_TIMEOUT_MS", "0"),
        ("SNAPSHOT_DEADLINE_MS", "nan"),
        ("MAX_PAYLOAD_BYTES", "1e99"),
        ("QUEUE_MAX_BYTES", "99999999999999999999"),
        ("LOG_LEVEL", "loud"),
        ("GATEWAY_ID", "a/b"),
        ("BUSINESS_UNIT", "+"),
    ],
)
def test_wrong_values_are_named_with_their_setting(name: str, value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, value)
    assert complaint().startswith(f"environment: {name}: ")


def test_spellings_that_yaml_and_people_use(file: Path) -> None:
    file.write_text("mqtt_protocol: 5\nlog_level: DEBUG\nenable_dual_backend: yes\naio_sat_file:\n")
    settings = load_settings(file)
    assert (settings.mqtt_protocol, settings.log_level, settings.enable_dual_backend) == ("5", "debug", True)
    assert settings.aio_sat_file is None


@pytest.mark.parametrize("text", ["[1, 2", "- a\n- b", "just words", "a: b: c", "\x00"])
def test_a_file_that_is_no_mapping_is_one_line_with_its_name(file: Path, text: str) -> None:
    file.write_text(text)
    assert complaint(file).startswith(f"{file}: ")


def test_what_yaml_needs_quotes_for_is_said_with_its_line(file: Path) -> None:
    file.write_text("facility: hall-2\nmqtt_input_topics: [a/{facility}/b]\n")
    assert "is not valid YAML in line 2" in complaint(file)
    assert "need quotes" in complaint(file)


def test_a_file_that_is_not_there_is_named(file: Path) -> None:
    assert complaint(file) == f"{file}: cannot be read: No such file or directory. Check the path and its permissions"


NAMES = st.sampled_from([*Settings.model_fields, "unknown", "x\ny", "\x1b[31m"])
THINGS = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=80) | st.dates() | st.binary(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5) | st.integers(), inner, max_size=3),
    max_leaves=6,
)
SAME_FILE = hypothesis.settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)


@SAME_FILE
@given(content=st.dictionaries(NAMES, THINGS, min_size=1, max_size=4))
def test_whatever_is_wrong_is_one_readable_line(file: Path, content: dict[str, object]) -> None:
    file.write_text(yaml.safe_dump(content, allow_unicode=True), encoding="utf-8")
    try:
        load_settings(file)
    except ConfigError:
        assert complaint(file).isprintable()


KEYS = st.sampled_from([*ModelSpec.model_fields, "x\ny"])
INNER = st.sampled_from(
    ["resize", "mode", "std", "output", "alert_classes", "input_topics", "regions", "cam", "window"]
)


@SAME_FILE
@given(content=st.dictionaries(KEYS, THINGS | st.dictionaries(INNER, THINGS, max_size=3), max_size=4))
def test_whatever_is_wrong_with_a_model_is_one_readable_line(file: Path, content: dict[str, object]) -> None:
    file.write_text(yaml.safe_dump({"name": "m", "model_type": "object-detection", **content}), encoding="utf-8")
    try:
        read_spec(file)
    except ConfigError as error:
        said = str(error)
        assert said.isprintable(), said


# --- topics ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["a/+/b, c/#,", " a/+/b ,c/# "])
def test_topics_are_a_comma_separated_list_in_the_environment(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MQTT_INPUT_TOPICS", text)
    assert load_settings().mqtt_input_topics == ("a/+/b", "c/#")


def test_topics_are_a_list_in_the_file(file: Path) -> None:
    file.write_text('mqtt_input_topics: ["$share/gateways/a/{facility}/b", c/#]')
    assert [p.subscription for p in load_settings(file).patterns] == ["$share/gateways/a/+/b", "c/#"]


@pytest.mark.parametrize(
    "text", ["a/#/b", "a/b#", "a+/b", "a/{Facility}", "a/x{facility}", "$share/only", "$share/a+/b", ",", "a/{"]
)
def test_what_is_no_topic_filter_is_refused(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MQTT_INPUT_TOPICS", text)
    assert "MQTT_INPUT_TOPICS: " in complaint()


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("RESULT_TOPIC", "a/{device}", "did you mean 'device_id'?"),
        ("RESULT_TOPIC", "a/#", "wildcards"),
        ("ERROR_TOPIC", "a/{Facility}", "{facility}"),
        ("STATUS_TOPIC", "a/{device_id}", "unknown part 'device_id'"),
        ("METRICS_TOPIC", "a/+", "wildcards"),
    ],
)
def test_where_nothing_can_be_published_is_refused(
    name: str, text: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, text)
    assert said in complaint()
    assert f"{name}: " in complaint()


# --- TLS ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("given", ["AIO_TLS_CERT_FILE", "AIO_TLS_KEY_FILE"])
def test_certificate_and_key_belong_together(given: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIO_MQTT_USE_TLS", "true")
    monkeypatch.setenv(given, "/etc/tls/x.pem")
    assert "AIO_TLS_CERT_FILE and AIO_TLS_KEY_FILE belong together" in complaint()


def test_a_certificate_without_tls_is_a_mistake(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIO_TLS_CERT_FILE", "/etc/tls/x.pem")
    monkeypatch.setenv("AIO_TLS_KEY_FILE", "/etc/tls/x.key")
    assert "AIO_MQTT_USE_TLS=true" in complaint()
    monkeypatch.setenv("AIO_MQTT_USE_TLS", "true")
    assert load_settings().aio_mqtt_use_tls


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"AIO_TLS_CA_FILE": "/ca.pem"}, "AIO_TLS_CA_FILE needs AIO_MQTT_USE_TLS=true"),
        ({"AIO_SAT_FILE": "/token"}, "AIO_SAT_FILE needs AIO_MQTT_USE_TLS=true"),
        (
            {"AIO_SAT_FILE": "/token", "AIO_MQTT_USE_TLS": "true", "MQTT_PROTOCOL": "3.1.1"},
            "AIO_SAT_FILE needs MQTT_PROTOCOL=5",
        ),
        ({"AIO_MQTT_PASSWORD_FILE": "/password"}, "AIO_MQTT_PASSWORD_FILE needs AIO_MQTT_USERNAME"),
    ],
)
def test_what_would_have_no_effect_is_refused(
    given: dict[str, str], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    assert said in complaint()


def test_all_contradictions_are_named_at_once(file: Path) -> None:
    file.write_text("aio_sat_file: /token\naio_mqtt_password_file: /password\nmqtt_protocol: 3.1.1\n")
    for part in ("AIO_MQTT_USE_TLS=true", "MQTT_PROTOCOL=5", "AIO_MQTT_USERNAME"):
        assert part in complaint(file)


def test_a_token_a_password_and_an_authority_are_taken_with_what_they_need(file: Path) -> None:
    file.write_text(
        "aio_mqtt_use_tls: true\naio_tls_ca_file: /ca.pem\naio_sat_file: /token\n"
        "aio_mqtt_username: gateway\naio_mqtt_password_file: /password\n"
    )
    settings = load_settings(file)
    assert (settings.aio_sat_file, settings.aio_mqtt_password_file) == (Path("/token"), Path("/password"))


# --- misspelt variables ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("AIO_BROKER_HOSTNAM", "AIO_BROKER_HOSTNAME"),
        ("AIO_BROKER_TPC_PORT", "AIO_BROKER_TCP_PORT"),
        ("MQTT_INPUT_TOPIC", "MQTT_INPUT_TOPICS"),
        ("ENABLE_DUAL_BACKENDS", "ENABLE_DUAL_BACKEND"),
        ("GATEWAY_CONFIGS", "GATEWAY_CONFIG"),
    ],
)
def test_a_misspelt_variable_is_warned_of(name: str, meant: str) -> None:
    assert suspicious_variables({name: "x"}) == [f"{name} is not a setting; did you mean {meant}?"]


def warnings(**environment: str) -> list[str]:
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment.items():
            patch.setenv(name, value)
        return settings_warnings(load_settings(), environment)


def test_what_works_hardly_as_it_was_meant_is_warned_of() -> None:
    assert warnings() == []
    assert warnings(DEFAULT_BACKEND="tensorrt", GPU_ENABLED="true", RUST_LOG="") == []
    assert warnings(RUST_LOG="debug", LOG_LEVEL="warning") == ["RUST_LOG is not read; LOG_LEVEL=warning"]
    assert warnings(INFER_TIMEOUT_MS="9000", SNAPSHOT_DEADLINE_MS="5000") == [
        "INFER_TIMEOUT_MS is longer than SNAPSHOT_DEADLINE_MS, which ends each wait before it"
    ]


def test_what_kubernetes_and_others_set_is_no_alarm() -> None:
    links: dict[str, str] = {}
    for service, port in (("TRITON", "8001"), ("MQTT", "1883"), ("GATEWAY", "8080"), ("AIO_BROKER", "18883")):
        links |= {
            f"{service}_SERVICE_HOST": "10.0.0.7",
            f"{service}_SERVICE_PORT": port,
            f"{service}_SERVICE_PORT_GRPC": port,
            f"{service}_PORT": f"tcp://10.0.0.7:{port}",
            f"{service}_PORT_{port}_TCP": f"tcp://10.0.0.7:{port}",
            f"{service}_PORT_{port}_TCP_PROTO": "tcp",
            f"{service}_PORT_{port}_TCP_PORT": port,
            f"{service}_PORT_{port}_TCP_ADDR": "10.0.0.7",
        }
    others = {"PATH": "/bin", "HTTP_PROXY": "http://proxy:3128", "LOGNAME": "root", "HOSTNAME": "gw", "NO_COLOR": "1"}
    ours = {name.upper(): "x" for name in Settings.model_fields} | {"GATEWAY_CONFIG": "x", "DEMO_SECONDS": "8"}
    assert suspicious_variables(links | others | ours) == []


def test_a_variable_that_another_one_has_replaced_is_named() -> None:
    (said,) = suspicious_variables({"MODEL_COMMANDS_TOPIC": "a/b"})
    assert "MQTT_COMMAND_TOPICS" in said


# --- model.yaml -----------------------------------------------------------------------------------------


def model_yaml(folder: Path, **changes: object) -> Path:
    """A good model.yaml, but for the changes."""
    good: dict[str, object] = {
        "name": "detector",
        "model_type": "object-detection",
        "labels": ["person", "forklift"],
        "inference": {"output": "yolov8"},
    }
    path = folder / "detector" / "model.yaml"
    path.parent.mkdir()
    path.write_text(yaml.safe_dump(good | changes))
    return path


def refused(path: Path) -> str:
    with pytest.raises(ConfigError) as caught:
        read_model(path)
    assert str(path.parent) in str(caught.value)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"modle_type": "x"}, "unknown key 'modle_type' (did you mean 'model_type'?)"),
        ({"preprocessing": {"rezise": [64, 64]}}, "preprocessing: unknown key 'rezise' (did you mean 'resize'?)"),
        (
            {"inference": {"output": "yolov8", "iou_treshold": 0.5, "topk": 1}},
            "line 4: inference: unknown key 'topk' (did you mean 'top_k'?)",
        ),
        ({"mqtt": {"input_topic": []}}, "mqtt: unknown key 'input_topic' (did you mean 'input_topics'?)"),
        ({"variants": {"dual": "a"}}, "variants: 'dual' is no name for a variant"),
        ({"backend": "onxx"}, "backend 'onxx' is no variant of the model (did you mean 'onnx'?)"),
        ({"inference": {"output": "yolov8", "confidence_threshold": 2}}, "inference.confidence_threshold: must be"),
        ({"preprocessing": 5}, "preprocessing: must be a mapping of keys to values, not 5"),
        ({"preprocessing": {"std": [0, 1, 1]}}, "preprocessing.std: each value must be above 0"),
        ({"preprocessing": {"resize": [64]}}, "preprocessing.resize"),
        ({"mqtt": {"input_topics": ["a/#/b"]}}, "mqtt.input_topics: 'a/#/b' is no topic filter"),
        ({"mqtt": {"output_topic_template": "a/{camera}"}}, "mqtt.output_topic_template: unknown part 'camera'"),
        ({"labels": "names.txt"}, "labels: the labels file 'names.txt' cannot be read"),
        ({"labels": []}, "labels: 0 labels"),
        ({"labels": [True, False]}, "labels: a label is text, and YAML reads one of these as True; put it in quotes"),
        ({"labels": 5}, "labels: must be the name of a file or a list of labels"),
        (
            {"inference": {"output": "yolov8", "alert_classes": ["fire"]}},
            "alert_classes names 'fire', which is no label (known: person, forklift)",
        ),
        (
            {"model_type": "image-classification"},
            "inference.output 'yolov8' is for model_type 'object-detection', not 'image",
        ),
        ({"name": "a b"}, "name: "),
    ],
)
def test_a_wrong_model_yaml_says_where_and_what(tmp_path: Path, changes: dict[str, object], said: str) -> None:
    assert said in refused(model_yaml(tmp_path, **changes))


@pytest.mark.parametrize("name", ["model.yaml", "./model.yaml", "1/../model.yaml", "1/../../detector/model.yaml"])
def test_a_relative_path_names_the_models_of_triton_too(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = model_yaml(tmp_path).parent
    (folder / "1").mkdir()
    monkeypatch.chdir(folder)
    assert read_spec(Path(name)).variants == {"onnx": "detector-onnx", "torch": "detector-torch"}


def test_a_link_names_the_models_of_triton_by_what_it_is_called(tmp_path: Path) -> None:
    model_yaml(tmp_path)
    (tmp_path / "other").symlink_to(tmp_path / "detector")
    assert read_spec(tmp_path / "other" / "model.yaml").variants["onnx"] == "other-onnx"


def test_empty_sections_are_as_if_left_out(tmp_path: Path) -> None:
    spec = read_spec(model_yaml(tmp_path, mqtt=None, preprocessing=None))
    assert spec.mqtt.input_topics == ()
    assert spec.variants == {"onnx": "detector-onnx", "torch": "detector-torch"}


def test_named_parts_in_the_topics_of_a_model_match_as_in_the_settings(tmp_path: Path) -> None:
    spec = read_spec(model_yaml(tmp_path, mqtt={"input_topics": ["edge-ai/{facility}/gate"]}))
    assert spec.mqtt.input_topics == ("edge-ai/+/gate",)


def test_a_file_for_the_broker_that_is_not_there_is_named(tmp_path: Path) -> None:
    there = tmp_path / "token"
    there.write_text("secret\n")
    require_files(Settings(api_token_file=there))
    with pytest.raises(ConfigError, match="AIO_TLS_CA_FILE: there is no file"):
        require_files(Settings(aio_mqtt_use_tls=True, aio_tls_ca_file=tmp_path / "nothing"))
    with pytest.raises(ConfigError, match="API_TOKEN_FILE: there is no file"):
        require_files(Settings(api_token_file=tmp_path))
    with pytest.raises(ConfigError, match="x' cannot be read: File name too long"):
        require_files(Settings(api_token_file=tmp_path / ("x" * 300)))


@pytest.mark.parametrize(("content", "said"), [(b"", "is empty"), (b" \n", "is empty"), (b"\xff\xfe", "is no text")])
def test_a_token_file_that_holds_no_token_is_named(tmp_path: Path, content: bytes, said: str) -> None:
    """It would let nobody in, and nothing would say why."""
    (tmp_path / "token").write_bytes(content)
    (error,) = missing_files(Settings(api_token_file=tmp_path / "token"))
    assert str(error) == f"API_TOKEN_FILE: '{tmp_path}/token' {said}. {error.fix}"
    assert error.fix.startswith("Write the token into it")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("TRITON_GRPC_URL", "http://localhost:8001"),
        ("TRITON_GRPC_URL", "localhost"),
        ("TRITON_GRPC_URL", "localhost:99999"),
        ("TRITON_GRPC_URL", "localhost:0"),
        ("TRITON_METRICS_URL", "localhost:8002"),
        ("TRITON_METRICS_URL", "file:///etc/passwd"),
        ("TRITON_METRICS_URL", "http://:8002/metrics"),
        ("TRITON_METRICS_URL", "http://triton:0/metrics"),
        ("TRITON_METRICS_URL", "http://triton/a b"),
    ],
)
def test_addresses_of_triton_are_checked(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match=name):
        load_settings()


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """a.pem and b.pem with their keys, locked.key, which is a.key with a password, and what is none of these."""
    if shutil.which("openssl") is None:
        pytest.skip("there is no openssl here")
    folder = tmp_path_factory.mktemp("certificates")

    def openssl(arguments: str) -> None:
        subprocess.run(["openssl", *arguments.split()], cwd=folder, check=True, capture_output=True)

    for name in "ab":
        new_key = "-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes"
        openssl(f"req -x509 {new_key} -subj /CN={name} -keyout {name}.key -out {name}.pem")
    openssl("pkcs8 -topk8 -in a.key -out locked.key -passout pass:hunter2")
    (folder / "words").write_text("no certificate\n")
    (folder / "empty").touch()
    return folder


@pytest.mark.parametrize(
    ("ca", "certificate", "key", "said"),
    [
        ("a.pem", "b.pem", "b.key", []),
        ("words", "b.pem", "b.key", ["AIO_TLS_CA_FILE: '/words' holds no certificate in PEM form"]),
        ("empty", "b.pem", "b.key", ["AIO_TLS_CA_FILE: '/empty' is empty"]),
        ("a.key", "b.pem", "b.key", ["AIO_TLS_CA_FILE: '/a.key' holds no certificate in PEM form"]),
        ("a.pem", "words", "b.key", ["AIO_TLS_CERT_FILE: '/words' holds no certificate in PEM form"]),
        ("a.pem", "b.pem", "words", ["AIO_TLS_KEY_FILE: '/words' holds no private key in PEM form that can be read"]),
        ("a.pem", "a.pem", "locked.key", ["AIO_TLS_KEY_FILE: '/locked.key' is a key with a password"]),
        ("a.pem", "b.pem", "a.key", ["AIO_TLS_KEY_FILE: '/a.key' does not belong to the certificate '/b.pem'"]),
        ("words", "b.pem", "gone", ["AIO_TLS_CA_FILE: '/words' holds", "AIO_TLS_KEY_FILE: there is no file '/gone'"]),
    ],
)
def test_files_for_tls_are_read_before_the_broker_is_asked(
    certificates: Path, ca: str, certificate: str, key: str, said: list[str]
) -> None:
    settings = Settings(
        aio_mqtt_use_tls=True,
        aio_tls_ca_file=certificates / ca,
        aio_tls_cert_file=certificates / certificate,
        aio_tls_key_file=certificates / key,
    )
    found = [str(error).replace(str(certificates), "") for error in missing_files(settings)]
    assert len(found) == len(said)
    assert all(line.startswith(text) for line, text in zip(sorted(found), said, strict=True))


def test_files_for_triton_and_secrets_are_read_too(certificates: Path) -> None:
    settings = Settings(
        triton_use_tls=True,
        triton_tls_ca_file=certificates / "a.pem",
        triton_tls_cert_file=certificates / "a.pem",
        triton_tls_key_file=certificates / "b.key",
        aio_mqtt_username="gw",
        aio_mqtt_password_file=certificates / "empty",
    )
    found = [str(error).replace(str(certificates), "") for error in missing_files(settings)]
    assert [text.partition(". ")[0] for text in found] == [
        "TRITON_TLS_KEY_FILE: '/b.key' does not belong to the certificate '/a.pem'",
        "AIO_MQTT_PASSWORD_FILE: '/empty' is empty",
    ]


def test_several_tritons_are_named_in_one_setting(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TRITON_GRPC_URL", "gpu-0:8001, gpu-1:8001")
    monkeypatch.setenv("TRITON_METRICS_URL", "http://gpu-0:8002/metrics?a=1,2,http://gpu-1:8002/metrics")
    monkeypatch.setenv("TRITON_PLACEMENT", "model=det*,version=[12],tenant=north->gpu-0:8001 ; model=* -> gpu-1:8001")
    found = load_settings()
    assert found.triton_endpoints == ("gpu-0:8001", "gpu-1:8001")
    assert found.triton_metrics_urls == ("http://gpu-0:8002/metrics?a=1,2", "http://gpu-1:8002/metrics")
    first, second = found.placement_rules
    assert (first.endpoints, first.model, first.version, first.tenant) == (("gpu-0:8001",), "det*", "[12]", "north")
    assert (second.endpoints, second.model, second.version, second.tenant) == (("gpu-1:8001",), "*", "*", "*")

    for name in ("TRITON_GRPC_URL", "TRITON_METRICS_URL", "TRITON_PLACEMENT"):
        monkeypatch.delenv(name)
    path = tmp_path / "gateway.yaml"
    path.write_text(
        "triton_grpc_url: [gpu-0:8001, gpu-1:8001]\ntriton_metrics_url:\n- http://gpu-0/m\n- http://gpu-1/m\n"
        "triton_placement:\n- model=det* -> gpu-0:8001|gpu-1:8001\n"
    )
    read = load_settings(path)
    assert read.triton_endpoints == ("gpu-0:8001", "gpu-1:8001")
    assert read.triton_metrics_urls == ("http://gpu-0/m", "http://gpu-1/m")
    assert read.placement_rules[0].endpoints == ("gpu-0:8001", "gpu-1:8001")


def test_one_triton_has_no_pool_about_it() -> None:
    alone = Settings()
    assert alone.triton_endpoints == ("localhost:8001",)
    assert alone.triton_metrics_urls == (None,)
    assert alone.placement_rules == ()


@pytest.mark.parametrize(
    ("variables", "said"),
    [
        ({"TRITON_GRPC_URL": "a:1,b:2,A:1"}, "names A:1 twice"),
        ({"TRITON_GRPC_URL": "a:1,,b:2"}, "must be host:port"),
        ({"TRITON_GRPC_URL": ",".join(f"a:{port}" for port in range(1, 100))}, "at most 64"),
        ({"TRITON_GRPC_URL": "a:1,b:2", "TRITON_METRICS_URL": "http://a/m"}, "one page for each endpoint"),
        ({"TRITON_METRICS_URL": "http://a/m,http://b/m"}, "one page for each endpoint"),
        ({"TRITON_PLACEMENT": "model=* -> localhost:8001"}, "needs several endpoints"),
        ({"TRITON_GRPC_URL": "gpu-0:1,gpu-1:1", "TRITON_PLACEMENT": "model=* -> gpu0:1"}, "did you mean gpu-0:1"),
        ({"TRITON_GRPC_URL": "a:1,b:2", "TRITON_PLACEMENT": "model=*"}, "says where a model goes"),
        ({"TRITON_GRPC_URL": "a:1,b:2", "TRITON_PLACEMENT": "modle=* -> a:1"}, "none of model="),
        ({"TRITON_GRPC_URL": "a:1,b:2", "TRITON_PLACEMENT": "model=a,model=b -> a:1"}, "none of model="),
        ({"TRITON_GRPC_URL": "a:1,b:2", "TRITON_PLACEMENT": "model= -> a:1"}, "none of model="),
        ({"TRITON_GRPC_URL": "a:1,b:2", "TRITON_PLACEMENT": "-> a:1"}, "none of model="),
        ({"TRITON_GRPC_URL": "a:1,b:2", "TRITON_PLACEMENT": "model=x -> a:1|a:1"}, "names a:1 twice"),
        ({"TRITON_GRPC_URL": "a:1,b:2", "TRITON_PLACEMENT": "model=x -> a"}, "must be host:port"),
        ({"TRITON_GRPC_URL": "a:1,b:2", "TRITON_PLACEMENT": "model=x -> a:1;" * 65}, "at most 64"),
    ],
)
def test_what_several_tritons_cannot_be(monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], said: str) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match=re.escape(said)):
        load_settings()
