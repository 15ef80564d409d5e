"""Variables have their effect whenever they are set: for a kernel that runs, after a restart, in a new context."""

from collections.abc import AsyncGenerator

import pytest
from guest_on_host import Guest, start_guest

VALUES = {
    "TZ": ("Asia/Tokyo", "import time\nprint(time.localtime(0).tm_hour)", "9"),
    "PYTHONPATH": ("/somewhere:/else", "import sys\nprint(sys.path[:2])", "['/somewhere', '/else']"),
    "PYTHONDONTWRITEBYTECODE": ("1", "import sys\nprint(sys.dont_write_bytecode)", "True"),
    "PYTHONWARNINGS": (
        "error::UserWarning",
        "import warnings\ntry: warnings.warn('x')\nexcept UserWarning: print('raised')",
        "raised",
    ),
    "LC_ALL": ("C", "import locale\nprint(locale.setlocale(locale.LC_CTYPE))", "C"),
}


@pytest.fixture(scope="module")
async def told() -> AsyncGenerator[Guest]:
    async with start_guest() as guest:
        await guest.renew(**{name: value for name, (value, _, _) in VALUES.items()})
        await guest.call("open_context", context="second")
        yield guest


@pytest.mark.parametrize("name", VALUES)
async def test_it_is_seen_in_the_kernel_that_runs_and_after_a_restart_and_in_a_context(told: Guest, name: str) -> None:
    _, code, expected = VALUES[name]
    async with told.kernel() as kernel, told.kernel("second") as second:
        assert [await kernel.printed(code), await second.printed(code)] == [f"{expected}\n"] * 2
        await kernel.restart()
        assert await kernel.printed(code) == f"{expected}\n"


async def test_a_new_value_takes_the_place_of_the_old_one(fresh_guest: Guest) -> None:
    await fresh_guest.renew(PYTHONPATH="/first", TZ="Asia/Tokyo")
    await fresh_guest.renew(PYTHONPATH="/second", TZ="UTC")
    async with fresh_guest.kernel() as kernel:
        code = "import sys, time\nprint('/first' in sys.path, sys.path[0], time.localtime(0).tm_hour)"
        assert await kernel.printed(code) == "False /second 0\n"


async def test_what_the_code_has_set_itself_is_kept_by_a_renewal_of_other_things(fresh_guest: Guest) -> None:
    await fresh_guest.renew(TZ="Asia/Tokyo", OTHER="1")
    async with fresh_guest.kernel() as kernel:
        await kernel.printed("import os\nos.environ['TZ'] = 'UTC'")
        await fresh_guest.call(
            "renew", **{**fresh_guest.renewal.arguments(), "env": {"TZ": "Asia/Tokyo", "OTHER": "2"}}
        )
        assert await kernel.printed("print(os.environ['TZ'], os.environ['OTHER'])") == "UTC 2\n"


async def test_a_value_that_is_no_good_costs_no_kernel(fresh_guest: Guest) -> None:
    await fresh_guest.renew(OMP_NUM_THREADS="many", LC_ALL="xx_XX", PYTHONWARNINGS="nonsense:::")
    async with fresh_guest.kernel() as kernel:
        assert await kernel.printed("print(1)") == "1\n"
        await kernel.restart()
        assert await kernel.printed("print(2)") == "2\n"


async def test_the_folder_for_temporary_files_is_the_one_that_the_environment_names(fresh_guest: Guest) -> None:
    folder = fresh_guest.home / "temporary"
    folder.mkdir()
    await fresh_guest.renew(TMPDIR=str(folder))
    async with fresh_guest.kernel() as kernel:
        assert await kernel.printed("import tempfile\nprint(tempfile.gettempdir())") == f"{folder}\n"


async def test_without_any_folder_that_can_be_written_cells_still_run(fresh_guest: Guest) -> None:
    """As on a full disk: code must be able to make room."""
    await fresh_guest.renew()
    async with fresh_guest.kernel() as kernel:
        # A cell's name has the temporary folder in it.
        code = "import tempfile\nfrom kernel_guest.kernel import environment\n"
        code += "def full(*_): raise FileNotFoundError('No usable temporary directory found')\n"
        code += "tempfile._get_default_tempdir = full\nenvironment._read_temporary_folder()\nprint(tempfile.tempdir)"
        assert await kernel.printed(code) == "/tmp\n"
        assert await kernel.printed("print('runs')") == "runs\n"


async def test_a_renewal_makes_the_key_of_multiprocessing_anew(fresh_guest: Guest) -> None:
    code = "import multiprocessing\nprint(bytes(multiprocessing.current_process().authkey).hex())"
    await fresh_guest.renew()
    async with fresh_guest.kernel() as kernel:
        first = await kernel.printed(code)
    await fresh_guest.renew()
    async with fresh_guest.kernel() as kernel:
        assert await kernel.printed(code) != first
