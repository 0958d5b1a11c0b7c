"""Whatever comes in whatever order: every admitted request is answered once, with its own."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from support.fakes import Puppet, PuppetBatcher, SubmittedRequest

from neurona_server.batching.policy import BatchPolicy, Priority
from neurona_server.errors import (
    CancelledError,
    DeadlineExceededError,
    ModelFailedError,
    QueueFullError,
)

requests = st.fixed_dictionaries(
    {
        "do": st.just("ask"),
        "rows": st.integers(1, 30),
        "columns": st.integers(1, 3),
        "priority": st.sampled_from(Priority),
        "poisoned": st.booleans(),
        "expires_in": st.sampled_from([0.5, 2.5, np.inf]),
    }
)
steps = st.one_of(
    requests,
    requests,
    st.fixed_dictionaries({"do": st.just("cancel"), "which": st.integers(0, 30)}),
    st.fixed_dictionaries({"do": st.just("cancel in run"), "which": st.integers(0, 30)}),
    st.fixed_dictionaries({"do": st.sampled_from(["run", "wait"])}),
)


@settings(max_examples=100, deadline=None)
@given(st.lists(steps, max_size=40), st.booleans())
def test_every_request_is_answered_once_with_its_own_rows(plan, padded):
    batcher = PuppetBatcher(BatchPolicy(max_rows=8, max_queue_rows=64))
    if padded:
        batcher.cost_model.measure(lambda rows: 1e-6, (1,))
        batcher.padding.measure(lambda rows: 1.0 if rows in (4, 8) else 9.0, {4: 0.0, 8: 0.0})
    submitted, cancelled, to_cancel = [], set(), []

    def before(inputs):
        while to_cancel:
            cancel(to_cancel.pop())
        if np.isnan(inputs["x"]).any():
            raise RuntimeError("poisoned")

    def cancel(index):
        request = submitted[index % len(submitted)][1]
        if not request.finished:
            cancelled.add(index % len(submitted))
            request.cancel(CancelledError())

    puppet = Puppet(before=before)
    for step in plan:
        match step["do"]:
            case "ask":
                values = [len(submitted) * 100.0 + row for row in range(step["rows"])]
                if step["poisoned"]:
                    values[-1] = np.nan
                deadline = batcher.clock.now + step["expires_in"]
                options = {"columns": step["columns"], "priority": step["priority"]}
                try:
                    submitted.append(
                        (
                            step,
                            SubmittedRequest(batcher, values, deadline=deadline, **options),
                            values,
                        )
                    )
                except QueueFullError:
                    assert batcher.queue.rows + step["rows"] > 64
            case "cancel" if submitted:
                cancel(step["which"])
            case "cancel in run" if submitted:
                to_cancel.append(step["which"])
            case "run":
                batcher.step(puppet)
            case "wait":
                batcher.clock.now += 1
    batcher.close()
    batcher.serve(puppet)
    assert repr(batcher.queue) == "<Queue closed: 0 requests, 0 rows, 0 bytes>"
    for index, (step, one, values) in enumerate(submitted):
        if index in cancelled:
            assert one.answer is CancelledError
        elif one.answer is DeadlineExceededError:
            assert step["expires_in"] < np.inf
        elif one.answer is QueueFullError:
            assert step["priority"] > min(step["priority"] for step, _, _ in submitted)
        elif step["poisoned"]:
            assert one.answer is ModelFailedError
        else:  # equal to running it alone, whichever requests shared its batches
            assert one.answer == [2 * value for value in values]
