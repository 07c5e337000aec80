"""`make test-images`: builds the images, starts compose's cpu profile from them, and looks whether it holds.

Needs root on Debian; elsewhere it says why it cannot run, with exit code 77. Exit code 1: something does not hold.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from compose.images.images import BUILDS, ROOT, Engine, ImageError, build, images_of_compose, load, save, version
from gateway.local.processes import free_ports
from tests.chaos.site import end_in_order
from tests.images import bases, checks, pip_of_host
from tests.images.compose import read_compose, read_environment
from tests.images.host import NotHereError, own_podman, require_programs
from tests.images.site import Site, container, wait
from tests.images.wheels import check_arm64

SKIPPED = 77
PORTS = ("GATEWAY_PORT", "PROMETHEUS_PORT", "MQTT_PORT")
OWN = {each.variable: f"{each.name}:{version()}" for each in BUILDS}


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.images", description=__doc__)
    parser.add_argument("--base", help="image with Python to build on; without it that of the Dockerfile")
    parser.add_argument("--offline-bases", action="store_true", help="pull nothing: make bases of Debian's packages")
    parser.add_argument("--no-archive", action="store_true", help="leave the air gap out: no save and no load")
    given = parser.parse_args()
    end_in_order()
    try:
        require_programs()
    except NotHereError as reason:
        print(f"SKIPPED, nothing was tested: {reason}", file=sys.stderr)
        return SKIPPED
    with tempfile.TemporaryDirectory(prefix="edge-gateway-images-", dir="/var/tmp") as folder:
        try:
            with own_podman(Path(folder)) as podman:
                run(podman, Path(folder), given)
        except ImageError as error:
            print(f"FAILED: {error}", file=sys.stderr)
            return 1
        except KeyboardInterrupt:
            print("Interrupted; all that was started has been ended", file=sys.stderr)
            return 130
    print("All of it holds")
    return 0


def run(podman: Engine, folder: Path, given: argparse.Namespace) -> None:
    """All of it, from nothing; raises ImageError for what does not hold."""
    base = given.base or bases.python_base(podman, offline=given.offline_bases)
    say(check_arm64(folder))
    build_images(podman, folder, base)
    for name in OWN.values():
        say(checks.size(podman, name, checks.LARGEST_GATEWAY if name == OWN["GATEWAY_IMAGE"] else None))
    say(checks.no_shell(podman, OWN["GATEWAY_IMAGE"]))
    foreign = {name: image for name, image in images_of_compose("cpu").items() if name not in OWN}
    images = {**OWN, **bases.foreign_images(podman, foreign, offline=given.offline_bases)}
    if not given.no_archive:
        air_gap(podman, folder, images)
    try_site(podman, images)


def build_images(podman: Engine, folder: Path, base: str) -> None:
    """Really build all of them, as pip is configured here."""
    options = [f"--build-arg=PYTHON_IMAGE={base}", *pip_of_host.build_options(folder)]
    if pip_of_host.has_own_wheels():
        options.append("--build-arg=TORCH_INDEX=")
    for each in BUILDS:
        began = time.monotonic()
        name = build(podman, each, options, quiet=True)
        say(f"built {name} in {time.monotonic() - began:.0f} s")


def air_gap(podman: Engine, folder: Path, images: dict[str, str]) -> None:
    """Carry all images in one file to where there are none."""
    archive = folder / "images.tar"
    save(podman, images, archive, quiet=True)
    podman.run("rmi", "--force", *images.values(), capture=True)
    loaded = load(podman, archive, quiet=True)
    checks.require(loaded == images, f"loaded: {loaded}")
    say(f"saved and loaded {len(images)} images, {archive.stat().st_size / 1e6:.0f} MB")
    archive.unlink()


def try_site(podman: Engine, images: dict[str, str]) -> None:
    """Start the profile, and look."""
    ports = dict(zip(PORTS, map(str, free_ports(len(PORTS))), strict=True))
    environment = read_environment({**images, **ports, "MODEL_REPOSITORY": str(ROOT / "model_repository")})
    site = Site(podman, read_compose(environment), environment)
    without = {name for name in site.compose.services if name == "grafana" and "GRAFANA_IMAGE" not in images}
    began = time.monotonic()
    try:
        site.start(without)
        say(f"started: {', '.join(site.started)}")
        ready = wait(lambda: site.get("GATEWAY_PORT", "/ready")[0] == 200, f"not ready:\n{site.log('gateway')}")
        say(f"ready {time.monotonic() - began:.1f} s after the first container, {ready:.1f} s after the last")
        look(site)
    except ImageError as error:
        logs = "\n".join(f"--- {name}\n{site.log(name)}" for name in site.started)
        raise ImageError(f"{error}\n{logs}") from error
    finally:
        for name in reversed(site.started):
            subprocess.run([*podman.command, "rm", "--force", "--time=5", container(name)], capture_output=True)


def look(site: Site) -> None:
    """Each check, on a site that is ready."""
    services = [name for name in site.started if name != "setup"]
    for name in services:
        if name == "prometheus" and site.is_stand_in(name):  # Debian's promtool cannot ask yet
            wait(lambda: site.get("PROMETHEUS_PORT", "/-/healthy")[0] == 200, "Prometheus is not healthy")
        else:
            site.wait_healthy(name)
    say(f"healthy: {', '.join(services)}")
    for name in ("gateway", next(name for name in site.started if name.startswith("triton"))):
        say(checks.confined(site, name))
        site.podman.run("healthcheck", "run", container(name), capture=True)  # that of the image
    for check in (checks.answered, checks.by_shared_memory, checks.scraped, checks.only_where_it_may):
        say(check(site))
    say(restart(site))
    say(checks.ends_in_order(site, time.monotonic))


def restart(site: Site) -> str:
    """How long a gateway takes from its start to ready, beside a broker and a Triton that are there."""
    site.podman.run("stop", "--time", "30", container("gateway"), capture=True)
    began = time.monotonic()
    site.podman.run("start", container("gateway"), capture=True)
    wait(lambda: site.get("GATEWAY_PORT", "/ready")[0] == 200, "the gateway is not ready again")
    return f"the gateway was ready {time.monotonic() - began:.1f} s after its container was started again"


def say(text: str) -> None:
    """A line of the report."""
    print(text, flush=True)


if __name__ == "__main__":
    sys.exit(main())
