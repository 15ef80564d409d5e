"""The kernel of python-data shows what a stock kernel shows; its libraries were imported before it was there."""

import json
from collections.abc import AsyncGenerator
from pathlib import Path

import pytest

from interpreter import DisplayData, Engine, Session

WIDE = "import pandas as pd\nprint(pd.DataFrame({f'm{i:02d}': [i] for i in range(15)}))"
OPTIONS = Path(__file__).with_name("options_of_libraries.py").read_text()
STOCK = f"""
from jupyter_client.manager import start_new_kernel
manager, client = start_new_kernel(startup_timeout=300, kernel_name="python3")
for _ in range(2):
    told = []
    client.execute_interactive({OPTIONS!r}, timeout=500, output_hook=lambda message: told.append(message["content"]))
print("".join(content["text"] for content in told if content.get("name") == "stdout"))
client.stop_channels()
manager.shutdown_kernel(now=True)
"""
SHELLS = ("ps", "free", "top", "unzip", "zip", "less", "file", "git", "curl", "python", "pip", "jupyter")


@pytest.fixture(scope="module")
async def data(engine: Engine, data_template: str) -> AsyncGenerator[Session]:
    async with engine.session(template=data_template) as session:
        yield session


async def images(session: Session, code: str) -> int:
    """How many pictures the code shows."""
    result = await session.execute(code)
    assert result.error is None, result.error
    return sum(isinstance(output, DisplayData) and "image/png" in output.data for output in result.outputs)


@pytest.mark.parametrize("restart", [False, True], ids=["at first", "after a restart"])
async def test_a_wide_table_is_printed_whole(data: Session, restart: bool) -> None:
    if restart:
        await data.restart()
    header = (await data.execute(WIDE)).stdout.splitlines()[0]
    assert header.split() == [f"m{number:02d}" for number in range(15)]


async def test_options_of_libraries_are_those_of_a_stock_kernel(data: Session) -> None:
    """Both kernels run in the same machine; the stock one is started by Jupyter's own client, cold."""
    await data.execute(OPTIONS)
    # What the first import of pyplot sets counts from the next cell on.
    mine = json.loads((await data.execute(OPTIONS)).stdout)
    result = await data.execute(STOCK, timeout=600)
    assert result.error is None, result.error
    stock = json.loads(result.stdout)
    differences = {name: (value, stock[name]) for name, value in mine.items() if value != stock[name]}
    # The same encoding, written otherwise; and matplotlib's backend is chosen already, so nothing falls back.
    assert differences.keys() <= {"pandas display.encoding", "matplotlib backend_fallback"}


@pytest.mark.parametrize("backend", ["Agg", "svg"])
async def test_plots_are_shown_after_code_asked_for_a_backend_of_files(data: Session, backend: str) -> None:
    prepare = f"import matplotlib\nmatplotlib.use('{backend}')\nimport matplotlib.pyplot as plt\n"
    assert await images(data, f"{prepare}plt.plot([1, 2])\nplt.savefig('saved.png')\nplt.show()") == 1
    assert await images(data, "plt.plot([3, 4]);") == 1


async def test_the_backend_that_the_environment_names_is_kept(engine: Engine, data_template: str) -> None:
    async with engine.session(template=data_template, environment={"MPLBACKEND": "agg"}) as session:
        assert await images(session, "import matplotlib.pyplot as plt\nplt.plot([1]);") == 0
        assert await images(session, "plt.plot([1]);") == 0


async def test_characters_that_no_font_has_are_named_once(data: Session) -> None:
    code = "import matplotlib.pyplot as plt\nplt.title('\\u65e5\\u672c\\u8a9e ' * 30)\nplt.plot([1])\nplt.show()"
    result = await data.execute(code)
    assert "\u65e5\u672c\u8a9e" in result.stderr
    assert len(result.stderr) < 300


@pytest.mark.parametrize("program", SHELLS)
async def test_a_program_that_people_type_first_is_there(data: Session, program: str) -> None:
    assert (await data.execute(f"import shutil\nprint(bool(shutil.which('{program}')))")).stdout == "True\n"


async def test_packages_that_people_import_first_are_there(data: Session) -> None:
    result = await data.execute("import jinja2, lxml.etree, seaborn, tabulate, tqdm.auto\nprint('all')")
    assert (result.stdout, result.stderr) == ("all\n", "")


async def test_errors_in_large_libraries_are_told_soon(data: Session) -> None:
    """Measured against a plain error of the same kernel: their files are not parsed."""
    code = """
import time
from IPython import get_ipython
import pandas as pd
def seconds(fail):
    start = time.process_time()
    try:
        fail()
    except Exception as error:
        get_ipython().InteractiveTB.structured_traceback(type(error), error, error.__traceback__)
    return time.process_time() - start
seconds(lambda: 1 / 0)
print(seconds(lambda: pd.DataFrame({"a": [1]})["nokey"]) < 20 * seconds(lambda: 1 / 0))
"""
    assert (await data.execute(code)).stdout == "True\n"


async def test_a_progress_bar_is_shown(data: Session) -> None:
    result = await data.execute("from tqdm import tqdm\nfor _ in tqdm(range(5)): pass")
    assert "100%|" in result.stderr
    assert "5/5" in result.stderr
