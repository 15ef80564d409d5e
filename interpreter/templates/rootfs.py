"""The root file system of a template: Debian's packages, pip's packages, the guest's program, one image."""

import asyncio
import importlib.metadata
import json
import os
import re
import shlex
import shutil
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from interpreter.errors import TemplateBuildFailed
from interpreter.settings import Settings
from interpreter.templates.definition import Template
from interpreter.templates.initramfs import make_initramfs
from interpreter.templates.process import require, run_program
from interpreter.templates.site import place_site
from interpreter.templates.sources import apt_options, apt_sources, check_sources

Progress = Callable[[str], None]
"""Called with what begins now, in a few words."""


@dataclass(frozen=True, slots=True)
class _Suite:
    python: str
    glibc_minor: int


_SUITES: Final = {"bookworm": _Suite("3.11", 36), "trixie": _Suite("3.13", 41)}
_APT: Final = ("python3", "ca-certificates", "tzdata")
_KERNEL_PACKAGES: Final = ("linux-image-cloud-amd64", "busybox-static")
_HERE: Final = Path(__file__).parent
_OURS: Final = ("init.sh", "rootfs.py", "initramfs.py", "site.py")
_GUEST: Final = _HERE.parent.parent / "kernel_guest"
_HOME: Final = "/home/user"
_PIP_SETTINGS: Final = """# Without a network pip would try again and again, and then say that there is no such package.
[global]
index-url = https://this-session-has-no-network.invalid/simple
retries = 0
disable-pip-version-check = true
"""


@dataclass(frozen=True, slots=True)
class RootFiles:
    """What was built, and which packages are in it (name to version)."""

    rootfs: Path
    kernel: Path
    initramfs: Path
    kernel_version: str
    apt_packages: dict[str, str]
    python_packages: dict[str, str]


def builder_sources() -> list[Path]:
    """Files of this project that end up in the image: when one changes, the template is another."""
    return [*sorted(_GUEST.rglob("*.py")), *(_HERE / name for name in _OURS)]


async def build_rootfs(template: Template, folder: Path, settings: Settings, progress: Progress) -> RootFiles:
    """Build the images of ``template`` in ``folder``. Raises TemplateBuildFailed, ProgramMissing, DiskFull."""
    suite = _SUITES.get(template.definition.suite)
    if suite is None:
        known = ", ".join(_SUITES)
        raise TemplateBuildFailed(f"no root file system can be built for suite {template.definition.suite!r} ({known})")
    for program in ("mmdebstrap", "mksquashfs", "mkfs.ext4"):
        require(program)
    site = folder / "site"
    progress("pip packages")
    await _install_pip(template, suite, site, settings)
    overlay = _write_overlay(template, folder / "overlay", site, suite)
    progress("Debian packages and the root file system")
    await _run_mmdebstrap(template, suite, folder, overlay, settings)
    progress("image")
    await _squash(folder / "rootfs.tar", folder / "rootfs.squashfs")
    await _unpack(folder / "kernel.tar", folder / "kernel")
    return await asyncio.to_thread(_collect, folder, site)


async def _install_pip(template: Template, suite: _Suite, site: Path, settings: Settings) -> None:
    platforms = [f"manylinux_2_{minor}_x86_64" for minor in range(suite.glibc_minor, 4, -1)]
    requirements = template.folder / template.definition.requirements
    await run_program(
        [
            *(sys.executable, "-m", "pip", "install", "--quiet", "--no-input", "--target", site),
            *("--python-version", suite.python, "--implementation", "cp", "--only-binary=:all:", "--no-compile"),
            *(part for platform in (*platforms, "manylinux2014_x86_64") for part in ("--platform", platform)),
            *("--requirement", requirements, *shlex.split(settings.pip_args)),
        ],
        step="pip install",
    )


def _write_overlay(template: Template, overlay: Path, site: Path, suite: _Suite) -> Path:
    """Everything that goes into the image besides Debian's packages, in the places where it goes."""
    packages = place_site(site, overlay / "usr" / "local", suite.python)
    site.symlink_to(packages)
    shutil.copytree(_GUEST, packages / "kernel_guest", ignore=shutil.ignore_patterns("__pycache__"))
    about = overlay / "etc" / "interpreter"
    about.mkdir(parents=True)
    (about / "warmup.py").write_bytes(template.warmup)
    (about / "template.json").write_text(json.dumps({"name": template.name}), encoding="utf-8")
    (overlay / "etc" / "hostname").write_text("interpreter\n", encoding="utf-8")
    (overlay / "etc" / "hosts").write_text("127.0.0.1 localhost\n::1 localhost\n", encoding="utf-8")
    # In place of what mmdebstrap takes over from this host.
    (overlay / "etc" / "resolv.conf").touch()
    (overlay / "etc" / "pip.conf").write_text(_PIP_SETTINGS, encoding="utf-8")
    for path in overlay.rglob("*"):
        if not path.is_symlink():
            # The session's user reads it, under whatever umask it was made or installed here.
            path.chmod(0o755 if path.is_dir() or path.stat().st_mode & 0o100 else 0o644)
    return overlay


async def _run_mmdebstrap(template: Template, suite: _Suite, folder: Path, overlay: Path, settings: Settings) -> None:
    sources = await asyncio.to_thread(_write_sources, template.definition.suite, settings, folder / "sources")
    kernel = " ".join(_KERNEL_PACKAGES)
    unpack = 'for deb in linux-image-[0-9]*.deb busybox-static_*.deb; do dpkg-deb --extract "$deb" "$1/kernel"; done'
    hooks = (
        # Only unpacked, not installed: installing the kernel would make an initramfs that nobody uses.
        f'APT_CONFIG="$MMDEBSTRAP_APT_CONFIG" apt-get install --yes --download-only --no-install-recommends {kernel}',
        'mkdir "$1/kernel"',
        f'cd "$1/var/cache/apt/archives" && {unpack}',
        f"tar-out /kernel {folder / 'kernel.tar'}",
        'rm -r "$1/kernel"',
        f'chroot "$1" useradd --create-home --uid 1000 --shell /bin/bash --home-dir {_HOME} user',
        # What was for this build alone: mirrors, with passwords at times, and proxies.
        'rm -rf "$1/etc/apt/sources.list" "$1"/etc/apt/sources.list.d/* "$1/etc/apt/apt.conf.d/99mmdebstrap"',
        f"sync-in {overlay} /",
        f'chroot "$1" python3 -m compileall -q -j 0 /usr/local/lib/python{suite.python}/dist-packages',
        # The image is not Debian's to guard: users install with pip into it.
        f'rm -f "$1/usr/lib/python{suite.python}/EXTERNALLY-MANAGED" "$1/etc/machine-id"',
        "copy-out /var/lib/dpkg/status " + str(folder),
    )
    archive = folder / "rootfs.tar"
    root = os.geteuid() == 0
    await run_program(
        [
            # What it mounts for root goes with it then, also when it is killed.
            *((require("unshare"), "--mount", "--") if root else ()),
            *(require("mmdebstrap"), "--variant=minbase", f"--mode={'root' if root else 'unshare'}"),
            f"--include={','.join((*_APT, *template.definition.apt))}",
            *('--aptopt=Acquire::Languages "none"', '--aptopt=APT::Install-Recommends "false"', *apt_options()),
            *(f"--dpkgopt=path-exclude={path}/*" for path in ("/usr/share/doc", "/usr/share/man", "/usr/share/info")),
            "--dpkgopt=path-exclude=/usr/share/locale/*/LC_MESSAGES/*",
            *(f"--customize-hook={hook}" for hook in hooks),
            *("--format=tar", template.definition.suite, archive, *sources),
        ],
        step="mmdebstrap",
        # Where a build that was killed is swept up. In the other mode its users might not be let in there.
        environment={"TMPDIR": str(folder)} if root else {},
    )


def _write_sources(suite: str, settings: Settings, folder: Path) -> list[Path]:
    folder.mkdir()
    paths: list[Path] = []
    for source in apt_sources(suite, settings.apt_sources):
        paths.append(folder / source.name)
        paths[-1].write_text(source.text, encoding="utf-8")
    with tempfile.TemporaryDirectory(dir=folder) as room:
        check_sources(Path(room), paths)
    return paths


async def _squash(archive: Path, image: Path) -> None:
    # Measured against erofs (lz4, lz4hc, plain): squashfs is smaller, leaves less in the snapshot's memory than
    # compressed erofs, and boots no slower.
    compression = ("-comp", "zstd", "-Xcompression-level", "3")
    with archive.open("rb") as file:
        await run_program(
            [require("mksquashfs"), "-", image, "-tar", *compression, "-quiet", "-no-progress", "-noappend"],
            step="mksquashfs",
            stdin=file.fileno(),
        )
    archive.unlink()


async def _unpack(archive: Path, folder: Path) -> None:
    folder.mkdir()
    # GNU tar keeps to its folder by itself.
    options = ("--extract", "--no-same-owner", "--no-same-permissions")
    await run_program([require("tar"), *options, "--directory", folder, "--file", archive], step="tar")


def _collect(folder: Path, site: Path) -> RootFiles:
    tree = folder / "kernel"
    vmlinuz = next(tree.glob("**/boot/vmlinuz-*"), None)
    if vmlinuz is None:
        raise TemplateBuildFailed("the kernel package holds no kernel")
    kernel, initramfs = folder / "vmlinuz", folder / "initramfs"
    shutil.copyfile(vmlinuz, kernel)
    busybox = next(tree.glob("**/bin/busybox"))
    initramfs.write_bytes(make_initramfs(tree, busybox, (_HERE / "init.sh").read_bytes()))
    return RootFiles(
        folder / "rootfs.squashfs",
        kernel,
        initramfs,
        vmlinuz.name.removeprefix("vmlinuz-"),
        _apt_packages((folder / "status").read_text(encoding="utf-8")),
        _python_packages(site),
    )


def _apt_packages(status: str) -> dict[str, str]:
    # dpkg's database: paragraphs with "Package:" and "Version:".
    packages: dict[str, str] = {}
    for paragraph in status.split("\n\n"):
        fields = dict(line.split(": ", 1) for line in paragraph.splitlines() if re.match(r"(Package|Version): ", line))
        if len(fields) == 2:
            packages[fields["Package"]] = fields["Version"]
    return packages


def _python_packages(site: Path) -> dict[str, str]:
    return {found.name: found.version for found in importlib.metadata.distributions(path=[str(site)])}
