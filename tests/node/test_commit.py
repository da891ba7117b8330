"""Group commit and admission: who waits for whom, and who makes room."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import pytest

from node.admission import Admission, Quota
from node.commit import GroupCommit
from node.statuses import LOCAL_LIMIT_EXCEEDED


def test_one_caller_alone_is_flushed_at_once_and_by_itself() -> None:
    threads = []

    def flush(entries: Sequence[int]) -> list[int]:
        threads.append(threading.get_ident())
        return [n * 2 for n in entries]

    group: GroupCommit[int, int] = GroupCommit(flush)
    assert [group.submit(n) for n in range(3)] == [0, 2, 4]
    assert set(threads) == {threading.get_ident()}


def test_who_comes_during_a_flush_shares_the_next_one() -> None:
    batches: list[list[int]] = []
    first_is_in, go_on = threading.Event(), threading.Event()

    def flush(entries: Sequence[int]) -> list[int]:
        batches.append(list(entries))
        first_is_in.set()
        go_on.wait(5)
        return [n + 100 for n in entries]

    group: GroupCommit[int, int] = GroupCommit(flush, largest=8)
    with ThreadPoolExecutor(20) as pool:
        first = pool.submit(group.submit, 0)
        first_is_in.wait(5)
        others = [pool.submit(group.submit, n) for n in range(1, 20)]
        while len(group._waiting) < 19:
            time.sleep(0.001)
        go_on.set()
        assert [f.result(5) for f in [first, *others]] == [n + 100 for n in range(20)]
    assert [len(b) for b in batches] == [1, 8, 8, 3]
    assert not group._led


def test_what_a_flush_raises_all_of_it_raise_and_the_next_works() -> None:
    fails = [True]

    def flush(entries: Sequence[int]) -> list[int]:
        time.sleep(0.01)
        if fails:
            raise ValueError(len(entries))
        return list(entries)

    group: GroupCommit[int, int] = GroupCommit(flush)
    with ThreadPoolExecutor(8) as pool:
        futures = [pool.submit(group.submit, n) for n in range(8)]
        assert all(isinstance(f.exception(5), ValueError) for f in futures)
    fails.clear()
    assert group.submit(3) == 3


def test_many_threads_get_each_their_own_answer() -> None:
    group: GroupCommit[int, int] = GroupCommit(lambda entries: [n * n for n in entries], largest=5)

    def many(start: int) -> bool:
        return all(group.submit(n) == n * n for n in range(start, start + 200))

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(many, range(0, 8000, 1000)))


class Peer:
    def __init__(self, address: str) -> None:
        self.address = address
        self.was_cut = False

    def cut(self) -> None:
        self.was_cut = True


def test_the_oldest_waiting_connection_of_the_same_peer_makes_room() -> None:
    admission = Admission(Quota(associations=3, associations_per_peer=2, waiting=5, waiting_per_peer=2))
    many = [Peer("10.0.0.1") for _ in range(5)]
    for peer in many:
        admission.enter(peer)
    assert [p.was_cut for p in many] == [True, True, True, False, False]
    others = [Peer(f"10.0.1.{n}") for n in range(4)]
    for peer in others:
        admission.enter(peer)
    assert many[3].was_cut, "the fullest address pays when all are too many"
    assert not any(p.was_cut for p in others)


def test_associations_are_counted_over_all_and_per_peer() -> None:
    admission = Admission(Quota(associations=3, associations_per_peer=2, waiting=9, waiting_per_peer=9))
    peers = [Peer("a"), Peer("a"), Peer("a"), Peer("b"), Peer("c")]
    for peer in peers:
        admission.enter(peer)
    answers = [admission.admit(peer) for peer in peers]
    assert answers == [None, None, LOCAL_LIMIT_EXCEEDED, None, LOCAL_LIMIT_EXCEEDED]
    admission.part(peers[0])
    assert admission.admit(peers[2]) is None
    for peer in peers:
        admission.leave(peer)
        admission.leave(peer)
    assert admission.everyone() == []
    assert not admission._associated_of
    assert not admission._waiting_of
    with pytest.raises(StopIteration):
        next(iter(admission.everyone()))
