"""A built image holds nothing of the host that it was built on: look through all of it."""

import gzip
import os
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from interpreter import Settings
from interpreter.templates.store import TemplateStore

PUBLIC = {"deb.debian.org", "security.debian.org", "pypi.org", "files.pythonhosted.org", "localhost", "127.0.0.1"}
ROOT = Path(__file__).parents[2]


def told(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout


def of_the_host() -> Iterator[str]:
    """What must not be found: the host's name, its folders, mirrors, proxies, and the passwords for them."""
    yield from (str(ROOT), sys.prefix, str(Path.home()), os.environ.get("INTERPRETER_HOME", ""))
    # A short one could be a word.
    yield socket.gethostname() if len(socket.gethostname()) >= 8 else ""
    options = told("apt-config", "dump", "--format", "%f %v%n", "Acquire").splitlines()
    configured = "\n".join(option for option in options if "proxy" in option.lower())
    configured += told(sys.executable, "-m", "pip", "config", "list")
    lists = [Path("/etc/apt/sources.list"), *Path("/etc/apt/sources.list.d").glob("*")]
    configured += "".join(path.read_text() for path in lists if path.is_file())
    named = re.compile("proxy|pip|index", re.IGNORECASE)
    configured += "\n".join(value for name, value in os.environ.items() if named.search(name))
    for whole in re.findall(r"https?://([^/\s'\"]*)", configured):
        account, _, host = whole.rpartition("@")
        yield from (host, host.split(":")[0], *account.split(":"))


@pytest.mark.machine
@pytest.mark.usefixtures("engine")
def test_no_file_of_an_image_names_the_host_that_built_it(settings: Settings, tmp_path: Path) -> None:
    folder = TemplateStore(settings.templates_home).find("base").folder
    subprocess.run(["unsquashfs", "-q", "-n", "-d", tmp_path / "root", folder / "rootfs.squashfs"], check=True)
    (tmp_path / "initramfs").write_bytes(gzip.decompress((folder / "initramfs").read_bytes()))
    # Short words and what everybody has would be found by chance.
    needles = {text for text in of_the_host() if len(text) > 4 and text not in PUBLIC | {"/root", "/usr", "/usr/local"}}
    assert needles
    pattern = re.compile(b"|".join(re.escape(needle.encode()) for needle in needles))
    found = {
        str(path.relative_to(tmp_path)): match[0]
        for path in tmp_path.rglob("*")
        if path.is_file() and not path.is_symlink() and (match := pattern.search(path.read_bytes()))
    }
    assert found == {}
