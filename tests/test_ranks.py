"""What ranks tell each other through a store: in one process, with a thread for each."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch.distributed as dist

from flopcallback.training import ranks as module
from flopcallback.training.ranks import END, Ranks

pytestmark = pytest.mark.skipif(not dist.is_available(), reason="torch was built without distributed")

SHORT_S = 0.05
LONG_S = 20.0


class Clock:
    """Time that passes where one waits, and nowhere else."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now

    def sleep(self, seconds):
        self.now += seconds


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture(params=["HashStore", "FileStore", "TCPStore"])
def store(request, tmp_path):
    if request.param == "FileStore":
        return dist.FileStore(str(tmp_path / "store"), 2)
    return dist.HashStore() if request.param == "HashStore" else dist.TCPStore("localhost", 0, 1, is_master=True)


@pytest.fixture
def make(store, monkeypatch):
    """Makes those of a rank, in a world of two unless said otherwise."""
    monkeypatch.setattr(module, "_made", module.Counter())
    monkeypatch.setattr(module, "is_initialized", lambda: True)
    monkeypatch.setattr(module, "default_store", lambda: store)

    def make(rank, world=2, *, first=0, name="", patience_s=LONG_S, join_s=0.0, **options):
        monkeypatch.setattr(dist, "get_rank", lambda: rank)
        monkeypatch.setattr(dist, "get_world_size", lambda: world)
        module._made[name] = first
        return Ranks(name, patience_s=patience_s, join_s=join_s, **options)

    return make


def test_alone_one_hears_itself():
    ranks = Ranks()
    assert not ranks.are_several
    assert ranks.gather("log/1", {"a": 1}).messages == {0: {"a": 1}}
    assert ranks.broadcast_from_rank0("log/1", [3]) == [3]


def test_the_first_rank_hears_all_and_the_others_nothing(make):
    first, second, third = make(0, 3), make(1, 3), make(2, 3)
    assert third.gather("log/1", {"a": 7}) is None
    assert second.gather("log/1", {"a": 5}) is None
    heard = first.gather("log/1", {"a": 2**70})
    assert heard.messages == {0: {"a": 2**70}, 1: {"a": 5}, 2: {"a": 7}}
    assert heard.is_whole


def test_what_comes_while_one_waits_is_heard(make):
    first, second = make(0), make(1)
    with ThreadPoolExecutor() as pool:
        waiting = pool.submit(first.gather, "log/1", {"a": 1})
        second.gather("log/1", {"a": 2})
        assert waiting.result(LONG_S).messages == {0: {"a": 1}, 1: {"a": 2}}


def test_a_rank_that_is_ahead_is_heard_as_of_the_topic(make):
    first, second = make(0), make(1)
    for number in (1, 2, 3):
        second.gather(f"log/{number}", {"a": number})
    heard = [first.gather(f"log/{number}", {"a": 0}) for number in (1, 2, 3)]
    assert [gathered.messages[1] for gathered in heard] == [{"a": 1}, {"a": 2}, {"a": 3}]


def test_the_last_word_of_a_late_rank_stands_whatever_its_topic(make):
    first, second = make(0, patience_s=SHORT_S), make(1)
    second.gather("log/1", {"a": 1})
    first.gather("log/1", {"a": 0})
    second.gather("state/1", {"a": 2})
    heard = first.gather("log/2", {"a": 0})
    assert heard.messages == {0: {"a": 0}, 1: {"a": 2}}
    assert (heard.late, heard.absent) == ((1,), ())


def test_waiting_in_vain_is_bounded_and_starts_anew_with_an_answer_in_time(make, clock):
    first, second = make(0, patience_s=8.0, clock=clock, sleep=clock.sleep), make(1)
    for number in range(20):
        assert first.gather(f"log/{number}", {}).late == (1,)
    assert clock.now == pytest.approx(8 + 4 + 2 + 1 + 1, abs=1e-4)
    second.gather("log/20", {})
    assert first.gather("log/20", {}).is_whole
    assert clock.now == pytest.approx(16, abs=1e-4)
    assert first.gather("log/21", {}).late == (1,)
    assert clock.now == pytest.approx(16 + 8, abs=1e-4)


def test_where_an_error_is_on_its_way_nobody_is_waited_for_long(make, clock):
    first, _ = make(0, patience_s=8.0, clock=clock, sleep=clock.sleep), make(1)
    assert first.gather(END, {}, wait=False).late == (1,)
    assert clock.now == pytest.approx(module.HASTE_S)


def test_a_late_rank_that_never_spoke_has_no_word(make):
    first, _ = make(0, patience_s=SHORT_S), make(1)
    assert first.gather("log/1", {"a": 1}).messages == {0: {"a": 1}}


def test_a_topic_asked_again_is_not_waited_for_again(make):
    first, second = make(0), make(1)
    second.gather("state/5", {"a": 1})
    second.gather("state/5", {"a": 1})
    for _ in range(3):
        heard = first.gather("state/5", {"a": 0})
        assert heard.is_whole
        assert heard.messages[1] == {"a": 1}


def test_a_rank_that_never_began_is_waited_for_once(make, clock):
    first = make(0, join_s=2.0, clock=clock, sleep=clock.sleep)
    for number in (1, 2):
        heard = first.gather(f"log/{number}", {"a": 1})
        assert (heard.messages, heard.late, heard.absent) == ({0: {"a": 1}}, (), (1,))
        assert clock.now == pytest.approx(2.0)


def test_a_rank_that_begins_later_is_heard_from_then_on(make):
    first = make(0)
    assert first.gather("log/1", {}).absent == (1,)
    second = make(1)
    second.gather("log/2", {"a": 2})
    assert first.gather("log/2", {"a": 1}).messages == {0: {"a": 1}, 1: {"a": 2}}


def test_last_words_need_no_number_and_stand_for_good(make):
    first, second = make(0), make(1)
    second.gather("log/1", {"a": 1})
    second.gather(END, {"a": 3})
    heard = first.gather("log/9", {"a": 0})
    assert heard.is_whole
    assert heard.messages[1] == {"a": 3}
    assert first.gather(END, {"a": 4}).messages == {0: {"a": 4}, 1: {"a": 3}}
    assert first.gather("state/9", {"a": 4}).messages == {0: {"a": 4}, 1: {"a": 3}}
    assert second.gather("state/9", {"a": 9}) is None


def test_the_last_words_of_others_are_waited_for_with_all_patience(make):
    first, second = make(0, patience_s=0.4), make(1)
    for number in range(12):
        assert first.gather(f"log/{number}", {}).late == (1,)  # by now it waits for a ten-thousandth of a second
    with ThreadPoolExecutor() as pool:
        waiting = pool.submit(first.gather, END, {})
        second.gather(END, {"a": 1})
        assert waiting.result(LONG_S).messages[1] == {"a": 1}


def test_a_rank_that_ceases_to_take_part_has_no_word(make):
    first, second = make(0), make(1)
    second.gather("log/1", {"a": 1})
    first.gather("log/1", {"a": 1})
    second.gather(END, None)
    heard = first.gather("log/2", {"a": 2})
    assert (heard.messages, heard.absent) == ({0: {"a": 2}}, (1,))


def test_what_the_first_rank_decides_all_have(make):
    first, second = make(0), make(1)
    with ThreadPoolExecutor() as pool:
        waiting = pool.submit(second.broadcast_from_rank0, "budget/1", None)
        assert first.broadcast_from_rank0("budget/1", [True, 0]) == [True, 0]
        assert waiting.result(LONG_S) == [True, 0]


@pytest.mark.parametrize(
    ("is_there", "error"), [(True, TimeoutError), (False, RuntimeError)], ids=["silent", "not there"]
)
def test_a_decision_that_never_comes_is_an_error(make, is_there, error):
    if is_there:
        make(0)
    with pytest.raises(error, match="rank 0"):
        make(1, answer_s=0.2 if is_there else LONG_S).broadcast_from_rank0("budget/1", None)


def test_a_first_rank_that_has_ended_decides_nothing(make):
    first, second = make(0), make(1)
    with ThreadPoolExecutor() as pool:
        waiting = pool.submit(second.broadcast_from_rank0, "budget/1", None)
        first.gather(END, {}, wait=False)
        with pytest.raises(RuntimeError, match="has ended its training"):
            waiting.result(LONG_S)


def test_those_of_one_name_find_each_other_by_their_order(make):
    """A model that one rank alone watches is no other model's match."""
    firsts = [make(0, name="Net", first=0), make(0, name="Probe", first=0), make(0, name="Net", first=1)]
    seconds = [make(1, name="Net", first=0), make(1, name="Net", first=1)]
    for number, each in enumerate(seconds):
        each.gather("log/1", {"a": number})
    heard = [each.gather("log/1", {}) for each in firsts]
    assert [each.messages.get(1) for each in heard] == [{"a": 0}, None, {"a": 1}]


class Counted:
    """A store that counts requests."""

    def __init__(self, store):
        self.requests, self._store = 0, store

    def __getattr__(self, name):
        self.requests += 1
        return getattr(self._store, name)


@pytest.mark.parametrize("store", ["HashStore", "TCPStore"], indirect=True)
def test_the_first_rank_asks_as_often_for_hundreds_as_for_one(make):
    requests = []
    for world in (2, 300):
        ranks = [make(rank, world, name=str(world)) for rank in range(world)]
        first = ranks[0]
        for number in (1, 2):
            for rank in ranks[1:]:
                rank.gather(f"log/{number}", {"a": 2**70})
            first._store = counted = Counted(first._store) if number == 2 else first._store
            heard = first.gather(f"log/{number}", {"a": 1})
            assert sum(message["a"] for message in heard.messages.values()) == 1 + (world - 1) * 2**70
        requests.append(counted.requests)
    assert requests[0] == requests[1] < 12


@pytest.mark.parametrize("store", ["HashStore", "TCPStore"], indirect=True)
def test_of_hundreds_the_late_ones_are_named_and_the_others_heard(make):
    first, *others = (make(rank, 300, patience_s=SHORT_S) for rank in range(300))
    late = (7, 8, 299)
    for number in (1, 2):
        for rank in others:
            if number == 1 or rank.rank not in late:
                rank.gather(f"log/{number}", {"a": number})
        heard = first.gather(f"log/{number}", {"a": number})
    assert heard.late == late
    assert {rank: message["a"] for rank, message in heard.messages.items() if message["a"] == 1} == dict.fromkeys(
        late, 1
    )


@pytest.mark.parametrize("is_late", [False, True], ids=["in time", "late"])
def test_the_store_stays_small(make, store, is_late):
    if not hasattr(store, "num_keys"):
        pytest.skip("it does not tell how many keys it has")
    first, second = make(0, patience_s=SHORT_S / 10), make(1)
    numbers = []
    for number in range(12):
        order = (first, second) if is_late else (second, first)
        for rank in order:
            rank.gather(f"log/{number}", {"a": "long" * 1000 if number % 2 else number})
        numbers.append(store.num_keys())
    assert max(numbers[-6:]) <= max(numbers[:6])


@pytest.mark.parametrize("store", ["TCPStore"], indirect=True)
def test_long_words_are_sent_and_endless_ones_refused(make):
    first, second = make(0), make(1)
    shapes = [[[[64, 3, 224, 224]] * 1024]] * 100
    second.gather("log/1", {"shapes": shapes})
    assert first.gather("log/1", {}).messages[1] == {"shapes": shapes}
    noise = "".join(map(str, range(10**6)))
    with pytest.raises(ValueError, match="at most 4194304 are sent"):
        second.gather("log/2", {"noise": noise * 3})
    second.gather("log/3", {"a": 1})
    assert first.gather("log/3", {}).messages[1] == {"a": 1}


def test_a_store_that_is_gone_is_no_error_and_no_wait(make):
    first, second = make(0), make(1)
    second.gather("log/1", {"a": 1})
    first.gather("log/1", {"a": 0})

    class Gone:
        def __getattr__(self, _):
            raise dist.DistNetworkError("Connection reset by peer")

    first._store = second._store = Gone()
    assert second.gather("log/2", {"a": 2}) is None
    heard = first.gather("log/2", {"a": 3})
    assert (heard.messages, heard.late) == ({0: {"a": 3}, 1: {"a": 1}}, (1,))
    assert first.gather(END, {"a": 4}).messages[0] == {"a": 4}
    with pytest.raises(RuntimeError, match="has ended"):
        second.broadcast_from_rank0("budget/1", None)
