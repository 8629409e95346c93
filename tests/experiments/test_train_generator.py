"""Generators: their layers, their training, their folder on disk, a short run, bad options."""

import json
import shutil
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import train_generator as program
from experiments.lib import generator_store
from experiments.lib.data import load_dataset
from experiments.lib.errors import UserError
from experiments.lib.generator_families import VAE, WGANGP
from experiments.lib.generator_training import Settings, snapshot_steps, train_generator
from experiments.lib.generators import (
    Critic,
    Encoder,
    build_decoder,
    hidden_width,
    transposed_convolution,
)

# As `train` below, so that both compile the same programs.
TINY = ["--dataset", "digits", "--num-steps", 12, "--num-snapshots", 5, "--width", 8]
TINY += ["--latent-dim", 2]


def run(tmp_path, monkeypatch, *options):
    """Runs the program in this process; returns the folder of its run."""
    argv = ["train_generator", "--output", str(tmp_path), *map(str, options)]
    monkeypatch.setattr(sys, "argv", argv)
    program.main()
    (folder,) = (tmp_path / "train_generator").iterdir()
    return folder


def train(**changes):
    """Trains for a few steps on digits."""
    defaults = {"family": "vae", "decoder": "mlp", "latent_dim": 2, "num_steps": 12, "width": 8}
    settings = Settings(**defaults | {"num_snapshots": 5} | changes)
    digits = load_dataset("digits", None)
    return train_generator(settings, digits.train.images, digits.validation.images)


def assert_same(first, second):
    jax.tree.map(np.testing.assert_array_equal, first, second)


@pytest.mark.parametrize(
    ("shape", "features"),
    [((2, 3, 7, 5, 6), 4), ((2, 3, 12), 2), ((1, 1, 1), 3), ((4, 2, 2, 3), 1), ((3, 4, 8), 1)],
)
def test_transposed_convolution_equals_that_of_jax(shape, features):
    images = jax.random.normal(jax.random.key(0), shape)
    kernel = jax.random.normal(jax.random.key(1), (4, 4, shape[-1], features))
    expected = jax.lax.conv_transpose(
        images.reshape(-1, *shape[-3:]),
        kernel,
        (2, 2),
        "SAME",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )
    found = transposed_convolution(images, kernel)
    assert found.shape == (*shape[:-3], 2 * shape[-3], 2 * shape[-2], features)
    np.testing.assert_allclose(found.reshape(expected.shape), expected, atol=1e-5)


@pytest.mark.parametrize("name", ["mlp", "dcgan"])
def test_decoders_take_any_leading_axes(name):
    module = build_decoder(name, 3, (8, 12, 1))
    variables = jax.jit(module.init)(jax.random.key(0), jnp.zeros(3))
    latents = jax.random.normal(jax.random.key(1), (2, 4, 3))
    images = jax.jit(module.apply)(variables, latents)
    assert images.shape == (2, 4, 8, 12, 1)
    assert 0 < images.min() < images.max() < 1
    np.testing.assert_allclose(module.apply(variables, latents[1, 2]), images[1, 2], atol=1e-6)
    one_by_one = jax.jit(jax.vmap(jax.vmap(lambda x: module.apply(variables, x))))(latents)
    np.testing.assert_allclose(one_by_one, images, atol=1e-6)


def test_default_sizes():
    assert build_decoder("mlp", 5, (8, 8, 1)).width == hidden_width((8, 8, 1)) == 128
    assert build_decoder("mlp", 5, (28, 28, 1)).width == 256
    assert build_decoder("dcgan", 5, (28, 28, 1)).width == 32
    assert build_decoder("dcgan", 5, (28, 28, 1), 16).width == 16


@pytest.mark.parametrize(
    ("num_steps", "count", "expected"),
    [
        (16, 6, [0, 1, 2, 4, 8, 16]),
        (4, 5, [0, 1, 2, 3, 4]),
        (100, 2, [0, 100]),
        (7, 3, [0, 1, 7]),
    ],
)
def test_snapshot_steps(num_steps, count, expected):
    np.testing.assert_array_equal(snapshot_steps(num_steps, count), expected)


def test_snapshot_steps_are_as_many_as_asked_for():
    for num_steps in (39, 45, 500, 6_500):
        steps = snapshot_steps(num_steps, 40)
        assert len(steps) == 40
        assert (steps[0], steps[1], steps[-1]) == (0, 1, num_steps)
        assert (np.diff(steps) > 0).all()
    late = snapshot_steps(100_000, 40)[-10:]
    np.testing.assert_allclose(late[1:] / late[:-1], late[-1] / late[-2], rtol=1e-3)


def test_the_parts_of_the_vae_loss():
    decoder, encoder = build_decoder("mlp", 2, (4, 4, 1), 8), Encoder(2, 8)
    generator = jax.jit(decoder.init)(jax.random.key(0), jnp.zeros(2))
    helper = jax.jit(encoder.init)(jax.random.key(1), jnp.zeros((1, 16)))
    images = jax.random.uniform(jax.random.key(2), (5, 16))
    parts = VAE(decoder, encoder, None, 5).score(generator, helper, jax.random.key(3), images)

    mean, log_variance = (np.asarray(x, np.float64) for x in encoder.apply(helper, images))
    kl = (0.5 * (mean**2 + np.exp(log_variance) - 1 - log_variance)).mean(axis=0)
    np.testing.assert_allclose(parts["kl_per_latent"], kl, rtol=1e-4)
    noise = np.asarray(jax.random.normal(jax.random.key(3), mean.shape))
    latents = (mean + np.exp(log_variance / 2) * noise).astype(np.float32)
    drawn = np.asarray(decoder.apply(generator, latents), np.float64).reshape(5, 16)
    entropy = -(images * np.log(drawn) + (1 - images) * np.log(1 - drawn)).sum(axis=1).mean()
    np.testing.assert_allclose(parts["reconstruction"], entropy, rtol=1e-5)
    np.testing.assert_allclose(parts["loss"], entropy + kl.sum(), rtol=1e-5)


def test_the_parts_of_the_critics_loss():
    decoder, critic = build_decoder("mlp", 2, (4, 4, 1), 8), Critic(8)
    generator = jax.jit(decoder.init)(jax.random.key(0), jnp.zeros(2))
    weights = jnp.linspace(0.0, 1.0, 16)
    linear = WGANGP(decoder, critic, None, 5, 2)
    linear._critic = Linear()
    images = jax.random.uniform(jax.random.key(2), (5, 16))
    parts = linear.score(generator, weights, jax.random.key(3), images)
    latents = jax.random.normal(jax.random.split(jax.random.key(3))[0], (5, 2))
    fakes = decoder.apply(generator, latents).reshape(5, 16)
    distance = ((images - fakes) @ weights).mean()
    penalty = (np.linalg.norm(weights) - 1) ** 2  # the slope of a linear critic is its weights
    np.testing.assert_allclose(parts["wasserstein"], distance, rtol=1e-4)
    np.testing.assert_allclose(parts["gradient_penalty"], penalty, rtol=1e-4)
    np.testing.assert_allclose(parts["loss"], 10 * penalty - distance, rtol=1e-4)


class Linear:
    """A critic whose slope is known."""

    def apply(self, weights, pixels):
        return pixels @ weights


@pytest.mark.parametrize(("family", "decoder"), [("vae", "mlp"), ("wgan_gp", "dcgan")])
def test_training_starts_at_the_initialisation_and_is_deterministic(family, decoder):
    trained = train(family=family, decoder=decoder)
    np.testing.assert_array_equal(trained.steps, [0, 1, 2, 5, 12])
    assert [row["step"] for row in trained.rows] == trained.steps.tolist()
    key = jax.random.split(jax.random.key(0), 3)[0]
    expected = jax.jit(trained.module.init)(key, jnp.zeros(2))
    first = jax.tree.map(lambda leaf: leaf[0], trained.snapshots)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-6), first, expected)
    for leaf in jax.tree.leaves(trained.snapshots):
        changes = np.abs(np.diff(leaf, axis=0)).reshape(4, -1).max(axis=1)
        assert len(leaf) == 5
        assert (changes > 0).all()

    # The same bits again, and how many snapshots are kept does not change the path.
    again = train(family=family, decoder=decoder, num_snapshots=2)
    assert_same(*(jax.tree.map(lambda leaf: leaf[-1], t.snapshots) for t in (trained, again)))
    other = train(family=family, decoder=decoder, num_snapshots=2, seed=1)
    kernels = [t.snapshots["params"]["Dense_0"]["kernel"] for t in (again, other)]
    assert (kernels[0] != kernels[1]).mean() > 0.9


def test_training_learns():
    trained = train(num_steps=300, num_snapshots=4)
    losses = [row["validation_loss"] for row in trained.rows]
    assert losses[-1] < 0.75 * losses[0]
    last = trained.rows[-1]
    assert len(last["validation_kl_per_latent"]) == 2
    assert last["train_kl"] == pytest.approx(sum(last["train_kl_per_latent"]), rel=1e-5)


@pytest.mark.parametrize(
    ("options", "figures"),
    [
        ([], {"samples", "losses", "reconstructions", "manifold"}),
        (["--family", "wgan_gp", "--decoder", "dcgan"], {"samples", "losses", "manifold"}),
    ],
)
def test_a_short_run_writes_everything(tmp_path, monkeypatch, capsys, options, figures):
    kept = []

    def record(*args):
        kept.append(train_generator(*args))
        return kept[0]

    monkeypatch.setattr(program, "train_generator", record)
    folder = run(tmp_path, monkeypatch, *TINY, *options)
    printed = capsys.readouterr().out
    assert f"next: python -m experiments.surfing --generators {folder}" in printed
    assert "step 12/12" in printed
    config = json.loads((folder / "config.json").read_text())["config"]
    summary = json.loads((folder / "summary.json").read_text())
    is_vae = config["family"] == "vae"
    assert config["batch_size"] == (128 if is_vae else 64)  # nothing is left open
    assert config["width"] == 8
    assert summary["image_shape"] == [8, 8, 1]
    assert summary["last"]["step"] == 12
    assert is_vae == (summary["active_latents"] is not None)
    assert len((folder / "metrics.jsonl").read_text().splitlines()) == 5
    assert {file.stem for file in (folder / "figures").iterdir()} == figures
    assert all(file.stat().st_size > 5_000 for file in (folder / "figures").iterdir())

    loaded = generator_store.load(folder)
    assert_same(loaded.snapshots, kept[0].snapshots)
    np.testing.assert_array_equal(loaded.steps, kept[0].steps)
    assert_same(loaded.snapshot(2), jax.tree.map(lambda leaf: leaf[2], kept[0].snapshots))
    assert loaded.info["dataset"] == "digits"
    assert loaded.info["kl_per_latent"] == summary["kl_per_latent"]
    latents = jnp.ones((3, loaded.info["latent_dim"]))
    expected = kept[0].module.apply(loaded.snapshot(-1), latents)
    np.testing.assert_array_equal(loaded.generate(loaded.snapshot(-1), latents), expected)
    if is_vae:
        check_that_damage_is_noticed(folder)


def check_that_damage_is_noticed(folder):
    for file in (folder / "checkpoints").rglob("*"):
        if file.is_file() and file.stat().st_size > 3_000:
            content = bytearray(file.read_bytes())
            content[len(content) // 2] ^= 1
            file.write_bytes(content)
    with pytest.raises(UserError, match=r"the generator in .* is damaged .*; train one with"):
        generator_store.load(folder)
    shutil.rmtree(folder / "checkpoints")
    with pytest.raises(UserError, match=r"has no finished generator; train one with"):
        generator_store.load(folder)
    assert not (folder / "checkpoints").exists()
    (folder / "config.json").write_text('{"config": {"model": "mlp"}}')
    with pytest.raises(UserError, match=r"is a run of another experiment"):
        generator_store.load(folder)
    with pytest.raises(UserError, match=r"is not the folder of a run"):
        generator_store.load(folder / "absent")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--latent-dim", 0], r"latent_dim must be from 1 to the number of pixels \(64\), got 0"),
        (["--latent-dim", 65], r"latent_dim must be from 1 to the number of pixels \(64\), got 65"),
        (["--width", 0], r"width must be >= 1, got 0"),
        (["--width", 7, "--decoder", "dcgan"], r"\(channels\) must be even, got 7"),
        (["--num-steps", 3], r"num_snapshots must be at most num_steps . 1 = 4, got 5"),
        (["--num-snapshots", 1], r"num_snapshots must be an integer >= 2, got 1"),
        (["--batch-size", 2_000], r"batch_size must be from 1 to .* \(1,293\), got 2,000"),
        (["--learning-rate", 0], r"learning_rate must be > 0 and finite, got 0"),
        (["--seed", -1], r"seed must be in \[0, 2\^32\), got -1"),
        (["--family", "magic"], r"--family"),
    ],
)
def test_bad_options_give_a_sentence_before_training(tmp_path, monkeypatch, options, message):
    with pytest.raises(UserError, match=message):
        run(tmp_path, monkeypatch, *TINY, *options)
    assert not list(tmp_path.iterdir())


def test_divergence_gives_a_sentence():
    images = np.full((1_293, 8, 8, 1), np.nan, np.float32)
    settings = Settings("vae", "mlp", latent_dim=2, num_steps=12, width=8, num_snapshots=5)
    with pytest.raises(UserError, match=r"training diverged by step 0: choose a smaller"):
        train_generator(settings, images, images[:144])


def test_ctrl_c_says_that_nothing_was_saved(tmp_path, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(program, "train_generator", interrupt)
    with pytest.raises(KeyboardInterrupt, match=r"no generator was saved in .*"):
        run(tmp_path, monkeypatch, *TINY)


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((8, 8, 3), r"shape \(height, width, 1\), got \(8, 8, 3\)"),
        ((8, 10, 1), r"height and width divisible by 4, got 8x10"),
    ],
)
def test_images_that_do_not_fit_a_decoder(shape, message):
    with pytest.raises(UserError, match=message):
        build_decoder("dcgan", 3, shape)
    with pytest.raises(UserError, match=r"unknown decoder 'cnn'"):
        build_decoder("cnn", 3, (8, 8, 1))
