# SPDX-License-Identifier: GPL-2.0
"""The kernel's uevents, as udev hears them."""

import socket

NETLINK_KOBJECT_UEVENT = 15


class Uevents:
    """Collects uevents from when the object was made."""

    def __init__(self):
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK, NETLINK_KOBJECT_UEVENT)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
        self._socket.bind((0, 1))

    def of(self, device):
        """The actions that were reported of a mapped device since the last call, in order."""
        found = []
        while True:
            try:
                message = self._socket.recv(65536)
            except BlockingIOError:
                return found
            action, _, path = message.split(b"\0", 1)[0].decode().partition("@")
            if path.endswith(f"/block/dm-{device.minor}"):
                found.append(action)

    def close(self):
        self._socket.close()
