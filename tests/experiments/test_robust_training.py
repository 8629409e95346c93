"""Training for noisy weights: a short run of everything, the parts of methods, bad options."""

import json
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import robust_training
from experiments.lib import robust_chips, robust_first_order, robust_methods
from experiments.lib.errors import UserError
from zojax import robustness

TINY = ["--sample-forwards", 4096, "--num-seeds", 2, "--num-chips", 4, "--hidden", 8]
TINY += ["--num-directions", 16, "--batch-size", 16, "--first-order-batch", 16]


def run(tmp_path, monkeypatch, *options):
    """Runs the program in this process; returns the folder of its run."""
    argv = ["robust_training", "--output", str(tmp_path), *map(str, options)]
    monkeypatch.setattr(sys, "argv", argv)
    robust_training.main()
    (folder,) = (tmp_path / "robust_training").iterdir()
    return folder


def test_a_short_run_writes_everything(tmp_path, monkeypatch, capsys):
    methods = ("backprop", "values")
    folder = run(tmp_path, monkeypatch, *TINY, "--methods", *methods)

    summary = json.loads((folder / "summary.json").read_text())
    assert tuple(summary["methods"]) == methods
    values = summary["methods"]["values"]
    assert values["steps"] == 4096 // (2 * 16 * 16)
    assert values["sample_forwards"] == 4096
    assert summary["methods"]["backprop"]["sample_forwards"] == 3 * 16 * (4096 // (3 * 16))
    assert len(values["seeds"]) == 2
    for seed in values["seeds"]:
        for name in ("absolute", "relative", "bit_errors"):
            assert len(seed[name]["mean"]) == len(seed[name]["levels"]) == 7
            assert seed[name]["worst"][3] <= seed[name]["fifth_percentile"][3]
        assert seed["absolute"]["mean"][0] == pytest.approx(seed["clean"])
        assert set(seed["devices"]) == set(robust_chips.DEVICES)
        assert seed["devices"]["8 bits"] == pytest.approx(seed["clean"], abs=0.05)
        assert np.isfinite(seed["hessian_trace"])
        assert 0 < seed["pac_bayes_radius"] <= 1
    assert values["seeds"][0] != values["seeds"][1]
    curves, devices = (folder / "table.md").read_text().split("\n\n")
    assert len(curves.splitlines()) == len(devices.splitlines()) == 2 + len(methods)
    assert (folder / "figures" / "robustness.png").stat().st_size > 10_000
    printed = capsys.readouterr().out
    assert str(folder) in printed
    assert "±" in printed


def settings(**changes):
    return robust_training.Config(
        num_directions=32, batch_size=16, first_order_batch=16, chunk=0, **changes
    )


class LinearTask:
    """A loss whose gradient is the same everywhere, noise or not."""

    slope = {"w": np.linspace(-1, 2, 12, dtype=np.float32).reshape(4, 3)}

    @classmethod
    def loss_fn(cls, params, batch):
        return jnp.sum(params["w"] * cls.slope["w"]) + 0 * jnp.sum(batch[0])


DIFFERENT = ["noise_backprop_relative", "lpf_sgd", "sam", "entropy_sgd"]
DIFFERENT += ["values_relative", "values_cvar", "values_bit_errors"]


@pytest.mark.parametrize("name", DIFFERENT)
def test_every_kind_of_method_points_up_a_linear_loss(name):
    method = robust_methods.build_method(name, settings(), LinearTask)
    params = {"w": jax.random.normal(jax.random.key(0), (4, 3))}
    batch = (jnp.zeros((16, 2)), jnp.zeros(16, jnp.int32))
    keys = jax.random.split(jax.random.key(1), 200)
    grads = jax.jit(jax.vmap(lambda key: method.gradient(params, key, batch)))(keys)
    found, slope = np.mean(grads["w"], axis=0), LinearTask.slope["w"]
    cosine = np.sum(found * slope) / np.linalg.norm(found) / np.linalg.norm(slope)
    # Quantised to four bits, the loss is a staircase in every weight.
    assert cosine > (0.8 if "bit" in name else 0.95)
    has_own_length = name in ("values_cvar", "values_bit_errors", "entropy_sgd")
    if not has_own_length:
        assert np.sum(found * slope) / np.sum(slope**2) == pytest.approx(
            1, abs=0.08
        )  # five standard errors


def test_relative_noise_follows_the_layer_and_never_vanishes():
    params = {"kernel": jnp.full((3, 2), 4.0), "bias": jnp.zeros(2)}
    scales = robust_first_order.scales_of(params, settings(relative_sigma=0.5), relative=True)
    assert scales["kernel"] == pytest.approx(2.0)
    assert scales["bias"] == pytest.approx(0.01)


def test_weights_are_clipped():
    method = robust_methods.build_method("clipped", settings(clip=0.25), LinearTask)
    np.testing.assert_array_equal(method.project(jnp.array([-1, 0.125, 1])), [-0.25, 0.125, 0.25])


def test_the_evaluator_agrees_with_the_library():
    params = {"w": jnp.array([1.0, -2.0, 0.5])}
    data = (jnp.ones((4, 3)), jnp.zeros(4))

    def score(params, images, labels):
        return jnp.mean(jax.nn.sigmoid(images @ params["w"]) + labels)

    tested = robust_chips.conditions(0.3, 0.5, 4, 0.01)
    key = jax.random.key(5)
    curves = robust_chips.Evaluator(score, data, tested, num_chips=6).curves(params, key)
    for condition in tested:
        model, found = condition.make_model(condition.reported), curves[condition.name]
        expected = robustness.chip_scores(score, params, [model], key, num_chips=6, args=data)
        at = condition.levels.index(condition.reported)
        np.testing.assert_allclose(found.scores[at], expected, rtol=1e-5)
        assert found.clean == pytest.approx(float(score(params, *data)))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--methods", "magic"], r"unknown method 'magic'; the methods are: backprop, "),
        (["--methods", "sam", "sam"], r"each only once"),
        (["--sigma", -1], r"sigma must be > 0 and finite, got -1"),
        (["--bits", 1], r"bits must be in \[2, 16\], got 1"),
        (["--cvar-level", 1], r"cvar_level must be below 1, got 1"),
        (["--first-order-batch", 12], r"first_order_batch must be a multiple of 8, got 12"),
        (["--split", "train"], r"--split"),
    ],
)
def test_bad_options_give_a_sentence(tmp_path, monkeypatch, options, message):
    with pytest.raises(UserError, match=message):
        run(tmp_path, monkeypatch, *options)
