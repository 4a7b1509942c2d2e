"""This script builds a Debian package of the agent, or of the server, by dpkg-deb.

A package holds what `install` puts on a host, from its plan, at the places that belong to packages.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from arc_agent import __version__
from arc_agent.cli.install import PRODUCT as AGENT
from arc_runtime.install.host import Host, below
from arc_runtime.install.plan import AnyStep, File, Link
from arc_runtime.install.product import Product, Request, plan
from arc_runtime.install.program import InstalledProgram
from arc_runtime.install.services import run_command
from arc_server.cli.install import PRODUCT as SERVER

ROOT = Path(__file__).resolve().parents[1]
PLACES = {
    "/etc/systemd/system/": "/lib/systemd/system/",
    "/etc/sysusers.d/": "/usr/lib/sysusers.d/",
    "/usr/local/bin/": "/usr/bin/",
}
"""Where a package puts what an administrator puts elsewhere."""
PAGES = (
    "install.md",
    "hardening.md",
    "configuration.md",
    "handlers.md",
    "policy.md",
    "signing.md",
    "audit.md",
)

POSTINST = """#!/bin/sh
set -e
root="${{DPKG_ROOT:-}}"
if [ "$1" = configure ]; then
    systemd-sysusers ${{root:+--root="$root"}} "$root/usr/lib/sysusers.d/{name}.conf"
    if [ -z "$root" ] && [ -d /run/systemd/system ]; then
        systemctl daemon-reload
        systemctl try-restart '{name}.service' '{name}@*.service'
    fi
fi
"""
PRERM = """#!/bin/sh
set -e
if [ "$1" = remove ] && [ -z "${{DPKG_ROOT:-}}" ] && [ -d /run/systemd/system ]; then
    systemctl disable --now '{name}.service'
    systemctl stop '{name}@*.service'
fi
"""
POSTRM = """#!/bin/sh
set -e
root="${{DPKG_ROOT:-}}"
if [ -z "$root" ] && [ -d /run/systemd/system ]; then
    systemctl daemon-reload
fi
if [ "$1" = purge ]; then
    rm -rf "$root/var/lib/{name}" "$root/etc/credstore/{name}.token"
    if grep -q '^{name}:' "$root/etc/passwd"; then
        userdel ${{root:+--prefix "$root"}} {name}
    fi
    if grep -q '^{name}:' "$root/etc/group"; then
        groupdel ${{root:+--prefix "$root"}} {name}
    fi
fi
"""


def build(product: Product, out: Path, compression: str) -> Path:
    """Make the package in the directory `out`; its path."""
    python = Path(os.path.realpath(sys.executable))
    if python.parent != Path("/usr/bin"):
        raise SystemExit(f"the package needs the distribution's Python, and this is {python}")
    with tempfile.TemporaryDirectory(prefix="deb-") as place:
        tree = Path(place) / "tree"
        (tree / "DEBIAN").mkdir(parents=True)
        tree.chmod(0o755)
        _program(product, tree)
        config = (ROOT / f"config/{product.config_name}.yaml").read_bytes()
        instance = Request(config=None, instance="x") if product is AGENT else None
        for step in plan(product, Request(config=config)):
            _put(tree, step)
        for step in plan(product, instance) if instance else ():
            if step.path.endswith("@.service"):
                _put(tree, step)
        _documentation(product, tree)
        _control(product, tree)
        architecture = _output_of("dpkg", "--print-architecture")
        package = out / f"{product.name}_{__version__}_{architecture}.deb"
        out.mkdir(parents=True, exist_ok=True)
        run_command(
            [
                "dpkg-deb",
                "--root-owner-group",
                f"-Z{compression}",
                "--build",
                str(tree),
                str(package),
            ]
        )
    return package


def _program(product: Product, tree: Path) -> None:
    """Build the environment, and the link to it."""
    host = Host(tree, run_command, lambda line: sys.stderr.write(f"{line}\n") and None)
    program = InstalledProgram(host, product.home, product.extra)
    program.versions.mkdir(parents=True)
    program.switch(program.build(Path(sys.prefix), None))


def _put(tree: Path, step: AnyStep) -> None:
    """Write a file or a link of the plan to its place in a package; skip all other steps.

    The link that starts a unit with the system is skipped too: the administrator makes it.
    """
    where = step.path
    for administrators, packages in PLACES.items():
        if where.startswith(administrators):
            where = packages + where.removeprefix(administrators)
    path = below(tree, where)
    if ".wants/" in where or not isinstance(step, File | Link):
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(step, File):
        path.write_bytes(step.content)
        path.chmod(step.mode)
    elif not path.is_symlink():
        path.symlink_to(step.target)


def _documentation(product: Product, tree: Path) -> None:
    """Copy the licence and the pages."""
    place = tree / "usr/share/doc" / product.name
    place.mkdir(parents=True)
    shutil.copy(ROOT / "LICENSE", place / "copyright")
    for page in PAGES:
        if (ROOT / "docs" / page).exists():
            shutil.copy(ROOT / "docs" / page, place)


def _control(product: Product, tree: Path) -> None:
    """Write the control files and the maintainer scripts."""
    major, minor = sys.version_info[:2]
    size = sum(path.lstat().st_size for path in tree.rglob("*")) // 1024
    (tree / "DEBIAN/control").write_text(
        f"Package: {product.name}\n"
        f"Version: {__version__}\n"
        f"Architecture: {_output_of('dpkg', '--print-architecture')}\n"
        "Section: admin\n"
        "Priority: optional\n"
        "Maintainer: The ARC maintainers <maintainers@arc.invalid>\n"
        f"Installed-Size: {size}\n"
        f"Depends: python3 (>= {major}.{minor}), python3 (<< {major}.{minor + 1}), passwd, systemd\n"
        f"Description: {'Agent' if product is AGENT else 'Server'} of ARC, remote commands\n"
        " for software that runs where you cannot reach it.\n"
    )
    (tree / "DEBIAN/conffiles").write_text(
        f"{product.config_directory}/{product.config_name}.yaml\n"
    )
    for name, text in (("postinst", POSTINST), ("prerm", PRERM), ("postrm", POSTRM)):
        script = tree / "DEBIAN" / name
        script.write_text(text.format(name=product.name))
        script.chmod(0o755)


def _output_of(*argv: str) -> str:
    return subprocess.run(argv, text=True, capture_output=True, check=True).stdout.strip()


def main() -> None:
    """Build the packages that the command line names."""
    products = {product.name: product for product in (AGENT, SERVER)}
    parser = argparse.ArgumentParser(description="Build Debian packages")
    parser.add_argument("--out", type=Path, default=ROOT / "dist")
    parser.add_argument(
        "--compression", default="xz", help="compress with xz or gzip, or not at all with none"
    )
    parser.add_argument("packages", nargs="*", help=" or ".join(products))
    given = parser.parse_args()
    if shutil.which("dpkg-deb") is None:
        raise SystemExit("dpkg-deb is not here: apt-get install dpkg")
    os.umask(0o022)
    for name in given.packages or products:
        print(build(products[name], given.out, given.compression))


if __name__ == "__main__":
    main()
