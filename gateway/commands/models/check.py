"""`edge-gateway models check`: whether a drop would fit, before it is dropped."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from gateway.commands.models.reading import load_layouts, log_to_stderr
from gateway.commands.options import CONFIG, FILE, JSON, examples, require_folder
from gateway.config import Settings
from gateway.config_reading import load_settings
from gateway.errors import ConfigError

if TYPE_CHECKING:
    from gateway.commands.models.outlook import Outlook
    from gateway.doctor.drops import DropReport
    from gateway.models.repository import LogicalModel


@dataclass(frozen=True, slots=True)
class Checked:
    """A logical model with its variants, a broken one, or a Triton folder that no model.yaml names (no `name`)."""

    name: str
    where: str
    reports: tuple[DropReport, ...] = ()
    problem: ConfigError | None = None
    remarks: tuple[str, ...] = ()
    """What works, but may surprise."""
    model: LogicalModel | None = None
    outlook: Outlook | None = None
    """What the gateway would do with it; None where that was not asked, or something is wrong already."""

    @property
    def ok(self) -> bool:
        """Whether it would serve."""
        refused = self.outlook is not None and self.outlook.problem is not None
        return self.problem is None and not refused and all(report.problem is None for report in self.reports)


@click.command(
    "check",
    epilog=examples(
        "edge-gateway models check model_repository",
        "edge-gateway models check model_repository/industrial-safety",
        "edge-gateway models check model_repository/industrial-safety-onnx --json",
        "edge-gateway models check prepared/helmets --repository /mnt/models",
    ),
)
@click.argument("folder", metavar="DIR", type=FILE)
@click.option("--repository", type=FILE, help="Folder of models that it shall go into.  [default: the one it lies in]")
@CONFIG
@JSON
def check_drops(folder: Path, repository: Path | None, config: Path | None, as_json: bool) -> None:
    """Say what would become of the drop in DIR, without starting anything.

    DIR is the folder of a model.yaml, whose Triton models lie beside it; one of these; or a whole repository. Says
    whether the highest version fits, which version it would be held against, and the steps that it would go through.
    Exit code 2 when it would be refused.
    """
    log_to_stderr()
    settings = load_settings(config)
    load_layouts(settings)
    if repository is not None:
        require_folder(repository)
    try:
        found = [_with_outlook(each, settings, repository, quiet=as_json) for each in examine(folder)]
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", error)
        raise ConfigError(f"cannot be read: {reason}", where=str(folder), fix="Check the path") from error
    if as_json:
        click.echo(json.dumps(checked_json(found), indent=2, ensure_ascii=False))
    else:
        click.echo("\n".join(line for each in found for line in in_words(each)))
    sys.exit(0 if all(each.ok for each in found) else 2)


def examine(folder: Path) -> list[Checked]:
    """What lies in a folder: a logical model, a Triton model, or a repository of them; hidden folders are none.

    Raises ConfigError for a folder without any, OSError and ValueError for one that cannot be read.
    """
    if not folder.is_dir():
        raise ConfigError("no such folder", where=str(folder), fix="Name the folder of a model, or of all of them")
    if (folder / "model.yaml").exists():
        return [_logical(folder / "model.yaml")]
    if _is_triton_model(folder):
        return _triton_folder(folder)
    logical = [_logical(path) for path in sorted(folder.glob("*/model.yaml")) if not _is_hidden(path.parent)]
    named = {report.folder for each in logical for report in each.reports}
    rest = [path for path in sorted(folder.iterdir()) if path.is_dir() and path not in named and not _is_hidden(path)]
    alone = [_alone(path) for path in rest if not (path / "model.yaml").exists() and _is_triton_model(path)]
    if not logical and not alone:
        raise ConfigError(
            "has neither a model.yaml nor a config.pbtxt nor a version folder, and neither have the folders in it",
            where=str(folder),
            fix="Name the folder of a model, or of all of them",
        )
    return [*logical, *alone]


def _with_outlook(checked: Checked, settings: Settings, repository: Path | None, *, quiet: bool) -> Checked:
    """What is wrong already needs no look into the future."""
    from gateway.commands.models.outlook import outlook

    if checked.model is None or not checked.ok:
        return checked
    root = checked.model.path.parent.parent
    return replace(checked, outlook=outlook(checked.model, root, settings, repository, quiet=quiet))


def _is_hidden(folder: Path) -> bool:
    return folder.name.startswith(".")


def _is_triton_model(folder: Path) -> bool:
    return (folder / "config.pbtxt").exists() or any(
        path.name.isdecimal() and path.is_dir() for path in folder.iterdir()
    )


def _logical(path: Path) -> Checked:
    """Its highest version; of variants that do not bring that one, what Triton would serve by itself."""
    from gateway.doctor.drops import disagreement, examine_drop, remarks_on
    from gateway.models.drop import versions_on_disk
    from gateway.models.repository import read_model

    root = path.parent.parent
    try:
        model = read_model(path)
        versions = versions_on_disk(model, root)
        version = max(versions, default=None)
        if len(versions) > 1:  # without labels.txt the files of that version name the classes
            model = read_model(path, root, version)
    except ConfigError as error:
        return Checked(path.parent.name, str(path), problem=error)
    bringing = versions[version] if version is not None else ()
    reports = tuple(
        examine_drop(root / triton_model, model, name, version if name in bringing else None)
        for name, triton_model in model.spec.variants.items()
    )
    return Checked(model.spec.name, str(path), reports, disagreement(model, reports), remarks_on(model), model)


def _triton_folder(folder: Path) -> list[Checked]:
    """With each model.yaml beside it that names it, else by itself."""
    found = []
    for path in sorted(folder.absolute().parent.glob("*/model.yaml")):
        if _is_hidden(path.parent):
            continue
        each = _logical(path)
        own = tuple(report for report in each.reports if report.triton_model == folder.absolute().name)
        if own:
            found.append(replace(each, reports=own))
    return found or [_alone(folder)]


def _alone(folder: Path) -> Checked:
    from gateway.doctor.drops import examine_drop

    return Checked("", str(folder), (examine_drop(folder),))


def in_words(checked: Checked) -> Iterator[str]:
    """The lines that a person reads."""
    from gateway.doctor.drops import fits_in_words

    note = "" if checked.name else "  (no model.yaml beside it names it)"
    yield f"{checked.name or Path(checked.where).name}{note}"
    if checked.problem is not None:
        yield f"  problem   {checked.problem}"
    yield from (f"  remark    {text}" for text in checked.remarks)
    for report in checked.reports:
        yield f"  {report.variant or '-'}: {report.folder}"
        yield from (f"    ok        {text}" for text in fits_in_words(report))
        yield from (f"    unknown   {text}" for text in report.open)
        if report.problem is not None:
            yield f"    problem   {report.problem}"
    if checked.outlook is not None:
        from gateway.commands.models.outlook import outlook_in_words

        yield from outlook_in_words(checked.outlook)


def checked_json(found: list[Checked]) -> dict[str, Any]:
    """All of it for a machine."""
    from gateway.commands.models.outlook import outlook_json
    from gateway.doctor.drops import report_json

    return {
        "ok": all(each.ok for each in found),
        "models": [
            {
                "name": each.name or None,
                "where": each.where,
                "ok": each.ok,
                "problem": None
                if each.problem is None
                else {"message": each.problem.message, "where": each.problem.where, "fix": each.problem.fix},
                "remarks": list(each.remarks),
                "variants": [report_json(report) for report in each.reports],
                "rollout": each.outlook and outlook_json(each.outlook),
            }
            for each in found
        ],
    }
