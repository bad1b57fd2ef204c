"""The processes of a run on several devices: they meet, agree, and notice where one of them ends before its time.

Fabric connects them for what is computed. Beside that the first process hears each of the others over a connection of
its own, which the system closes however a process ends, while those of gradients may wait for half an hour.
"""

import os
import selectors
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, NoReturn, TypeVar

import torch
import torch.distributed as dist
from lightning.fabric.plugins.environments.cluster_environment import ClusterEnvironment

from litgpt_warmstart.errors import BrokeOff, UserError, one_line

T = TypeVar("T")

MEETING_SECONDS = 60.0
"""How long processes wait for each other before a run."""
NOTICE_SECONDS = 5.0
"""How long word of a process that has ended may take."""
GRACE_SECONDS = 20.0
"""How long a process that has lost another may take to end by itself; one that waits for a GPU never does."""
KEY = "litgpt_warmstart"
"""Under which the first process says where it listens."""


@dataclass
class Team:
    """The processes of a run, as one of them sees them; one alone agrees with itself."""

    rank: int = 0
    size: int = 1
    environment: ClusterEnvironment | None = None
    """Tells Fabric which process this is; None for one alone."""
    children: list[subprocess.Popen] = field(default_factory=list)
    """Those that this process has started."""
    lost: str | None = None
    """In the first process: which other one has ended before its time, and why."""
    united: bool = False
    """Whether all processes have been told of an error, and stand at the same place."""
    store: Any = None
    """Of torch's, where the processes meet."""
    _control: Any = None
    _peers: dict[int, socket.socket] = field(default_factory=dict)
    """In the first process all others, in another the first."""
    _names: dict[int, str] = field(default_factory=dict)
    _noticed: threading.Event = field(default_factory=threading.Event)
    _left: threading.Event = field(default_factory=threading.Event)

    @property
    def is_first(self) -> bool:
        """Whether this process is the one that writes and tells."""
        return self.rank == 0

    @property
    def tells(self) -> bool:
        """Whether this process is the one to tell of an error: the first, or one of each node that has not met it."""
        alone = not self._peers and self.environment is not None and self.environment.local_rank() == 0
        return self.is_first or alone

    def connect(self) -> None:
        """Have a way to agree that waits for as long as one process prepares or saves; Fabric has been launched."""
        if self.size > 1:
            self._control = dist.new_group(backend="gloo", timeout=timedelta(days=100))

    def largest(self, value: float) -> float:
        """The largest that any process has."""
        if self.size == 1:
            return value
        found = torch.tensor(value, dtype=torch.float64)
        dist.all_reduce(found, dist.ReduceOp.MAX, group=self._control)
        return found.item()

    def first(self, work: Callable[[], T]) -> T:
        """What work gives in the first process, in all; the others wait. A UserError of its is raised in all."""
        if self.size == 1:
            return work()
        told: list[Any] = [None]
        if self.is_first:
            try:
                told = [work()]
            except UserError as error:
                told = [error]
        dist.broadcast_object_list(told, 0, group=self._control)
        if isinstance(told[0], UserError):
            self.united = True
            raise told[0]
        return told[0]

    def in_turn(self, work: Callable[[], T]) -> T:
        """What work gives in each process, in the first one before the others: it may leave something for them."""
        done: list[T] = []
        self.first(lambda: done.append(work()))
        return done[0] if done else work()

    @contextmanager
    def agreed(self) -> Iterator[None]:
        """Have an error of one process inside be one of all, so that they stop at the same place.

        A process that has raised one must not be waited for inside.
        """
        if self.size == 1:
            yield
            return
        failed: Exception | None = None
        try:
            yield
        except UserError as error:
            failed = error
        if self.largest(failed is not None):
            self.united = True
            raise failed or BrokeOff("another process of the run has failed")

    def why(self) -> BrokeOff | None:
        """In the first process, which other one does not answer any more; word of it is waited for."""
        if self.size == 1 or not self._noticed.wait(NOTICE_SECONDS):
            return None
        return BrokeOff(str(self.lost))

    def meet(self) -> None:
        """Wait for all processes, and begin to watch them.

        Raises:
            UserError: One has ended, or does not come.
        """
        assert self.environment is not None
        address, port = self.environment.main_address, self.environment.main_port
        if self.is_first:
            self._receive(address, port)
        else:
            self._join(address, port)

    def _receive(self, address: str, port: int) -> None:
        deadline = time.monotonic() + MEETING_SECONDS
        agent_has_store = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"  # torchrun's
        self.store = self.store or open_store(address, port, is_master=not agent_has_store)
        with socket.create_server(("", 0), backlog=self.size) as listener:
            listener.settimeout(0.2)
            self.store.set(KEY, str(listener.getsockname()[1]))
            while len(self._peers) < self.size - 1:
                for number, child in enumerate(self.children, 1):
                    if child.poll() is not None:
                        told = f"process {number} of {self.size} ended as it began, with status {child.returncode}"
                        raise UserError(told)
                if time.monotonic() > deadline:
                    missing = sorted(set(range(1, self.size)) - self._peers.keys())
                    raise UserError(
                        f"{len(missing)} of {self.size} processes, number {missing[0]} the first, did not come to"
                        f" {address}:{port} within {MEETING_SECONDS:g} s: start the same command on every node, and"
                        " check that each reaches that address"
                    )
                with suppress(TimeoutError, ValueError):  # nobody came, or somebody else
                    peer, _ = listener.accept()
                    peer.settimeout(NOTICE_SECONDS)
                    rank, _, name = _line(peer).partition(" ")
                    self._peers[int(rank)], self._names[int(rank)] = peer, name
                    _watched(peer)
        for peer in self._peers.values():
            peer.sendall(b"go\n")
        threading.Thread(target=self._watch, daemon=True).start()

    def _join(self, address: str, port: int) -> None:
        deadline = time.monotonic() + MEETING_SECONDS
        while not _answers(address, port):
            if time.monotonic() > deadline:
                raise UserError(
                    f"process 0 does not answer at {address}:{port} within {MEETING_SECONDS:g} s: start the same"
                    " command on every node, and check MASTER_ADDR and MASTER_PORT"
                )
            time.sleep(0.2)
        self.store = open_store(address, port, is_master=False)
        port = int(self.store.get(KEY))
        first = socket.create_connection((address, port), timeout=2 * MEETING_SECONDS)
        first.sendall(f"{self.rank} pid {os.getpid()} on {socket.gethostname()}\n".encode())
        if _line(first) != "go":
            self._end(f"process 0 of {self.size} ended before the run began")
        _watched(first)
        self._peers[0] = first
        threading.Thread(target=self._watch_first, args=(first,), daemon=True).start()

    def _watch(self) -> None:
        """In the first process: notice another one that ends before its time, have all end, and this one at last."""
        with selectors.DefaultSelector() as selector:
            for rank, peer in self._peers.items():
                selector.register(peer, selectors.EVENT_READ, rank)
            while selector.get_map():
                for key, _ in selector.select():
                    selector.unregister(key.fileobj)
                    told = _line(key.fileobj)
                    if told == "done":
                        continue
                    name = f"process {key.data} of {self.size} ({self._names[key.data]})"
                    self.lost = f"{name}: {told}" if told else f"{name} has died"
                    self._noticed.set()
                    if not self._left.wait(GRACE_SECONDS):
                        self._end(self.lost)
                    return

    def _watch_first(self, first: socket.socket) -> None:
        """In another process: end with the first one, which has told why, unless it was killed."""
        told = _line(first)
        if told == "end":
            return
        if not told:
            self._end(f"process 0 of {self.size} has died")
        os._exit(1)

    def _end(self, told: str) -> NoReturn:
        """End at once, whatever the process waits for; one of each node says why."""
        if self.rank == 1 or not self.environment or self.environment.local_rank() == 0:
            with suppress(OSError):
                print(f"litgpt-warmstart: error: {told}", file=sys.stderr, flush=True)
        os._exit(1)

    def leave(self, failed: str | None = None) -> None:
        """End what binds the processes, and those that this one has started.

        Args:
            failed: Why this one ends before its time. The first one tells, and ends the others.
        """
        self._left.set()
        told = (failed or "done") if not self.is_first else "lost" if failed else "end"
        for peer in self._peers.values():
            with suppress(OSError):
                peer.sendall(f"{told}\n".encode())
        if failed and self._peers and not self.is_first:  # the first one tells, and ends this one
            time.sleep(GRACE_SECONDS)
        for child in self.children:
            try:
                child.wait(GRACE_SECONDS)
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()
        if dist.is_initialized() and not (failed and dist.get_backend() == "nccl"):  # which would wait for the others
            # It keeps Python's lock while it joins gloo's threads, which need it to let go of what has failed.
            time.sleep(1.0 if failed else 0.1)
            dist.destroy_process_group()
        for peer in self._peers.values():
            peer.close()


def _line(peer: Any) -> str:
    """The next line that a process sends; nothing where it has ended."""
    told = b""
    with suppress(OSError):
        while (byte := peer.recv(1)) not in (b"", b"\n"):
            told += byte
    return told.decode(errors="replace")


def _answers(address: str, port: int) -> bool:
    """Whether anybody listens there."""
    with suppress(OSError), socket.create_connection((address, port), timeout=NOTICE_SECONDS):
        return True
    return False


def _watched(peer: socket.socket) -> None:
    """Wait for word of a peer as long as it lives; that a node is gone, which closes nothing, the system asks for."""
    peer.settimeout(None)
    peer.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in (("TCP_KEEPIDLE", 10), ("TCP_KEEPINTVL", 10), ("TCP_KEEPCNT", 3)):
        if hasattr(socket, option):  # Linux
            peer.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), value)


def open_store(address: str, port: int, is_master: bool) -> Any:
    """Where processes meet, Fabric's too: torch opens one for each port. Port 0 is any that is free."""
    try:
        return dist.TCPStore(  # pyright: ignore[reportPrivateImportUsage]  # torch documents it there
            address,
            port,
            is_master=is_master,
            timeout=timedelta(seconds=MEETING_SECONDS),
            wait_for_workers=False,
            multi_tenant=True,
        )
    except dist.DistError as error:
        told = f"the processes cannot meet at {address}:{port} ({one_line(error, 150)})"
        raise UserError(f"{told}: set another MASTER_PORT") from error
