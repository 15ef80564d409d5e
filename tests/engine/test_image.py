"""What a session finds in its image: nothing of the host that built it."""

from pathlib import Path

from interpreter import Session


async def read(session: Session, expression: str) -> str:
    result = await session.execute(f"import subprocess, pathlib; print({expression}, end='')")
    assert result.status == "ok", result.outputs
    return result.stdout


async def test_the_image_names_no_server_mirror_or_proxy_of_the_host(session: Session) -> None:
    shell = "subprocess.run({!r}, shell=True, capture_output=True, text=True).stdout"
    assert await read(session, shell.format("cat /etc/resolv.conf")) == ""
    assert await read(session, shell.format("cd /etc/apt && find sources.list* apt.conf.d -type f | sort")) == (
        "apt.conf.d/01autoremove\napt.conf.d/70debconf\n"
    )
    for server in servers_of_this_host():
        assert await read(session, shell.format(f"grep -rlF -- {server} /etc /root /home 2>/dev/null")) == ""


def servers_of_this_host() -> list[str]:
    lines = Path("/etc/resolv.conf").read_text().splitlines()
    return [line.split()[1] for line in lines if line.startswith("nameserver ")]
