"""The scheduler under random traffic: no slot is lost, nobody starves, and those who wait are served alike."""

import dataclasses

from hypothesis import given, settings
from hypothesis import strategies as st

from pomona.serve import schedule
from pomona.serve.schedule import PROMPT_WEIGHT, SAID_WEIGHT, Scheduler


@dataclasses.dataclass
class Ask:
    id: int
    principal: str = ""
    priority: int = 0


def fill(s, log=None):
    """Lets in whoever can be, as an engine does."""
    while s.next() is not None:
        free = [slot for slot in range(s.slots) if slot not in s.running]
        if not free:
            victim = s.victim()
            if victim is None:
                return
            s.preempt(victim)
            free = [victim]
        request = s.admit(free[0])
        if log is not None:
            log.append(request)


ACTIONS = st.lists(
    st.one_of(
        st.tuples(st.just("submit"), st.sampled_from("abcd"), st.integers(-1, 2)),
        st.tuples(st.just("end"), st.integers(0, 5), st.integers(1, 50)),
        st.tuples(st.just("cancel"), st.integers(0, 60), st.just(0)),
    ),
    max_size=80,
)


@settings(max_examples=300, deadline=None)
@given(ACTIONS, st.integers(1, 4), st.integers(1, 12))
def test_every_request_is_in_one_place_until_it_ends(actions, slots, most_waiting):
    s, alive, number = Scheduler(slots, most_waiting), {}, 0
    for kind, one, two in actions:
        if kind == "submit":
            request = Ask(number, one, two)
            taken = s.submit(request)
            assert taken == (len(alive) - len(s.running) < most_waiting)
            if taken:
                alive[number] = request
            number += 1
        elif kind == "end" and s.running:
            slot = list(s.running)[one % len(s.running)]
            request = s.running[slot]
            s.charge(request.principal, prompt=two, said=two)
            s.release(slot)
            del alive[request.id]
        elif kind == "cancel":
            slot = s.cancel(one)
            assert slot is None or slot not in s.running
            alive.pop(one, None)
        fill(s)
        running = [request.id for request in s.running.values()]
        waiting = [request.id for queue in s._waiting.values() for request in queue]
        assert sorted(running + waiting) == sorted(alive)
        assert s.waiting == len(waiting)
        assert len(running) == min(slots, len(alive)), "no slot is free while somebody waits"
        if waiting:
            highest = max(alive[id].priority for id in waiting)
            assert highest <= min(alive[id].priority for id in running), "nobody waits behind a lower priority"
        for queue in s._waiting.values():
            assert queue, "an empty queue is forgotten"
    for _ in range(len(alive)):
        slot = next(iter(s.running))
        s.release(slot)
        fill(s)
    assert not s.running and not s.waiting, "everyone has had a turn"


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 60), st.integers(1, 60)), min_size=2, max_size=4), st.integers(1, 4))
def test_who_always_waits_is_served_alike_whatever_the_sizes_of_the_requests(sizes, slots):
    """The bound of the paper (theorem 4.4): the difference is at most twice what the larger of a request and a batch
    counts."""
    s, number = Scheduler(slots, 10_000), 0
    for _ in range(40):
        for who in range(len(sizes)):
            s.submit(Ask(number, str(who)))
            number += 1
    served = dict.fromkeys(map(str, range(len(sizes))), 0.0)
    largest = max(PROMPT_WEIGHT * prompt + SAID_WEIGHT * said for prompt, said in sizes)
    work = {}
    while s.waiting > 3 * slots:
        admitted = []
        fill(s, admitted)
        for request in admitted:
            prompt, said = sizes[int(request.principal)]
            s.charge(request.principal, prompt=prompt)
            served[request.principal] += PROMPT_WEIGHT * prompt
            work[request.id] = said
        for slot, request in list(s.running.items()):
            s.charge(request.principal, said=1)
            served[request.principal] += SAID_WEIGHT
            work[request.id] -= 1
            if not work[request.id]:
                s.release(slot)
        waiting = [key[1] for key in s._waiting]
        if len(waiting) == len(sizes):
            each = [served[who] for who in waiting]
            assert max(each) - min(each) <= 2 * largest * slots
        else:
            break


def test_first_come_first_served_of_one_principal():
    s, log = Scheduler(1, 100), []
    for number in range(10):
        s.submit(Ask(number))
    for _ in range(10):
        fill(s, log)
        s.charge("", said=5)
        s.release(0)
    assert [request.id for request in log] == list(range(10))


def test_who_comes_late_neither_catches_up_nor_waits_for_others_to_end():
    s, log = Scheduler(1, 100), []
    for number in range(10):
        s.submit(Ask(number, "early"))
    for _ in range(5):
        fill(s, log)
        s.charge("early", said=10)
        s.release(0)
    for number in range(10, 16):
        s.submit(Ask(number, "late"))
    for _ in range(8):
        fill(s, log)
        s.charge(log[-1].principal, said=10)
        s.release(0)
    turns = [request.principal for request in log[5:]]
    assert abs(turns.count("early") - turns.count("late")) <= 1, turns
    assert turns != sorted(turns) and turns != sorted(turns, reverse=True)


def test_one_request_after_another_does_not_wipe_out_what_was_served():
    """Whoever asks for one at a time has no work waiting in between, and still has been served."""
    s, log = Scheduler(1, 100), []
    for number in range(10):
        s.submit(Ask(number, "many"))
    fill(s, log)
    for number in range(100, 105):  # each time all that "one" has asked for is done, and it asks again
        s.submit(Ask(number, "one"))
        s.charge(log[-1].principal, said=10)
        s.release(0)
        fill(s, log)
        s.charge(log[-1].principal, said=100 if log[-1].principal == "one" else 10)
        s.release(0)
        fill(s, log)
    turns = [request.principal for request in log]
    assert turns.count("one") == 1 and turns.count("many") >= 9, "it has had its share of a hundred tokens at once"


def test_preempted_is_first_of_its_own_again():
    s, log = Scheduler(1, 100), []
    for number in range(3):
        s.submit(Ask(number, "low"))
    fill(s, log)
    s.submit(Ask(9, "high", 1))
    fill(s, log)
    assert [request.id for request in s.running.values()] == [9]
    s.release(0)
    fill(s, log)
    assert [request.id for request in log] == [0, 9, 0]


def test_the_memory_of_principals_is_bounded(monkeypatch):
    monkeypatch.setattr(schedule, "REMEMBERED", 10)
    s = Scheduler(1, 100)
    for number in range(100):
        s.submit(Ask(number, f"p{number}"))
        fill(s)
        s.charge(f"p{number}", said=1000 if number == 3 else 1)
        s.release(0)
    assert len(s.served) <= 11 and "p3" in s.served, "the one that took most is remembered longest"
