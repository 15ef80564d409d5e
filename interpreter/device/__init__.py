"""Each machine's vsock device in a small process of its own, in its machine's jail; and what the service has of it.

Whatever a guest, or a QEMU that it took over, does to its device costs that process at most; others do not notice.

From the wire up: ``wire`` (the messages), ``control`` (the socket for them), ``stream`` (one stream, the same at both
of its ends). On the far side ``parent`` (which forks a process per device), ``jail`` and ``relay`` (what that process
does). On the service's side ``fork`` (asking the parent) and ``client`` (a device's streams).
"""
