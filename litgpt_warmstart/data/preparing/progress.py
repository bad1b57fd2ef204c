"""How far a preparation is: a bar on a terminal, a line now and then elsewhere."""

import sys
import threading
import time

from tqdm import tqdm


class Progress:
    """Documents, tokens and bytes of text done, told by several threads.

    Args:
        total_bytes: What there is to do, about.
        what: Stands before the bar.
    """

    SECONDS_BETWEEN_LINES = 10.0

    def __init__(self, total_bytes: int, what: str) -> None:
        self.documents = self.tokens = self.num_bytes = self.downloaded = 0
        self._what, self._total = what, total_bytes
        self._lock = threading.Lock()
        self._started = self._told = time.monotonic()
        self._new_bytes = 0
        self._bar = tqdm(
            total=total_bytes, unit="B", unit_scale=True, desc=what, dynamic_ncols=True, disable=not sys.stderr.isatty()
        )

    def advance(self, documents: int, tokens: int, num_bytes: int) -> None:
        """Count what has been done; without tokens, what was done before."""
        with self._lock:
            self.documents += documents
            self.tokens += tokens
            self.num_bytes += num_bytes
            self._new_bytes += num_bytes if tokens else 0
            self._bar.update(num_bytes)
            self._tell()

    def received(self, num_bytes: int) -> None:
        """Count what has been downloaded."""
        with self._lock:
            self.downloaded += num_bytes
            self._tell()

    def correct_total(self, change: int) -> None:
        """Take notice that there is more or less text than was thought."""
        with self._lock:
            self._total += change
            self._bar.total = self._total
            self._bar.refresh()

    def close(self) -> None:
        """Take the bar away."""
        self._bar.close()

    def _tell(self) -> None:
        self._bar.set_postfix_str(self._counts(), refresh=False)
        now = time.monotonic()
        if self._bar.disable and now - self._told >= self.SECONDS_BETWEEN_LINES:
            self._told = now
            print(self._line(now), file=sys.stderr, flush=True)

    def _counts(self) -> str:
        counts = [
            f"{self.documents:,} documents" if self.documents else "",
            f"{self.tokens:,} tokens" if self.tokens else "",
            f"downloaded {self.downloaded / 1e6:,.0f} MB" if self.downloaded else "",
        ]
        return ", ".join(filter(None, counts))

    def _line(self, now: float) -> str:
        speed = self._new_bytes / max(now - self._started, 1e-9)
        left = f"{max(0, self._total - self.num_bytes) / speed:,.0f} s left" if speed else "time left not known yet"
        return (
            f"{self._what}: {self.num_bytes / 1e6:,.0f} of {self._total / 1e6:,.0f} MB | {self._counts()} |"
            f" {speed / 1e6:.1f} MB/s | {left}"
        )
