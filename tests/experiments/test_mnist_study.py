"""The MNIST study: its network, one training step by hand, a short run of everything."""

import dataclasses
import json
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import mnist_study
from experiments.lib import (
    study_noise,
    study_optimizers,
    study_regularization,
    study_training,
    study_transfer,
)
from experiments.lib.data import Dataset, Split
from experiments.lib.errors import UserError
from experiments.lib.runs import RunDirectory
from experiments.lib.study import Study
from experiments.lib.study_data import Data
from experiments.lib.study_networks import Network, initial_variables, max_pool, with_statistics
from experiments.lib.study_training import Recipe, Trained

SMALL = Network(3, features=(2, 3), hidden=(4,))


def make_data(count=24, name="mnist"):
    """Random images of three classes."""
    rng = np.random.default_rng(0)
    split = Split(
        rng.random((count, 8, 8, 1), dtype=np.float32), rng.integers(0, 3, count).astype(np.int32)
    )
    return Data.of(Dataset(name, split, split, split, ("a", "b", "c")))


def test_reference_network_has_its_published_size():
    shapes = jax.eval_shape(Network().init, jax.random.key(0), jnp.zeros((1, 28, 28, 1)))
    assert sum(x.size for x in jax.tree.leaves(shapes)) == 409_034


def test_convolution_and_pooling_are_xlas():
    images = jax.random.normal(jax.random.key(1), (2, 7, 8, 1))
    params, _ = initial_variables(SMALL, jax.random.key(0), images)
    native = dataclasses.replace(SMALL, native_convolution=True)
    ours, theirs = (n.apply({"params": params}, images) for n in (SMALL, native))
    np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)
    window = (1, 2, 2, 1)
    pooled = jax.lax.reduce_window(images, -jnp.inf, jax.lax.max, window, window, "VALID")
    np.testing.assert_array_equal(max_pool(images), pooled)


def test_statistics_of_batch_norm_are_those_of_the_images():
    network = Network(3, features=(), hidden=(4,), batch_norm=True, dropout=0.5)
    images = jax.random.normal(jax.random.key(1), (32, 4, 4, 1))
    params, collections = initial_variables(network, jax.random.key(0), images)
    variables = with_statistics(network, params, collections, images)
    dense = params["Dense_0"]
    before = images.reshape(32, -1) @ dense["kernel"] + dense["bias"]
    stored = variables["batch_stats"]["BatchNorm_0"]
    np.testing.assert_allclose(stored["mean"], before.mean(axis=0), atol=1e-5)
    np.testing.assert_allclose(stored["var"], before.var(axis=0), rtol=1e-4)


@pytest.mark.parametrize("num_directions", [0, 2])
def test_only_the_chosen_layers_are_trained(num_directions):
    data = make_data()
    recipe = Recipe("last", SMALL, "adam", 0.1, 400, num_directions, batch_size=8, trainable="last")
    start = study_training.initial(recipe, data, seed=0)
    trained = study_training.train(recipe, data, 0, num_evals=2).params
    for layer in ("Conv_0", "Conv_1", "Dense_0"):
        jax.tree.map(np.testing.assert_array_equal, trained[layer], start[layer])
    assert (trained["Dense_1"]["bias"] != start["Dense_1"]["bias"]).all()


def test_a_step_is_the_optimisers_with_the_penalties():
    """One full batch of SGD with L1, by hand."""
    data = make_data()
    recipe = Recipe("l1", SMALL, "sgd", 0.5, 3 * 24, batch_size=24, l1=0.01, schedule="constant")
    start = study_training.initial(recipe, data, seed=0)
    trained = study_training.train(recipe, data, 0, num_evals=1).params
    plain = dataclasses.replace(recipe, l1=0.0)
    batch = (data.prepare(data.train.images), data.train.labels)
    grad = jax.grad(study_training.loss_of(plain, {}))(start, batch)
    by_hand = jax.tree.map(lambda w, g: w - 0.5 * (g + 0.01 * jnp.sign(w)), start, grad)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), trained, by_hand)


def test_augmentation_moves_images_and_keeps_their_pixels():
    images = jnp.zeros((16, 8, 8, 1)).at[:, 4, 3].set(1.0)
    recipe = Recipe("shifts", SMALL, "sgd", 0.1, 1, shift=2)
    shifted = study_training.augment(recipe, jax.random.key(0), images)
    assert shifted.shape == images.shape and (shifted.sum(axis=(1, 2, 3)) == 1).all()
    rows = np.argwhere(np.asarray(shifted)[..., 0])[:, 1]
    assert rows.min() >= 2 and rows.max() <= 6 and len(set(rows)) > 2
    flipped = dataclasses.replace(recipe, shift=0, flip=True)
    flipped = study_training.augment(flipped, jax.random.key(0), images)
    assert set(np.argwhere(np.asarray(flipped)[..., 0])[:, 2]) == {3, 4}


def run(tmp_path, monkeypatch, *options):
    """Runs the program in this process; returns the folder of its run."""
    monkeypatch.setattr(sys, "argv", ["mnist_study", "--output", str(tmp_path), *map(str, options)])
    mnist_study.main()
    (folder,) = (tmp_path / "mnist_study").iterdir()
    return folder


@pytest.fixture
def _one_optimizer(monkeypatch):
    """Every program compiles for a second or two."""
    monkeypatch.setattr(study_optimizers, "OPTIMIZERS", ("adam",))


@pytest.mark.usefixtures("_one_optimizer")
def test_a_short_run_writes_everything(tmp_path, monkeypatch, capsys):
    tiny = ["--dataset", "digits", "--num-train", 64, "--epochs", 1, "--backprop-epochs", 1]
    tiny += ["--sample-forwards", 512, "--num-directions", 2, "--batch-size", 16, "--hidden", 4]
    tiny += ["--num-evals", 2, "--num-seeds", 1, "--num-chips", 2, "--noise-images", 20]
    tiny += ["--rate-factors", 0.1, 1]
    parts = ["first_order", "twins", "sensitivity", "noise", "transfer"]
    options = ["--recipes", "cnn_sgd_dropout", "--parts", *parts]
    folder = run(tmp_path, monkeypatch, *tiny, *options)
    found = json.loads((folder / "summary.json").read_text())["parts"]
    assert found["first_order"]["best"] == "cnn_sgd_dropout"
    assert found["twins"]["recipes"]["values_adam"]["sample_forwards"] == 512
    assert found["twins"]["recipes"]["backprop_adam"]["sample_forwards"] == 3 * 64
    assert len(found["sensitivity"]["values_adam"]["accuracy"]) == 2
    assert len(found["noise"]["curves"]) == 5
    figures = {path.stem for path in (folder / "figures").iterdir()}
    drawn = {"optimizers", "noise", "sensitivity", "filters_before", "filters_after"}
    assert drawn <= figures
    table = (folder / "table.md").read_text()
    assert table.count("## ") == len(parts) and "Skipped" in table
    assert str(folder) in capsys.readouterr().out


def test_transfer_adapts_the_chosen_layers(tmp_path, monkeypatch):
    data = make_data(64)
    monkeypatch.setattr(study_transfer, "load_dataset", lambda *_: None)
    monkeypatch.setattr(study_transfer.Data, "of", lambda *_: data)
    settings = {"transfer_features": (2,), "transfer_hidden": (4,), "batch_size": 16}
    config = mnist_study.Config(
        **settings, transfer_forwards=(8192 * 2, 8192, 8192), num_evals=1, num_seeds=1, hidden=(4,)
    )
    study = Study(config, data, RunDirectory.create(tmp_path, "study", 0, config))
    text = study_transfer.transfer(study)
    found = study.results["transfer"]["recipes"]
    assert set(found) == {
        *(f"{kind}_{part}" for kind in ("backprop", "values") for part in study_transfer._WORDS),
        "values_last_equal",
    }
    assert found["values_last"]["trained_weights"] == 4 * 3 + 3
    assert found["values_last_two"]["trained_weights"] == 4 * 4 * 2 * 4 + 4 + 15
    assert found["values_last"]["steps"] == 2 * found["values_last_equal"]["steps"]
    assert "trained weights" in text


def test_penalties_and_perturbation(tmp_path, monkeypatch):
    """Without the training, which other tests cover: every recipe is made, and started right."""
    data, started = make_data(), {}
    config = mnist_study.Config(hidden=(4,), num_seeds=1)
    study = Study(config, data, RunDirectory.create(tmp_path, "study", 0, config))

    def train(self, recipe, params=None, num_evals=None):
        started[recipe.label] = params
        network = study_training.initial(recipe, data, 0)
        trained = Trained(recipe, {"params": network}, [{"accuracy": 0.5}], 1.0)
        return [trained], {
            "label": recipe.label, "learning_rate": 1.0, "sample_forwards": recipe.sample_forwards,
            "seconds": [1.0], "validation_accuracy": [0.5], "test_accuracy": [0.5],
        }  # fmt: skip

    monkeypatch.setattr(Study, "train", train)
    for name in ("_PAIRS", "_ESTIMATES"):
        monkeypatch.setattr(study_regularization, name, 2)
    study_regularization.regularization(study)
    found = study.results["regularization"]
    for kind in ("backprop", "values"):
        budgets = [found[f"{kind}_{n}"]["sample_forwards"] for n in ("l1", "continued", "fresh")]
        assert budgets == [budgets[0], budgets[0], 2 * budgets[0]]
    assert sum(params is not None for params in started.values()) == 4
    text = study_regularization.perturbation(study)
    assert "one for every point" in text
    own = study.results["perturbation"]["relative_squared_error"]["one for every point"]
    assert own[-1] > own[0]  # masks of their own are noise that grows as sigma shrinks


def test_noise_alone_flips_the_plain_network(tmp_path):
    data = make_data()
    config = mnist_study.Config(
        hidden=(4,), sample_forwards=128, num_directions=2, batch_size=16, backprop_epochs=1,
        num_evals=1, num_seeds=1, num_chips=1, noise_images=10,
    )  # fmt: skip
    study = Study(config, data, RunDirectory.create(tmp_path, "study", 0, config))
    text = study_noise.noise(study)
    assert len(study.results["noise"]["curves"]) == 4
    assert "'back-propagation, Adam'" in text


def test_an_epoch_shows_every_image_once_whatever_the_evaluations():
    data = make_data(30)
    recipe = Recipe("order", SMALL, "sgd", 0.1, 3 * 8 * 7, batch_size=8)
    few, many = (study_training.train(recipe, data, 0, num_evals=n).params for n in (1, 5))
    jax.tree.map(np.testing.assert_array_equal, few, many)


def test_sizes_of_weights():
    found = study_regularization.sizes({"w": jnp.array([0.0, 1e-4, -2.0, 3.0])})
    assert found["zero_share"] == 0.25 and found["small_share"] == 0.5
    assert found["l1_norm"] == pytest.approx(5.0001)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--parts", "chess"], "unknown part 'chess'"),
        (["--recipes", "rnn"], "unknown recipe 'rnn'"),
        (["--num-seeds", 0], "num_seeds must be > 0"),
        (["--transfer-forwards", 1, 0, 1], "transfer_forwards must be one or more numbers > 0"),
        (["--rate-factors", "nan"], "rate_factors must be one or more numbers > 0"),
        (["--dataset", "digits", "--pool", 9], "images of 8x8 are too small for pool 9"),
    ],
)
def test_bad_options_are_one_sentence(options, message, tmp_path, monkeypatch):
    with pytest.raises(UserError, match=message):
        run(tmp_path, monkeypatch, *options)
    assert not list(tmp_path.iterdir())


def test_divergence_is_one_sentence():
    recipe = Recipe("too fast", SMALL, "sgd", 1e30, 3 * 24 * 2, batch_size=24)
    with pytest.raises(UserError, match="'too fast' became .* less noisy"):
        study_training.train(recipe, make_data(), 0, num_evals=1)
