"""A lock that a forked process finds free."""

import threading

from embstore._engine.io.threadlock import ThreadLock

from tests._helpers.crash import run_in_child


def test_one_thread_at_a_time():
    lock, inside, most = ThreadLock(), [], []

    def work():
        for _ in range(200):
            with lock():
                inside.append(1)
                most.append(len(inside))
                inside.pop()

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert max(most) == 1


def test_a_forked_process_has_one_of_its_own():
    lock = ThreadLock()
    with lock():

        def work():
            assert lock().acquire(timeout=60)
            lock().release()

        assert run_in_child(work) == 0
        assert lock().locked()
    assert not lock().locked()
