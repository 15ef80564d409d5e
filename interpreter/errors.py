"""Every error that the package raises on purpose, as one tree.

InterpreterError
├── ConfigurationError          a setting or an argument cannot be used
├── HostError                   this host lacks what is needed
│   ├── ProgramMissing          a program is not installed
│   └── DiskFull                no room left where state is kept
├── TemplateError
│   ├── TemplateNotFound        no such definition, or not built
│   ├── TemplateInvalid         template.toml has a mistake
│   ├── TemplateBuildFailed     a step of the build failed
│   ├── TemplateOutdated        it was built by a version that this one does not go on from
│   └── SnapshotDamaged         a built file is cut short or altered
├── MachineError
│   ├── MachineStartFailed      QEMU did not come up or refused its snapshot
│   ├── MachineDied             QEMU ended while it was in use
│   ├── GuestUnresponsive       the guest did not answer in time
│   └── GuestRefused            the guest's agent said no
├── VsockError
│   ├── GuestMisbehaved         the guest broke the protocol; its device is closed
│   └── VsockConnectError       a stream could not be opened
├── KernelError
│   ├── KernelDied              the kernel ended
│   │   └── SessionEnded        the whole session ended under what ran in it
│   │       └── SessionExpired  its time was up
│   └── ExecutionTimeout        the code ran longer than it may
├── TransferError               a file could not be moved in or out
│   ├── FileNotFound            nothing is at that path in the session
│   ├── FileExists              something is there already
│   ├── NotAFolder              a file is where a folder is needed
│   ├── IsAFolder               a folder is where a file is needed
│   ├── FolderNotEmpty          a folder with something in it is not removed unasked
│   ├── FilePermission          the session's user may not do that
│   ├── NoSpace                 the session's disk is full
│   └── BadPath                 a path that cannot be one, or cannot be used so
├── CommandNotStarted           a command could not be started
└── ServiceError                the service refuses, or cannot do it now
    ├── NotFound                no such session, context, execution or command
    ├── Conflict                it is in a state in which this cannot be done
    ├── InvalidRequest          a value that cannot be used
    ├── Unauthorised            no key, or a wrong one
    ├── TooLarge                more bytes than a request may bring
    ├── ServiceUnreachable      nothing answers at the service's address, or the connection broke
    └── Busy                    no room now; ``retry_after`` says when to try again
        ├── TenantLimit         the tenant has as many sessions as it may have
        ├── HostFull            the host has no room for another session
        ├── NotReady            it is not there yet, or not at the moment
        └── Draining            the service is being stopped

Each class has a ``code`` that never changes; fronts map it to their own protocol.
"""

from typing import ClassVar, Self


class InterpreterError(Exception):
    """The root. ``str()`` gives what happened and, where there is one, what to do."""

    code: ClassVar[str] = "internal"

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = _text(message)
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message}. {self.hint}" if self.hint else self.message

    def anew(self) -> Self:
        """The same error for one more who meets it: one that is kept gathers what lies in all frames that it passes."""
        another = type(self).__new__(type(self), *self.args)
        another.__dict__.update(self.__dict__)
        return another

    def as_json(self) -> dict[str, str | None]:
        """As every front tells it to programs."""
        return {"code": self.code, "message": self.message, "hint": self.hint}


def _text(message: str) -> str:
    # The name of a file may hold what is no text.
    try:
        return message.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    except UnicodeEncodeError:
        return message.encode("utf-8", "backslashreplace").decode()


class ConfigurationError(InterpreterError):
    """A setting or an argument cannot be used."""

    code = "configuration"


class HostError(InterpreterError):
    """This host lacks what is needed."""

    code = "host"


class ProgramMissing(HostError):
    """A program is not installed."""

    code = "program_missing"


class DiskFull(HostError):
    """No room is left where state is kept."""

    code = "disk_full"


class TemplateError(InterpreterError):
    """Something is wrong with a template."""

    code = "template"


class TemplateNotFound(TemplateError):
    """There is no such definition, or it is not built."""

    code = "template_not_found"


class TemplateInvalid(TemplateError):
    """The definition has a mistake."""

    code = "template_invalid"


class TemplateBuildFailed(TemplateError):
    """A step of the build failed."""

    code = "template_build_failed"


class TemplateOutdated(TemplateError):
    """It, or a machine of it, is of another version of the service, too far from this one."""

    code = "template_outdated"


class SnapshotDamaged(TemplateError):
    """A built file is missing, cut short or altered."""

    code = "snapshot_damaged"


class MachineError(InterpreterError):
    """Something is wrong with a virtual machine."""

    code = "machine"


class MachineStartFailed(MachineError):
    """QEMU did not come up, or refused its snapshot."""

    code = "machine_start_failed"


class MachineDied(MachineError):
    """QEMU ended while it was in use."""

    code = "machine_died"


class GuestUnresponsive(MachineError):
    """The guest did not answer in time."""

    code = "guest_unresponsive"


class GuestRefused(MachineError):
    """The guest's agent said no. ``guest_code`` is its own word for why, such as ``not_found``."""

    code = "guest_refused"

    def __init__(self, message: str, *, guest_code: str, hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.guest_code = guest_code


class VsockError(InterpreterError):
    """Something is wrong on the way between host and guest."""

    code = "vsock"


class GuestMisbehaved(VsockError):
    """The guest broke the protocol; its device is closed."""

    code = "guest_misbehaved"


class VsockConnectError(VsockError):
    """A stream to the guest could not be opened."""

    code = "vsock_connect"


class KernelError(InterpreterError):
    """Something is wrong with a kernel."""

    code = "kernel"


class KernelDied(KernelError):
    """The kernel, or the machine that it runs in, ended."""

    code = "kernel_died"


class SessionEnded(KernelDied):
    """The session that the kernel is of ended: variables and files are gone."""

    code = "session_ended"


class SessionExpired(SessionEnded):
    """The session's time was up."""

    code = "session_expired"


class ExecutionTimeout(KernelError):
    """The code ran longer than it may. ``kernel_restarted`` tells whether variables are gone with the kernel."""

    code = "execution_timeout"

    def __init__(self, message: str, *, hint: str | None = None, kernel_restarted: bool = False) -> None:
        super().__init__(message, hint=hint)
        self.kernel_restarted = kernel_restarted


class TransferError(InterpreterError):
    """A file could not be moved into or out of a session."""

    code = "transfer"


class FileNotFound(TransferError):
    """Nothing is at that path in the session."""

    code = "file_not_found"


class FileExists(TransferError):
    """Something is at that path in the session already."""

    code = "file_exists"


class NotAFolder(TransferError):
    """A file is where a folder is needed."""

    code = "not_a_folder"


class IsAFolder(TransferError):
    """A folder is where a file is needed."""

    code = "is_a_folder"


class FolderNotEmpty(TransferError):
    """A folder with something in it is not removed unasked."""

    code = "folder_not_empty"


class FilePermission(TransferError):
    """The session's user may not do that."""

    code = "file_permission"


class NoSpace(TransferError):
    """The session's disk is full."""

    code = "no_space"


class BadPath(TransferError):
    """A path that cannot be one, or cannot be used in this way."""

    code = "bad_path"


class CommandNotStarted(InterpreterError):
    """A command could not be started. ``guest_code`` is the guest's word for why, such as ``not_found``."""

    code = "command_not_started"

    def __init__(self, message: str, *, guest_code: str, hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.guest_code = guest_code


class ServiceError(InterpreterError):
    """The service refuses, or cannot do it now."""

    code = "service"


class NotFound(ServiceError):
    """There is no such session, context, execution or command."""

    code = "not_found"


class Conflict(ServiceError):
    """It is in a state in which this cannot be done."""

    code = "conflict"


class InvalidRequest(ServiceError):
    """A value that cannot be used."""

    code = "invalid_request"


class Unauthorised(ServiceError):
    """No key was given, or a wrong one."""

    code = "unauthorised"


class TooLarge(ServiceError):
    """More bytes than a request may bring."""

    code = "too_large"


class ServiceUnreachable(ServiceError):
    """Nothing answers at the service's address, or the connection to it broke. Raised by clients only."""

    code = "service_unreachable"


class Busy(ServiceError):
    """No room now. ``retry_after`` is in seconds."""

    code = "busy"

    def __init__(self, message: str, *, hint: str | None = None, retry_after: int = 5) -> None:
        super().__init__(message, hint=hint)
        self.retry_after = retry_after


class TenantLimit(Busy):
    """The tenant has as many sessions as it may have."""

    code = "tenant_limit"


class HostFull(Busy):
    """The host has no room for another session."""

    code = "host_full"


class NotReady(Busy):
    """It is not there yet, or not at the moment: a session that is being taken back, a part of the service."""

    code = "not_ready"


class Draining(Busy):
    """The service is being stopped."""

    code = "draining"
