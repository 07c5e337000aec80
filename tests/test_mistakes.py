"""What a person reads after a mistake: one line with what, where and the fix, exit code 2, no traceback."""
# ruff: noqa: E501 - the texts stand here as they are read, in one line

from __future__ import annotations

import io
import os
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from gateway.config import Settings
from tests.command_line import run
from tests.front_door import run_here

GOOD = "name: detector\nmodel_type: object-detection\n"
LABELS = b"person\nforklift\n"
LONG = "a" * 300
"""No file and no folder of Linux has a name of this length."""

IN_GATEWAY_YAML = (
    ('facilty: hall-2', "gateway.yaml: line 1: unknown key 'facilty' (did you mean 'facility'?). Correct the key"),
    ('facility: hall-2\nfacility: hall-3', "gateway.yaml: line 2: the key 'facility' is there twice, first in line 1. Keep one of them; YAML would drop the first"),
    ('facility: no', "gateway.yaml: line 1: facility: must be text, and YAML reads no as false; write 'no' in quotes. Correct the value"),
    ('gateway_id: 1.10', "gateway.yaml: line 1: gateway_id: must be text, and YAML reads 1.10 as a number; write '1.10' in quotes. Correct the value"),
    ('gateway_id: 007', "gateway.yaml: line 1: YAML reads 007 as the number 7. Write 7, or '007' in quotes for a text"),
    ('facility: 22:30', "gateway.yaml: line 1: YAML reads 22:30 as the number 1350. Write 1350, or '22:30' in quotes for a text"),
    ('gateway_id: 2024-01-02', "gateway.yaml: line 1: gateway_id: must be text, and YAML reads 2024-01-02 as a date; write '2024-01-02' in quotes. Correct the value"),
    ('http_port: "eighty"', "gateway.yaml: line 1: http_port: must be a valid integer, not 'eighty'. Correct the value"),
    ('http_port: 80.5', 'gateway.yaml: line 1: http_port: must be a valid integer, not 80.5. Correct the value'),
    ('mqtt_protocol: 5.0', "gateway.yaml: line 1: mqtt_protocol: must be '5' or '3.1.1', not 5.0. Correct the value"),
    ('\tfacility: hall-2', "gateway.yaml: is not valid YAML in line 1: found character '\\t' that cannot start any token. Indent with spaces; YAML takes no tabs"),
    ('mqtt_input_topics: [a/{facility}/b]', "gateway.yaml: is not valid YAML in line 1: expected ',' or ']', but got '{'. Correct it; texts with { } [ ] : or # need quotes"),
    ('mqtt_input_topics: {a: b}', 'gateway.yaml: line 1: mqtt_input_topics: must be a list, not a mapping. Correct the value'),
    ('mqtt_input_topics: [a/#/b]', "gateway.yaml: line 1: mqtt_input_topics: 'a/#/b' is no topic filter: '#' stands alone, as the last level. Correct the value"),
    ('mqtt_input_topics: []', 'gateway.yaml: line 1: mqtt_input_topics: name at least one topic. Correct the value'),
    ('- facility', "gateway.yaml: must be a mapping of keys to values. Write lines such as 'name: x'"),
    ('http_host', "gateway.yaml: must be a mapping of keys to values. Write lines such as 'name: x'"),
    ('aio_mqtt_password: hunter2', "gateway.yaml: line 1: unknown key 'aio_mqtt_password' (did you mean 'aio_mqtt_password_file'?). Correct the key"),
    ('aio_broker_hostname:', 'gateway.yaml: line 1: aio_broker_hostname: must be text, but has no value. Correct the value'),
    ('result_topic: a/{camera}', "gateway.yaml: line 1: result_topic: unknown part 'camera' (known parts: business_unit, device_id, facility, gateway_id, model_name). Correct the value"),
    ('mqtt_commands: off', 'gateway.yaml: line 1: mqtt_commands: leave it out: MQTT commands nothing unless MQTT_COMMAND_TOPICS names a topic. Correct the value'),
    ('result_topic: a/#', 'gateway.yaml: line 1: result_topic: a topic to publish on or to be commanded on is not empty and has no wildcards. Correct the value'),
    ('mqtt_input_topics: ["edge-ai/#"]', "MQTT_INPUT_TOPICS: 'edge-ai/#' also receives what the gateway publishes on 'edge-ai/{business_unit}/{facility}/{gateway_id}/ai/inference/vision', which would never end. Name the topics of the cameras more narrowly, or publish elsewhere"),
    ('aio_mqtt_use_tls: maybe', "gateway.yaml: line 1: aio_mqtt_use_tls: must be true or false, not 'maybe'. Correct the value"),
    ('broker:\n  host: x', "gateway.yaml: line 1: unknown key 'broker' (known keys: aio_broker_hostname, aio_broker_tcp_port, aio_mqtt_client_id, aio_mqtt_keep_alive, aio_mqtt_password_file, aio_mqtt_session_expiry, aio_mqtt_use_tls, aio_mqtt_username, aio_sat_file, aio_tls_ca_file, aio_tls_cert_file, aio_tls_key_file, alert_topic, api_read_token_file, api_token_file, breaker_failures, breaker_open_s, business_unit, comparison_topic, console and others). Correct the key"),
    ('max_in_flight: [4]', 'gateway.yaml: line 1: max_in_flight: must be a valid integer, not a list. Correct the value'),
)  # fmt: skip

IN_THE_ENVIRONMENT = (
    ({'HTTP_PORT': 'eighty'}, "environment: HTTP_PORT: must be a valid integer, not 'eighty'. Correct the value"),
    ({'HTTP_PORT': '80000'}, "environment: HTTP_PORT: must be at most 65535, not '80000'. Correct the value"),
    ({'DEFAULT_BACKEND': 'dual'}, "environment: DEFAULT_BACKEND: 'dual' is no variant; set ENABLE_DUAL_BACKEND=true, and name the variant that leads here. Correct the value"),
    ({'DEFAULT_BACKEND': 'ONNX'}, "environment: DEFAULT_BACKEND: must be a variant's name in lower case letters, digits and '-', not 'ONNX'. Correct the value"),
    ({'ENABLE_DUAL_BACKEND': 'dual'}, "environment: ENABLE_DUAL_BACKEND: must be true or false, not 'dual'. Correct the value"),
    ({'LOG_LEVEL': 'trace'}, "environment: LOG_LEVEL: must be 'debug', 'info', 'warning' or 'error', not 'trace'. Correct the value"),
    ({'LOG_FORMAT': 'yaml'}, "environment: LOG_FORMAT: must be 'json' or 'text', not 'yaml'. Correct the value"),
    ({'TRITON_GRPC_URL': 'http://localhost:8001'}, "environment: TRITON_GRPC_URL: must be host:port, such as localhost:8001, not 'http://localhost:8001'. Correct the value"),
    ({'TRITON_METRICS_URL': 'localhost:8002'}, "environment: TRITON_METRICS_URL: must be a URL, such as http://localhost:8002/metrics, not 'localhost:8002'. Correct the value"),
    ({'MODEL_REPOSITORY': '/nowhere'}, 'MODEL_REPOSITORY=/nowhere: no such folder. Name the folder with the models'),
    ({'MODEL_REPOSITORY': LONG}, f"MODEL_REPOSITORY={LONG}: cannot be read: File name too long. Name the folder with the models"),
    ({'MODEL_CONFIG_PATH': LONG}, f"{LONG}: cannot be read: File name too long. Check this path, the files beside it and MODEL_REPOSITORY"),
    ({'MODEL_CONFIG_PATH': 'model_repository/detector/model.yaml', 'MODEL_REPOSITORY': LONG}, "model_repository/detector/model.yaml: cannot be read: File name too long. Check this path, the files beside it and MODEL_REPOSITORY"),
    ({'MODEL_CONFIG_PATH': 'model_repository/detector/pipe'}, "model_repository/detector/pipe: cannot be read: it is no regular file. Check this path, the files beside it and MODEL_REPOSITORY"),
    ({'TRITON_METRICS_URL': 'ftp://u:hunter2@triton/m'}, "environment: TRITON_METRICS_URL: must be a URL, such as http://localhost:8002/metrics, not 'ftp://***@triton/m'. Correct the value"),
    ({'TRITON_METRICS_URL': 'http://u:hunter2@triton:99999/m'}, "environment: TRITON_METRICS_URL: must be a URL, such as http://localhost:8002/metrics, not 'http://***@triton:99999/m'. Correct the value"),
    ({'TRITON_METRICS_URL': 'http://u:hun#ter2@triton/m'}, "environment: TRITON_METRICS_URL: must be a URL, such as http://localhost:8002/metrics, not 'http://***@triton/m'. Correct the value"),
    ({'TRITON_GRPC_URL': 'u:hunter2@triton:8001'}, "environment: TRITON_GRPC_URL: must be host:port, such as localhost:8001, not '***@triton:8001'. Correct the value"),
    ({'MODEL_CONFIG_PATH': '/nowhere/model.yaml'}, '/nowhere/model.yaml: cannot be read: No such file or directory. Check the path and its permissions'),
    ({'GATEWAY_CONFIG': '/nowhere/gateway.yaml'}, '/nowhere/gateway.yaml: cannot be read: No such file or directory. Check the path and its permissions'),
    ({'AIO_TLS_CERT_FILE': '/c.pem'}, 'environment: AIO_TLS_CERT_FILE and AIO_TLS_KEY_FILE belong together; give both or none; a client certificate needs AIO_MQTT_USE_TLS=true. Correct the named settings'),
    ({'AIO_SAT_FILE': '/var/run/token'}, 'environment: AIO_SAT_FILE needs AIO_MQTT_USE_TLS=true, or anybody on the network could read the token. Correct the named settings'),
    ({'AIO_MQTT_PASSWORD_FILE': '/p'}, 'environment: AIO_MQTT_PASSWORD_FILE needs AIO_MQTT_USERNAME. Correct the named settings'),
    ({'API_TOKEN_FILE': '/nowhere/token'}, "API_TOKEN_FILE: there is no file '/nowhere/token'. Correct the path or mount the file"),
    ({'LAYOUTS_DIR': '/nowhere/layouts'}, 'LAYOUTS_DIR: cannot read /nowhere/layouts: No such file or directory. Name a folder of Python files'),
    ({'BUSINESS_UNIT': 'a/b'}, 'environment: BUSINESS_UNIT: must be one topic level: not empty, without / + #. Correct the value'),
    ({'MQTT_INPUT_TOPICS': ','}, 'environment: MQTT_INPUT_TOPICS: name at least one topic. Correct the value'),
    ({'INFER_TIMEOUT_MS': '0'}, "environment: INFER_TIMEOUT_MS: must be above 0, not '0'. Correct the value"),
    ({'TRITON_GRPC_URL': 'x:99999'}, "environment: TRITON_GRPC_URL: must be host:port, such as localhost:8001, not 'x:99999'. Correct the value"),
    ({'TRITON_METRICS_URL': 'file:///etc/passwd'}, "environment: TRITON_METRICS_URL: must be a URL, such as http://localhost:8002/metrics, not 'file:///etc/passwd'. Correct the value"),
    ({'QUEUE_MAX_BYTES': '99999999999999999999'}, "environment: QUEUE_MAX_BYTES: must be at most 68719476736, not '99999999999999999999'. Correct the value"),
    ({'AIO_MQTT_USE_TLS': 'true', 'AIO_TLS_CA_FILE': 'model_repository/detector/labels.txt'}, "AIO_TLS_CA_FILE: 'model_repository/detector/labels.txt' holds no certificate in PEM form. Name a file with -----BEGIN CERTIFICATE-----"),
    ({'GPU_ENABLED': '2'}, "environment: GPU_ENABLED: must be true or false, not '2'. Correct the value"),
)  # fmt: skip

IN_MODEL_YAML = (
    (GOOD + 'preprocesing: {}', "model_repository/detector/model.yaml: line 3: unknown key 'preprocesing' (did you mean 'preprocessing'?). Correct the named key"),
    (GOOD + 'preprocessing: {rezise: [64, 64]}', "model_repository/detector/model.yaml: line 3: preprocessing: unknown key 'rezise' (did you mean 'resize'?). Correct the named key"),
    (GOOD + 'preprocessing: {resize: [64]}', 'model_repository/detector/model.yaml: line 3: preprocessing.resize: has too few values (1). Correct the named key'),
    (GOOD + 'preprocessing: {resize: 64x64}', "model_repository/detector/model.yaml: line 3: preprocessing.resize: must be a list, not '64x64'. Correct the named key"),
    (GOOD + 'preprocessing: {resize: [4, 4]}', 'model_repository/detector/model.yaml: line 3: preprocessing.resize: height and width must lie between 8 and 4096 pixels. Correct the named key'),
    (GOOD + 'preprocessing: {mode: stretched}', "model_repository/detector/model.yaml: line 3: preprocessing.mode: must be 'letterbox', 'stretch', 'crop' or 'tiles', not 'stretched'. Correct the named key"),
    (GOOD + 'preprocessing: {mode: stretch, pad_value: 114}', 'model_repository/detector/model.yaml: line 3: preprocessing: pad_value has no effect without mode: letterbox or tiles. Correct the named key'),
    (GOOD + 'preprocessing: {std: [0, 1, 1]}', 'model_repository/detector/model.yaml: line 3: preprocessing.std: each value must be above 0. Correct the named key'),
    (GOOD + 'preprocessing: {mean: [0.5]}', 'model_repository/detector/model.yaml: line 3: preprocessing.mean: has too few values (1). Correct the named key'),
    (GOOD + 'preprocessing: 640', 'model_repository/detector/model.yaml: line 3: preprocessing: must be a mapping of keys to values, not 640. Correct the named key'),
    (GOOD + 'inference: {confidence_threshold: 70}', 'model_repository/detector/model.yaml: line 3: inference.confidence_threshold: must be at most 1, not 70. Correct the named key'),
    (GOOD + 'inference: {output: yolo8}', "model_repository/detector/model.yaml: line 3: inference.output: unknown layout 'yolo8' (did you mean 'yolov8'?). Correct the named key"),
    (GOOD + 'inference: {output: classification}', "model_repository/detector/model.yaml: line 3: inference.output 'classification' is for model_type 'image-classification', not 'object-detection', which has boxes, detr, end2end, rt-detr, rtdetr-end2end, rtdetr-ultralytics, ssd, torchvision, yolo-nas, yolov5, yolov7-end2end, yolov8, yolox. Correct the named key"),
    (GOOD + 'inference: {alert_classes: [persn]}', "model_repository/detector/model.yaml: inference.alert_classes names 'persn', which is no label (did you mean 'person'?). Correct the name"),
    (GOOD + 'inference: {alert_classes: person}', "model_repository/detector/model.yaml: line 3: inference.alert_classes: must be a list, not 'person'. Correct the named key"),
    (GOOD + 'inference: {class_thresholds: {person: 2}}', "model_repository/detector/model.yaml: line 3: inference.class_thresholds: 'person': a threshold lies between 0 and 1, not at 2.0. Correct the named key"),
    (GOOD + 'backend: onxx', "model_repository/detector/model.yaml: line 3: backend 'onxx' is no variant of the model (did you mean 'onnx'?). Correct the named key"),
    (GOOD + 'backend: dual\nvariants: {onnx: detector-onnx}', "model_repository/detector/model.yaml: line 3: backend 'dual' needs two variants, the model has 'onnx' only. Correct the named key"),
    (GOOD + 'variants: {ONNX: detector-onnx}', "model_repository/detector/model.yaml: line 3: variants: 'ONNX' is no name for a variant: lower case letters, digits and '-', not 'dual'. Correct the named key"),
    (GOOD + 'variants: {onnx: a/b}', "model_repository/detector/model.yaml: line 3: variants: 'onnx' needs the name of a Triton model, which is a folder of the repository. Correct the named key"),
    (GOOD + 'variants: [onnx]', 'model_repository/detector/model.yaml: line 3: variants: must be a mapping of keys to values, not a list. Correct the named key'),
    (GOOD + 'labels: [no, yes]', 'model_repository/detector/model.yaml: line 3: labels: a label is text, and YAML reads one of these as False; put it in quotes. Correct the named key'),
    (GOOD + 'labels: nowhere.txt', "model_repository/detector/model.yaml: labels: the labels file 'nowhere.txt' cannot be read: No such file or directory. Write one class a line, in UTF-8"),
    (GOOD + f'labels: {LONG}', "model_repository/detector/model.yaml: line 3: labels: must be the name of a file that lies beside model.yaml, or a list of labels. Correct the named key"),
    (GOOD + r'labels: "a\0b"', "model_repository/detector/model.yaml: line 3: labels: must be the name of a file that lies beside model.yaml, or a list of labels. Correct the named key"),
    (GOOD + 'labels: /etc/passwd', "model_repository/detector/model.yaml: line 3: labels: must be the name of a file that lies beside model.yaml, or a list of labels. Correct the named key"),
    (GOOD + 'labels: ../labels.txt', "model_repository/detector/model.yaml: line 3: labels: must be the name of a file that lies beside model.yaml, or a list of labels. Correct the named key"),
    (GOOD + 'labels: ""', "model_repository/detector/model.yaml: line 3: labels: must be the name of a file that lies beside model.yaml, or a list of labels. Correct the named key"),
    (GOOD + 'labels: folder', "model_repository/detector/model.yaml: labels: the labels file 'folder' cannot be read: Is a directory. Write one class a line, in UTF-8"),
    (GOOD + 'labels: pipe', "model_repository/detector/model.yaml: labels: the labels file 'pipe' cannot be read: it is no regular file. Write one class a line, in UTF-8"),
    (GOOD + 'labels: [person, " "]', "model_repository/detector/model.yaml: line 3: labels: label 2 is empty, and each is a class. Correct the named key"),
    (GOOD + f'labels: [person, {LONG}]', "model_repository/detector/model.yaml: line 3: labels: label 2 has 300 characters, at most 256 are read. Correct the named key"),
    (GOOD + f'inference: {{rename: {{person: {LONG}}}}}', "model_repository/detector/model.yaml: line 3: inference.rename: 'person': a name has 1 to 256 characters, not 300. Correct the named key"),
    (GOOD + f'variants: {{onnx: {LONG}}}', "model_repository/detector/model.yaml: line 3: variants: 'onnx' needs the name of a Triton model, which is a folder of the repository. Correct the named key"),
    (GOOD + r'variants: {onnx: "a\0b"}', "model_repository/detector/model.yaml: line 3: variants: 'onnx' needs the name of a Triton model, which is a folder of the repository. Correct the named key"),
    (GOOD + 'variants: {onnx: ".."}', "model_repository/detector/model.yaml: line 3: variants: 'onnx' needs the name of a Triton model, which is a folder of the repository. Correct the named key"),
    (GOOD + 'variants: {onnx: .}', "model_repository/detector/model.yaml: line 3: variants: 'onnx' needs the name of a Triton model, which is a folder of the repository. Correct the named key"),
    (GOOD + 'labels: 5', 'model_repository/detector/model.yaml: line 3: labels: must be the name of a file or a list of labels. Correct the named key'),
    (GOOD + 'mqtt: {input_topics: edge-ai/+/x}', "model_repository/detector/model.yaml: line 3: mqtt.input_topics: must be a list, not 'edge-ai/+/x'. Correct the named key"),
    (GOOD + 'mqtt: {input_topics: [a/#/b]}', "model_repository/detector/model.yaml: line 3: mqtt.input_topics: 'a/#/b' is no topic filter: '#' stands alone, as the last level. Correct the named key"),
    (GOOD + 'mqtt: {output_topic_template: "a/{camera}"}', "model_repository/detector/model.yaml: line 3: mqtt.output_topic_template: unknown part 'camera' (known parts: business_unit, device_id, facility, gateway_id, model_name). Correct the named key"),
    (GOOD + 'sensor: {window: 5}', "model_repository/detector/model.yaml: line 3: sensor has no effect with model_type 'object-detection'. Correct the named key"),
    (GOOD + 'cameras: {cam-1: {regions: [[[0, 0], [1, 1]]]}}', 'model_repository/detector/model.yaml: line 3: cameras.cam-1.regions: a polygon has 3 to 256 corners, not 2. Correct the named key'),
    (GOOD + 'cameras: {cam-1: {regions: [[[0, 0], [640, 0], [640, 480]]]}}', "model_repository/detector/model.yaml: line 3: cameras.cam-1.regions: corners are fractions 0..1 of the picture's width and height, not [640.0, 0.0]. Correct the named key"),
    ('model_type: object-detection', 'model_repository/detector/model.yaml: name: is missing. Correct the named key'),
    ('name: detector', 'model_repository/detector/model.yaml: model_type: is missing. Correct the named key'),
    ('name: my detector\nmodel_type: object-detection', "model_repository/detector/model.yaml: line 1: name: must match '^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$', not 'my detector'. Correct the named key"),
    ('name: 1.10\nmodel_type: object-detection', "model_repository/detector/model.yaml: line 1: name: must be text, and YAML reads 1.10 as a number; write '1.10' in quotes. Correct the named key"),
    ('name: detector\nmodel_type: detection', "model_repository/detector/model.yaml: line 2: model_type: must be 'object-detection', 'image-classification', 'instance-segmentation', 'anomaly-detection', 'sensor-anomaly', 'sensor-classification' or 'sensor-regression', not 'detection'. Correct the named key"),
    ('name: detector\nname: other\nmodel_type: object-detection', "model_repository/detector/model.yaml: line 2: the key 'name' is there twice, first in line 1. Keep one of them; YAML would drop the first"),
    ('name: "x', 'model_repository/detector/model.yaml: is not valid YAML in line 1: found unexpected end of stream. Correct it; texts with { } [ ] : or # need quotes'),
    ('', 'model_repository/detector/model.yaml: name: is missing; model_type: is missing. Correct the named keys'),
    (GOOD + 'alerts: {severity: urgent}', "model_repository/detector/model.yaml: line 3: alerts.severity: must be 'low', 'medium', 'high' or 'critical', not 'urgent'. Correct the named key"),
)  # fmt: skip

IN_LABELS = (
    (b'', 'model_repository/detector/model.yaml: labels: 0 labels. Name 1 to 10000 classes, one a line'),
    (b'person\n\nforklift\n', "model_repository/detector/model.yaml: labels: 'labels.txt': line 2 is empty, and each is a class. Write the name of that class there, or delete the line"),
    (b'\nperson\n', "model_repository/detector/model.yaml: labels: 'labels.txt': line 1 is empty, and each is a class. Write the name of that class there, or delete the line"),
    (b'person\n' + b'a' * 300, "model_repository/detector/model.yaml: labels: 'labels.txt': line 2 has 300 characters, at most 256 are read. Write the name of that class there, or delete the line"),
    (b'person\n' * 200_000, "model_repository/detector/model.yaml: labels: the labels file 'labels.txt' is larger than 1 MiB. Name 1 to 10000 classes, one a line"),
    (b'\xff\xfe', "model_repository/detector/model.yaml: labels: the labels file 'labels.txt' cannot be read: it is not UTF-8. Write one class a line, in UTF-8"),
)  # fmt: skip

ON_THE_COMMAND_LINE = (
    ('serv', "no command 'serv'; did you mean 'serve'? See edge-gateway --help"),
    ('serve --port 1', "No such option '--port'. See edge-gateway serve --help"),
    ('config chek', "no command 'chek'; did you mean 'check'? See edge-gateway config --help"),
    ('config show --format toml', "Invalid value for '--format': 'toml' is not one of 'yaml', 'json', 'env'. See edge-gateway config show --help"),
    ('config schema gateways', "Invalid value for '[gateway|model]': 'gateways' is not one of 'gateway', 'model'. See edge-gateway config schema --help"),
    ('config check nowhere.yaml', 'nowhere.yaml: cannot be read: No such file or directory. Check the path and its permissions'),
    ('send', "Missing argument 'PICTURES...' (or --values). See edge-gateway send --help"),
    ('send model_repository/detector/pipe', 'model_repository/detector/pipe: not a regular file. Name a file or a folder of them'),
    ('send /dev/null', '/dev/null: not a regular file. Name a file or a folder of them'),
    (f'send {LONG}', f'{LONG}: cannot be read: File name too long. Check the path'),
    ('send x.jpg --rate nan', "Invalid value for '--rate': 'nan' is no finite number. See edge-gateway send --help"),
    ('send x.jpg --timeout nan', "Invalid value for '--timeout': 'nan' is no finite number. See edge-gateway send --help"),
    ('send x.jpg --timeout inf', "Invalid value for '--timeout': 'inf' is no finite number. See edge-gateway send --help"),
    ('send x.jpg --device=', "Invalid value for '--device': a name is not empty. See edge-gateway send --help"),
    ('send --values 1 --sensor-id=', "Invalid value for '--sensor-id' / '--sensor': a name is not empty. See edge-gateway send --help"),
    ('demo --seconds nan', "Invalid value for '--seconds': 'nan' is no finite number. See edge-gateway demo --help"),
    ('send nowhere.jpg', 'nowhere.jpg: no such file or folder. Check the path'),
    ('watch --count many', "Invalid value for '--count': 'many' is not a valid integer range. See edge-gateway watch --help"),
    ('stack --repository nowhere', 'nowhere: no such folder. Name the folder of the models with --repository or MODEL_REPOSITORY'),
    ('triton --repository nowhere', 'nowhere: no such folder. Name the folder of the models with --repository or MODEL_REPOSITORY'),
    ('demo --repository nowhere', 'nowhere: no folder there has a model.yaml, so there is nothing to show. Name the folder of the models with --repository or MODEL_REPOSITORY'),
    (f'models check {LONG}', f'{LONG}: cannot be read: File name too long. Check the path'),
    ('models check nowhere', 'nowhere: no such folder. Name the folder of a model, or of all of them'),
    ('serve --config nowhere.yaml', 'nowhere.yaml: cannot be read: No such file or directory. Check the path and its permissions'),
    ('serve --config model_repository/detector/pipe', 'model_repository/detector/pipe: cannot be read: it is no regular file. Check the path and its permissions'),
    ('config check model_repository/detector/pipe', 'model_repository/detector/pipe: cannot be read: it is no regular file. Check the path and its permissions'),
    ('serve --config model_repository', 'model_repository: cannot be read: Is a directory. Check the path and its permissions'),
    ('xyzzy', "no command 'xyzzy'; commands: demo, stack, triton, serve, camera, send, watch, doctor, bench, models, config, completion. See edge-gateway --help"),
)  # fmt: skip


# --- a drop for Triton ------------------------------------------------------------------------------------

CONFIG = """platform: "pytorch_libtorch"
max_batch_size: 8
input [{ name: "INPUT__0" data_type: TYPE_FP32 dims: [3, 64, 64] }]
output [{ name: "OUTPUT__0" data_type: TYPE_FP32 dims: [6, 10] }]
"""
DROP = "model_repository/detector-torch"


def torchscript() -> bytes:
    """What a TorchScript archive has that a check without torch can see."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name in ("data.pkl", "constants.pkl", "code/model.py"):
            archive.writestr(f"model/{name}", "x")
    return file.getvalue()


def drop(folder: Path) -> None:
    """A model with one variant that fits it."""
    (folder / "1").mkdir(parents=True)
    (folder / "config.pbtxt").write_text(CONFIG)
    (folder / "1" / "model.pt").write_bytes(torchscript())
    (folder.parent / "detector" / "model.yaml").write_text(GOOD + "variants: {torch: detector-torch}\n")


def in_config(old: str, new: str) -> Callable[[Path], object]:
    return lambda folder: (folder / "config.pbtxt").write_text(CONFIG.replace(old, new))


def in_model_yaml(text: str) -> Callable[[Path], object]:
    path = Path("model_repository/detector/model.yaml")
    return lambda _folder: path.write_text(path.read_text() + text)


def without_version(folder: Path) -> None:
    (folder / "1" / "model.pt").rename(folder / "model.pt")
    (folder / "1").rmdir()


def content(cut: slice) -> Callable[[Path], object]:
    return lambda folder: (folder / "1" / "model.pt").write_bytes(torchscript()[cut])


IN_A_DROP: tuple[tuple[str, Callable[[Path], object], str], ...] = (
    ("the folder is missing", shutil.rmtree, f"{DROP}: no such folder. Name a folder of the model repository"),
    ("no version folder", lambda folder: shutil.rmtree(folder / "1"), f"{DROP}: has no version folder: there are no folders. Put the model into a folder named by its version: 1/model.onnx"),
    ("model without version folder", without_version, f"{DROP}: has no version folder: model.pt lies beside. Put the model into a folder named by its version: 1/model.pt"),
    ("version with a letter", lambda folder: (folder / "1").rename(folder / "v1"), f"{DROP}: has no version folder: there is only v1. Put the model into a folder named by its version: 1/model.onnx"),
    ("no model file", lambda folder: (folder / "1" / "model.pt").unlink(), f"{DROP}/1: the version folder is empty. Put the model there as model.pt"),
    ("model file of another name", lambda folder: (folder / "1" / "model.pt").rename(folder / "1" / "best.pt"), f"{DROP}/1: there is no model file 'model.pt', only best.pt. Rename the model to model.pt, or name it with default_model_filename (and platform) in config.pbtxt"),
    ("an empty model file", content(slice(0)), f"{DROP}/1/model.pt: the model file is empty (0 bytes). Copy it again, completely"),
    ("half a model file", content(slice(40)), f"{DROP}/1/model.pt: is no complete TorchScript archive: File is not a zip file. Copy it again and compare its sha256 with the original, or save it again with torch.jit.save"),
    ("no config.pbtxt for TorchScript", lambda folder: (folder / "config.pbtxt").unlink(), f"{DROP}/config.pbtxt: lacks input and output, and a TorchScript file holds no shapes to fill them in. Declare name (forward()'s argument or INPUT__0; outputs OUTPUT__0, ...), data_type and dims of each"),
    ("a typo in a field", in_config("max_batch_size", "max_batchsize"), f"{DROP}/config.pbtxt: is no valid model configuration in line 2: unknown field 'max_batchsize' (did you mean 'max_batch_size'?). Correct it; the fields are those of Triton's model configuration"),
    ("an unknown platform", in_config("pytorch_libtorch", "pytorch"), f"{DROP}/config.pbtxt: unknown platform 'pytorch' (did you mean 'libtorch'?). Use one, or name the `backend`"),
    ("the name of another folder", in_config("platform", 'name: "other"\nplatform'), f"{DROP}/config.pbtxt: names the model 'other', its folder is 'detector-torch'. Rename the folder, or leave `name` out"),
    ("a batch below 0", in_config("size: 8", "size: -1"), f"{DROP}/config.pbtxt: max_batch_size is -1. Set it to 0 (no batch axis) or more"),
    ("four channels", in_config("[3, 64", "[4, 64"), "model_repository/detector/model.yaml against Triton model 'detector-torch': the input 'INPUT__0' has 4 channels, a picture has 3 or 1. Correct dims in config.pbtxt, or preprocessing.layout, or export the model for RGB or grey pictures"),
    ("dims of another number of classes", in_config("dims: [6, 10]", "dims: [84, 10]"), "model_repository/detector/model.yaml against Triton model 'detector-torch': OUTPUT__0 FP32 [-1, 84, 10], expected yolov8: output [4+C, N] = [6, N] for 2 labels; it would fit rtdetr-ultralytics with 6 labels, yolov5 with 5 labels or yolox with 5 labels. Correct dims in config.pbtxt, or labels, model_type or inference.output in model.yaml"),
    ("another size", in_model_yaml("preprocessing: {resize: 32}\n"), "model_repository/detector/model.yaml against Triton model 'detector-torch': the input 'INPUT__0' is FP32 [-1, 3, 64, 64], that is 64 high and 64 wide; preprocessing.resize says [32, 32]. Set preprocessing.resize to [64, 64], or leave it out"),
    ("a typo in model.yaml", in_model_yaml("lables: [a]\n"), "model_repository/detector/model.yaml: line 4: unknown key 'lables' (did you mean 'labels'?). Correct the named key"),
)  # fmt: skip


# --- the mistakes made ------------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with a repository of one good model, and nothing set."""
    for name in os.environ:
        if name.lower() in {*Settings.model_fields, "gateway_config"}:
            monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "model_repository" / "detector"
    folder.mkdir(parents=True)
    (folder / "model.yaml").write_text(GOOD)
    (folder / "labels.txt").write_bytes(LABELS)
    (folder / "folder").mkdir()
    os.mkfifo(folder / "pipe")
    return tmp_path


def said(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The one line that a command says before it ends with exit code 2."""
    done = run_here(capsys, *arguments)
    assert done.code == 2, done
    (line,) = done.err.splitlines()
    assert line.startswith("edge-gateway: ")
    return line.removeprefix("edge-gateway: ")


def test_without_a_mistake_nothing_is_said(capsys: pytest.CaptureFixture[str], place: Path) -> None:
    done = run_here(capsys, "config", "check")
    assert (done.code, done.err) == (0, "")
    (place / "model_repository" / "detector" / "pipe").unlink()  # nothing of a drop may be one
    drop(place / DROP)
    assert run_here(capsys, "models", "check", "model_repository").code == 0


@pytest.mark.parametrize(("text", "expected"), IN_GATEWAY_YAML)
def test_in_gateway_yaml(capsys: pytest.CaptureFixture[str], place: Path, text: str, expected: str) -> None:
    (place / "gateway.yaml").write_text(text)
    assert said(capsys, "config", "check", "gateway.yaml") == expected


@pytest.mark.parametrize(("variables", "expected"), IN_THE_ENVIRONMENT, ids=lambda item: str(item)[:60])
def test_in_the_environment(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], expected: str
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert said(capsys, "config", "check") == expected


@pytest.mark.parametrize(("text", "expected"), IN_MODEL_YAML)
def test_in_model_yaml(capsys: pytest.CaptureFixture[str], place: Path, text: str, expected: str) -> None:
    (place / "model_repository" / "detector" / "model.yaml").write_text(text)
    assert said(capsys, "config", "check") == expected


@pytest.mark.parametrize(("labels", "expected"), IN_LABELS)
def test_in_labels(capsys: pytest.CaptureFixture[str], place: Path, labels: bytes, expected: str) -> None:
    (place / "model_repository" / "detector" / "labels.txt").write_bytes(labels)
    assert said(capsys, "config", "check") == expected


@pytest.mark.parametrize(("mistake", "expected"), [item[1:] for item in IN_A_DROP], ids=[item[0] for item in IN_A_DROP])
def test_in_a_drop(
    capsys: pytest.CaptureFixture[str], place: Path, mistake: Callable[[Path], object], expected: str
) -> None:
    (place / "model_repository" / "detector" / "pipe").unlink()
    drop(place / DROP)
    mistake(Path(DROP))
    done = run_here(capsys, "models", "check", "model_repository")
    assert (done.code, done.err) == (2, "")
    problems = [line.split(maxsplit=1)[1] for line in done.out.splitlines() if line.split()[:1] == ["problem"]]
    assert problems == [expected]


@pytest.mark.parametrize(("words", "expected"), ON_THE_COMMAND_LINE)
def test_on_the_command_line(capsys: pytest.CaptureFixture[str], words: str, expected: str) -> None:
    assert said(capsys, *words.split()) == expected


@pytest.mark.parametrize(
    ("words", "variables", "expected"),
    [
        ("serve", {"HTTP_PORT": "eighty"}, "environment: HTTP_PORT: must be a valid integer, not 'eighty'. Correct the value"),
        ("serve", {"MODEL_REPOSITORY": "nowhere"}, "MODEL_REPOSITORY=nowhere: no such folder. Name the folder with the models"),
        ("models list", {"MODEL_REPOSITORY": LONG}, f"MODEL_REPOSITORY={LONG}: cannot be read: File name too long. Name the folder with the models"),
        ("config show", {"LOG_LEVEL": "loud"}, "environment: LOG_LEVEL: must be 'debug', 'info', 'warning' or 'error', not 'loud'. Correct the value"),
        ("watch", {"GATEWAY_CONFIG": "nowhere.yaml"}, "nowhere.yaml: cannot be read: No such file or directory. Check the path and its permissions"),
    ],
)  # fmt: skip
def test_in_a_process_of_its_own(words: str, variables: dict[str, str], expected: str) -> None:
    done = run(*words.split(), **variables)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"edge-gateway: {expected}\n"


@pytest.mark.parametrize("labels", [LONG, r'"a\0b"', "pipe", "/etc/passwd"])
def test_serve_refuses_labels_that_are_no_file_beside_model_yaml(place: Path, labels: str) -> None:
    model = place / "model_repository" / "detector" / "model.yaml"
    model.write_text(f"{GOOD}labels: {labels}\n")
    done = run("serve", MODEL_CONFIG_PATH=str(model), MODEL_REPOSITORY=str(model.parent.parent))
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"edge-gateway: {model}: ")
    assert done.stderr.count("\n") == 1
