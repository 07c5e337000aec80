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
