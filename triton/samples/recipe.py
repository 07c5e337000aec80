"""The figures that fix the sample models: sizes, seeds, how much is rendered, where things lie."""

from pathlib import Path

from gateway.local.scenes import DETECTOR_CLASSES, WALKWAY_CLASSES

ROOT = Path(__file__).resolve().parents[2]
CACHE = ROOT / ".cache" / "sample-models"
REPOSITORY = ROOT / "model_repository"

SEED = 20_240
CAMERA_SIZE = (1920, 1080)

DETECTOR_NAME = "industrial-safety"
DETECTOR_LABELS = DETECTOR_CLASSES
DETECTOR_HEIGHT, DETECTOR_WIDTH = 256, 448  # close to 16:9, so that a camera picture needs almost no padding
PAD_VALUE = 114
CONFIDENCE_THRESHOLD = 0.4
IOU_THRESHOLD = 0.5
MAX_DETECTIONS = 100

CLASSIFIER_NAME = "walkway"
CLASSIFIER_LABELS = WALKWAY_CLASSES
CLASSIFIER_SIZE = 224
MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)

# What each port of each exported model is called. Triton's libtorch backend finds outputs by position, written NAME__0.
DETECTOR_PORTS = {"onnx": ("images", "output0"), "torch": ("images__0", "output0__0")}
CLASSIFIER_PORTS = {"onnx": ("input", "logits"), "torch": ("input__0", "logits__0")}

SCENES = {"train": 3200, "validation": 300, "test": 500}
DETECTOR_EPOCHS = 12
CLASSIFIER_EPOCHS = 10

SENSOR_NAME = "temperature-anomaly"
SENSOR_LABELS = ("normal", "anomaly")  # as the gateway names them for every model on anomalies
SENSOR_PORTS = {"onnx": ("window", "reconstruction"), "torch": ("window__0", "reconstruction__0")}
WINDOW, STRIDE = 32, 4  # readings in one question; a new question after so many new readings
SENSOR_MEAN, SENSOR_STD = 21.0, 1.3  # of the healthy training readings, rounded; the same in the model.yaml
SENSOR_EPOCHS = 20
# Thermometers per split, each for two days; the `faulty` ones, further test seeds, for a week, fault after fault.
SENSORS = {"train": 800, "validation": 800, "test": 400, "faulty": 200}
SENSOR_READINGS, FAULTY_READINGS, ANOMALY_EVERY = 576, 2000, 150
# The threshold lets this share of the healthy validation windows pass.
HEALTHY_SHARE = 0.999
