"""`edge-gateway models sign` and `verify`: the signature over one version of a model."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from gateway.commands.models.target import (
    MODEL,
    VERSION,
    Target,
    files_in_words,
    find_target,
    read_digests,
    replace_file,
    require_replaceable,
    written_json,
)
from gateway.commands.options import CONFIG, FILE, JSON, examples
from gateway.config import Settings
from gateway.config_reading import load_settings
from gateway.errors import ConfigError

if TYPE_CHECKING:
    from gateway.models.drop import Drop

PASSWORD = "MODEL_SIGNING_PASSWORD"  # noqa: S105 - the name of a variable  # nosec B105
OUTPUT_FIX = "Name another file with --output"


@click.command(
    epilog=examples(
        "edge-gateway models sign model_repository/industrial-safety --private-key private.pem",
        "edge-gateway models sign industrial-safety 2 --private-key signer.key --certificate signer.pem --json",
    ),
)
@MODEL
@VERSION
@click.option("--private-key", type=FILE, required=True, help="PEM file of the signer's private key (EC).")
@click.option("--certificate", type=FILE, help="PEM file of the signer's certificate.")
@click.option("--chain", type=FILE, multiple=True, help="PEM file of certificates up to the authority; repeatable.")
@click.option("--output", type=FILE, help="Signature to write.  [default: model.sig beside model.yaml]")
@CONFIG
@JSON
def sign(
    model: str,
    version: int | None,
    private_key: Path,
    certificate: Path | None,
    chain: tuple[Path, ...],
    output: Path | None,
    config: Path | None,
    as_json: bool,
) -> None:
    """Sign all files of one version of a model.

    NAME_OR_DIR is a model of MODEL_REPOSITORY, or the folder of a model.yaml, whose Triton models lie beside it.
    Without VERSION, the highest on disk. The password of an encrypted key is asked for, or comes from the variable
    MODEL_SIGNING_PASSWORD.
    """
    from gateway.adapters.signatures import sign_files

    target = find_target(model, version, load_settings(config))
    path = output or _signature_of(target)
    require_replaceable(path, OUTPUT_FIX)
    drop = target.take()
    digests = read_digests(drop, quiet=as_json)
    content = sign_files(digests, drop.name, private_key, _password, certificate, chain)
    replace_file(path, content, OUTPUT_FIX)
    if as_json:
        click.echo(written_json(drop, signature=path))
    else:
        click.echo(f"{files_in_words(drop)}, signed: {path}")


@click.command(
    epilog=examples(
        "edge-gateway models verify industrial-safety",
        "edge-gateway models verify model_repository/industrial-safety 2 --public-key public.pem --json",
    ),
)
@MODEL
@VERSION
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

    settings = load_settings(config)
    public_key, certificate = _trusted(public_key, certificate, settings)
    check_configured(public_key, certificate)
    target = find_target(model, version, settings)
    path, drop, problem, signer = signature or _signature_of(target), None, None, ""
    try:
        drop = target.take()
        digests = read_digests(drop, quiet=as_json)
        signer = SignatureVerifier(public_key, certificate).verify(path, digests, drop.bytecode)
    except ConfigError as error:
        if not as_json:
            raise
        problem = error
    if as_json:
        click.echo(json.dumps(_as_json(target, path, drop, signer, problem), indent=2, ensure_ascii=False))
    elif drop is not None:
        click.echo(f"{files_in_words(drop)}, signed by {signer}")
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


def _signature_of(target: Target) -> Path:
    """Where its signature lies when nobody names another place."""
    from gateway.models.drop_files import SIGNATURE_FILE

    return target.model.path.parent / SIGNATURE_FILE


def _password() -> str:
    """Never an argument, which anybody on the machine could read."""
    if given := os.environ.get(PASSWORD):
        return given
    if not sys.stdin.isatty():
        raise ConfigError("the private key is encrypted", fix=f"Give its password in {PASSWORD}")
    answer: str = click.prompt("Password of the private key", hide_input=True, err=True)
    return answer


def _as_json(
    target: Target, path: Path, drop: Drop | None, signer: str, problem: ConfigError | None
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
