"""One epoll with handlers, non-blocking streams, and a way for other threads to have something done in its thread."""

import collections
import contextlib
import os
import select
import socket
import threading
from collections.abc import Callable

from elaswave.coordination.protocol import Message
from elaswave.coordination.stream import Closed, Stream
from elaswave.errors import ProtocolError

READS_MAX = 16
"""Reads from one connection, and accepts from one listener, before the others get their turn."""


class Reactor:
    """Calls a handler when a descriptor is readable.

    All methods but `wake` and `notify` belong to the one thread that calls `poll`.
    """

    def __init__(self) -> None:
        self.closed = False
        self._epoll = select.epoll()
        self._handlers: dict[int, Callable[[], None]] = {}
        self._writers: dict[int, Stream] = {}
        self._notices: collections.deque[Callable[[], None]] = collections.deque()
        self._lock = threading.Lock()
        self._wakeup = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self.watch(self._wakeup, self._drain_wakeup)

    # -- from any thread ---------------------------------------------------------------------------------------

    def wake(self) -> None:
        """End the current `poll`."""
        with self._lock:
            if not self.closed:
                os.eventfd_write(self._wakeup, 1)

    def notify(self, act: Callable[[], None]) -> None:
        """Have `act` called in the reactor's thread; after `close` it is called at once, to let go of what it holds."""
        with self._lock:
            if not self.closed:
                self._notices.append(act)
                os.eventfd_write(self._wakeup, 1)
                return
        act()

    def _drain_wakeup(self) -> None:
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(self._wakeup)

    # -- descriptors -------------------------------------------------------------------------------------------

    def poll(self, timeout_s: float) -> None:
        """Wait until something happens, and call the handlers."""
        for descriptor, events in self._epoll.poll(timeout_s):
            if events & select.EPOLLOUT and descriptor in self._writers:
                self.flush(self._writers[descriptor])
            handler = self._handlers.get(descriptor)
            if handler is not None and events & ~select.EPOLLOUT:
                handler()
        self._run_notices()

    def _run_notices(self) -> None:
        while self._notices:
            self._notices.popleft()()

    def watch(self, descriptor: int, handler: Callable[[], None]) -> None:
        """Call `handler` whenever `descriptor` is readable or broken."""
        self._handlers[descriptor] = handler
        self._epoll.register(descriptor, select.EPOLLIN)

    def unwatch(self, descriptor: int) -> None:
        if self._handlers.pop(descriptor, None) is not None:
            self._writers.pop(descriptor, None)
            self._epoll.unregister(descriptor)

    def listen(self, listener: socket.socket, meet: Callable[[socket.socket], None]) -> None:
        """Call `meet` with every connection that is made to `listener`."""

        def accept() -> None:
            for _ in range(READS_MAX):
                try:
                    sock, _ = listener.accept()
                except OSError:
                    return
                meet(sock)

        self.watch(listener.fileno(), accept)

    def close(self) -> None:
        """Forget all descriptors; those who opened them close them."""
        with self._lock:
            self.closed = True
        self._run_notices()
        self._handlers.clear()
        self._writers.clear()
        self._epoll.close()
        os.close(self._wakeup)

    # -- streams -----------------------------------------------------------------------------------------------

    def add(self, stream: Stream, handler: Callable[[], None]) -> None:
        """Watch a new stream, and send what it begins with."""
        self.watch(stream.fileno(), handler)
        self.flush(stream)

    def flush(self, stream: Stream) -> None:
        """Send what waits; an error shows when reading."""
        with contextlib.suppress(Closed):
            stream.flush()
        self._want_write(stream)

    def send(self, stream: Stream, message: Message) -> bool:
        """Whether the stream is still good."""
        try:
            stream.send(message)
        except (Closed, ProtocolError):
            return False
        self._want_write(stream)
        return True

    def _want_write(self, stream: Stream) -> None:
        descriptor = stream.fileno()
        if descriptor not in self._handlers or stream.unsent == (descriptor in self._writers):
            return
        if stream.unsent:
            self._writers[descriptor] = stream
            self._epoll.modify(descriptor, select.EPOLLIN | select.EPOLLOUT)
        else:
            del self._writers[descriptor]
            self._epoll.modify(descriptor, select.EPOLLIN)

    def receive(self, stream: Stream) -> tuple[list[Message], Closed | ProtocolError | None]:
        """What has arrived, and what is wrong with the stream."""
        messages: list[Message] = []
        for _ in range(READS_MAX):
            try:
                more = stream.receive()
            except (Closed, ProtocolError) as error:
                return messages, error
            if stream.unsent:
                self.flush(stream)
            if not more:
                break
            messages += more
        return messages, None

    def close_stream(self, stream: Stream) -> None:
        """Send what can be sent at once, and close."""
        if stream.fileno() >= 0:
            self.unwatch(stream.fileno())
            with contextlib.suppress(Closed):
                stream.flush()
            stream.close()
