"""Oracles: exact counts and budgets, failures that are named, nothing lost and nothing extra."""

import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from zojax import blackbox
from zojax.blackbox import oracle as oracle_module

WEIGHTS = np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32)


class Victim:
    """A linear classifier that notes every batch it receives; `script` goes before its answers."""

    def __init__(self, *script, labels=False):
        self.script = list(script)
        self.labels = labels
        self.batches = []

    def __call__(self, batch):
        self.batches.append(batch.copy())
        scores = batch @ WEIGHTS
        answer = scores.argmax(axis=1) if self.labels else scores
        return self.script.pop(0)(answer) if self.script else answer

    @property
    def num_rows(self):
        return sum(len(batch) for batch in self.batches)


def rows(count, seed=1):
    return np.random.default_rng(seed).normal(size=(count, 5)).astype(np.float32)


def fail(answer):
    raise ConnectionError("service away\nsecond line")


def spoil(*places):
    def change(answer):
        answer[list(places)] = np.nan
        return answer

    return change


def test_scores_and_labels_are_those_of_the_function():
    victim, x = Victim(), rows(7)
    oracle = blackbox.score_oracle(victim, batch_size=3)
    scores = oracle.scores(x, np.arange(7))
    np.testing.assert_allclose(scores, x @ WEIGHTS, rtol=1e-5)
    assert scores.dtype == np.float32
    assert [len(batch) for batch in victim.batches] == [3, 3, 1]
    np.testing.assert_array_equal(np.concatenate(victim.batches), x)
    np.testing.assert_array_equal(oracle.labels(x, np.arange(7)), (x @ WEIGHTS).argmax(axis=1))
    by_label = blackbox.label_oracle(Victim(labels=True))
    np.testing.assert_array_equal(by_label.labels(x, np.arange(7)), (x @ WEIGHTS).argmax(axis=1))


@pytest.mark.parametrize("batch_size", [None, 1, 4])
@pytest.mark.parametrize("labels", [False, True])
def test_budgets_are_exact_for_ragged_samples(batch_size, labels):
    """Sample 2 asks 5 rows of a budget of 3: the first 3 are sent, wherever the batches end."""
    victim = Victim(labels=labels)
    build = blackbox.label_oracle if labels else blackbox.score_oracle
    oracle = build(victim, budget=3, batch_size=batch_size, num_classes=3)
    x, samples = rows(9), np.array([2, 0, 2, 2, 4, 2, 0, 2, 4])
    assert oracle.remaining([0, 7]).tolist() == [3, 3]
    ask = oracle.labels if labels else oracle.scores
    found = ask(x, samples)
    unsent = found == -1 if labels else np.isnan(found).all(axis=1)
    np.testing.assert_array_equal(np.flatnonzero(unsent), [5, 7])
    np.testing.assert_array_equal(np.concatenate(victim.batches), x[~unsent])
    assert oracle.counts.loss.tolist() == [2, 0, 3, 0, 2]
    assert oracle.exhausted.tolist() == [2]
    assert oracle.remaining([0, 1, 2, 4, 99]).tolist() == [1, 3, 0, 1, 3]

    found = ask(rows(4, 2), [0, 0, 2, 4], purpose="check")
    answered = found >= 0 if labels else np.isfinite(found).all(axis=1)
    assert answered.tolist() == [True, False, False, True]
    assert oracle.counts.check.tolist() == [1, 0, 0, 0, 1]
    assert oracle.counts.total.max() == 3
    assert oracle.counts.total.sum() == victim.num_rows == 9
    assert oracle.exhausted.tolist() == [0, 2]
    assert oracle.failures == ()


def test_nothing_is_sent_for_nothing():
    victim = Victim()
    oracle = blackbox.score_oracle(victim, budget=1, num_classes=3)
    assert oracle.scores(rows(0), []).shape == (0, 3)
    assert oracle.labels(rows(0), []).shape == (0,)
    oracle.scores(rows(1), [0])
    assert np.isnan(oracle.scores(rows(1), [0])).all()
    assert len(victim.batches) == 1
    assert blackbox.score_oracle(victim).scores(rows(0), []).shape == (0, 0)


def test_without_a_budget_nothing_is_refused():
    oracle = blackbox.score_oracle(Victim())
    assert np.isfinite(oracle.scores(rows(50), np.zeros(50, int))).all()
    assert oracle.remaining([0, 1]).tolist() == [2**63 - 1] * 2
    assert oracle.exhausted.size == 0


def test_the_function_may_change_its_batch_and_reuse_its_answer():
    buffer = np.zeros((2, 3), np.float32)

    def function(batch):
        buffer[:] = batch @ WEIGHTS
        batch[:] = 0
        return buffer

    x = rows(4)
    kept = x.copy()
    scores = blackbox.score_oracle(function, batch_size=2).scores(x, np.arange(4))
    np.testing.assert_array_equal(x, kept)
    np.testing.assert_allclose(scores, x @ WEIGHTS, rtol=1e-5)


def test_a_jax_function_and_jax_rows_work_and_no_gradient_is_taken():
    @jax.custom_vjp
    def model(batch):
        return batch @ WEIGHTS

    def backward(_, cotangent):
        raise AssertionError("differentiated")

    model.defvjp(lambda batch: (model(batch), None), backward)
    oracle = blackbox.score_oracle(lambda batch: jax.jit(model)(batch).astype(jnp.bfloat16))
    x = jnp.asarray(rows(3))
    scores = oracle.scores(x, jnp.arange(3))
    assert isinstance(scores, np.ndarray) and scores.dtype == np.float32
    np.testing.assert_allclose(scores, x @ WEIGHTS, rtol=0.02, atol=0.02)
    with pytest.raises(ValueError, match="outside jit"):
        jax.grad(lambda x: jnp.sum(oracle.scores(x, np.arange(3))))(x)
    with pytest.raises(ValueError, match="outside jit"):
        jax.jit(lambda samples: oracle.scores(x, samples))(jnp.arange(3))
    assert oracle.counts.total.tolist() == [1, 1, 1]


class Tensor:
    """What the oracle may use of a torch tensor on another device, with a graph attached."""

    def __init__(self, values, stage=0):
        self.values, self.stage = values, stage

    def detach(self):
        return Tensor(self.values, 1)

    def cpu(self):
        assert self.stage == 1
        return Tensor(self.values, 2)

    def numpy(self):
        assert self.stage == 2
        return self.values


def test_a_tensor_is_read_by_its_methods():
    oracle = blackbox.score_oracle(lambda batch: Tensor(batch @ WEIGHTS))
    np.testing.assert_allclose(oracle.scores(rows(3), range(3)), rows(3) @ WEIGHTS, rtol=1e-5)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_torch_model_works(dtype):
    torch = pytest.importorskip("torch", reason="torch is not installed")
    layer = torch.nn.Linear(5, 3, bias=False).to(getattr(torch, dtype))
    with torch.no_grad():
        layer.weight.copy_(torch.from_numpy(WEIGHTS.T.copy()))

    def model(batch):
        return layer(torch.from_numpy(batch).to(layer.weight))

    x = rows(3)
    scores = blackbox.score_oracle(model).scores(x, range(3))
    np.testing.assert_allclose(scores, x @ WEIGHTS, rtol=0.05, atol=0.05)
    labels = blackbox.label_oracle(lambda batch: model(batch).argmax(1)).labels(x, range(3))
    np.testing.assert_array_equal(labels, scores.argmax(axis=1))


@pytest.mark.parametrize(
    ("answer", "kind", "words"),
    [
        (fail, "exception", "raised ConnectionError on 4 rows: service away$"),
        (lambda scores: scores[:, 0], "shape", r"shape \(4, 3\), got shape \(4,\)"),
        (lambda scores: scores[:2], "shape", r"shape \(4, 3\), got shape \(2, 3\)"),
        (lambda scores: scores[:, :2], "shape", r"shape \(4, 3\), got shape \(4, 2\)"),
        (lambda scores: None, "dtype", "numbers, got object"),
        (lambda scores: scores > 0, "dtype", "numbers, got bool"),
        (lambda scores: scores.astype(complex), "dtype", "numbers, got complex128"),
        (spoil(1, 3), "value", "NaN or infinite for 2 of 4 rows"),
        (lambda scores: scores.astype(float) + 1e300, "value", "NaN or infinite for 4 of 4 rows"),
    ],
)
def test_bad_scores_raise_one_sentence(answer, kind, words):
    victim = Victim(answer)
    oracle = blackbox.score_oracle(victim, num_classes=3)
    with pytest.raises(blackbox.OracleError, match=words) as caught:
        oracle.scores(rows(4), [0, 0, 1, 2])
    failure = caught.value.failure
    assert isinstance(caught.value, RuntimeError)
    assert failure.kind == kind and "\n" not in failure.message
    assert failure.num_rows == len(failure.samples)
    assert isinstance(caught.value.__cause__, ConnectionError) == (kind == "exception")
    assert oracle.failures == (failure,)
    assert oracle.counts.total.tolist() == [2, 1, 1]  # the service received them
    assert victim.num_rows == 4


@pytest.mark.parametrize(
    ("answer", "kind", "words"),
    [
        (lambda labels: labels[:, None], "shape", r"shape \(4,\), got shape \(4, 1\)"),
        (lambda labels: labels.astype(float), "dtype", "integers, got float64"),
        (lambda labels: labels * 0 - 1, "value", r"in \[0, 3\), got -1"),
        (lambda labels: labels * 0 + 3, "value", r"in \[0, 3\), got 3"),
    ],
)
def test_bad_labels_raise_one_sentence(answer, kind, words):
    oracle = blackbox.label_oracle(Victim(answer, labels=True), num_classes=3)
    with pytest.raises(blackbox.OracleError, match=words) as caught:
        oracle.labels(rows(4), range(4))
    assert caught.value.failure.kind == kind


def test_the_first_answer_fixes_the_number_of_classes():
    oracle = blackbox.score_oracle(Victim(lambda scores: scores, lambda scores: scores[:, :2]))
    oracle.scores(rows(2), [0, 1])
    assert oracle.num_classes == 3
    with pytest.raises(blackbox.OracleError, match=r"shape \(2, 3\), got shape \(2, 2\)"):
        oracle.scores(rows(2), [0, 1])


def test_recorded_failures_keep_every_other_answer():
    """Of three batches the second raises and the third has a NaN: four rows are answered."""
    victim = Victim(lambda scores: scores, fail, spoil(0))
    oracle = blackbox.score_oracle(victim, batch_size=2, num_classes=3, on_failure="record")
    x = rows(6)
    scores = oracle.scores(x, [0, 1, 2, 3, 4, 5])
    answered = np.isfinite(scores).all(axis=1)
    assert answered.tolist() == [True, True, False, False, False, True]
    np.testing.assert_allclose(scores[answered], (x @ WEIGHTS)[answered], rtol=1e-5)
    assert [(f.kind, f.num_rows, f.samples.tolist()) for f in oracle.failures] == [
        ("exception", 2, [2, 3]),
        ("value", 1, [4]),
    ]
    assert oracle.exhausted.size == 0
    assert oracle.labels(x[:1], [0]).tolist() == [(x @ WEIGHTS)[0].argmax()]


def test_retries_send_only_rows_without_an_answer_and_count_them_again():
    victim, x = Victim(fail, spoil(1)), rows(3)
    oracle = blackbox.score_oracle(victim, retries=2)
    np.testing.assert_allclose(oracle.scores(x, [0, 1, 2]), x @ WEIGHTS, rtol=1e-5)
    assert [len(batch) for batch in victim.batches] == [3, 3, 1]
    np.testing.assert_array_equal(victim.batches[2], x[1:2])
    assert oracle.counts.loss.tolist() == [2, 3, 2]
    assert oracle.failures == ()


def test_retries_end():
    victim = Victim(fail, fail, fail)
    oracle = blackbox.score_oracle(victim, retries=1)
    with pytest.raises(blackbox.OracleError, match=r"service away \(tried 2 times\)"):
        oracle.scores(rows(1), [0])
    assert oracle.counts.total.tolist() == [2]


def test_retries_stay_within_the_budget():
    """Two rows of sample 0 fail with one query of its budget left; sample 1 has none left."""
    victim = Victim(fail, lambda scores: scores)
    oracle = blackbox.score_oracle(
        victim, budget=3, retries=5, num_classes=3, on_failure="record", batch_size=5
    )
    scores = oracle.scores(rows(6), [0, 0, 1, 1, 1, 0])
    # The retry of the first row takes the query that the last row would have had.
    assert np.isfinite(scores).all(axis=1).tolist() == [True] + [False] * 5
    assert oracle.counts.total.tolist() == [3, 3]
    assert oracle.counts.total.sum() == victim.num_rows
    assert oracle.exhausted.tolist() == [0, 1]
    assert sorted(oracle.failures[0].samples.tolist()) == [0, 1, 1, 1]


def test_a_hung_call_is_abandoned():
    released = threading.Event()

    def hang(scores):
        released.wait(30)
        return scores

    try:
        victim = Victim(hang, lambda scores: scores, hang)
        oracle = blackbox.score_oracle(victim, timeout=0.3, retries=1)
        assert np.isfinite(oracle.scores(rows(2), [0, 1])).all()
        assert oracle.counts.total.tolist() == [2, 2]
        oracle = blackbox.label_oracle(Victim(hang, labels=True), timeout=0.05, on_failure="record")
        assert oracle.labels(rows(2), [0, 1]).tolist() == [-1, -1]
        (failure,) = oracle.failures
        assert failure.kind == "timeout" and "2 rows within 0.05 s" in failure.message
    finally:
        released.set()


def test_an_error_under_a_timeout_is_an_exception_with_its_cause():
    oracle = blackbox.score_oracle(Victim(fail), timeout=30)
    with pytest.raises(blackbox.OracleError) as caught:
        oracle.scores(rows(1), [0])
    assert caught.value.failure.kind == "exception"
    assert isinstance(caught.value.__cause__, ConnectionError)


def test_calls_keep_their_distance(monkeypatch):
    class Clock:
        now = 100.0

        def monotonic(self):
            return self.now

        def sleep(self, seconds):
            self.now += seconds

    clock, starts = Clock(), []
    monkeypatch.setattr(oracle_module, "time", clock)

    def function(batch):
        starts.append(clock.now)
        clock.now += 0.5 if len(starts) == 2 else 3.0
        if len(starts) == 3:
            raise ConnectionError
        return batch @ WEIGHTS

    oracle = blackbox.score_oracle(function, batch_size=2, min_interval=2.0, retries=1)
    oracle.scores(rows(6), range(6))
    # The second call took less than the interval, the others longer.
    assert starts == [100.0, 103.0, 105.0, 108.0]


@pytest.mark.parametrize(
    ("x", "samples", "words"),
    [
        (rows(2), [0], r"shape \(1, \.\.\.\), got shape \(2, 5\)"),
        (np.zeros(3), [0, 1, 2], r"got shape \(3,\)"),
        (np.float32([[1, np.nan]]), [0], "NaN or infinity in row 0"),
        (np.array([[0.0], [1e300]]), [0, 1], "NaN or infinity in row 1"),
        (rows(1), [-1], "integers >= 0"),
        (rows(1), [0.5], "integers >= 0"),
        (rows(1), 0, r"shape \(r,\)"),
    ],
)
def test_bad_rows_are_refused_before_anything_is_sent(x, samples, words):
    victim = Victim()
    oracle = blackbox.score_oracle(victim)
    with pytest.raises(ValueError, match=words):
        oracle.scores(x, samples)
    assert not victim.batches and oracle.counts.total.size == 0


def test_what_cannot_be_meant_is_refused():
    oracle = blackbox.label_oracle(Victim(labels=True))
    with pytest.raises(ValueError, match="labels only"):
        oracle.scores(rows(1), [0])
    with pytest.raises(ValueError, match="purpose"):
        oracle.labels(rows(1), [0], purpose="fun")
    with pytest.raises(ValueError, match="needs num_classes"):
        blackbox.score_oracle(Victim(), on_failure="record")
    with pytest.raises(ValueError, match="function"):
        blackbox.score_oracle(3)


@pytest.mark.parametrize(
    "setting",
    [
        {"budget": 0},
        {"budget": 2.5},
        {"batch_size": 0},
        {"timeout": 0.0},
        {"timeout": float("inf")},
        {"retries": -1},
        {"min_interval": -1.0},
        {"num_classes": 1},
        {"on_failure": "ignore"},
    ],
)
@pytest.mark.parametrize("build", [blackbox.score_oracle, blackbox.label_oracle])
def test_settings_out_of_range_are_named(build, setting):
    with pytest.raises(ValueError, match=next(iter(setting))):
        build(Victim(), **setting)
