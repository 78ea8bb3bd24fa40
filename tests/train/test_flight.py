"""One step stays in flight: the device has its next step before the host looks at the last one."""

import jax.numpy as jnp

from pomona.train.flight import Flight


def test_a_step_is_finished_after_the_next_one_was_started():
    seen = []

    def finished(step, unlogged):
        seen.append((step, [int(about["loss"]) for about in unlogged]))
        return step % 2 == 0

    flight = Flight(finished)
    flight.started(1, {"loss": jnp.float32(10)})
    assert seen == []
    flight.started(2, {"loss": jnp.float32(20)})
    assert seen == [(1, [10])]
    flight.started(3, {"loss": jnp.float32(30)})
    assert seen == [(1, [10]), (2, [10, 20])]
    flight.land()
    flight.land()
    assert seen[2:] == [(3, [30])], "what was logged is not logged again, and nothing lands twice"
    flight.started(4, {"loss": jnp.float32(40)})
    flight.land()
    assert seen[3:] == [(4, [30, 40])]
