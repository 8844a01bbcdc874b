# SPDX-License-Identifier: GPL-2.0
"""One queue for all that wants the processors: whoever waits for the longest piece of work goes first.

The queue is a socket that DM_THIN_CORES names. Who has connected and said what he wants holds his place until the connection ends,
however he ends. Without a queue, nobody has to wait.

Whoever has one place is told of a processor that the fewest of those have. A User Mode Linux machine is two processes or more of which
one always waits for the other: kept on one processor, it takes less of that.
"""

import json
import os
import select
import socket
import tempfile
import threading

VARIABLE = "DM_THIN_CORES"
# The processor of the place that a process has, for the machine that it starts.
PROCESSOR = "DM_THIN_PROCESSOR"
# How many places there are for each processor: machines idle for much of their time.
PLACES = 2


def least_used(processors):
    """A processor that occurs least often."""
    there = sorted(os.sched_getaffinity(0))
    return min(there, key=list(processors).count)


class Queue(threading.Thread):
    """Gives places to those who ask, and at most `places` at once."""

    def __init__(self, places=PLACES * (os.cpu_count() or 1)):
        super().__init__(daemon=True)
        self.places = places
        self._folder = tempfile.TemporaryDirectory(prefix="dm-thin-cores-")
        self.path = os.path.join(self._folder.name, "queue")
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(self.path)
        self._listener.listen(1000)
        self._waiting = {}
        self._held = {}
        self._processors = {}
        self._poll = select.poll()
        self._poll.register(self._listener, select.POLLIN)
        self._known = {}

    def run(self):
        while True:
            for number, _ in self._poll.poll():
                if number == self._listener.fileno():
                    one, _ = self._listener.accept()
                    self._known[one.fileno()] = one
                    self._poll.register(one, select.POLLIN)
                else:
                    self._hear(self._known[number])
            self._serve()

    def _hear(self, one):
        try:
            said = one.recv(4096)
        except OSError:
            said = b""
        if said:
            wish = json.loads(said)
            self._waiting[one] = (min(wish["places"], self.places), wish["seconds"])
            return
        self._poll.unregister(one)
        del self._known[one.fileno()]
        self._waiting.pop(one, None)
        self._held.pop(one, None)
        self._processors.pop(one, None)
        one.close()

    def _serve(self):
        for one, (places, _) in sorted(self._waiting.items(), key=lambda item: -item[1][1]):
            # Nobody slips in before one who waits for more.
            if sum(self._held.values()) + places > self.places:
                return
            del self._waiting[one]
            self._held[one] = places
            if places == 1:
                self._processors[one] = least_used(self._processors.values())
            try:
                one.send(json.dumps({"processor": self._processors.get(one)}).encode())
            except OSError:
                pass


class Place:
    """A place in the queue, or soon: so many of the queue's places, for about so many seconds.

    Once it is granted, `processor` is the one for who has one place.
    """

    # Of those of this process that asked for one without a queue.
    _alone = {}

    def __init__(self, places, seconds):
        self._socket = None
        self._granted = True
        self.processor = None
        path = os.environ.get(VARIABLE)
        if path:
            self._granted = False
            self._socket = socket.socket(socket.AF_UNIX)
            self._socket.connect(path)
            self._socket.send(json.dumps({"places": places, "seconds": seconds}).encode())
        elif places == 1:
            given = os.environ.get(PROCESSOR)
            self.processor = self._alone[self] = int(given) if given else least_used(self._alone.values())

    def granted(self, wait=False):
        """Whether it is our turn; if so, it stays so until close()."""
        if not self._granted and (wait or select.select([self._socket], [], [], 0)[0]):
            said = self._socket.recv(4096)
            if not said:
                raise ConnectionError("the queue for the processors has ended")
            self.processor = json.loads(said)["processor"]
            self._granted = True
        return self._granted

    def close(self):
        self._alone.pop(self, None)
        if self._socket:
            self._socket.close()

    def __enter__(self):
        self.granted(wait=True)
        return self

    def __exit__(self, *_):
        self.close()


def processor():
    """A processor for a machine of who has a place already, or needs none."""
    with Place(1, 0) as place:
        return place.processor
