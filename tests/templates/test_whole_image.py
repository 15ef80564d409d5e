"""A built image holds nothing of the host that it was built on: look through all of it."""

import gzip
import os
import re
import socket
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

from interpreter import Settings
from interpreter.templates.store import TemplateStore

CONFIGURED = ("etc", "home", "root", "var", "usr/local/etc")
"""Where a host's own servers would stand; packages name public ones anywhere."""
EVERYBODYS = {"/root", "/usr", "/usr/local", "localhost", "127.0.0.1"}
ROOT = Path(__file__).parents[2]


def told(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout


def of_the_host() -> Iterator[str]:
    """What must not be found anywhere: the host's name, its folders, passwords for its mirrors and proxies."""
    yield from (str(ROOT), sys.prefix, str(Path.home()), os.environ.get("INTERPRETER_HOME", ""))
    # A short one could be a word.
    yield socket.gethostname() if len(socket.gethostname()) >= 8 else ""
    for account, _ in accounts_and_hosts():
        yield from account.split(":")


def accounts_and_hosts() -> Iterator[tuple[str, str]]:
    """Of the mirrors and proxies that this host is set up with."""
    options = told("apt-config", "dump", "--format", "%f %v%n", "Acquire").splitlines()
    configured = "\n".join(option for option in options if "proxy" in option.lower())
    configured += told(sys.executable, "-m", "pip", "config", "list")
    lists = [Path("/etc/apt/sources.list"), *Path("/etc/apt/sources.list.d").glob("*")]
    configured += "".join(path.read_text() for path in lists if path.is_file())
    named = re.compile("proxy|pip|index", re.IGNORECASE)
    configured += "\n".join(value for name, value in os.environ.items() if named.search(name))
    for whole in re.findall(r"https?://([^/\s'\"]*)", configured):
        account, _, host = whole.rpartition("@")
        yield account, host.split(":")[0]


def holding(needles: Iterable[str], folder: Path) -> dict[str, bytes]:
    """The files below a folder that hold one of the texts, and which."""
    # Short words and what everybody has would be found by chance.
    wanted = {text for text in needles if len(text) > 4} - EVERYBODYS
    assert wanted
    pattern = re.compile(b"|".join(re.escape(text.encode()) for text in wanted))
    return {
        str(path): match[0]
        for path in folder.rglob("*")
        if path.is_file() and not path.is_symlink() and (match := pattern.search(path.read_bytes()))
    }


@pytest.mark.machine
@pytest.mark.usefixtures("engine")
def test_no_file_of_an_image_names_the_host_that_built_it(settings: Settings, tmp_path: Path) -> None:
    folder = TemplateStore(settings.templates_home).find("base").folder
    image = tmp_path / "image"
    subprocess.run(["unsquashfs", "-q", "-n", "-d", image, folder / "rootfs.squashfs"], check=True)
    (tmp_path / "initramfs").write_bytes(gzip.decompress((folder / "initramfs").read_bytes()))
    assert holding(of_the_host(), tmp_path) == {}
    hosts = {host for _, host in accounts_and_hosts()}
    assert {name: found for part in CONFIGURED for name, found in holding(hosts, image / part).items()} == {}
