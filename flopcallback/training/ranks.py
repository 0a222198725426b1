"""What the processes of one training tell each other about compute. No collective is used, so that nothing can hang."""

from __future__ import annotations

import base64
import json
import os
import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from flopcallback.tracing.torch_private import default_store

__all__ = ["END", "Heard", "Ranks", "are_several", "is_initialized", "rank_of"]

PATIENCE_S = 5.0
"""How long a rank that takes part is waited for. Ranks that train in step are apart by milliseconds."""

JOIN_S = 2.0
"""How long one is waited for that never began to take part: there may be none."""

HASTE_S = 1.0
"""How long any is waited for where an error is on its way."""

ANSWER_S = 300.0
"""How long other ranks wait for the first one's decision, which may be busy with a tracker: as in a collective."""

POLL_S = (0.001, 0.05)
"""Between two questions to the store: at first, and at last."""

MOST_BYTES = 4 << 20
"""Of a word: beyond 8 MiB a `TCPStore` hangs up (2.13), and the process group with it."""

END = "end"
"""The topic of last words: who has said something about it says no more."""

_made: Counter[str] = Counter()


def is_initialized() -> bool:
    """Whether there is a process group."""
    return torch.distributed.is_available() and torch.distributed.is_initialized()


def rank_of() -> int:
    """Of this process: the group's, or what `torchrun` says before there is one."""
    if is_initialized():
        return torch.distributed.get_rank()
    rank = os.environ.get("RANK", "")
    return int(rank) if rank.isdecimal() else 0


def are_several() -> bool:
    """Whether this is one of several processes: by the group, or by what `torchrun` says before there is one."""
    if is_initialized():
        return torch.distributed.get_world_size() > 1
    return os.environ.get("WORLD_SIZE", "1") not in ("", "1")


@dataclass(frozen=True, slots=True)
class Heard:
    """What ranks say of a topic.

    Attributes:
        words: by rank, in order; of one that is late, its last word on any topic, if there is any.
        late: ranks that take part, and did not answer in time.
        absent: ranks that do not take part, or ceased to.
    """

    words: dict[int, Any] = field(default_factory=dict)
    late: tuple[int, ...] = ()
    absent: tuple[int, ...] = ()

    @property
    def is_whole(self) -> bool:
        """Whether all ranks were heard."""
        return not (self.late or self.absent)

    @property
    def missing(self) -> str:
        """What is missing, in words."""
        late, absent = (", ".join(map(str, ranks)) for ranks in (self.late, self.absent))
        parts = [
            f"rank {late} did not answer in time, and what it said before stands for it" if late else "",
            f"rank {absent} books no steps (every rank is to have a FlopHook or FlopCallback of its own)"
            if absent
            else "",
        ]
        return "; ".join(filter(None, parts))


class Ranks:
    """Passes small JSON values from every rank to rank 0, and from there to all, by the store of the process group.

    A collective would have to be called by all ranks, in one order with the model's own; one that lacks would hang the
    training. Here a rank that does not answer is waited for `patience_s`, then half as long each time, until it answers
    in time again; meanwhile its last word stands for it. When the store is gone, so is waiting.

    Every process has to make as many of a name, in the same order, as every other: that is how they find each other.
    Made where no process group is initialized, it is alone.

    Args:
        name: what they are made for.
        patience_s: how long to wait for a rank that takes part.
        join_s: how long to wait, once, for one that does not yet.
        answer_s: how long other ranks wait for what rank 0 decides.
        clock: seconds.
        sleep: lets so many pass.

    Attributes:
        rank: of this process.
    """

    def __init__(
        self,
        name: str = "",
        *,
        patience_s: float = PATIENCE_S,
        join_s: float = JOIN_S,
        answer_s: float = ANSWER_S,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        number = _made[name]
        _made[name] += 1
        self.rank, self._world = 0, 1
        self._store: Any = None
        self._patience_s = self._left_s = patience_s
        self._join_s, self._answer_s = join_s, answer_s
        self._clock, self._sleep = clock, sleep
        self._last: dict[int, Any] = {}  # words of any topic, on rank 0
        self._heard: dict[str, dict[int, str]] = {}  # by name of the topic: the last one that a rank was heard about
        self._joined: set[int] = set()
        self._over: set[int] = set()  # ranks that said their last word
        if is_initialized() and torch.distributed.get_world_size() > 1:
            self.rank, self._world = torch.distributed.get_rank(), torch.distributed.get_world_size()
            c10d: Any = torch.distributed.distributed_c10d
            store = default_store()
            if store is not None:  # MPI has none
                self._store = c10d.PrefixStore(f"flopcallback/{name}/{number}", store)
                self._store.set(f"member/{self.rank}", "1")

    @property
    def are_several(self) -> bool:
        """Whether there are others."""
        return self._world > 1

    def gather(self, topic: str, mine: Mapping[str, Any] | None, *, wait: bool = True) -> Heard | None:
        """What every rank says, on rank 0; None on others, which do not wait.

        Args:
            topic: the same on all ranks, `name/number`. Asked again about the last topic of a name, nobody is waited
                for; `END` has no number.
            mine: what this rank says, as plain JSON. None: it ceases to take part; its last word is not to stand.
            wait: False: no longer than `HASTE_S`.

        Raises:
            ValueError: it is too much to say.
        """
        if self._world == 1:
            return Heard({0: mine})
        self._last[self.rank] = mine
        try:
            return self._gather(topic, mine, wait=wait) if self._store is not None else self._without_store()
        except RuntimeError:  # the process that has the store has ended
            self._store = None
            return self._without_store()

    def agree(self, topic: str, result: Any) -> Any:
        """What rank 0 has made of what was gathered, on all ranks.

        Raises:
            RuntimeError: rank 0 will not answer; `TimeoutError`: it did not.
        """
        if self._world == 1:
            return result
        key = f"{topic}/result"
        if self.rank == 0:
            if self._store is not None:
                self._store.set(key, json.dumps(result))
            return result
        began = self._clock()

        def is_settled() -> bool:
            if self._check(key) or self._check(f"{END}/0"):
                return True
            return self._clock() - began > self._join_s and not self._check("member/0")

        if self._store is None:
            raise RuntimeError("the process that has the store of the process group has ended")
        if not self._wait_for(is_settled, self._answer_s):
            raise TimeoutError(f"rank 0 did not answer within {self._answer_s:g} s")
        if not self._check(key):
            raise RuntimeError("rank 0 books no steps, or has ended its training")
        return json.loads(self._store.get(key))

    # --- Inside -------------------------------------------------------------------------------------------------------

    def _gather(self, topic: str, mine: Any, *, wait: bool) -> Heard | None:
        is_last = topic == END
        if self.rank != 0:
            self._say(f"last/{self.rank}", mine)
            if is_last:
                self._store.set(f"{END}/{self.rank}", "1")
                self._store = None
            else:
                self._say(f"{topic}/{self.rank}", mine)
            return None
        if is_last:
            self._store.set(f"{END}/0", "1")
        others = range(1, self._world)
        self._wait_for_members(others, wait=wait)
        name = topic.partition("/")[0]
        heard = self._heard.setdefault(name, {})
        asked = {rank for rank in self._joined - self._over if heard.get(rank) != topic}
        late = self._hear(topic, asked, wait=wait)
        heard.update(dict.fromkeys(asked - late, topic))
        if is_last:
            self._store = None
        return self._words(late)

    def _hear(self, topic: str, ranks: Iterable[int], *, wait: bool) -> set[int]:
        """Takes in what those ranks say of it, or said last; returns those that did not come to it in time."""
        silent = set(ranks)

        def are_heard() -> bool:
            keys = [f"{topic}/{rank}" for rank in silent]
            if topic != END and self._check(*keys):
                for rank in list(silent):
                    self._take(rank, f"{topic}/{rank}")
                silent.clear()
            for rank in list(silent):
                if self._check(f"{END}/{rank}"):
                    self._last[rank] = self._read(f"last/{rank}")
                    self._over.add(rank)
                    silent.discard(rank)
                elif topic != END and self._check(f"{topic}/{rank}"):
                    self._take(rank, f"{topic}/{rank}")
                    silent.discard(rank)
            return not silent

        patience_s = self._patience_s if topic == END else self._left_s
        if self._wait_for(are_heard, patience_s if wait else min(patience_s, HASTE_S)):
            self._left_s = self._patience_s
        elif wait:
            self._left_s /= 2
        for rank in silent:
            if self._check(f"last/{rank}"):
                self._last[rank] = self._read(f"last/{rank}")
        return silent

    def _wait_for_members(self, others: Iterable[int], *, wait: bool) -> None:
        def are_there() -> bool:
            self._joined.update(rank for rank in others if rank not in self._joined and self._check(f"member/{rank}"))
            return all(rank in self._joined for rank in others)

        if not are_there() and wait:
            self._wait_for(are_there, self._join_s)
            self._join_s = 0.0

    def _take(self, rank: int, key: str) -> None:
        self._last[rank] = self._read(key)
        self._store.delete_key(key)

    def _words(self, late: Iterable[int]) -> Heard:
        words = {rank: word for rank, word in sorted(self._last.items()) if word is not None}
        late = tuple(sorted(late))
        absent = [rank for rank in range(self._world) if rank not in words and rank not in late]
        return Heard(words, late, tuple(absent))

    def _without_store(self) -> Heard | None:
        return self._words(set(range(1, self._world)) & self._joined - self._over) if self.rank == 0 else None

    def _check(self, *keys: str) -> bool:
        return bool(self._store.check(list(keys)))

    def _say(self, key: str, word: Any) -> None:
        text = base64.b64encode(zlib.compress(json.dumps(word).encode(), 1)).decode()
        if len(text) > MOST_BYTES:
            raise ValueError(f"what rank {self.rank} has to say takes {len(text)} bytes, at most {MOST_BYTES} are sent")
        self._store.set(key, text)

    def _read(self, key: str) -> Any:
        return json.loads(zlib.decompress(base64.b64decode(self._store.get(key))))

    def _wait_for(self, is_done: Callable[[], bool], patience_s: float) -> bool:
        """Asks again and again: `Store.wait` would hold the store against the process group's own questions."""
        until, pause_s = self._clock() + patience_s, POLL_S[0]
        while not is_done():
            left_s = until - self._clock()
            if left_s <= 0:
                return False
            self._sleep(min(pause_s, left_s))
            pause_s = min(2 * pause_s, POLL_S[1])
        return True
