"""Runs inside a session: a stock ipykernel and a lean client of it, with nothing else in between.

Takes cases as JSON, name: [code, count]; prints seconds per run as JSON.
"""

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import zmq
from jupyter_client.connect import write_connection_file
from jupyter_client.session import Session


class Client:
    """ZeroMQ sockets and jupyter_client's messages."""

    def __init__(self, ip: str, shell: int, iopub: int) -> None:
        context = zmq.Context.instance()
        self._session = Session(key=b"key")
        self._shell = context.socket(zmq.DEALER)
        self._iopub = context.socket(zmq.SUB)
        self._iopub.subscribe(b"")
        self._poller = zmq.Poller()
        for socket, port in ((self._shell, shell), (self._iopub, iopub)):
            socket.connect(f"tcp://{ip}:{port}")
            self._poller.register(socket, zmq.POLLIN)
        # The kernel's welcome: from now on no output is missed.
        self._iopub.recv_multipart()

    def run(self, code: str) -> None:
        """Run code until its reply and its idle are there."""
        content: dict[str, Any] = {"code": code, "silent": False, "store_history": True, "allow_stdin": False}
        asked: Any = self._session.send(self._shell, "execute_request", content)
        left = {"reply", "idle"}
        while left:
            for socket, _ in self._poller.poll():
                _, parts = self._session.feed_identities(socket.recv_multipart())
                message = self._session.deserialize(parts)
                if message["parent_header"].get("msg_id") == asked["header"]["msg_id"]:
                    left -= {"reply"} if socket is self._shell else set()
                    left -= {"idle"} if message["content"].get("execution_state") == "idle" else set()


def main() -> None:
    """Measure every case."""
    cases: dict[str, tuple[str, int]] = json.loads(sys.argv[1])
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "connection.json"
        write_connection_file(str(file), key=b"key")
        about = json.loads(file.read_text())
        command = [sys.executable, "-m", "ipykernel", "-f", str(file)]
        with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as kernel:
            client = Client(str(about["ip"]), int(about["shell_port"]), int(about["iopub_port"]))
            client.run("1")
            times: dict[str, float] = {}
            for name, (code, count) in cases.items():
                began = time.perf_counter()
                for _ in range(count):
                    client.run(code)
                times[name] = (time.perf_counter() - began) / count
            kernel.kill()
    print(json.dumps(times))


if __name__ == "__main__":
    main()
