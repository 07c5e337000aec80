"""`edge-gateway models sign` and `verify`: the signature over one version of a model."""

from __future__ import annotations

import contextlib
import json
import os
import stat
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click

from gateway.commands.models.reading import load_layouts, read_models
from gateway.commands.options import CONFIG, FILE, JSON, examples
from gateway.config import Settings, load_settings
from gateway.errors import ConfigError

if TYPE_CHECKING:
    from gateway.models.drop import Drop
    from gateway.models.repository import LogicalModel

PASSWORD = "MODEL_SIGNING_PASSWORD"  # noqa: S105 - the name of a variable
_MODEL = click.argument("model", metavar="NAME_OR_DIR")
_VERSION = click.argument("version", required=False, type=click.IntRange(min=1))


@dataclass(frozen=True, slots=True)
class _Target:
    """One version of a model that is to be signed or verified."""

    model: LogicalModel
    repository: Path
    version: int
    max_bytes: int

    @property
    def signature(self) -> Path:
        """Where its signature lies when nobody names another place."""
        from gateway.models.drop_files import SIGNATURE_FILE

        return self.model.path.parent / SIGNATURE_FILE

    def take(self) -> Drop:
        """Its files; raises ConfigError."""
        from gateway.models.drop import take_drop

        return take_drop(self.model, self.repository, self.version, self.max_bytes)


@click.command(
    epilog=examples(
        "edge-gateway models sign model_repository/industrial-safety --private-key private.pem",
        "edge-gateway models sign industrial-safety 2 --private-key signer.key --certificate signer.pem",
    ),
)
@_MODEL
@_VERSION
@click.option("--private-key", type=FILE, required=True, help="PEM file of the signer's private key (EC).")
@click.option("--certificate", type=FILE, help="PEM file of the signer's certificate.")
@click.option("--chain", type=FILE, multiple=True, help="PEM file of certificates up to the authority; repeatable.")
@click.option("--output", type=FILE, help="Signature to write.  [default: model.sig beside model.yaml]")
@CONFIG
def sign(
    model: str,
    version: int | None,
    private_key: Path,
    certificate: Path | None,
    chain: tuple[Path, ...],
    output: Path | None,
    config: Path | None,
) -> None:
    """Sign all files of one version of a model.

    NAME_OR_DIR is a model of MODEL_REPOSITORY, or the folder of a model.yaml, whose Triton models lie beside it.
    Without VERSION, the highest on disk. The password of an encrypted key is asked for, or comes from the variable
    MODEL_SIGNING_PASSWORD.
    """
    from gateway.adapters.signatures import sign_files
    from gateway.models.drop import digests_of

    target = _target(model, version, load_settings(config))
    path = output or target.signature
    _require_writable_file(path)
    drop = target.take()
    content = sign_files(digests_of(drop), drop.name, private_key, _password, certificate, chain)
    _replace(path, content)
    click.echo(f"{_in_words(drop)} signed: {path}")


@click.command(
    epilog=examples(
        "edge-gateway models verify industrial-safety",
        "edge-gateway models verify model_repository/industrial-safety 2 --public-key public.pem --json",
    ),
)
@_MODEL
@_VERSION
@click.option("--public-key", type=FILE, help="PEM file of the public key.  [default: MODEL_PUBLIC_KEY_FILE]")
@click.option("--certificate", type=FILE, help="PEM file of the authority.  [default: MODEL_CERTIFICATE_FILE]")
@click.option("--signature", type=FILE, help="Signature to verify.  [default: model.sig beside model.yaml]")
@CONFIG
@JSON
def verify(
    model: str,
    version: int | None,
    public_key: Path | None,
    certificate: Path | None,
    signature: Path | None,
    config: Path | None,
    as_json: bool,
) -> None:
    """Say whether one version of a model is signed as the gateway would want it.

    NAME_OR_DIR and VERSION as in `models sign`. Exit code 2 when it is not.
    """
    from gateway.adapters.signatures import SignatureVerifier, check_configured
    from gateway.models.drop import digests_of

    settings = load_settings(config)
    public_key, certificate = _trusted(public_key, certificate, settings)
    check_configured(public_key, certificate)
    target = _target(model, version, settings)
    path, drop, problem, signer = signature or target.signature, None, None, ""
    try:
        drop = target.take()
        signer = SignatureVerifier(public_key, certificate).verify(path, digests_of(drop), drop.bytecode)
    except ConfigError as error:
        if not as_json:
            raise
        problem = error
    if as_json:
        click.echo(json.dumps(_as_json(target, path, drop, signer, problem), indent=2, ensure_ascii=False))
    elif drop is not None:
        click.echo(f"{_in_words(drop)} signed by {signer}")
    sys.exit(2 if problem else 0)


def _trusted(public_key: Path | None, certificate: Path | None, settings: Settings) -> tuple[Path | None, Path | None]:
    """What the options name, else what the settings do."""
    if public_key is not None and certificate is not None:
        raise ConfigError("--public-key and --certificate exclude each other", fix="Give one of them")
    if public_key is None and certificate is None:
        public_key, certificate = settings.model_public_key_file, settings.model_certificate_file
    if public_key is None and certificate is None:
        fix = "Give --public-key or --certificate, or set MODEL_PUBLIC_KEY_FILE or MODEL_CERTIFICATE_FILE"
        raise ConfigError("nothing says whose signature is trusted", fix=fix)
    return public_key, certificate


def _target(named: str, version: int | None, settings: Settings) -> _Target:
    """Raises ConfigError for a model or a version that is not there."""
    from gateway.models.drop import versions_on_disk

    model, repository = _model(named, settings)
    versions = versions_on_disk(model, repository)
    if not versions:
        folders = ", ".join(dict.fromkeys(model.spec.variants.values()))
        fix = f"Put the model into a version folder of {folders}"
        raise ConfigError(f"'{model.spec.name}' has no version there", where=str(repository), fix=fix)
    return _Target(model, repository, version or max(versions), settings.max_model_bytes)


def _model(named: str, settings: Settings) -> tuple[LogicalModel, Path]:
    from gateway.models.repository import read_model

    folder = Path(os.path.abspath(named))  # noqa: PTH100 - without following links; `.` has no parent
    if (folder / "model.yaml").is_file():
        load_layouts(settings)
        return read_model(folder / "model.yaml"), folder.parent
    models, errors = read_models(settings)
    for model in models:
        if model.spec.name == named:
            return model, settings.model_repository
    for error in errors:
        if Path(error.where).parent.name == named:
            raise error
    fix = "Name a model of MODEL_REPOSITORY, or the folder of a model.yaml"
    raise ConfigError(f"there is no model '{named[:80]}'", where=str(settings.model_repository), fix=fix)


def _password() -> str:
    """Never an argument, which anybody on the machine could read."""
    if given := os.environ.get(PASSWORD):
        return given
    if not sys.stdin.isatty():
        raise ConfigError("the private key is encrypted", fix=f"Give its password in {PASSWORD}")
    answer: str = click.prompt("Password of the private key", hide_input=True, err=True)
    return answer


def _in_words(drop: Drop) -> str:
    megabytes = sum(size for *_, size in drop.files.values()) / 1e6
    return f"{drop.name} version {drop.version}: {len(drop.files)} files, {megabytes:.1f} MB,"


def _as_json(
    target: _Target, path: Path, drop: Drop | None, signer: str, problem: ConfigError | None
) -> dict[str, object]:
    return {
        "ok": problem is None,
        "model": target.model.spec.name,
        "version": target.version,
        "signature": str(path),
        "signed_by": signer or None,
        "files": None if drop is None else list(drop.files),
        "problem": problem and {"message": problem.message, "where": problem.where, "fix": problem.fix},
    }


def _require_writable_file(path: Path) -> None:
    """Before a private key is used; what is no file (a device, a folder) is not replaced by one."""
    try:
        replaceable = not os.path.lexists(path) or stat.S_ISREG(path.lstat().st_mode)
        parent = path.absolute().parent.is_dir()
    except (OSError, ValueError) as error:
        raise _unwritable(path, error) from error
    if not parent or not replaceable:
        what = "is no regular file" if parent else "there is no such folder"
        raise ConfigError(f"cannot be written: {what}", where=str(path), fix="Name another file with --output")


def _replace(path: Path, content: bytes) -> None:
    """A gateway that watches the folder sees the signature before or this one, and no half of it."""
    fresh = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with fresh.open("xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        fresh.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            fresh.unlink()
        raise _unwritable(path, error) from error


def _unwritable(path: Path, error: OSError | ValueError) -> ConfigError:
    reason = getattr(error, "strerror", None) or str(error)
    return ConfigError(f"cannot be written: {reason}", where=str(path), fix="Name another file with --output")
