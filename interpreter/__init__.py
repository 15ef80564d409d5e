"""A self-hosted code interpreter whose sessions are microVMs.

``async with Engine() as engine, engine.session(template="python-data") as session:
    result = await session.execute("1 + 1")``
"""

from interpreter.errors import (
    ConfigurationError,
    DiskFull,
    ExecutionTimeout,
    GuestMisbehaved,
    GuestRefused,
    GuestUnresponsive,
    HostError,
    InterpreterError,
    KernelDied,
    KernelError,
    MachineDied,
    MachineError,
    MachineStartFailed,
    ProgramMissing,
    SnapshotDamaged,
    TemplateBuildFailed,
    TemplateError,
    TemplateInvalid,
    TemplateNotFound,
    TransferError,
    VsockConnectError,
    VsockError,
)
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
from interpreter.sessions.engine import Engine
from interpreter.sessions.session import Session
from interpreter.settings import Accelerator, Settings, load_settings
from interpreter.templates.build import build_template

__all__ = [
    "Accelerator",
    "ClearOutput",
    "ConfigurationError",
    "DiskFull",
    "DisplayData",
    "Engine",
    "Error",
    "ExecuteResult",
    "Execution",
    "ExecutionTimeout",
    "GuestMisbehaved",
    "GuestRefused",
    "GuestUnresponsive",
    "HostError",
    "InterpreterError",
    "KernelDied",
    "KernelError",
    "MachineDied",
    "MachineError",
    "MachineStartFailed",
    "Output",
    "ProgramMissing",
    "Result",
    "Session",
    "Settings",
    "SnapshotDamaged",
    "Stream",
    "TemplateBuildFailed",
    "TemplateError",
    "TemplateInvalid",
    "TemplateNotFound",
    "TransferError",
    "UpdateDisplayData",
    "VsockConnectError",
    "VsockError",
    "build_template",
    "load_settings",
]
