"""Files that are renewed, look by look; and what a context of ours speaks."""

from __future__ import annotations

import os
import ssl
from pathlib import Path

import pytest

from gateway.adapters.tls import FileWatch, root_certificates, tls_context
from gateway.credentials import BROKER, TlsFiles
from gateway.errors import ConfigError
from tests.certificates import Authority


def looks(watch: FileWatch, count: int) -> list[tuple[Path, ...]]:
    return [watch.changed() for _ in range(count)]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "file"
    path.write_text("first")
    return path


def test_new_content_counts_when_two_looks_have_found_it(file: Path) -> None:
    watch = FileWatch([file])
    assert looks(watch, 2) == [(), ()]
    file.write_text("sec")
    assert watch.changed() == ()
    file.write_text("second")
    assert looks(watch, 2) == [(), (file,)]
    watch.accept()
    assert looks(watch, 3) == [(), (), ()]


def test_refused_content_is_told_once_and_the_next_one_again(file: Path) -> None:
    watch = FileWatch([file])
    file.write_text("broken")
    assert looks(watch, 2) == [(), (file,)]
    watch.refuse()
    os.utime(file, (1, 1))
    assert looks(watch, 3) == [(), (), ()]
    file.write_text("mended")
    assert looks(watch, 2) == [(), (file,)]


def test_same_content_written_anew_is_no_change(file: Path) -> None:
    watch = FileWatch([file])
    file.write_text("other")
    assert watch.changed() == ()
    file.write_text("first")
    assert looks(watch, 2) == [(), ()]


def test_a_file_behind_exchanged_links_and_one_that_goes_and_comes(tmp_path: Path) -> None:
    for name in ("1", "2"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "token").write_text(name)
    (tmp_path / "data").symlink_to("1")
    path = tmp_path / "data" / "token"
    watch = FileWatch([path])
    (tmp_path / "new").symlink_to("2")
    os.replace(tmp_path / "new", tmp_path / "data")  # noqa: PTH105 - as Kubernetes does
    assert looks(watch, 2) == [(), (path,)]
    watch.accept()
    path.unlink()
    assert looks(watch, 2) == [(), (path,)]
    watch.refuse()
    path.write_text("2")
    assert looks(watch, 2) == [(), ()]


def test_only_the_configured_authority_is_trusted_and_nothing_older_than_tls_1_2(tmp_path: Path) -> None:
    ca = Authority(tmp_path)
    context = tls_context(TlsFiles(BROKER, ca.path))
    assert context.minimum_version is ssl.TLSVersion.TLSv1_2
    assert (context.verify_mode, context.check_hostname) == (ssl.CERT_REQUIRED, True)
    assert len(context.get_ca_certs()) == 1
    assert root_certificates(TlsFiles(BROKER, ca.path)) == ca.path.read_bytes()


def test_a_context_of_files_that_cannot_be_used_is_refused(file: Path) -> None:
    with pytest.raises(ConfigError, match=r"AIO_TLS_CA_FILE: .* holds no certificate"):
        tls_context(TlsFiles(BROKER, file))
