"""The kernel provisioner: every client of jupyter_client gets kernels in microVMs, as if they were local ones."""

import os
import secrets
import signal
import weakref
from typing import Any, Final, cast

from jupyter_client.connect import KernelConnectionInfo
from jupyter_client.provisioning.provisioner_base import KernelProvisionerBase
from tornado.web import HTTPError
from traitlets import Unicode

from interpreter.engine.engine import DEFAULT_TEMPLATE
from interpreter.errors import InterpreterError
from interpreter.jupyter.endpoints import SIGNATURE_SCHEME
from interpreter.jupyter.environment import guest_environment
from interpreter.jupyter.guests import Wanted
from interpreter.jupyter.relayed import RelayedKernel
from interpreter.jupyter.shared import Shared, be_quiet, join_shared, leave_shared

_SHUTDOWN_SECONDS: Final = 10.0
"""Seconds, twice what a kernel that ends by itself may take: emulated processors are slow."""


class KernelNotStarted(HTTPError, RuntimeError):
    """A kernel cannot be started; says why, and what to do. As an HTTPError it reaches JupyterLab's user as it is."""

    def __init__(self, message: str) -> None:
        super().__init__(503, message)
        self._message = message

    def __str__(self) -> str:
        return self._message


class MicrovmProvisioner(KernelProvisionerBase):
    """One kernel of a manager, over all its restarts.

    Its sockets are spliced to those of the kernel in the machine by a thread that all kernels of the process share.
    """

    template: str = cast(
        "str", Unicode(DEFAULT_TEMPLATE, help="Template that the session is restored from.", config=True)
    )
    url: str = cast(
        "str",
        Unicode(
            config=True,
            help="Service that runs the session; that of INTERPRETER_URL, else this process does. "
            "Its key is INTERPRETER_API_KEY.",
        ),
    )

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._shared: Shared | None = None
        self._kernel: RelayedKernel | None = None
        self._launched = False
        self._forgotten: weakref.finalize[[RelayedKernel], MicrovmProvisioner] | None = None

    @property
    def has_process(self) -> bool:
        """Whether there is a kernel to poll, signal and wait for."""
        return self._launched

    async def pre_launch(self, **kwargs: Any) -> dict[str, Any]:
        """Called before each launch. There is no command: what ``argv`` would start is here already."""
        return await super().pre_launch(cmd=[], **kwargs)

    async def launch_kernel(self, cmd: list[str], **kwargs: Any) -> KernelConnectionInfo:  # noqa: ARG002
        """Called for each start and restart; returns where clients connect, which stays the same.

        Raises KernelNotStarted.
        """
        be_quiet()
        first = self._kernel is None
        try:
            if self._shared is None or self._kernel is None:
                self._shared, self._kernel = await self._open(kwargs.get("env") or {})
            await self._shared.run(self._kernel.start())
        except BaseException as error:
            # A restart may be tried again, for the clients that there are: at the same addresses, with the same key.
            if first:
                await self._close()
            if isinstance(error, InterpreterError):
                raise KernelNotStarted(f"the kernel {self._name()} cannot be started: {error}") from None
            raise
        self._launched = True
        return self.connection_info

    async def poll(self) -> int | None:
        """Called every few seconds by the restarter: None while the kernel runs, else its exit status."""
        return 0 if self._kernel is None else self._kernel.status

    async def wait(self) -> int | None:
        """Called when the kernel has ended, or is about to."""
        if self._shared is None or self._kernel is None:
            return 0
        status = self._kernel.status
        if status is None:
            status = await self._shared.run(self._kernel.wait())
        self._launched = False
        return status

    async def send_signal(self, signum: int) -> None:
        """Called to interrupt the kernel, also when it is gone already: never raises."""
        if self._shared is None or self._kernel is None or self._kernel.status is not None:
            return
        if signum == signal.SIGINT:
            await self._shared.run(self._kernel.interrupt())
        elif signum in {signal.SIGTERM, signal.SIGKILL}:
            await self._shared.run(self._end(signum))

    async def kill(self, restart: bool = False) -> None:  # noqa: ARG002
        """Called when the kernel must end at once. Whether the session ends with it is known at `cleanup`."""
        await self.send_signal(signal.SIGKILL)

    async def terminate(self, restart: bool = False) -> None:  # noqa: ARG002
        """Called when the kernel did not end by itself when it was asked to."""
        await self.send_signal(signal.SIGTERM)

    async def cleanup(self, restart: bool = False) -> None:
        """Called at the end of each shutdown. When a launch follows, the session and the sockets stay."""
        self._launched = False
        if not restart:
            await self._close()

    def get_shutdown_wait_time(self, recommended: float = 5.0) -> float:
        """Called to learn how many seconds a shutdown may take."""
        return max(recommended, _SHUTDOWN_SECONDS)

    async def _open(self, environment: dict[str, str]) -> tuple[Shared, RelayedKernel]:
        key = secrets.token_hex(32).encode()
        names: dict[str, str] = self.kernel_spec.env if self.kernel_spec else {}
        wanted = Wanted(self.template, key, guest_environment(environment, names))
        url = self.url or os.environ.get("INTERPRETER_URL", "")
        shared = join_shared()
        try:
            kernel = await shared.new_kernel(url, wanted)
        except BaseException:
            await leave_shared(shared)
            raise
        self.connection_info = cast(
            "KernelConnectionInfo", {**kernel.endpoints.model_dump(), "key": key, "signature_scheme": SIGNATURE_SCHEME}
        )
        # Jupyter's managers forget a kernel that could not be restarted without a word to its provisioner.
        self._forgotten = weakref.finalize(self, shared.abandon, kernel)
        self._forgotten.atexit = False
        return shared, kernel

    async def _close(self) -> None:
        shared, self._shared = self._shared, None
        kernel, self._kernel = self._kernel, None
        self._launched = False
        if self._forgotten is not None:
            self._forgotten.detach()
        try:
            if shared is not None and kernel is not None:
                await shared.close_kernel(kernel)
        finally:
            if shared is not None:
                await leave_shared(shared)

    async def _end(self, signum: int) -> None:
        if self._kernel is not None:
            self._kernel.kill(signum)

    def _name(self) -> str:
        return repr(self.kernel_spec.display_name) if self.kernel_spec else repr(self.template)
