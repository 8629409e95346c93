"""The attack driver: exact counts, budgets, early leavers, failures, and nothing lost."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.unit.attack_toys import (
    BY_LABEL,
    KEY,
    MINIMISING,
    NUM_STEPS,
    RISE,
    TOY,
    Victim,
    inputs,
    run,
    toy,
)
from zojax import attacks, blackbox
from zojax.attacks import Ask, Attack, Goal


def test_every_query_is_counted_where_it_belongs():
    results = run([3, 1, 15, 0])
    np.testing.assert_array_equal(results.status, ["success", "success", "failed", "already"])
    np.testing.assert_array_equal(results.loss_queries, [3, 1, NUM_STEPS, 0])
    np.testing.assert_array_equal(results.check_queries, [4, 2, NUM_STEPS + 1, 1])
    np.testing.assert_array_equal(results.queries_to_success, [7, 3, -1, -1])
    np.testing.assert_array_equal(results.success, [True, True, False, False])
    expected = inputs([3, 1, 15, 0])
    expected[:2] += np.asarray([[3], [1]]) * RISE
    np.testing.assert_array_equal(results.adversarial, expected)
    np.testing.assert_allclose(results.linf, [3 * RISE, RISE, np.nan, 0])
    np.testing.assert_allclose(results.l2, np.sqrt(2) * results.linf, rtol=1e-6)


@pytest.mark.parametrize("pays_off", [0, 20_000])
def test_samples_leave_and_the_others_do_not_notice(pays_off, monkeypatch):
    monkeypatch.setattr("zojax.attacks.pursuit._PAYS_OFF", pays_off)
    steps = np.random.default_rng(0).integers(1, NUM_STEPS + 1, 70)
    together = run(steps)
    np.testing.assert_array_equal(together.loss_queries, steps)
    np.testing.assert_array_equal(together.queries_to_success, 1 + 2 * steps)
    np.testing.assert_allclose(together.linf, steps * RISE)
    alone = run(steps[:1])
    for all_of_them, one in zip(together, alone, strict=True):
        np.testing.assert_array_equal(all_of_them[..., :1] if one.ndim == 1 else one, one)


def test_an_empty_batch_asks_nothing():
    results = run([])
    assert results.adversarial.shape == (0, 2)
    assert results.status.shape == results.l2.shape == (0,)


@pytest.mark.parametrize("budget", [1, 2, 3, 6, 7])
def test_a_step_that_the_budget_does_not_cover_is_not_started(budget):
    results = run([3, 9, 0], budget=budget)
    spent = 1 + 2 * ((budget - 1) // 2)  # the check of the input, then pairs
    first = "success" if spent >= 7 else "budget"
    np.testing.assert_array_equal(results.status, [first, "budget", "already"])
    np.testing.assert_array_equal(results.queries, [spent, spent, 1])


def test_an_oracle_that_has_been_asked_before_leaves_less():
    oracle = blackbox.score_oracle(Victim(), budget=4)
    oracle.scores(inputs([3, 3, 3]), [0, 0, 0])
    oracle.scores(inputs([3]), [0])
    results = attacks.run(TOY, oracle, inputs([3, 3]), [0, 0], KEY)
    np.testing.assert_array_equal(results.status, ["budget", "budget"])
    np.testing.assert_array_equal(results.queries, [0, 3])


def test_targets_make_the_attack_targeted():
    results = run([3, 3], labels=[0, 0], driver={"targets": [1, 0]})
    np.testing.assert_array_equal(results.status, ["success", "already"])
    np.testing.assert_array_equal(results.queries, [7, 1])


def test_attacks_that_need_labels_take_either_oracle():
    for kind in ("labels", "scores"):
        results = run([2, 5], attack=BY_LABEL, victim=Victim(kind))
        np.testing.assert_array_equal(results.queries_to_success, [5, 11])
    with pytest.raises(ValueError, match="toy needs scores"):
        run([2], victim=Victim("labels"))


def test_attacks_that_minimise_go_on_and_note_distortions_on_the_way():
    oracle = blackbox.score_oracle(Victim(), budget=17)
    milestones = (4, 5, 10, 100)
    results = attacks.run(
        MINIMISING, oracle, inputs([2, 5, 15, 0]), [0] * 4, KEY, milestones=milestones
    )
    np.testing.assert_array_equal(results.status, ["success", "success", "budget", "already"])
    np.testing.assert_array_equal(results.queries, [17, 17, 17, 1])
    np.testing.assert_array_equal(results.queries_to_success, [5, 11, -1, -1])
    near, far, none = 2 * RISE, 5 * RISE, np.nan
    expected = [[none, none, none, 0], [near, none, none, 0], [near, none, none, 0]]
    np.testing.assert_allclose(results.linf_at, [*expected, [near, far, none, 0]])
    np.testing.assert_allclose(results.l2_at, np.sqrt(2) * results.linf_at, rtol=1e-6)


def test_steps_can_be_bounded_and_watched():
    seen = []
    oracle = blackbox.score_oracle(Victim())
    results = attacks.run(
        TOY,
        oracle,
        inputs([1, 9]),
        [0, 0],
        KEY,
        max_steps=3,
        progress=lambda *numbers: seen.append(numbers),
    )
    np.testing.assert_array_equal(results.status, ["success", "failed"])
    np.testing.assert_array_equal(results.queries, [3, 7])
    assert seen[:3] == [(1, 6), (1, 8), (1, 10)] and seen[-1] == (2, 10)


def test_steps_that_ask_nothing_cost_nothing():
    results = run([5, 7], attack=toy(num_unused=4))
    np.testing.assert_array_equal(results.queries, [3, 7])


IMAGE = (4, 4, 1)
ALL = {
    "sign_hunter": attacks.sign_hunter(0.05),
    "square": attacks.square(0.05),
    "simba": attacks.simba(0.2),
    "nes": attacks.nes(0.05),
    "zo_sign_sgd": attacks.zo_sign_sgd(0.05),
    "zo_adamm": attacks.zo_adamm(0.05),
    "zoo_adam": attacks.zoo_adam(),
    "zoo_newton": attacks.zoo_newton(),
    "latent": attacks.nes(0.05, latent=attacks.upsampled((2, 2))),
    "hop_skip_jump": attacks.hop_skip_jump(),
    "sign_opt": attacks.sign_opt(),
}


@pytest.mark.parametrize("name", ALL)
def test_a_step_keeps_the_types_of_the_state(name):
    """Else it is compiled twice."""
    attack, struct = ALL[name], jax.ShapeDtypeStruct
    goal = Goal(struct((), jnp.int32), struct((), bool))
    state = jax.eval_shape(attack.init, struct((4, 4, 1), jnp.float32), goal, KEY)
    count = jax.eval_shape(attack.ask, state).used.shape[0]
    scores, labels = struct((count, 3), jnp.float32), struct((count,), jnp.int32)
    after = jax.eval_shape(attack.tell, state, scores if attack.answers == "scores" else labels)
    for before, now in zip(jax.tree.leaves(state), jax.tree.leaves(after), strict=True):
        assert (before.dtype, before.weak_type) == (now.dtype, now.weak_type)


class Linear:
    """Three classes of small images; notes the rows it receives."""

    weights = np.random.default_rng(0).normal(size=(16, 3)).astype(np.float32)

    def __init__(self):
        self.rows = []

    def __call__(self, batch):
        self.rows.extend(batch.copy())
        return (batch.reshape(len(batch), 16) - 0.5) @ self.weights


@pytest.mark.parametrize("name", ALL)
def test_the_counts_of_every_attack_are_the_rows_the_model_received(name):
    x = np.random.default_rng(1).uniform(size=(5, *IMAGE)).astype(np.float32)
    labels = Linear()(x).argmax(axis=1)
    labels[3] = (labels[3] + 1) % 3
    victim = Linear()
    oracle = blackbox.score_oracle(victim, budget=150, batch_size=64)
    results = attacks.run(ALL[name], oracle, x, labels, KEY)
    rows = np.asarray(victim.rows)
    assert len(rows) == results.queries.sum() == oracle.counts.total.sum()
    np.testing.assert_array_equal(results.loss_queries, oracle.counts.loss)
    np.testing.assert_array_equal(results.check_queries, oracle.counts.check)
    assert results.queries.max() <= 150 and not oracle.exhausted.size
    assert rows.min() >= 0 and rows.max() <= 1
    assert results.status[3] == "already" and results.queries[3] == 1
    found = Linear()(results.adversarial).argmax(axis=1)
    assert (found[results.success] != labels[results.success]).all()


def test_a_torch_model_is_attacked_like_any_other():
    torch = pytest.importorskip("torch", reason="torch is not installed")
    layer = torch.nn.Linear(2, 2)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[-1.0, 0.0], [0.0, 0.0]]))
        layer.bias.copy_(torch.tensor([0.5 - RISE / 2, 0.0]))
    oracle = blackbox.score_oracle(lambda batch: layer(torch.from_numpy(batch)), batch_size=2)
    results = attacks.run(TOY, oracle, inputs([3, 1, 5]), [0, 0, 0], KEY)
    np.testing.assert_array_equal(results.queries_to_success, [7, 3, 11])


class Flaky(Victim):
    """Gives no answer for rows whose second pixel is marked, `times` times."""

    def __init__(self, times, mark=0.75):
        super().__init__()
        self.times = times
        self.mark = mark

    def __call__(self, batch):
        scores = super().__call__(batch)
        marked = batch[:, 1] >= self.mark
        if marked.any() and self.times > 0:
            self.times -= 1
            scores[marked] = np.nan
        return scores


def run_flaky(times, **limits):
    x = inputs([3, 3])
    x[1, 1] = 0.75
    oracle = blackbox.score_oracle(Flaky(times), num_classes=2, on_failure="record", **limits)
    return attacks.run(TOY, oracle, x, [0, 0], KEY)


def test_a_sample_without_answers_goes_on_and_is_given_up_after_three_steps():
    # Calls: the check of the inputs, then per step one for the loss, one for the check.
    hopeless = run_flaky(1000)
    np.testing.assert_array_equal(hopeless.status, ["success", "oracle_failed"])
    np.testing.assert_array_equal(hopeless.queries, [7, 3])
    later = run_flaky(2)  # two checks of the input fail, the third does not
    np.testing.assert_array_equal(later.status, ["success", "success"])
    np.testing.assert_array_equal(later.queries, [7, 9])


def test_a_sample_is_given_up_within_the_attack_too():
    x = inputs([3, 9])
    x[0, 1] = 0  # never marked; the other one is from its second step on
    victim = Flaky(1000, mark=0.25 + 2 * RISE)
    oracle = blackbox.score_oracle(victim, num_classes=2, on_failure="record")
    results = attacks.run(TOY, oracle, x, [0, 0], KEY)
    np.testing.assert_array_equal(results.status, ["success", "oracle_failed"])
    np.testing.assert_array_equal(results.queries, [7, 1 + 2 * 4])


def test_failures_that_do_not_follow_one_another_are_forgiven():
    class Alternating(Victim):
        def __call__(self, batch):
            scores = super().__call__(batch)
            step = len(self.rows) // 2  # after the input, pairs of calls
            return scores if step % 3 == 0 else np.full_like(scores, np.nan)

    oracle = blackbox.score_oracle(Alternating(), num_classes=2, on_failure="record")
    results = attacks.run(TOY, oracle, inputs([NUM_STEPS]), [0], KEY)
    np.testing.assert_array_equal(results.status, ["success"])
    np.testing.assert_array_equal(results.queries, [1 + 2 * NUM_STEPS])


def test_each_sample_has_a_key_of_its_own():
    def init(x, goal, key):
        return jax.random.uniform(key, x.shape), jnp.zeros((), bool)

    attack = Attack(
        name="guess",
        answers="scores",
        init=init,
        ask=lambda state: Ask(state[0][None], jnp.ones(1, bool), jnp.zeros(1, bool)),
        tell=lambda state, scores: (state[0], jnp.ones((), bool)),
        best=lambda state: state,
        is_done=lambda state: state[1],
    )
    results = attacks.run(attack, blackbox.score_oracle(Victim()), inputs([3, 0, 3]), [0] * 3, KEY)
    for sample in (0, 2):
        expected = jax.random.uniform(jax.random.fold_in(KEY, sample), (2,))
        np.testing.assert_array_equal(results.adversarial[sample], expected)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"x": np.full((2, 2), 1.5)}, ValueError, "within"),
        ({"x": np.full((2, 2), np.nan)}, ValueError, "finite"),
        ({"x": np.zeros(2)}, ValueError, "batch"),
        ({"labels": [0]}, ValueError, r"labels must be integers >= 0 of shape \(2,\)"),
        ({"labels": [0.0, 0.5]}, ValueError, "labels"),
        ({"labels": [0, 2]}, ValueError, "labels must be below 2"),
        ({"targets": [-1, 0]}, ValueError, "targets"),
        ({"attack": "toy"}, ValueError, "attack"),
        ({"oracle": np.sum}, ValueError, "oracle"),
        ({"max_steps": 0}, ValueError, "max_steps"),
        ({"milestones": (0,)}, ValueError, "milestones"),
        ({"key": 0}, TypeError, "typed key"),
    ],
)
def test_bad_arguments_are_named_before_anything_is_asked(change, error, message):
    victim = Victim()
    given = {
        "attack": TOY,
        "oracle": blackbox.score_oracle(victim, num_classes=2),
        "x": inputs([1, 2]),
        "labels": [0, 0],
        "key": KEY,
    }
    with pytest.raises(error, match=message):
        attacks.run(**{**given, **change})
    assert not victim.rows
