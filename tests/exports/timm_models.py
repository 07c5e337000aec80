"""Classifiers of timm: its own transforms, `torch.onnx.export`, softmax and top-k as its documentation says."""

from __future__ import annotations

from tests.exports.fitting import fit, settle
from tests.exports.pictures import CLASSES
from tests.exports.reference import Reference
from tests.exports.torchvision_models import classifier_reference
from tests.exports.workplace import Workplace

SIZE = (96, 96)
ARCHITECTURES = {
    "timm-mobilenetv3": "mobilenetv3_small_050",
    "timm-convnext": "convnext_atto",
    "timm-vit": "vit_tiny_patch16_224",
}


def make(family: str, place: Workplace) -> Reference:
    """Fits, exports to ONNX and TorchScript, asks, and hands back the reference."""
    import timm
    import torch

    torch.manual_seed(0)
    sized = {"img_size": SIZE} if "vit" in family else {}
    net = timm.create_model(ARCHITECTURES[family], pretrained=False, num_classes=len(CLASSES), exportable=True, **sized)
    config = timm.data.resolve_model_data_config(net)
    prepare = timm.data.create_transform(**{**config, "input_size": (3, *SIZE)}, is_training=False)
    print(f"  preprocessing: {prepare}")
    pictures = torch.stack([prepare(picture.image) for picture in place.crops])
    labels = torch.tensor([picture.classes()[0] for picture in place.crops])
    net.train()
    fit(net, lambda: torch.nn.functional.cross_entropy(net(pictures), labels), 12, 1e-3)
    settle(net, lambda: net(pictures))
    return classifier_reference(family, place, net.eval(), pictures, SIZE)
