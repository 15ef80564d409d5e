"""The command as a user runs it, in a process of its own: exit codes, streams, signals, and nothing left running."""

import asyncio
import json
import os
import signal
import sys
from pathlib import Path

import pytest

from interpreter import Engine, Settings

pytestmark = pytest.mark.machine


async def interpreter(settings: Settings, *arguments: str, **more: str) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", "from interpreter.cli import main; main()", *arguments),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env={**os.environ, "INTERPRETER_HOME": str(settings.home), **more},
    )


async def finish(process: asyncio.subprocess.Process) -> tuple[int, str, str]:
    out, err = await process.communicate()
    assert process.returncode is not None
    return process.returncode, out.decode(), err.decode()


async def run(settings: Settings, *arguments: str, **more: str) -> tuple[int, str, str]:
    return await finish(await interpreter(settings, *arguments, **more))


async def test_code_that_ends_well_exits_with_0(engine: Engine, settings: Settings) -> None:
    assert await run(settings, "run", "-t", "base", "-c", "print('hi')\n6 * 7") == (0, "hi\n42\n", "")


async def test_code_that_raises_exits_with_1_and_ipythons_traceback(engine: Engine, settings: Settings) -> None:
    code, out, err = await run(settings, "run", "-t", "base", "-c", "1/0")
    assert (code, out) == (1, "")
    assert "ZeroDivisionError: division by zero" in err
    assert "\x1b" not in err


async def test_code_out_of_time_exits_with_124(engine: Engine, settings: Settings) -> None:
    code, _, err = await run(settings, "run", "-t", "base", "--timeout", "1", "-c", "while True: pass")
    assert code == 124
    assert "did not end within" in err


async def test_uploads_and_images(engine: Engine, settings: Settings, tmp_path: Path) -> None:
    (tmp_path / "data.csv").write_text("a,b\n1,2\n")
    script = tmp_path / "script.py"
    script.write_text(
        "import base64\nfrom IPython.display import Image, display\nprint(open('data.csv').read(), end='')\n"
        "display(Image(data=b'\\x89PNG\\r\\n\\x1a\\nxx', format='png', width=1, height=1))"
    )
    arguments = ("run", "-t", "base", str(script), "--upload", str(tmp_path / "data.csv"), "--out", str(tmp_path / "o"))
    code, out, err = await run(settings, *arguments)
    assert (code, out) == (0, "a,b\n1,2\n"), err
    assert (tmp_path / "o" / "figure-1.png").read_bytes().startswith(b"\x89PNG")


async def test_json_gives_one_object_a_line_and_the_result_last(engine: Engine, settings: Settings) -> None:
    code, out, _ = await run(settings, "run", "-t", "base", "--json", "-c", "print(1)")
    lines = [json.loads(line) for line in out.splitlines()]
    assert code == 0
    assert lines[0] == {"type": "stream", "name": "stdout", "text": "1\n"}
    assert lines[-1] == {"type": "result", "status": "ok", "execution_count": 1, "cell": 1}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_a_signal_ends_the_command_and_its_machine(
    engine: Engine, settings: Settings, number: signal.Signals
) -> None:
    process = await interpreter(settings, "run", "-t", "base", "-c", "print('go', flush=True)\nwhile True: pass")
    assert process.stdout is not None
    assert await process.stdout.readline() == b"go\n"
    machines = machine_pids(process.pid)
    assert len(machines) == 1
    process.send_signal(number)
    code, _, err = await finish(process)
    assert code == 130
    assert "Traceback" not in err
    assert not any(Path("/proc", str(pid)).exists() for pid in machines)


async def test_killing_the_command_ends_its_machine(engine: Engine, settings: Settings) -> None:
    process = await interpreter(settings, "run", "-t", "base", "-c", "print('go', flush=True)\nwhile True: pass")
    assert process.stdout is not None
    assert await process.stdout.readline() == b"go\n"
    (machine,) = machine_pids(process.pid)
    descriptor = os.pidfd_open(machine)
    process.kill()
    ended = asyncio.Event()
    asyncio.get_running_loop().add_reader(descriptor, ended.set)
    async with asyncio.timeout(30):
        await ended.wait()
    asyncio.get_running_loop().remove_reader(descriptor)
    os.close(descriptor)
    await process.wait()


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("run", "-t", "nothing", "-c", "1"), 3, "interpreter template build nothing"),
        (("run", "-t", "base", "missing.py"), 3, "missing.py cannot be read"),
        (("run", "-t", "base", "-c", "1", "--upload", "missing.csv"), 3, "missing.csv is not a file"),
        (("template", "build", "nothing"), 3, "there is no template 'nothing'"),
        (("template", "show", "../x"), 3, "cannot be the name of a template"),
        (("run", "--nonsense"), 2, "nonsense"),
    ],
)
async def test_bad_input_gives_one_clear_error(
    engine: Engine, settings: Settings, arguments: tuple[str, ...], code: int, said: str
) -> None:
    status, _, err = await run(settings, *arguments)
    assert status == code
    assert said in err
    assert "Traceback" not in err


async def test_errors_in_json_carry_their_code(engine: Engine, settings: Settings) -> None:
    status, out, _ = await run(settings, "run", "-t", "nothing", "-c", "1", "--json")
    assert status == 3
    assert json.loads(out)["error"]["code"] == "template_not_found"


async def test_qemu_that_is_missing_is_named_with_its_package(engine: Engine, settings: Settings) -> None:
    status, _, err = await run(settings, "run", "-t", "base", "-c", "1", INTERPRETER_QEMU="/nowhere/qemu-system-x86_64")
    assert status == 3
    assert "apt-get install qemu-system-x86" in err


async def test_doctor_finds_the_jail_in_force(engine: Engine, settings: Settings) -> None:
    status, out, _ = await run(settings, "doctor", "--json")
    findings = {finding["about"]: finding for finding in json.loads(out)["findings"]}
    assert status == 0
    # Two are a matter of rights: a user of its own is root's to give, and not every root may rise above others.
    told = {
        about.removeprefix("jail: "): found["state"] for about, found in findings.items() if about.startswith("jail")
    }
    assert told.pop("own user") == ("ok" if os.geteuid() == 0 else "warning")
    assert told.pop("the service goes last") in {"ok", "warning"}
    assert told == dict.fromkeys(
        [
            *("namespaces", "capabilities", "no new privileges", "system calls", "nothing to write", "read-only files"),
            *("memory limit", "file limit", "process limit", "processors run short", "memory runs out"),
        ],
        "ok",
    )


async def test_templates_are_listed_and_shown(engine: Engine, settings: Settings) -> None:
    _, out, _ = await run(settings, "template", "list", "--json")
    assert {row["name"]: row["built"] for row in json.loads(out)["templates"]}["base"] is True
    _, out, _ = await run(settings, "template", "show", "base", "--json")
    shown = json.loads(out)
    assert "ipykernel" in shown["python_packages"]
    assert shown["snapshot"]["conditions"]["qemu_version"]


def machine_pids(pid: int) -> list[int]:
    found: list[int] = []
    for task in Path("/proc", str(pid), "task").iterdir():
        for child in (task / "children").read_text().split():
            name = Path("/proc", child, "comm").read_text().strip()
            found += [int(child)] if name.startswith("qemu-system") else machine_pids(int(child))
    return found
