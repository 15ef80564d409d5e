"""Outputs on a terminal and in files: text as it comes, images as files next to the caller."""

import base64
import re
import sys
from pathlib import Path
from typing import Final, TextIO

from interpreter.cli.terminal import err, print_json
from interpreter.errors import ConfigurationError
from interpreter.kernel.outputs import DisplayData, Error, ExecuteResult, MimeBundle, Output, Stream

_IMAGES: Final = {"image/png": ".png", "image/jpeg": ".jpg", "image/gif": ".gif", "image/webp": ".webp"}
_ANSI: Final = re.compile(r"\x1b\[[0-9;]*m")


class Display:
    """Shows outputs. Images go to ``folder`` under names that are free: ``figure-1.png`` and so on."""

    def __init__(self, folder: Path, *, json_lines: bool = False) -> None:
        self._folder = folder
        self._json_lines = json_lines
        self.saved: list[Path] = []

    def show(self, output: Output) -> None:
        """Show one output. Raises ConfigurationError when an image cannot be written."""
        image = self._save_image(output.data) if isinstance(output, DisplayData | ExecuteResult) else None
        if self._json_lines:
            print_json({**output.model_dump(mode="json"), **({"saved": str(image)} if image else {})})
            return
        match output:
            case Stream(name="stdout", text=text):
                self._write(sys.stdout, text)
            case Stream(text=text):
                self._write(sys.stderr, text)
            case Error(traceback=lines):
                self._write(sys.stderr, "\n".join(lines) + "\n")
            case DisplayData(data=data) | ExecuteResult(data=data):
                if image is None:
                    self._write(sys.stdout, f"{data.get('text/plain', '')}\n")
            case _:
                # Updates and clearing have no place on paper that scrolls.
                return

    def _write(self, stream: TextIO, text: str) -> None:
        # IPython colours its tracebacks; in a file the colours would be noise.
        stream.write(text if stream.isatty() else _ANSI.sub("", text))
        stream.flush()

    def _save_image(self, data: MimeBundle) -> Path | None:
        for mime, suffix in _IMAGES.items():
            if isinstance(encoded := data.get(mime), str):
                try:
                    return self._save(base64.b64decode(encoded), suffix)
                except ValueError:
                    err.print(f"[yellow]An output says that it is {mime} but is not base64; it was left out.[/]")
        if isinstance(svg := data.get("image/svg+xml"), str):
            return self._save(svg.encode(), ".svg")
        return None

    def _save(self, content: bytes, suffix: str) -> Path:
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            number = 1
            while True:
                path = self._folder / f"figure-{number}{suffix}"
                try:
                    with path.open("xb") as file:
                        file.write(content)
                except FileExistsError:
                    number += 1
                    continue
                break
        except OSError as error:
            raise ConfigurationError(f"an image cannot be written to {self._folder}: {error.strerror}") from None
        self.saved.append(path)
        if not self._json_lines:
            err.print(f"[dim]image saved as {path}[/]")
        return path
