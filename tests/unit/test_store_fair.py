"""The writer's lock serves in the order of asking."""

import threading

from controller.store.fair import FairLock
from tests.support.wait import wait_for


def test_one_at_a_time() -> None:
    lock, count, most = FairLock(), [0], [0]

    def work() -> None:
        for _ in range(300):
            with lock:
                count[0] += 1
                most[0] = max(most[0], count[0])
                count[0] -= 1

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert most[0] == 1


def test_who_asked_first_is_served_first_though_the_holder_asks_again() -> None:
    lock, order = FairLock(), []
    threads = []
    with lock:
        for name in ("first", "second"):

            def work(name: str = name) -> None:
                with lock:
                    order.append(name)

            thread = threading.Thread(target=work)
            threads.append(thread)
            thread.start()
            wait_for(lambda: len(lock._waiting) == len(threads))
    with lock:
        order.append("holder")
    for thread in threads:
        thread.join(10)
    assert order == ["first", "second", "holder"]


def test_an_error_inside_gives_it_back() -> None:
    lock = FairLock()
    try:
        with lock:
            raise ValueError("inside")
    except ValueError:
        pass
    with lock:
        assert not lock._waiting
