"""Makes exports, answers and references: `python -m tests.exports [FAMILY ...]`."""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from tests.exports import (
    timm_models,
    torchvision_models,
    transformers_models,
    ultralytics_models,
    yolov5_models,
    yolox_models,
)
from tests.exports.workplace import Workplace

HERE = Path(__file__).parent
MAKERS = {
    **dict.fromkeys(ultralytics_models.RECIPES, ultralytics_models.make),
    **dict.fromkeys(yolov5_models.FAMILIES, yolov5_models.make),
    **dict.fromkeys(yolox_models.FAMILIES, yolox_models.make),
    **dict.fromkeys(torchvision_models.RECIPES, torchvision_models.make),
    **dict.fromkeys(transformers_models.RECIPES, transformers_models.make),
    **dict.fromkeys(timm_models.ARCHITECTURES, timm_models.make),
    torchvision_models.CLASSIFIER: torchvision_models.make_classifier,
}


def main() -> None:
    """Makes the families that are named, or all."""
    parser = argparse.ArgumentParser(prog="python -m tests.exports", description=__doc__)
    parser.add_argument(
        "families", nargs="*", metavar="FAMILY", help=f"of: {', '.join(MAKERS)}; all when none is named"
    )
    parser.add_argument("--out", type=Path, default=Path(".cache/exports"), help="where the models and answers go")
    parser.add_argument("--references", type=Path, default=HERE.parent / "layouts" / "references")
    chosen = parser.parse_args()
    unknown = set(chosen.families) - set(MAKERS)
    if unknown:
        parser.error(f"no such family: {', '.join(sorted(unknown))}; there are {', '.join(MAKERS)}")
    place = Workplace.at(chosen.out)
    mismatch = torchvision_models.mismatch()
    for family in chosen.families or MAKERS:
        print(f"{family}:", flush=True)
        note = place.folder(family) / "skipped.txt"
        note.unlink(missing_ok=True)
        try:
            _make(family, place, chosen.references)
        except Exception as error:
            if not mismatch:
                raise
            # Nearly every tool needs torchvision; what can do without is made all the same.
            note.write_text(f"{mismatch}\n")
            print(f"  skipped ({type(error).__name__}): {mismatch}", flush=True)


def _make(family: str, place: Workplace, references: Path) -> None:
    started = time.monotonic()
    reference = MAKERS[family](family, place)
    path = reference.save(references)
    found = [len(case.answer.get("scores", ())) for case in reference.cases]
    seconds = time.monotonic() - started
    print(f"  {path.name}: {path.stat().st_size:,} bytes, {found} answers, {seconds:.0f} s", flush=True)


if __name__ == "__main__":
    main()
