import threading

from neurona_server.telemetry.statistics import RunCounts, RunStatistics, SizeStatistics


def test_every_thread_counts_and_a_reader_adds_up():
    tally = RunStatistics()
    barrier = threading.Barrier(8)

    def count():
        barrier.wait()
        for _ in range(1000):
            tally.record_run(4, 2, 1.0, 2.0, 3.0)
            tally.record_failure(0.125)

    threads = [threading.Thread(target=count) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    tally.record_run(1, 1, 1.0, 2.0, 3.0)
    read = tally.total()
    assert read.last_run > 0
    n = 8000
    assert read == RunCounts(
        sizes={
            4: SizeStatistics(n, 2 * n, n, 2 * n, 3 * n, 2 * n, 4 * n, 6 * n),
            1: SizeStatistics(1, 1, 1, 2, 3, 1, 2, 3),
        },
        failures=n,
        failure_seconds=n / 8,
        last_run=read.last_run,
    )


def test_nothing_has_happened_yet():
    assert RunStatistics().total() == RunCounts()
