"""Attacks that are interrupted keep what they have found, and what they have paid for."""

import numpy as np
import pytest

from tests.unit.attack_toys import KEY, MINIMISING, RISE, TOY, Victim, inputs, run
from zojax import attacks, blackbox
from zojax.attacks import AttackInterrupted


def raise_error():
    raise ConnectionError("service away")


def raise_interrupt():
    raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("spoil", "cause"),
    [(raise_error, blackbox.OracleError), (raise_interrupt, KeyboardInterrupt)],
)
def test_an_interruption_keeps_what_was_found(spoil, cause):
    # The call for the inputs, then two per step: the third step fails.
    victim = Victim(script=[None] * 5 + [spoil])
    with pytest.raises(AttackInterrupted, match="1 of 4 samples without") as caught:
        run([1, 2, 0, 9], victim=victim)
    assert isinstance(caught.value.__cause__, cause)
    results = caught.value.results
    np.testing.assert_array_equal(results.status, ["success", "success", "already", "interrupted"])
    np.testing.assert_array_equal(results.finished, [True, True, True, False])
    np.testing.assert_array_equal(results.queries_to_success, [3, 5, -1, -1])
    np.testing.assert_array_equal(results.queries, [3, 5, 1, 6])
    assert results.queries.sum() == len(victim.rows)


def test_an_interruption_keeps_what_is_still_being_improved():
    victim = Victim(script=[None] * 7 + [raise_error])
    with pytest.raises(AttackInterrupted) as caught:
        run([2, 9], attack=MINIMISING, victim=victim)
    results = caught.value.results
    np.testing.assert_array_equal(results.status, ["success", "interrupted"])
    assert not results.finished.any()
    np.testing.assert_allclose(results.linf, [2 * RISE, np.nan])
    np.testing.assert_array_equal(results.adversarial, inputs([0, 9]) + [[0, 2 * RISE], [0, 0]])


def test_what_a_failing_step_was_answered_before_is_kept():
    # Both inputs, then the losses of both, one by one.
    victim = Victim(script=[None] * 3 + [raise_error])
    with pytest.raises(AttackInterrupted, match="1 of 2 samples without") as caught:
        run([1, 9], victim=victim, batch_size=1)
    np.testing.assert_array_equal(caught.value.results.status, ["success", "interrupted"])
    np.testing.assert_array_equal(caught.value.results.queries, [2, 2])


def test_anything_that_raises_on_the_way_leaves_the_results():
    def broken_pipe(finished, rows):
        raise BrokenPipeError("terminal gone")

    with pytest.raises(AttackInterrupted, match="terminal gone") as caught:
        run([1, 9], driver={"progress": broken_pipe})
    assert caught.value.results.status.tolist() == ["success", "interrupted"]


def test_classes_that_do_not_exist_are_found_out_with_the_first_answers():
    for wrong in ({"labels": [0, 2]}, {"labels": [0, 0], "targets": [1, 2]}):
        oracle = blackbox.score_oracle(Victim())
        name = "targets" if "targets" in wrong else "labels"
        with pytest.raises(ValueError, match=f"{name} must be below 2"):
            attacks.run(TOY, oracle, inputs([1, 2]), wrong.pop("labels"), KEY, **wrong)
        assert oracle.counts.total.tolist() == [1, 1]


def test_batches_of_samples_change_no_result():
    together, apart = run([1, 2, 0, 9, 3]), run([1, 2, 0, 9, 3], driver={"batch_size": 2})
    for a, b in zip(together, apart, strict=True):
        np.testing.assert_array_equal(a, b)


def test_an_interruption_of_the_first_call_has_results_too():
    with pytest.raises(AttackInterrupted, match="service away") as caught:
        run([1, 2], victim=Victim(script=[raise_error]))
    np.testing.assert_array_equal(caught.value.results.status, ["interrupted"] * 2)
    np.testing.assert_array_equal(caught.value.results.queries, [1, 1])
