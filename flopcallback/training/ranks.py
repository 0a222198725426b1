"""Ranks: messages between the processes of a training, without collectives."""

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

from flopcallback.tracing.records import without_garbage_collection
from flopcallback.tracing.torch_private import default_store
from flopcallback.training.processes import has_died, identity

__all__ = ["END", "Gathered", "Ranks", "are_several", "is_initialized", "rank_of"]

PATIENCE_S = 5.0
"""Wait for a rank that takes part. Ranks that train in step are milliseconds apart."""

JOIN_S = 2.0
"""Wait, once, for a rank that does not take part yet: it may never do so."""

HASTE_S = 1.0
"""Longest wait for any rank while an error is being raised."""

ANSWER_S = 300.0
"""Wait of the other ranks for a decision of rank 0, which a slow tracker may keep busy. As long as for a collective.

A rank on the machine of rank 0 sees that it has died, and tells the others: then nobody waits.
"""

POLL_S = (0.001, 0.05)
"""Initial and maximum polling interval."""

DOUBT_S = 1.0
"""Wait for rank 0 after which it may have died."""

MOST_BYTES = 4 << 20
"""Largest message. Beyond 8 MiB a `TCPStore` closes the connection (torch 2.13), and the process group fails."""

SHORT_BYTES = 2048
"""Longest message that is sent as it is; compression of such takes longer than it saves."""

COMPRESSED = "z"
"""Beginning of a compressed message; no JSON begins so."""

BUNDLE = 512
"""Ranks whose short messages on a topic share a key: 1 MB at most, and one request for rank 0."""

END = "end"
"""Topic of the final message of a rank; it sends nothing after that."""

DIED = "died"
"""Key that is set once rank 0 is known to have died."""

COUNT, HEARD = "count", "heard"
"""Keys beside those of the ranks: how many have set one, and the number of the last topic that rank 0 has gathered."""

# Number of `Ranks` made so far, by name. It numbers them alike in every process.
_made: Counter[str] = Counter()


def is_initialized() -> bool:
    """Return whether there is a process group."""
    return torch.distributed.is_available() and torch.distributed.is_initialized()


def rank_of() -> int:
    """Return the rank of this process.

    Before there is a process group, it is read from `torchrun`'s environment.
    """
    if is_initialized():
        return torch.distributed.get_rank()
    rank = os.environ.get("RANK", "")
    return int(rank) if rank.isdecimal() else 0


def are_several() -> bool:
    """Return whether the training has several processes.

    Before there is a process group, this is read from `torchrun`'s environment.
    """
    if is_initialized():
        return torch.distributed.get_world_size() > 1
    return os.environ.get("WORLD_SIZE", "1") not in ("", "1")


@dataclass(frozen=True, slots=True)
class Gathered:
    """Messages of the ranks on one topic.

    Attributes:
        messages: message by rank, in ascending order; for a late rank its last message on any topic, if it sent one.
        late: ranks that take part and did not answer in time.
        absent: ranks that do not take part, or no longer do.
    """

    messages: dict[int, Any] = field(default_factory=dict)
    late: tuple[int, ...] = ()
    absent: tuple[int, ...] = ()

    @property
    def is_whole(self) -> bool:
        """True if every rank answered."""
        return not (self.late or self.absent)

    @property
    def missing(self) -> str:
        """Reason why the messages are incomplete, as a text for the user."""
        late, absent = (", ".join(map(str, ranks)) for ranks in (self.late, self.absent))
        parts = [
            f"rank {late} did not answer in time; its previous message is used" if late else "",
            f"rank {absent} books no steps (every rank is to have a FlopHook or FlopCallback of its own)"
            if absent
            else "",
        ]
        return "; ".join(filter(None, parts))


class Ranks:
    """Message exchange between ranks through the store of the process group.

    Rank 0 gathers small JSON values of all ranks and broadcasts its decisions.

    A collective has to be called by all ranks, in one order with the model's own; one missing rank would hang the
    training. Here rank 0 waits `patience_s` for a rank, then half as long after each timeout, until the rank answers in
    time again. Meanwhile its last message is used. Once the store is gone, rank 0 waits no more.

    Every process has to create equally many instances of a name, in the same order: name and number identify them
    across processes. An instance that is created without a process group has one rank.

    Args:
        name: purpose of the messages, such as the class of the model.
        patience_s: wait for a rank that takes part.
        join_s: wait, once, for a rank that does not take part yet.
        answer_s: wait of the other ranks for a decision of rank 0.
        clock: returns seconds.
        sleep: waits for that many seconds.

    Attributes:
        rank: rank of this process.
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
        # None: there is one rank, the group has no store, the store is gone, or this rank has sent its final message.
        self._store: Any = None
        self._patience_s = patience_s
        self._present_patience_s = patience_s  # halved by each timeout, reset by an answer in time
        self._join_s = join_s  # 0 once it was waited for
        self._answer_s = answer_s
        self._clock, self._sleep = clock, sleep
        self._bundle = 1  # ranks that share a key
        # The rest matters on rank 0 alone.
        self._last_messages: dict[int, Any] = {}  # by rank, on any topic; None: the rank no longer takes part
        self._answered_topics: dict[str, dict[int, str]] = {}  # last topic that a rank answered, by name and rank
        self._joined: set[int] = set()  # other ranks that were seen to take part; none ever leaves the set
        self._ended: set[int] = set()  # ranks that sent their final message
        self._unread: dict[str, dict[str, set[int]]] = {}  # by name, the topic that late ranks may still answer
        if is_initialized() and torch.distributed.get_world_size() > 1:
            self.rank, self._world = torch.distributed.get_rank(), torch.distributed.get_world_size()
            c10d: Any = torch.distributed.distributed_c10d
            store = default_store()
            if store is not None:  # an MPI group has none
                self._store = c10d.PrefixStore(f"flopcallback/{name}/{number}", store)
                self._bundle = BUNDLE if store.has_extended_api() else 1
                self._store.set(f"member/{self.rank}", json.dumps(identity()))
                if self.rank:
                    self._store.add(f"member/{COUNT}", 1)

    @property
    def are_several(self) -> bool:
        """True if there are other ranks."""
        return self._world > 1

    def gather(self, topic: str, message: Mapping[str, Any] | None, *, wait: bool = True) -> Gathered | None:
        """Gather one message of every rank on rank 0.

        Rank 0 waits for the others; they do not wait.

        Args:
            topic: `name/number`, the same on all ranks; `END` has no number. A rank that has answered the latest topic
                of a name is not waited for again.
            message: message of this rank, as plain JSON. None: the rank no longer takes part, and its last message must
                not be used.
            wait: False limits the wait to `HASTE_S`.

        Returns:
            The messages on rank 0, None on the others.

        Raises:
            ValueError: the message is longer than `MOST_BYTES`.
        """
        if self._world == 1:
            return Gathered({0: message})
        self._last_messages[self.rank] = message
        try:
            if self._store is not None:
                return self._gather(topic, message, wait=wait)
        except RuntimeError:  # the process that serves the store has ended
            self._store = None
        return self._gathered_without_store()

    def broadcast_from_rank0(self, topic: str, result: Any) -> Any:
        """Return the result of rank 0 on every rank.

        Args:
            topic: the same on all ranks.
            result: result of rank 0, as plain JSON; ignored on other ranks.

        Raises:
            RuntimeError: rank 0 does not take part, has ended or died, or the store is gone.
            TimeoutError: rank 0 did not answer within `answer_s`.
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
            waited_s = self._clock() - began
            if waited_s > self._join_s and not self._check("member/0"):
                return True
            return waited_s > DOUBT_S and self._is_rank0_dead()

        if self._store is None:
            raise RuntimeError("the process that serves the store of the process group has ended")
        if not self._wait_for(is_settled, self._answer_s):
            raise TimeoutError(f"rank 0 did not answer within {self._answer_s:g} s")
        if not self._check(key):
            why = "has died" if self._check(DIED) else "books no steps, or has ended its training"
            raise RuntimeError(f"rank 0 {why}")
        return json.loads(self._store.get(key))

    # --- Internals ----------------------------------------------------------------------------------------------------

    def _is_rank0_dead(self) -> bool:
        """Return whether rank 0 has died, as far as this rank or another one knows; tell the others."""
        if self._check(DIED):
            return True
        if not (self._check("member/0") and has_died(json.loads(self._store.get("member/0")))):
            return False
        self._store.set(DIED, "1")
        return True

    def _gather(self, topic: str, message: Any, *, wait: bool) -> Gathered | None:
        name, _, number = topic.partition("/")
        if self.rank != 0:
            self._answer(topic, message)
            if topic == END:
                self._store = None
            return None
        if topic == END:
            self._store.set(f"{END}/0", "1")
        self._wait_for_members(wait=wait)
        answered = self._answered_topics.setdefault(name, {})
        asked = {rank for rank in self._joined - self._ended if answered.get(rank) != topic}
        late = self._receive(topic, asked, wait=wait)
        answered.update(dict.fromkeys(asked - late, topic))
        if topic == END:
            self._store = None
        else:
            self._store.set(f"{name}/{HEARD}", number)
            self._delete_read(name, topic, late)
        return self._gathered(late)

    def _answer(self, topic: str, message: Any) -> None:
        """Send the message of a rank other than 0: first the message, then what tells rank 0 to look for it."""
        text = self._text_of(message)
        self._store.set(f"last/{self.rank}", text)
        if topic == END:
            self._store.set(f"{END}/{self.rank}", "1")
        elif self._is_heard(topic):  # rank 0 has gone on without it
            return
        elif text[0] == COMPRESSED:
            self._store.set(f"{topic}/of/{self.rank}", text)
            self._put(topic, f"[{self.rank}],")
        else:
            self._put(topic, f"[{self.rank},{text}],")
        self._store.add(f"{topic}/{COUNT}", 1)

    def _is_heard(self, topic: str) -> bool:
        name, _, number = topic.partition("/")
        key = f"{name}/{HEARD}"
        return self._check(key) and int(self._store.get(key)) > int(number)

    def _put(self, topic: str, text: str) -> None:
        """Add a message to those of some ranks: so rank 0 reads many by one request."""
        key = f"{topic}/{self.rank // self._bundle}"
        (self._store.append if self._bundle > 1 else self._store.set)(key, text)

    def _delete_read(self, name: str, topic: str, late: set[int]) -> None:
        """Delete messages that nobody will read again, to keep the store small.

        Those of a topic that late ranks may still answer stay until the next topic of its name.
        """
        unread = self._unread.pop(name, {})
        if late:
            self._unread[name] = {topic: late}
            unread.pop(topic, None)
        else:
            unread.setdefault(topic, late)
        for each, ranks in unread.items():
            bundles = self._bundles(each, range(1, self._world))
            for key in (f"{each}/{COUNT}", *bundles, *(f"{each}/of/{rank}" for rank in ranks)):
                self._store.delete_key(key)

    def _receive(self, topic: str, ranks: Iterable[int], *, wait: bool) -> set[int]:
        """Read the messages of `ranks`; return the late ranks.

        Of a late rank its last message on any topic is read.
        """
        silent = set(ranks)

        def have_answered() -> bool:
            # Usually two numbers tell that some have not answered. An answer may be counted twice, and never too late.
            if self._count(topic) + self._count(END) - len(self._ended) >= len(silent):
                silent.difference_update(self._take(topic, silent))
            return not silent

        patience_s = self._patience_s if topic == END else self._present_patience_s
        is_whole = self._wait_for(have_answered, patience_s if wait else min(patience_s, HASTE_S))
        if is_whole:
            self._present_patience_s = self._patience_s
        else:
            silent.difference_update(self._take(topic, silent))
            if wait:
                self._present_patience_s /= 2
        self._read_last(self._which("last", silent))
        return silent

    def _take(self, topic: str, ranks: set[int]) -> set[int]:
        """Read the messages of those among `ranks` that have answered or ended; return these."""
        answered = set() if topic == END else self._read_bundles(topic, ranks)
        ended: set[int] = set()
        if ranks != answered and self._count(END) > len(self._ended):
            ended = self._which(END, ranks - answered)
            self._read_last(ended)
            self._ended |= ended
        return answered | ended

    def _bundles(self, topic: str, ranks: Iterable[int]) -> list[str]:
        """Return the keys that hold the messages of `ranks`."""
        return [f"{topic}/{number}" for number in sorted({rank // self._bundle for rank in ranks})]

    def _read_bundles(self, topic: str, ranks: set[int]) -> set[int]:
        """Read the messages of those among `ranks` that have answered; return these."""
        keys = self._bundles(topic, ranks)
        if not self._check(*keys):
            keys = [key for key in keys if self._check(key)]
        # One document: each call of the parser takes longer than a short message.
        with without_garbage_collection():
            rows = json.loads(b"[%s[]]" % b"".join(self._store.multi_get(keys))) if keys else []
        messages = {row[0]: row[1:] for row in rows if row and row[0] in ranks}
        for rank, message in messages.items():
            if message:
                (self._last_messages[rank],) = message
            else:
                self._last_messages[rank] = self._read(f"{topic}/of/{rank}")
                self._store.delete_key(f"{topic}/of/{rank}")
        return set(messages)

    def _wait_for_members(self, *, wait: bool) -> None:
        """Wait, the first time only, for ranks that are not there yet."""

        def have_joined() -> bool:
            missing = set(range(1, self._world)) - self._joined
            if self._count("member") > len(self._joined):
                self._joined |= self._which("member", missing)
            return len(self._joined) == self._world - 1

        if len(self._joined) < self._world - 1 and not have_joined() and wait:
            self._wait_for(have_joined, self._join_s)
            self._join_s = 0.0

    def _which(self, name: str, ranks: Iterable[int]) -> set[int]:
        """Return those of `ranks` that have set `name/rank`: all in one request, else by halves."""
        ranks = sorted(ranks)
        if not ranks:
            return set()
        if self._check(*(f"{name}/{rank}" for rank in ranks)):
            return set(ranks)
        half = len(ranks) // 2
        return self._which(name, ranks[:half]) | self._which(name, ranks[half:]) if half else set()

    def _count(self, name: str) -> int:
        """Return how often ranks other than 0 have set `name/rank`."""
        return int(self._store.add(f"{name}/{COUNT}", 0))

    def _read_last(self, ranks: Iterable[int]) -> None:
        self._last_messages.update({rank: self._read(f"last/{rank}") for rank in ranks})

    def _gathered(self, late: Iterable[int]) -> Gathered:
        messages = {rank: message for rank, message in sorted(self._last_messages.items()) if message is not None}
        late = tuple(sorted(late))
        absent = [rank for rank in range(self._world) if rank not in messages and rank not in late]
        return Gathered(messages, late, tuple(absent))

    def _gathered_without_store(self) -> Gathered | None:
        """Return the last messages, on rank 0; all other ranks that took part are late."""
        return self._gathered(set(range(1, self._world)) & self._joined - self._ended) if self.rank == 0 else None

    def _check(self, *keys: str) -> bool:
        return bool(self._store.check(list(keys)))

    def _text_of(self, message: Any) -> str:
        text = json.dumps(message, separators=(",", ":"))
        if len(text) > SHORT_BYTES:
            text = COMPRESSED + base64.b64encode(zlib.compress(text.encode(), 1)).decode()
        if len(text) > MOST_BYTES:
            raise ValueError(f"a message of rank {self.rank} has {len(text)} bytes, at most {MOST_BYTES} are sent")
        return text

    def _read(self, key: str) -> Any:
        text = self._store.get(key).decode()
        return json.loads(zlib.decompress(base64.b64decode(text[1:])) if text[0] == COMPRESSED else text)

    def _wait_for(self, is_done: Callable[[], bool], patience_s: float) -> bool:
        """Poll `is_done` until it returns True; return False after `patience_s`.

        `Store.wait` would block the store for the process group's own requests.
        """
        until, pause_s = self._clock() + patience_s, POLL_S[0]
        while not is_done():
            left_s = until - self._clock()
            if left_s <= 0:
                return False
            self._sleep(min(pause_s, left_s))
            pause_s = min(2 * pause_s, POLL_S[1])
        return True
