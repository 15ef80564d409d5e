"""JupyterLab, unmodified, with the service as its gateway, used in a browser as its users do."""

import os
from pathlib import Path

import pytest
from lab_page import LabPage
from lab_server import LabServer
from playwright.async_api import expect
from served import Api

pytestmark = pytest.mark.machine

TABLE = """
import numpy as np, pandas as pd
rng, months = np.random.default_rng(7), pd.date_range("2026-01-01", periods=12, freq="MS")
north, south = 120 + rng.normal(3, 9, 12).cumsum(), 90 + rng.normal(4, 9, 12).cumsum()
sales = pd.DataFrame({"north": north, "south": south}, index=months)
sales.round(1).head(3)
"""
PLOT = """
import matplotlib.pyplot as plt
sales.plot(figsize=(7, 2), marker="o", title="Sales per month")
plt.show()
"""
SLIDER = """
from ipywidgets import interact
@interact(months=(1, 12))
def mean(months=3):
    print(f"mean of {months} months: {sales[:months].mean().mean():.1f}")
"""
OBSERVED = """
import ipywidgets
slider, seen = ipywidgets.IntSlider(value=3, max=12), ipywidgets.Output()
@seen.capture()
def show(change):
    print("now", change.new)
slider.observe(show, "value")
display(slider, seen)
"""
ENDLESS = """
import time
print("begun")
while True: time.sleep(0.01)
"""
WAITING = """
import pathlib, time
print("begun")
while not pathlib.Path("/tmp/go").exists(): time.sleep(0.05)
print("the rest")
done = True
"""
UPLOAD = """
import io, ipywidgets, pandas as pd
upload, seen = ipywidgets.FileUpload(accept=".csv"), ipywidgets.Output()
@seen.capture()
def show(change):
    print("total", pd.read_csv(io.BytesIO(change.new[0].content))["amount"].sum())
upload.observe(show, "value")
display(upload, seen)
"""
CSV = "name,amount\nÅsa,1200\nBo,34\n" + "".join(f"other,{n}\n" for n in range(1000))
TOTAL = 1234 + sum(range(1000))


async def test_the_launcher_offers_templates_and_a_notebook_of_one_runs_what_is_typed(
    lab: LabPage, data_template: str
) -> None:
    card = lab.page.locator(f'.jp-LauncherCard[title="Python 3 ({data_template})"][data-category="Notebook"]')
    await expect(card).to_be_visible()
    logo = card.locator("img")
    await expect(logo).to_be_visible()
    assert await logo.evaluate("image => image.decode().then(() => image.naturalWidth)") > 0
    await card.click()
    await lab.kernel_is("idle")
    cell = await lab.type("sum(range(10))")
    await expect(cell.prompt).to_have_text("[1]:")
    await cell.prints("45")


async def test_a_table_a_plot_and_a_slider_are_shown(lab: LabPage, data_template: str, pictures: Path) -> None:
    await lab.new_notebook(data_template, "sales.ipynb")
    table, plot, slider = [await lab.run(code.strip()) for code in (TABLE, PLOT, SLIDER)]
    await expect(table.output.locator("table.dataframe tbody tr")).to_have_count(3)
    image = plot.output.locator("img")
    await expect(image).to_be_visible()
    assert await image.evaluate("image => image.decode().then(() => image.naturalWidth)") > 300
    await slider.prints("mean of 3 months:")
    await slider.output.locator(".noUi-handle").press("ArrowRight")
    await slider.prints("mean of 4 months:")
    await lab.kernel_is("idle")
    await lab.save()
    await slider.output.scroll_into_view_if_needed()
    await lab.page.screenshot(path=pictures / "jupyterlab.png")


async def test_a_slider_that_is_moved_is_observed_in_python(lab: LabPage, data_template: str) -> None:
    await lab.new_notebook(data_template)
    cell = await lab.run(OBSERVED.strip())
    handle = cell.output.locator(".noUi-handle")
    await handle.focus()
    await handle.press("ArrowRight")
    await cell.prints("now 4")
    # Drawn with the mouse to its end.
    start, track = await handle.bounding_box(), await cell.output.locator(".noUi-target").bounding_box()
    assert start
    assert track
    await lab.page.mouse.move(start["x"] + start["width"] / 2, start["y"] + start["height"] / 2)
    await lab.page.mouse.down()
    await lab.page.mouse.move(track["x"] + track["width"] + 50, start["y"] + start["height"] / 2, steps=5)
    await lab.page.mouse.up()
    await cell.prints("now 12")


async def test_a_loop_is_interrupted_and_a_restart_forgets(lab: LabPage, data_template: str) -> None:
    await lab.new_notebook(data_template)
    kept = await lab.run("kept = 1")
    await expect(kept.prompt).to_have_text("[1]:")
    loop = await lab.run(ENDLESS.strip())
    await loop.prints("begun")
    await expect(loop.prompt).to_have_text("[*]:")
    await lab.page.locator('.lm-MenuBar-item:has-text("Kernel")').click()
    await lab.page.locator('.lm-Menu-item[data-command="kernelmenu:interrupt"]').click()
    await loop.prints("KeyboardInterrupt")
    # What is sent before the kernel has answered is not run: that is what an error means to the cells behind it.
    await lab.kernel_is("idle")
    await (await lab.run("print('kept:', kept)")).prints("kept: 1")

    await lab.command("kernelmenu:restart")
    await lab.accept()
    after = await lab.run("print('kept' in globals())")
    await after.prints("False")
    await expect(after.prompt).to_have_text("[1]:")


async def test_input_is_asked_for_and_given(lab: LabPage, data_template: str) -> None:
    await lab.new_notebook(data_template)
    cell = await lab.run("print('hello', input('name? '))")
    box = cell.output.locator("input.jp-Stdin-input")
    await expect(cell.output.locator(".jp-Stdin-prompt")).to_have_text("name? ")
    await box.fill("Åsa")
    await box.press("Enter")
    await cell.prints("hello Åsa")


async def test_a_file_of_the_file_browser_is_not_the_kernels_until_it_is_put_there_over_rest(
    lab: LabPage, lab_server: LabServer, gateway: Api, data_template: str
) -> None:
    await lab.new_notebook(data_template)
    async with lab.page.expect_file_chooser() as choosing:
        await lab.page.get_by_role("button", name="Upload Files").click()
    await (await choosing.value).set_files({"name": "rest.csv", "mimeType": "text/csv", "buffer": CSV.encode()})
    await expect(lab.page.locator('.jp-DirListing-item:has-text("rest.csv")')).to_be_visible()
    assert (lab_server.root / "rest.csv").read_text() == CSV
    # It opens what was uploaded: back to the notebook.
    await lab.page.locator('.lm-TabBar-tab:has-text(".ipynb")').click()
    await (await lab.run("import os; print(os.path.exists('rest.csv'))")).prints("False")

    session_id = (await lab.kernel_id()).replace("-", "")
    answer = await gateway.client.put(
        f"/v1/sessions/{session_id}/files/content", params={"path": "rest.csv"}, content=CSV.encode()
    )
    assert answer.is_success, answer.text
    cell = await lab.run("import pandas as pd; print('total', pd.read_csv('rest.csv')['amount'].sum())")
    await cell.prints(f"total {TOTAL}")


async def test_a_file_is_uploaded_to_the_kernel_by_a_widget(lab: LabPage, data_template: str) -> None:
    await lab.new_notebook(data_template)
    cell = await lab.run(UPLOAD.strip())
    async with lab.page.expect_file_chooser() as choosing:
        await cell.output.locator(".widget-upload").click()
    await (await choosing.value).set_files({"name": "w.csv", "mimeType": "text/csv", "buffer": CSV.encode()})
    await cell.prints(f"total {TOTAL}")
    # The connection has not suffered.
    await (await lab.run("print('still', len(upload.value))")).prints("still 1")


async def test_a_cell_goes_on_while_the_connection_is_lost(lab: LabPage, data_template: str, gateway: Api) -> None:
    await lab.new_notebook(data_template)
    cell = await lab.run(WAITING.strip())
    await cell.prints("begun")
    await lab.page.evaluate("() => jupyterapp.shell.currentWidget.sessionContext.session.kernel._ws.close()")
    await let_go(gateway, await lab.kernel_id())
    await cell.prints("the rest")
    await expect(cell.prompt).to_have_text("[1]:")


async def test_a_cell_goes_on_while_its_page_is_loaded_again(lab: LabPage, data_template: str, gateway: Api) -> None:
    await lab.new_notebook(data_template)
    cell = await lab.run(WAITING.strip())
    await cell.prints("begun")
    await lab.save()
    kernel_id = await lab.kernel_id()
    await lab.page.reload()
    await lab.wait_until_restored()
    await cell.prints("begun")
    # The page that is loaded anew knows nothing of what runs, with any kernel: what the cell prints from here on goes
    # nowhere, but it runs to its end.
    await let_go(gateway, kernel_id)
    await lab.kernel_is("idle")
    assert await lab.kernel_id() == kernel_id
    await (await lab.run("print('done' in globals())")).prints("True")


async def test_two_tabs_share_a_kernel(lab: LabPage, lab_server: LabServer, data_template: str) -> None:
    await lab.new_notebook(data_template)
    await (await lab.run("shared = 'by the first'; print(1)")).prints("1")
    path = await lab.page.evaluate("() => jupyterapp.shell.currentWidget.context.path")
    other = LabPage(await lab.page.context.new_page())
    await other.open(f"{lab_server.page}&reset")
    await other.command("docmanager:open", path=path)
    await other.kernel_is("idle")
    assert await other.kernel_id() == await lab.kernel_id()
    await (await other.run("print('set', shared); shared = 'by the second'")).prints("set by the first")
    await (await lab.run("print('set', shared)")).prints("set by the second")


async def test_a_kernel_that_dies_is_shown_and_comes_back(lab: LabPage, data_template: str) -> None:
    await lab.new_notebook(data_template)
    await lab.run("import os; os._exit(1)")
    dialog = lab.page.locator(".jp-Dialog")
    await expect(dialog).to_contain_text("Kernel Restarting")
    await lab.accept()
    after = await lab.run("print('again')")
    await after.prints("again")
    await expect(after.prompt).to_have_text("[1]:")


async def let_go(gateway: Api, kernel_id: str) -> None:
    url = f"/v1/sessions/{kernel_id.replace('-', '')}/files/content"
    assert (await gateway.client.put(url, params={"path": "/tmp/go"}, content=b"")).is_success


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Where screenshots are kept: the folder INTERPRETER_TEST_SCREENSHOTS."""
    kept = Path(os.environ.get("INTERPRETER_TEST_SCREENSHOTS") or tmp_path)
    kept.mkdir(parents=True, exist_ok=True)
    return kept
