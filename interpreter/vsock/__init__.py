"""AF_VSOCK for guests, in user space: a virtio-vsock device as a vhost-user back end.

From the wire up: ``memory``, ``virtqueue`` and ``vhost_user`` (how bytes come and go), ``packet``, ``connection`` and
``device`` (the protocol, without I/O), ``ring`` (packets in and out of the guest's buffers), ``streams``, ``linger``
and ``backend`` (asyncio). ``interpreter.device`` runs it in a process of its own, which is how the rest uses it.
"""
