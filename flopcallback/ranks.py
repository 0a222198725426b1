"""What the processes of one training tell each other about compute. No collective is used, so that nothing can hang."""

from __future__ import annotations

import itertools
import json
import os
import time
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch

__all__ = ["Ranks", "are_several", "rank_of"]

PATIENCE_S = 30.0
"""How long a rank that takes part is waited for."""

POLL_S = 0.002

_made = itertools.count()


def rank_of() -> int:
    """Of this process: the group's, or what `torchrun` says before there is one."""
    if _is_initialized():
        return torch.distributed.get_rank()
    rank = os.environ.get("RANK", "")
    return int(rank) if rank.isdecimal() else 0


def are_several() -> bool:
    """Whether this is one of several processes: by the group, or by what `torchrun` says before there is one."""
    if _is_initialized():
        return torch.distributed.get_world_size() > 1
    return os.environ.get("WORLD_SIZE", "1") not in ("", "1")


class Ranks:
    """Passes small JSON values from every rank to rank 0, and from there to all, by the store of the process group.

    A collective would have to be called by all ranks, in one order with the model's own; one that lacks would hang the
    training. Here a rank that does not answer is waited for once, for `patience_s`; then what it said last stands for
    it.

    Every process has to make as many of these, in the same order, as every other: that is how they find each other.
    Made where no process group is initialized, it is alone.

    Args:
        patience_s: how long to wait for one that takes part.

    Attributes:
        rank: of this process.
        lost: ranks that were waited for in vain.
    """

    def __init__(self, patience_s: float = PATIENCE_S) -> None:
        number = next(_made)
        self.rank, self._world = 0, 1
        self._store: Any = None
        self.lost: set[int] = set()
        self._patience_s = patience_s
        self._said: dict[str, dict[int, Any]] = {}
        if _is_initialized() and torch.distributed.get_world_size() > 1:
            self.rank, self._world = torch.distributed.get_rank(), torch.distributed.get_world_size()
            # It has no public name; `torch.distributed.new_group` hands it on the same way.
            c10d: Any = torch.distributed.distributed_c10d
            self._store = c10d.PrefixStore(f"flopcallback/{number}", c10d._get_default_store())
            self._store.set(f"member/{self.rank}", "1")

    @property
    def are_several(self) -> bool:
        """Whether there are others."""
        return self._world > 1

    @property
    def absent(self) -> list[int]:
        """Ranks that have none of these."""
        if self._store is None:
            return []
        return [rank for rank in range(self._world) if not self._store.check([f"member/{rank}"])]

    def gather(self, topic: str, mine: Mapping[str, Any], *, wait: bool = True) -> list[Any] | None:
        """What every rank says, on rank 0; None on others.

        Args:
            topic: the same on all ranks, and never used before. What a lost rank said last is taken from the last topic
                with the same name before its slash.
            mine: what this rank says, as plain JSON.
            wait: False: only what is there by now.
        """
        if self._store is None:
            return [mine]
        if self.rank != 0:
            self._store.set(f"{topic}/{self.rank}", json.dumps(mine))
            return None
        said = self._said.setdefault(topic.partition("/")[0], {})
        said[0] = mine
        there = set(range(1, self._world)).difference(self.absent)
        said.update(self._hear(topic, there, self._patience_s if wait else 0.0))
        return [said[rank] for rank in sorted(said)]

    def agree(self, topic: str, result: Any) -> Any:
        """What rank 0 has made of what was gathered, on all ranks.

        Raises:
            TimeoutError: rank 0 did not answer.
        """
        if self._store is None:
            return result
        key = f"{topic}/result"
        if self.rank == 0:
            self._store.set(key, json.dumps(result))
            return result
        if not self._are_there([key], self._patience_s):
            raise TimeoutError(f"rank 0 did not answer within {self._patience_s:g} s")
        return json.loads(self._store.get(key))

    def _hear(self, topic: str, ranks: Iterable[int], patience_s: float) -> Iterator[tuple[int, Any]]:
        """What those ranks say of it that are there; one that was lost may have come back, and is not waited for."""
        keys = {rank: f"{topic}/{rank}" for rank in ranks}
        self._are_there([key for rank, key in keys.items() if rank not in self.lost], patience_s)
        for rank, key in keys.items():
            if self._store.check([key]):
                yield rank, json.loads(self._store.get(key))
                self._store.delete_key(key)
                self.lost.discard(rank)
            elif patience_s:
                self.lost.add(rank)

    def _are_there(self, keys: list[str], patience_s: float) -> bool:
        """Asked again and again: `Store.wait` would hold the store against the process group's own questions."""
        until = time.monotonic() + patience_s
        while not self._store.check(keys):
            if time.monotonic() >= until:
                return False
            time.sleep(POLL_S)
        return True


def _is_initialized() -> bool:
    return torch.distributed.is_available() and torch.distributed.is_initialized()
