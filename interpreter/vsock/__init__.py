"""AF_VSOCK for guests, in user space: a virtio-vsock device as a vhost-user back end.

``VsockDevice`` is all that the rest of the host needs. Below it, from the wire up: ``memory``, ``virtqueue`` and
``vhost_user`` (how bytes come and go), ``packet``, ``connection`` and ``device`` (the protocol, without I/O), ``ring``
(packets in and out of the guest's buffers), ``streams``, ``listener`` and ``backend`` (asyncio).
"""

from interpreter.vsock.backend import VsockDevice
from interpreter.vsock.listener import Listener

__all__ = ["Listener", "VsockDevice"]
