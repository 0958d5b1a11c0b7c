"""RunStatistics across threads."""

import threading

from neurona_server.telemetry.run_statistics import RunCounts, RunStatistics, SizeStatistics


def test_each_thread_counts_and_a_reader_adds_up():
    statistics = RunStatistics()
    barrier = threading.Barrier(8)

    def count():
        barrier.wait()
        for _ in range(1000):
            statistics.record_run(4, 2, 1.0, 2.0, 3.0)
            statistics.record_failure("failed", 0.125)

    threads = [threading.Thread(target=count) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    statistics.record_run(1, 1, 1.0, 2.0, 3.0)
    total = statistics.total()
    assert total.last_run > 0
    n = 8000
    assert total == RunCounts(
        sizes={
            4: SizeStatistics(n, 2 * n, n, 2 * n, 3 * n, 2 * n, 4 * n, 6 * n),
            1: SizeStatistics(1, 1, 1, 2, 3, 1, 2, 3),
        },
        failures=n,
        failure_seconds=n / 8,
        failures_by_outcome={"failed": n},
        last_run=total.last_run,
    )


def test_without_runs_all_counts_are_zero():
    assert RunStatistics().total() == RunCounts()
