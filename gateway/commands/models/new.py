"""`edge-gateway models new`: the skeleton of a drop from its model files, or the next version of a model."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click

from gateway.commands.models.check import checked_json, examine, in_words
from gateway.commands.models.reading import load_layouts, log_to_stderr
from gateway.commands.models.staging import Staging
from gateway.commands.options import CONFIG, FILE, JSON, examples, require_folder
from gateway.config import Settings
from gateway.config_reading import load_settings
from gateway.errors import ConfigError

if TYPE_CHECKING:
    from gateway.models.repository import LogicalModel
    from gateway.models.skeleton import Skeleton, TorchFacts, Wishes

FILES = {"onnx": "model.onnx", "torch": "model.pt"}
OF_NEW_MODELS = ("--labels", "--type", "--layout", "--input", "--output", "--golden")


@dataclass(frozen=True, slots=True)
class Request:
    """What the command line asks for."""

    name: str
    files: Mapping[str, Path]
    """Model files by variant."""
    version: int | None = None
    labels: Path | None = None
    model_type: str = ""
    layout: str = ""
    input: str = ""
    outputs: tuple[str, ...] = ()
    golden: Path | None = None
    as_json: bool = False

    def only_for_new_models(self) -> list[str]:
        """The options given that have no effect on a model that is there."""
        values = (self.labels, self.model_type, self.layout, self.input, self.outputs, self.golden)
        return [option for option, value in zip(OF_NEW_MODELS, values, strict=True) if value]


@click.command(
    "new",
    epilog=examples(
        "edge-gateway models new helmets --onnx best.onnx --torch best.torchscript",
        "edge-gateway models new door --onnx door.onnx --labels labels.txt --golden golden",
        "edge-gateway models new mine --torch model.pt --input 3x480x640 --output 7x6300",
    ),
)
@click.argument("name")
@click.option("--onnx", type=FILE, help="ONNX file, for the variant onnx.")
@click.option("--torch", type=FILE, help="TorchScript file with the same weights, for the variant torch.")
@click.option("--repository", type=FILE, help="Folder of the models.  [default: MODEL_REPOSITORY]")
@click.option("--version", type=click.IntRange(1, 10**9), help="[default: 1, or the one after the highest]")
@click.option("--labels", type=FILE, help="One class a line.  [default: what the model file says]")
@click.option("--type", "model_type", default="", help="model_type.  [default: what the outputs fit]")
@click.option("--layout", default="", help="One of `models layouts`.  [default: what the outputs fit]")
@click.option("--input", "shape", default="", metavar="SHAPE", help="Where the file leaves it open: 3x480x640.")
@click.option("--output", "outputs", multiple=True, metavar="SHAPE", help="As --input; once for each output.")
@click.option("--golden", type=FILE, help="Folder of golden examples to copy: pictures or readings, expected.json.")
@CONFIG
@JSON
def new(
    name: str,
    onnx: Path | None,
    torch: Path | None,
    repository: Path | None,
    version: int | None,
    labels: Path | None,
    model_type: str,
    layout: str,
    shape: str,
    outputs: tuple[str, ...],
    golden: Path | None,
    config: Path | None,
    as_json: bool,
) -> None:
    """Write the drop of a model from its files, or add the next version of one that is there.

    Names, types, shapes, labels and the layout are read from the files. A new model gets model.yaml, labels.txt and a
    config.pbtxt for each variant; of one that is there, only version folders are added. What Triton would refuse, or
    what does not fit model.yaml, is not written. SHAPE is without the batch; another type than FP32 goes in front, as
    in uint8:480x640x3.
    """
    log_to_stderr()
    settings = load_settings(config)
    load_layouts(settings)
    files = {variant: path for variant, path in (("onnx", onnx), ("torch", torch)) if path is not None}
    if not files:
        raise ConfigError("no model file is given", where="models new", fix="Give --onnx FILE, --torch FILE, or both")
    request = Request(name, files, version, labels, model_type, layout, shape, outputs, golden, as_json)
    root = repository or settings.model_repository
    require_folder(root)
    _refuse_large([*files.values(), *_files_in(golden)], settings.max_model_bytes)
    if os.path.lexists(root / name / "model.yaml"):
        _add_version(request, root, settings)
    else:
        _write_model(request, root)


def _refuse_large(files: list[Path], most: int) -> None:
    """Raise ConfigError for files that are not there, or that the gateway would refuse for their size."""
    total = 0
    for path in files:
        try:
            total += path.stat().st_size
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or str(error)
            raise ConfigError(f"cannot be read: {reason}", where=str(path), fix="Check the path") from error
    if total > most:
        raise ConfigError(
            f"the files have {total / 2**20:.1f} MiB, the limit is {most / 2**20:.1f} MiB",
            where="models new",
            fix="Make the model smaller, or raise MAX_MODEL_BYTES",
        )


# --- a new model --------------------------------------------------------------------------------------


def _write_model(request: Request, root: Path) -> None:
    from gateway.models.skeleton_files import config_pbtxt, labels_txt, model_yaml

    skeleton = _outline(request)
    version = request.version or 1
    with Staging(root, request.name) as staging, _progress(request) as advance:
        for variant, path in request.files.items():
            folder = skeleton.variants[variant]
            staging.copy(path, f"{folder}/{version}/{FILES[variant]}", advance)
            staging.write(f"{folder}/config.pbtxt", config_pbtxt(skeleton, variant))
        for path in _files_in(request.golden):
            staging.copy(path, f"{request.name}/golden/{path.name}", advance)
        if labels := labels_txt(skeleton):
            staging.write(f"{request.name}/labels.txt", labels)
        staging.write(f"{request.name}/model.yaml", model_yaml(skeleton))
        _refuse_unfit(staging.root / request.name, staging.root, root)
        # model.yaml comes last: with it the folders become a model.
        staging.place([*skeleton.variants.values(), request.name])
    if request.as_json:
        click.echo(_written_json(root / request.name, version, skeleton.variants.values()))
        return
    click.echo(f"{root / request.name}: written, version {version}\n")
    _show(root / request.name)
    click.echo("\n".join(_next_steps(skeleton, request, root)))


def _outline(request: Request) -> Skeleton:
    from gateway.models.onnx_file import read_onnx
    from gateway.models.skeleton import outline

    _require_name(request.name)
    onnx = read_onnx(request.files["onnx"]) if "onnx" in request.files else None
    return outline(request.name, onnx, _torch_facts(request), _wishes(request))


def _require_name(name: str) -> None:
    from gateway.models.spec import ModelSpec
    from gateway.schema import parse

    parse(ModelSpec, {"name": name, "model_type": "object-detection"}, where="NAME")


def _torch_facts(request: Request) -> TorchFacts | None:
    from gateway.models.skeleton import TorchFacts
    from gateway.models.torchscript_file import read_torchscript_metadata
    from gateway.models.torchscript_forward import read_forward

    path = request.files.get("torch")
    return None if path is None else TorchFacts(read_torchscript_metadata(path), read_forward(path))


def _wishes(request: Request) -> Wishes:
    from gateway.models.skeleton import Wishes
    from gateway.models.skeleton_shapes import read_shape
    from gateway.models.spec import USUAL_LAYOUTS
    from gateway.schema import unknown_key

    if request.model_type and request.model_type not in USUAL_LAYOUTS:
        text = unknown_key(request.model_type, USUAL_LAYOUTS, "model_type")
        raise ConfigError(text, where="--type", fix="Use one of `edge-gateway models layouts`")
    return Wishes(
        model_type=request.model_type,
        layout=request.layout,
        labels=_labels(request.labels) if request.labels is not None else (),
        input=read_shape(request.input, "--input") if request.input else None,
        outputs=tuple(read_shape(each, "--output") for each in request.outputs),
    )


def _labels(path: Path) -> tuple[str, ...]:
    from gateway.models.spec import ModelSpec, read_labels
    from gateway.schema import parse

    data = {"name": "labels", "model_type": "object-detection", "labels": path.name}
    return read_labels(parse(ModelSpec, data, where=str(path)), path.parent / "model.yaml")


def _files_in(golden: Path | None) -> list[Path]:
    """The files of a folder, but for hidden ones; raises ConfigError."""
    if golden is None:
        return []
    try:
        return sorted(path for path in golden.iterdir() if path.is_file() and not path.name.startswith("."))
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise ConfigError(
            f"cannot be read: {reason}", where=str(golden), fix="Name a folder with expected.json and its pictures"
        ) from error


def _next_steps(skeleton: Skeleton, request: Request, root: Path) -> Iterator[str]:
    from gateway.models.spec import NEED_A_THRESHOLD

    folder = root / request.name
    yield "\nNext:"
    if skeleton.also_fit:
        yield f"  The outputs also fit {', '.join(skeleton.also_fit)}: is inference.output in model.yaml right?"
    if not skeleton.takes_pictures:
        yield f"  {folder / 'model.yaml'}: sensor.mean and std as in training; which axis is the window."
    else:
        yield f"  {folder / 'model.yaml'}: preprocessing as in training, which no file tells."
    if skeleton.layout in NEED_A_THRESHOLD:
        yield "  inference.anomaly_threshold there is a placeholder: write the error of healthy data at most."
    yield f"  edge-gateway models check {folder}"
    question = "photo.jpg" if skeleton.takes_pictures else f"--values {','.join(['0'] * skeleton.sensor[1])}"
    yield f"  edge-gateway send {question} --model {request.name}"
    if not (folder / "golden" / "expected.json").exists():
        yield f"  No {folder / 'golden' / 'expected.json'}: nothing tells wrong weights, see docs/models.md."


# --- the next version ---------------------------------------------------------------------------------


def _add_version(request: Request, root: Path, settings: Settings) -> None:
    from gateway.models.repository import read_model

    if useless := request.only_for_new_models():
        raise ConfigError(
            f"the model is there already, and {', '.join(useless)} has no effect on it",
            where=str(root / request.name),
            fix="Leave it out, and edit its files; or take another name",
        )
    model = read_model(root / request.name / "model.yaml", root)
    folders = {variant: _folder_of(model, variant) for variant in request.files}
    version = _next_version(model, root, settings, request.version)
    torch = _torch_facts(request)
    with Staging(root, request.name) as staging, _progress(request) as advance:
        for variant, path in request.files.items():
            staging.copy(path, f"{folders[variant]}/{version}/{FILES[variant]}", advance)
            if (config := root / folders[variant] / "config.pbtxt").exists():
                staging.copy(config, f"{folders[variant]}/config.pbtxt", lambda _: None)
        for variant, folder in folders.items():
            _refuse_other_signature(staging.root / folder, model, variant, torch, staging.root, root)
        there = {folder for folder in folders.values() if (root / folder).exists()}
        staging.place(f"{folder}/{version}" if folder in there else folder for folder in folders.values())
    if request.as_json:
        click.echo(_written_json(root / request.name, version, folders.values()))
        return
    brought = " and ".join(f"{folder}/{version}" for folder in folders.values())
    click.echo(f"{root / request.name}: version {version} written, {brought}\n")
    _show(root / request.name)
    for line in _after_a_version(model, folders, version, root):
        click.echo(line)


def _folder_of(model: LogicalModel, variant: str) -> str:
    try:
        return model.spec.variants[variant]
    except KeyError:
        known = ", ".join(model.spec.variants)
        raise ConfigError(
            f"the model has no variant '{variant}', only {known}",
            where=str(model.path),
            fix=f"Add it to variants in model.yaml, such as {variant}: {model.path.parent.name}-{variant}",
        ) from None


def _next_version(model: LogicalModel, root: Path, settings: Settings, wanted: int | None) -> int:
    """Above every version that is there, or that is remembered; raises ConfigError for one that is not."""
    from gateway.commands.models.outlook import highest_version

    highest = highest_version(model, root, settings)
    if wanted is not None and wanted <= highest:
        raise ConfigError(
            f"version {wanted} is not above {highest}, the highest there is or has been",
            where="--version",
            fix=f"Count up: --version {highest + 1}, or leave it out",
        )
    return wanted or highest + 1


def _refuse_other_signature(
    folder: Path, model: LogicalModel, variant: str, torch: TorchFacts | None, staged: Path, root: Path
) -> None:
    """Raise ConfigError when the new file is not what config.pbtxt and model.yaml say of the model."""
    from gateway.doctor.drops import examine_drop
    from gateway.models.skeleton import refuse_other_forward

    report = examine_drop(folder, model, variant)
    if report.problem is not None:
        raise _in_place(report.problem, staged, root)
    if variant == "torch" and torch is not None and report.facts is not None:
        refuse_other_forward(report.facts.config.signature, torch.forward, model.spec.name)


def _after_a_version(model: LogicalModel, folders: Mapping[str, str], version: int, root: Path) -> Iterator[str]:
    missing = [name for name in model.spec.variants if name not in folders]
    if missing:
        yield f"\nVersion {version} brings no {' and no '.join(missing)}: it will be served without."
    for name, command in (("SHA256SUMS", "manifest"), ("model.sig", "sign")):
        if (model.path.parent / name).exists():
            yield f"\n{name} is not of version {version} yet: edge-gateway models {command} {model.path.parent}"


# --- both ---------------------------------------------------------------------------------------------


def _refuse_unfit(folder: Path, staged: Path, root: Path) -> None:
    """Raise ConfigError for the first thing that `models check` would find wrong with the drop."""
    from gateway.rollout.golden import read_golden

    try:
        read_golden(folder)
    except ConfigError as error:
        raise _in_place(error, staged, root) from error
    for checked in examine(folder):
        for problem in (checked.problem, *(report.problem for report in checked.reports)):
            if problem is not None:
                raise _in_place(problem, staged, root)


def _in_place(problem: ConfigError, staged: Path, root: Path) -> ConfigError:
    """The same, said of the place where the files were to go."""
    texts = [text.replace(str(staged), str(root)) for text in (problem.message, problem.where, problem.fix)]
    return ConfigError(f"{texts[0]}; nothing was written", where=texts[1], fix=texts[2])


def _show(folder: Path) -> None:
    for each in examine(folder):
        click.echo("\n".join(in_words(each)))


def _written_json(folder: Path, version: int, triton_models: Iterable[str]) -> str:
    """Where it lies, and what `models check --json` says of it."""
    written = [str(folder.parent / name / str(version)) for name in triton_models]
    body = {"model": folder.name, "version": version, "folder": str(folder), "written": written}
    return json.dumps({**body, "check": checked_json(examine(folder))}, indent=2, ensure_ascii=False)


@contextmanager
def _progress(request: Request) -> Iterator[Callable[[int], None]]:
    """A bar where somebody waits for a large file."""
    from gateway.terminal.progress import progress

    total = sum(path.stat().st_size for path in (*request.files.values(), *_files_in(request.golden)))
    with progress("Copying", total, "bytes", quiet=request.as_json) as bar:
        yield bar.advance
