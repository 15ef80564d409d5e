"""What an execution gives: outputs as they arrive, and the result at the end, each with Jupyter's mime bundle."""

import re
from dataclasses import dataclass
from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from interpreter.errors import GuestMisbehaved
from interpreter.kernel.message import Message

MimeBundle = dict[str, Any]

_STATUS: Final = re.compile(r"-?[0-9]{1,20}")
_EXIT: Final = re.compile(r"\s*(?:exit|quit)\s*(?:\([^()]*\))?\s*;?\s*")
_STATUSES: Final = {"": 0, "None": 0, "False": 0, "True": 1}


class _Output(BaseModel):
    model_config = ConfigDict(frozen=True)


class Stream(_Output):
    """Text that the code wrote to standard output or standard error."""

    type: Literal["stream"] = "stream"
    name: Literal["stdout", "stderr"]
    text: str


class DisplayData(_Output):
    """Something that the code displayed. ``transient`` may hold a ``display_id``."""

    type: Literal["display_data"] = "display_data"
    data: MimeBundle
    metadata: dict[str, Any] = {}
    transient: dict[str, Any] = {}


class UpdateDisplayData(_Output):
    """New content for what was displayed under ``transient["display_id"]``."""

    type: Literal["update_display_data"] = "update_display_data"
    data: MimeBundle
    metadata: dict[str, Any] = {}
    transient: dict[str, Any] = {}


class ExecuteResult(_Output):
    """The value of the code's last expression."""

    type: Literal["execute_result"] = "execute_result"
    execution_count: int
    data: MimeBundle
    metadata: dict[str, Any] = {}


class Error(_Output):
    """The exception that ended the code. ``traceback`` holds IPython's lines, with ANSI colours."""

    type: Literal["error"] = "error"
    ename: str
    evalue: str
    traceback: list[str] = []


class ClearOutput(_Output):
    """Outputs before this one are to be forgotten; with ``wait``, when the next one comes."""

    type: Literal["clear_output"] = "clear_output"
    wait: bool = False


Output = Annotated[
    Stream | DisplayData | UpdateDisplayData | ExecuteResult | Error | ClearOutput, Field(discriminator="type")
]
_OUTPUT: TypeAdapter[Output] = TypeAdapter(Output)


def output_of(message: Message) -> Output:
    """The output in an iopub message of one of OUTPUT_TYPES. Raises GuestMisbehaved when its content is wrong."""
    try:
        return _OUTPUT.validate_python({**message.content, "type": message.type})
    except ValidationError as error:
        fault = error.errors()[0]
        where = ".".join(str(part) for part in fault["loc"])
        raise GuestMisbehaved(f"the kernel sent a {message.type} with a wrong {where}: {fault['msg']}") from None


@dataclass(frozen=True, slots=True)
class SystemExitAsked:
    """How code wants to end its program: with a status as the system has it, and a last text on standard error."""

    status: int
    text: str | None = None


def system_exit(ename: object, evalue: object) -> SystemExitAsked | None:
    """What Python makes of a SystemExit, as far as its text tells; None of all other exceptions."""
    if ename != "SystemExit":
        return None
    text = str(evalue)
    if _STATUS.fullmatch(text):
        return SystemExitAsked(int(text) & 0xFF)
    return SystemExitAsked(_STATUSES[text]) if text in _STATUSES else SystemExitAsked(1, text)


def is_exit(code: str) -> bool:
    """Whether code is nothing but ``exit``, which raises nothing: who types it leaves a console, and no more."""
    return _EXIT.fullmatch(code) is not None


class Result(BaseModel):
    """How an execution ended, and all that it gave."""

    model_config = ConfigDict(frozen=True)

    status: Literal["ok", "error", "aborted"]
    execution_count: int | None = None
    outputs: list[Output] = []

    @property
    def error(self) -> Error | None:
        """The exception that ended the code; None when it ended well."""
        return next((output for output in reversed(self.outputs) if isinstance(output, Error)), None)

    @property
    def stdout(self) -> str:
        """All that was written to standard output."""
        return self._stream("stdout")

    @property
    def stderr(self) -> str:
        """All that was written to standard error."""
        return self._stream("stderr")

    @property
    def data(self) -> MimeBundle:
        """The mime bundle of the last expression's value; empty when it had none."""
        results = [output.data for output in self.outputs if isinstance(output, ExecuteResult)]
        return results[-1] if results else {}

    @property
    def text(self) -> str | None:
        """The last expression's value as plain text; None when it had none."""
        text = self.data.get("text/plain")
        return text if isinstance(text, str) else None

    def _stream(self, name: str) -> str:
        return "".join(output.text for output in self.outputs if isinstance(output, Stream) and output.name == name)
