"""What the processes of one test run have in common. Imports nothing that is slow."""

from __future__ import annotations

import os
import tempfile
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """A test run: all processes that share engines.

    Attributes:
        name: Its own, and not to be guessed.
        owner_pid: The process that it ends with: with pytest-xdist the one that controls the
            workers.
    """

    name: str
    owner_pid: int

    @classmethod
    def own(cls) -> Run:
        """The run of this very process."""
        return cls(name=f"{os.getpid()}-{os.urandom(4).hex()}", owner_pid=os.getpid())

    @property
    def folder(self) -> Path:
        """Where its processes meet. Short: the path of a socket has 104 bytes at most."""
        return Path(tempfile.gettempdir()) / f"llama-tests-{self.name}"
