"""The Python of a session: one for kernels, programs and pip, with what is installed later; and what it needs."""

import asyncio

import pytest

from interpreter import Session
from interpreter.kernel.command import start_command

WHEEL = """
import os, zipfile
os.chdir(os.path.expanduser("~"))
with zipfile.ZipFile("found-1.0-py3-none-any.whl", "w") as wheel:
    wheel.writestr("found.py", "VALUE = 41 + 1\\ndef main(): print(VALUE)\\n")
    wheel.writestr("found-1.0.dist-info/METADATA", "Metadata-Version: 2.1\\nName: found\\nVersion: 1.0\\n")
    wheel.writestr("found-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\\nRoot-Is-Purelib: true\\nTag: py3-none-any\\n")
    wheel.writestr("found-1.0.dist-info/entry_points.txt", "[console_scripts]\\nfound = found:main\\n")
    wheel.writestr("found-1.0.dist-info/RECORD", "")
"""


async def printed(session: Session, line: str) -> tuple[str, str]:
    """What a command prints on standard output and error."""
    text = {"stdout": b"", "stderr": b""}
    async with asyncio.timeout(120), start_command(session.vsock.connect, line) as command:
        async for stream, data in command:
            text[stream] += data
    return text["stdout"].decode(), text["stderr"].decode()


async def test_what_pip_installs_is_found_at_once_and_after_a_restart_and_by_programs(session: Session) -> None:
    await session.execute(WHEEL)
    installed = await session.execute("%pip install --no-index ./found-1.0-py3-none-any.whl")
    assert "Successfully installed found" in installed.stdout, installed
    assert (await session.execute("import found\nprint(found.VALUE)")).stdout == "42\n"
    await session.restart()
    assert (await session.execute("import found\nprint(found.VALUE)")).stdout == "42\n"
    assert await printed(session, "python -c 'import found; print(found.VALUE)'; found") == ("42\n42\n", "")


async def test_programs_on_the_path_mean_the_python_of_the_kernel(session: Session) -> None:
    code = "import os, sys\nprint(os.path.realpath(sys.executable), os.path.dirname(__import__('IPython').__file__))"
    mine = (await session.execute(code)).stdout
    for shell in ("!", "%%bash\n"):
        told = await session.execute(f'{shell}python -c "{code.replace(chr(10), "; ")}"')
        assert told.stdout.replace("\r", "") == mine
    assert "python 3" in (await session.execute("!pip --version")).stdout
    assert "jupyter_core" in (await session.execute("!jupyter --version")).stdout
    assert "python3" in (await session.execute("!jupyter kernelspec list")).stdout
    assert (await session.execute("%%python\nprint(1)")).stdout == "1\n"


async def test_folders_beside_the_home_folder_are_no_packages(session: Session) -> None:
    result = await session.execute("import sys\nprint('/' in sys.path, sys.path.count(''))\nimport tmp")
    assert result.stdout == "False 1\n"
    assert result.error is not None
    assert result.error.ename == "ModuleNotFoundError"


async def test_pip_says_at_once_that_there_is_no_network(session: Session) -> None:
    told = await session.execute("!pip install nothing-of-this-name")
    assert "this-session-has-no-network" in told.stdout
    assert "Retrying" not in told.stdout


async def test_what_a_command_left_running_ends_with_it_also_when_it_left_its_group(session: Session) -> None:
    _, error = await printed(session, "setsid sleep 1000 > /dev/null 2>&1 & sleep 1")
    assert "ended with it" in error
    code = "import pathlib\nnames = [path.read_text() for path in pathlib.Path('/proc').glob('[0-9]*/comm')]\n"
    code += "print([name for name in names if 'sleep' in name])"
    assert (await session.execute(code)).stdout == "[]\n"


async def test_on_a_full_disk_a_restarted_kernel_can_make_room(session: Session) -> None:
    fill = "import os\nfile = os.open('full', os.O_CREAT | os.O_WRONLY)\nsize = 0\nstep = 1 << 30\n"
    fill += "while step >= 4096:\n    try:\n        os.posix_fallocate(file, size, step)\n        size += step\n"
    fill += "    except OSError:\n        step //= 2\nprint(size > 0)"
    assert (await session.execute(fill)).stdout == "True\n"
    await session.restart()
    assert (await session.execute("print('runs')")).stdout == "runs\n"
    assert (await session.execute("import os\nos.remove('full')\nprint(open('x', 'w').write('y'))")).stdout == "1\n"


@pytest.mark.parametrize("restart", [False, True], ids=["at first", "after a restart"])
async def test_the_environment_of_a_session_counts(session: Session, restart: bool) -> None:
    await session.set_environment({"TZ": "Asia/Tokyo", "PYTHONPATH": "/home/user/mine"})
    await session.execute("import os\nos.makedirs('mine')\nopen('mine/own.py', 'w').write('value = 5')")
    if restart:
        await session.restart()
    result = await session.execute("import own, time\nprint(own.value, time.localtime(0).tm_hour)")
    assert result.stdout == "5 9\n"


async def test_a_kernel_is_on_no_terminal(session: Session) -> None:
    code = (
        "import os, sys\nprint(os.isatty(sys.stderr.fileno()), os.isatty(sys.stdout.fileno()))\n"
        "os.get_terminal_size(sys.stderr.fileno())"
    )
    for _ in range(2):
        result = await session.execute(code)
        assert result.stdout == "False False\n"
        assert result.error is not None
        assert result.error.ename == "OSError"
        await session.restart()
