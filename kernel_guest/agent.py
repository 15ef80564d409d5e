"""The agent: answers the host's calls on the control stream and serves the streams that the host opens."""

import asyncio
import contextlib
import os
import re
import socket
import time
from pathlib import Path
from typing import Any, Protocol

import zmq

from kernel_guest import archive, files, system, tree
from kernel_guest.commands import RunningCommand, command_of
from kernel_guest.context import MAIN, Context, NoKernel, Places
from kernel_guest.frames import (
    AGENT_VERSION,
    CHANNELS,
    CONTEXT_NAME,
    Frame,
    FrameDecoder,
    FrameError,
    Kind,
    encode,
)
from kernel_guest.groups import Group
from kernel_guest.processes import KernelIdentity, Zygote
from kernel_guest.relay import channel_path, splice
from kernel_guest.streams import first_frame, streams_of

_READ = 64 * 1024
_MAX_STREAMS = 256
_MAX_CONTEXTS = 32


class Refused(Exception):
    """A request that is refused, with a code that the host knows."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(files.shown(message))
        self.code = code


class Host(Protocol):
    """What a renewal changes outside of the kernel process."""

    def renew(self, call: dict[str, Any]) -> None:
        """Entropy, clock and names."""
        ...

    def set_clock(self, clock_ns: int) -> int:
        """Set the wall clock; returns what it shows then."""
        ...

    def power_off(self) -> None:
        """End the machine at once."""
        ...


class GuestSystem:
    """The guest's own system."""

    def renew(self, call: dict[str, Any]) -> None:
        """Entropy first: all that comes after may draw from it."""
        system.add_entropy(call["entropy"])
        system.set_clock(call["clock_ns"])
        system.set_names(call["hostname"], call["machine_id"])

    def set_clock(self, clock_ns: int) -> int:
        """Set the wall clock; returns what it shows then."""
        return system.set_clock(clock_ns)

    def power_off(self) -> None:
        """End the machine."""
        system.restart_machine()


class Agent:
    """The session's contexts, the streams that the host opens, and the control stream to the host."""

    def __init__(self, host: Host, places: Places, zygote: Zygote) -> None:
        self._host = host
        self._places = places
        self._zygote = zygote
        self._zmq: zmq.Context[Any] = zmq.Context()
        self._identity = KernelIdentity(os.urandom(32).hex().encode(), os.urandom(16).hex(), {})
        self._contexts: dict[str, Context] = {}
        self._commands = Group.make(places.groups, "commands", whole=False)
        self._streams: set[asyncio.Task[None]] = set()
        self._control: asyncio.StreamWriter | None = None
        self._renewals = asyncio.Event()
        self._heard = time.monotonic()
        self._orphaned_after: float | None = None
        self.renewed = False

    @property
    def key(self) -> bytes:
        """The key that the kernel's messages are signed with."""
        return self._identity.key

    async def start_kernel(self) -> int:
        """Start the main context's kernel and wait until it takes messages; returns its process id."""
        context = Context(MAIN, self._places, self._zygote, self._tell)
        pid = await context.start(self._identity)
        self._contexts[MAIN] = context
        return pid

    async def prepare_clones(self) -> None:
        """Do ahead what every clone would have to do first."""
        await self._contexts[MAIN].prepare_clones(self._zmq)

    async def watch_host(self) -> None:
        """End the machine when the host said that it would call again and again, and does not any more."""
        while True:
            await self._renewals.wait()
            self._renewals.clear()
            while self._orphaned_after is not None:
                left = self._heard + self._orphaned_after - time.monotonic()
                if left <= 0:
                    self._host.power_off()
                    return
                await asyncio.sleep(left)

    async def stop(self) -> None:
        """End all kernels."""
        await asyncio.gather(*(context.stop() for context in self._contexts.values()))

    def forget_host(self) -> None:
        """A new host is there (the machine was restored): every old stream ends, and renewal is due."""
        self.renewed = False
        for task in self._streams:
            task.cancel()

    async def control(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve the control stream until it ends."""
        self._control = writer
        self._tell({"event": "hello", "version": AGENT_VERSION})
        decoder = FrameDecoder()
        calls: set[asyncio.Task[None]] = set()
        try:
            while data := await reader.read(_READ):
                for frame in decoder.feed(data):
                    self._heard = time.monotonic()
                    task = asyncio.create_task(self._answer(writer, frame))
                    calls.add(task)
                    task.add_done_callback(calls.discard)
        except (FrameError, ConnectionError):
            # What speaks no frames is not the host; the stream is closed.
            return
        finally:
            for task in calls:
                task.cancel()
            if self._control is writer:
                self._control = None
            writer.close()

    def serve(self, connection: socket.socket) -> None:
        """Take a stream that the host has opened."""
        if len(self._streams) >= _MAX_STREAMS:
            connection.close()
            return
        task = asyncio.create_task(self._serve(connection))
        self._streams.add(task)
        task.add_done_callback(self._streams.discard)

    async def _serve(self, connection: socket.socket) -> None:
        connection.setblocking(False)
        with connection, contextlib.suppress(ConnectionError, FrameError):
            frame = await first_frame(connection)
            try:
                if frame.kind is not Kind.OPEN:
                    raise Refused("bad_request", "a stream begins with OPEN")
                if not self.renewed:
                    raise Refused("not_renewed", "this guest has not been renewed since it was restored")
                await self._open(connection, frame.body)
            except NoKernel as error:
                await _refuse(connection, Refused("no_kernel", str(error)))
            except (Refused, files.FileRefused) as error:
                await _refuse(connection, error)
            finally:
                # Wakes a thread that still waits on it when this task was cancelled.
                with contextlib.suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)

    async def _open(self, connection: socket.socket, body: dict[str, Any]) -> None:
        match body:
            case {"service": "kernel"}:
                context = self._context_of(body)
                if not body.get("dead", False):
                    context.running()
                async with streams_of(connection) as (reader, writer):
                    try:
                        iopub, dead = bool(body.get("iopub", True)), bool(body.get("dead", False))
                        await context.relay(self._zmq, reader, writer, iopub=iopub, dead=dead)
                    except TimeoutError as error:
                        # By the streams: when they have let go of the connection nothing can be said on it any more.
                        silent = {"code": "kernel_silent", "message": str(error)}
                        writer.write(encode(Frame(Kind.ERROR, silent)))
            case {"service": "splice", "channel": str(channel)} if channel in CHANNELS:
                context = self._context_of(body)
                async with streams_of(connection) as (reader, writer):
                    writer.write(encode(Frame(Kind.OK)))
                    await splice(channel_path(context.folder, channel), reader, writer)
            case {
                "service": "put",
                "path": str() | bytes() as path,
                "size": int() | None as size,
                "mode": int(mode),
            } if size is None or size >= 0:
                overwrite = body.get("overwrite") is not False
                await self._put(connection, self._path(path), size, mode, overwrite=overwrite)
            case {"service": "get", "path": str() | bytes() as path}:
                await self._get(connection, self._path(path))
            case {"service": "archive", "path": str() | bytes() as path, "format": str(kind)} if (
                kind in archive.FORMATS
            ):
                await self._archive(connection, self._path(path), kind)
            case {"service": "command"}:
                command = command_of(body, self._places.home)
                running = RunningCommand.start(command, self._places.user, self._zygote.reaper, self._commands)
                await running.serve(connection)
            case _:
                raise Refused("bad_request", f"there is no service {body.get('service')!r} with these arguments")

    async def _put(
        self, connection: socket.socket, path: Path, size: int | None, mode: int, *, overwrite: bool
    ) -> None:
        if size is not None and size < 0:
            raise Refused("bad_request", "a file has no size below nothing")
        await asyncio.get_running_loop().sock_sendall(connection, encode(Frame(Kind.OK)))
        connection.setblocking(True)

        def receive() -> int:
            with files.rights_of(self._places.user):
                return files.receive_file(connection, path, size=size, mode=mode, overwrite=overwrite)

        try:
            received = await asyncio.to_thread(receive)
        finally:
            connection.setblocking(False)
        await asyncio.get_running_loop().sock_sendall(connection, encode(Frame(Kind.OK, {"size": received})))

    async def _get(self, connection: socket.socket, path: Path) -> None:
        def send() -> None:
            with files.rights_of(self._places.user):
                descriptor, about = files.open_file(path)
            try:
                connection.setblocking(True)
                connection.sendall(encode(Frame(Kind.OK, about)))
                if (part := files.wanted_part(connection, about["size"])) is not None:
                    start, count = part
                    files.send_file(descriptor, connection, count, start=start)
            finally:
                os.close(descriptor)

        await asyncio.to_thread(send)
        connection.setblocking(False)
        # The host closes when it has all: a close of ours with bytes still under way would reset the stream.
        await _discard(connection)

    async def _archive(self, connection: socket.socket, path: Path, kind: str) -> None:
        def send() -> None:
            with files.rights_of(self._places.user), archive.open_root(path) as root:
                connection.setblocking(True)
                connection.sendall(encode(Frame(Kind.OK)))
                try:
                    archive.send_archive(root, path, kind, connection)
                except ConnectionError:
                    raise
                except OSError:
                    # The answer is given; the stream breaks off before the end that says that it is whole.
                    return

        await asyncio.to_thread(send)
        connection.setblocking(False)
        await _discard(connection)

    async def _answer(self, writer: asyncio.StreamWriter, frame: Frame) -> None:
        number = frame.body.get("id")
        try:
            if frame.kind is not Kind.CALL:
                raise Refused("bad_request", "the control stream takes calls")
            answer = await self._call(frame.body)
            writer.write(encode(Frame(Kind.OK, {"id": number, **answer})))
        except (Refused, NoKernel, files.FileRefused) as error:
            code = "no_kernel" if isinstance(error, NoKernel) else error.code
            writer.write(encode(Frame(Kind.ERROR, {"id": number, "code": code, "message": str(error)})))
        except TimeoutError as error:
            silent = {"code": "kernel_silent", "message": str(error) or "the kernel did not answer in time"}
            writer.write(encode(Frame(Kind.ERROR, {"id": number, **silent})))
        except Exception as error:
            code = "io_error" if isinstance(error, OSError) else "failed"
            message = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
            body = {"id": number, "code": code, "message": files.shown(message)}
            writer.write(encode(Frame(Kind.ERROR, body)))

    async def _call(self, call: dict[str, Any]) -> dict[str, Any]:
        if call.get("op") == "renew":
            return await self._renew(call)
        if not self.renewed:
            raise Refused("not_renewed", "this guest has not been renewed since it was restored")
        match call:
            case {"op": "clock", "clock_ns": int(clock_ns)}:
                return {"clock_ns": self._host.set_clock(clock_ns)}
            case {"op": "ping"}:
                return {}
            case {"op": "interrupt"}:
                self._context_of(call).interrupt()
                return {}
            case {"op": "progress"}:
                return await self._context_of(call).progress()
            case {"op": "restart"}:
                return {"pid": await self._context_of(call).restart(self._identity)}
            case {"op": "open_context", "context": str(name)}:
                return {"pid": await self._open_context(name)}
            case {"op": "close_context", "context": str(name)} if name != MAIN:
                await self._context_of(call).close()
                del self._contexts[name]
                return {}
            case {"op": "list" | "describe" | "make_folder" | "move" | "remove"}:
                return await self._in_tree(call)
            case {"op": "power_off"}:
                await self.stop()
                self._host.power_off()
                return {}
            case _:
                raise Refused("bad_request", f"there is no operation {call.get('op')!r} with these arguments")

    async def _in_tree(self, call: dict[str, Any]) -> dict[str, Any]:
        work = tree.operation(call, self._path, self._places.home)

        def run() -> dict[str, Any]:
            with files.rights_of(self._places.user):
                return work()

        return await asyncio.to_thread(run)

    async def _renew(self, call: dict[str, Any]) -> dict[str, Any]:
        try:
            identity = KernelIdentity(call["key"], call["session"], dict(call["env"]))
            orphaned_after = call.get("orphaned_after")
            self._orphaned_after = float(orphaned_after) if orphaned_after else None
            self._host.renew(call)
        except (KeyError, TypeError, ValueError) as error:
            raise Refused("bad_request", f"renew lacks something: {error!r}") from error
        self._identity = identity
        for context in self._contexts.values():
            await context.renew(identity)
        self.renewed = True
        self._renewals.set()
        return {"clock_ns": time.time_ns()}

    async def _open_context(self, name: str) -> int:
        if not re.fullmatch(CONTEXT_NAME, name) or name in self._contexts:
            raise Refused("bad_request", "a context needs a short name of its own")
        if len(self._contexts) >= _MAX_CONTEXTS:
            raise Refused("too_many", f"a session has at most {_MAX_CONTEXTS} contexts")
        context = self._contexts[name] = Context(name, self._places, self._zygote, self._tell)
        try:
            return await context.start(self._identity)
        except BaseException:
            del self._contexts[name]
            raise

    def _context_of(self, body: dict[str, Any]) -> Context:
        context = self._contexts.get(str(body.get("context", MAIN)))
        if context is None:
            raise Refused("not_found", "there is no such context")
        return context

    def _tell(self, event: dict[str, Any]) -> None:
        if self._control is not None:
            self._control.write(encode(Frame(Kind.EVENT, event)))

    def _path(self, path: str | bytes) -> Path:
        name = os.fsdecode(path)
        if not name or "\0" in name:
            raise Refused("bad_request", "a path is needed")
        return self._places.home / name


async def _refuse(connection: socket.socket, error: Refused | files.FileRefused) -> None:
    body = {"code": error.code, "message": str(error)}
    await asyncio.get_running_loop().sock_sendall(connection, encode(Frame(Kind.ERROR, body)))
    await _discard(connection)


async def _discard(connection: socket.socket) -> None:
    # Closing with bytes unread would reset the stream, and the host might not see the answer before that.
    connection.shutdown(socket.SHUT_WR)
    while await asyncio.get_running_loop().sock_recv(connection, _READ):
        continue
