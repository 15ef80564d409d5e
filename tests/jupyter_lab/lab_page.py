"""JupyterLab's page as a user has it before them."""

from dataclasses import dataclass
from typing import Any

from playwright.async_api import Locator, Page, expect

SECONDS = 120
"""For whatever is waited for: a first plot in an emulated machine takes ten, of a busy one more."""
expect.set_options(timeout=SECONDS * 1000)

_SHOWN = ".jp-NotebookPanel:not(.lm-mod-hidden)"
_KERNEL_IS = """wanted => {
    const panel = jupyterapp.shell.currentWidget;
    return panel?.sessionContext?.isReady && panel.sessionContext.kernelDisplayStatus === wanted;
}"""
# Not awaited: the command ends when the cell does.
_RUN = """code => {
    const notebook = jupyterapp.shell.currentWidget.content;
    const place = notebook.activeCellIndex = notebook.widgets.length - 1;
    notebook.activeCell.model.sharedModel.setSource(code);
    jupyterapp.commands.execute('notebook:run-cell-and-insert-below');
    return place;
}"""


@dataclass(frozen=True)
class Cell:
    """One cell of a notebook that is shown."""

    whole: Locator

    @property
    def prompt(self) -> Locator:
        return self.whole.locator(".jp-InputPrompt")

    @property
    def output(self) -> Locator:
        return self.whole.locator(".jp-Cell-outputArea")

    async def prints(self, text: str) -> None:
        """Wait until it has printed this."""
        await expect(self.output).to_contain_text(text)


@dataclass(frozen=True)
class LabPage:
    """A tab of a browser with JupyterLab in it."""

    page: Page

    async def open(self, address: str) -> None:
        """Open JupyterLab, and wait until it is restored."""
        await self.page.goto(address)
        await self.wait_until_restored()

    async def wait_until_restored(self) -> None:
        await self.page.wait_for_function("() => window.jupyterapp?.restored.then(() => true)")

    async def command(self, name: str, **arguments: Any) -> None:
        """Run a command, as its menu entry does; does not wait for its end."""
        await self.page.evaluate("([name, given]) => { jupyterapp.commands.execute(name, given) }", [name, arguments])

    async def new_notebook(self, kernel: str, name: str | None = None) -> None:
        """A notebook with a kernel that is ready."""
        await self.command("notebook:create-new", kernelName=kernel, cwd="")
        await self.kernel_is("idle")
        if name is not None:
            await self.page.evaluate("name => jupyterapp.shell.currentWidget.context.rename(name)", name)

    async def save(self) -> None:
        """Save the notebook that is shown."""
        await self.page.evaluate("() => jupyterapp.shell.currentWidget.context.save()")

    async def kernel_is(self, status: str) -> None:
        """Wait until the kernel of the notebook that is shown is said to be this."""
        await self.page.wait_for_function(_KERNEL_IS, arg=status)

    async def kernel_id(self) -> str:
        return await self.page.evaluate("() => jupyterapp.shell.currentWidget.sessionContext.session.kernel.id")

    async def run(self, code: str) -> Cell:
        """Put code into the last cell, run it, and have a new one below. Does not wait for its end."""
        return self.cell(await self.page.evaluate(_RUN, code))

    async def type(self, code: str) -> Cell:
        """The same with the keyboard."""
        place = await self.page.evaluate("() => jupyterapp.shell.currentWidget.content.activeCellIndex")
        cell = self.cell(place)
        await cell.whole.locator(".cm-content").click()
        await self.page.keyboard.type(code)
        await self.page.keyboard.press("Shift+Enter")
        return cell

    def cell(self, place: int) -> Cell:
        """A cell by its place."""
        return Cell(self.page.locator(f"{_SHOWN} .jp-Notebook .jp-CodeCell").nth(place))

    async def accept(self) -> None:
        """Answer the dialog that is shown as it proposes."""
        await self.page.locator(".jp-Dialog button.jp-mod-accept").click()
