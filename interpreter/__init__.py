"""A self-hosted code interpreter whose sessions are microVMs.

``async with Engine() as engine, engine.session(template="python-data") as session:
    result = await session.execute("1 + 1")``
"""

from importlib import import_module
from typing import TYPE_CHECKING

from interpreter.errors import (
    BadPath,
    CommandNotStarted,
    ConfigurationError,
    DiskFull,
    ExecutionTimeout,
    FileExists,
    FileNotFound,
    FilePermission,
    FolderNotEmpty,
    GuestMisbehaved,
    GuestRefused,
    GuestUnresponsive,
    HostError,
    InterpreterError,
    IsAFolder,
    KernelDied,
    KernelError,
    MachineDied,
    MachineError,
    MachineStartFailed,
    NoSpace,
    NotAFolder,
    ProgramMissing,
    SessionEnded,
    SessionExpired,
    SnapshotDamaged,
    TemplateBuildFailed,
    TemplateError,
    TemplateInvalid,
    TemplateNotFound,
    TemplateOutdated,
    TransferError,
    VsockConnectError,
    VsockError,
)

if TYPE_CHECKING:
    from interpreter.engine.engine import Engine
    from interpreter.engine.session import Session
    from interpreter.kernel.execution import Execution
    from interpreter.kernel.outputs import (
        ClearOutput,
        DisplayData,
        Error,
        ExecuteResult,
        Output,
        Result,
        Stream,
        UpdateDisplayData,
    )
    from interpreter.settings import Accelerator, Settings, load_settings
    from interpreter.templates.build import build_template

__all__ = [
    "Accelerator",
    "BadPath",
    "ClearOutput",
    "CommandNotStarted",
    "ConfigurationError",
    "DiskFull",
    "DisplayData",
    "Engine",
    "Error",
    "ExecuteResult",
    "Execution",
    "ExecutionTimeout",
    "FileExists",
    "FileNotFound",
    "FilePermission",
    "FolderNotEmpty",
    "GuestMisbehaved",
    "GuestRefused",
    "GuestUnresponsive",
    "HostError",
    "InterpreterError",
    "IsAFolder",
    "KernelDied",
    "KernelError",
    "MachineDied",
    "MachineError",
    "MachineStartFailed",
    "NoSpace",
    "NotAFolder",
    "Output",
    "ProgramMissing",
    "Result",
    "Session",
    "SessionEnded",
    "SessionExpired",
    "Settings",
    "SnapshotDamaged",
    "Stream",
    "TemplateBuildFailed",
    "TemplateError",
    "TemplateInvalid",
    "TemplateNotFound",
    "TemplateOutdated",
    "TransferError",
    "UpdateDisplayData",
    "VsockConnectError",
    "VsockError",
    "build_template",
    "load_settings",
]

# Imported when they are first asked for: a client, or a device's process, must not load the whole service.
_LATE = {
    "Accelerator": "interpreter.settings",
    "ClearOutput": "interpreter.kernel.outputs",
    "DisplayData": "interpreter.kernel.outputs",
    "Engine": "interpreter.engine.engine",
    "Error": "interpreter.kernel.outputs",
    "ExecuteResult": "interpreter.kernel.outputs",
    "Execution": "interpreter.kernel.execution",
    "Output": "interpreter.kernel.outputs",
    "Result": "interpreter.kernel.outputs",
    "Session": "interpreter.engine.session",
    "Settings": "interpreter.settings",
    "Stream": "interpreter.kernel.outputs",
    "UpdateDisplayData": "interpreter.kernel.outputs",
    "build_template": "interpreter.templates.build",
    "load_settings": "interpreter.settings",
}


def __getattr__(name: str) -> object:
    if (module := _LATE.get(name)) is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(module), name)
    return value
