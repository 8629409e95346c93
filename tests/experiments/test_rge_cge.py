"""The comparison of gradient sources: the network, the estimators, short runs, bad options."""

import json
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import zojax
from experiments import rge_cge
from experiments.lib.data import Dataset, Split
from experiments.lib.errors import UserError

SMALL = ["--channels", 2, "--batch-size", 4, "--steps", 2, "--num-evals", 1]
SMALL += ["--statistics-images", 8, "--num-seeds", 1]


def random_dataset(side, channels):
    random = np.random.RandomState(0)

    def split(count):
        images = random.rand(count, side, side, channels).astype(np.float32)
        return Split(images, random.randint(0, 10, count).astype(np.int32))

    return Dataset("random", split(16), split(8), split(8), tuple("0123456789"))


@pytest.fixture
def cifar_shapes(monkeypatch):
    monkeypatch.setattr(rge_cge, "load_dataset", lambda name, folder: random_dataset(32, 3))


def run(tmp_path, monkeypatch, *options):
    """Runs the program in this process; returns the folder of its newest run."""
    argv = ["rge_cge", "--output", str(tmp_path), *map(str, options)]
    monkeypatch.setattr(sys, "argv", argv)
    rge_cge.main()
    return max((tmp_path / "rge_cge").iterdir(), key=lambda path: path.stat().st_mtime)


@pytest.mark.parametrize(
    ("depth", "side", "channels", "expected"),
    [
        (1, 32, 3, 730),
        (2, 32, 3, 3_700),
        (3, 32, 3, 6_670),
        (4, 32, 3, 9_640),
        (5, 32, 3, 12_610),
        (1, 16, 1, 406),
    ],
)
def test_parameter_counts_are_the_published_ones(depth, side, channels, expected):
    images = jnp.zeros((2, side, side, channels))
    shapes = jax.eval_shape(rge_cge.AdjustableCNN(depth).init, jax.random.key(0), images)
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes["params"])) == expected


def test_the_network_is_convolutions_batch_norm_relu_and_pooling():
    images = jax.random.normal(jax.random.key(0), (3, 8, 8, 2))
    module = rge_cge.AdjustableCNN(depth=2, channels=4)
    params = module.init(jax.random.key(1), images)["params"]
    x = images
    for index in range(2):
        x = jax.lax.conv_general_dilated(
            x,
            params[f"kernel_{index}"],
            window_strides=(1, 1),
            padding="SAME",
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            precision="highest",
        )
        x = (x - x.mean((0, 1, 2))) / jnp.sqrt(x.var((0, 1, 2)) + 1e-5)
        x = jax.nn.relu(x)
        x = jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")
    dense = params["Dense_0"]
    expected = x.mean((1, 2)) @ dense["kernel"] + dense["bias"]
    logits, stored = module.apply({"params": params}, images, mutable=["batch_stats"])
    np.testing.assert_allclose(logits, expected, atol=1e-4)
    # The stored statistics are those of this batch alone.
    again = module.apply({"params": params, **stored}, images, train=False)
    np.testing.assert_allclose(again, logits, atol=1e-4)


def smooth_loss(params, batch):
    return jnp.tanh(batch @ params["a"]).mean() + (params["b"] ** 2).sum()


@pytest.mark.parametrize("stencil", ["forward", "central"])
def test_as_many_orthogonal_directions_as_parameters_give_the_coordinate_gradient(stencil):
    config = rge_cge.Config(stencil=stencil)
    key = jax.random.key(3)
    params = {"a": jax.random.normal(key, (20,)), "b": jnp.linspace(-1.0, 1.0, 20)}
    batch = jax.random.normal(jax.random.key(4), (30, 20))

    def gradient(method):
        est = rge_cge.build_estimator(config, method, dimension=40)
        _, grad = jax.jit(zojax.value_and_grad(smooth_loss, est))(params, key, batch)
        return jax.flatten_util.ravel_pytree(grad)[0]

    exact, orthogonal, gaussian = map(gradient, ("cge", "orthogonal", "gaussian"))
    norm = jnp.linalg.norm(exact)
    assert jnp.linalg.norm(orthogonal - exact) < 0.02 * norm
    assert jnp.linalg.norm(gaussian - exact) > 0.3 * norm


@pytest.mark.parametrize("method", ["cge", "orthogonal", "gaussian", "block_part"])
def test_a_step_along_a_direction_has_length_mu(method):
    config, params = rge_cge.Config(), {"a": jnp.zeros((30,)), "b": jnp.zeros((70,))}
    est = rge_cge.build_estimator(config, method, dimension=100)
    points = zojax.ask(est, params, jax.random.key(0), est.init(params))
    squares = sum((leaf**2).sum(1) for leaf in jax.tree.leaves(points))
    lengths = jnp.sqrt(jnp.sort(squares)[1:])  # the shortest is the centre
    tolerance = 0.05 if method == "gaussian" else 1e-4
    assert jnp.sqrt((lengths**2).mean()) == pytest.approx(config.mu, rel=tolerance)


@pytest.mark.parametrize("stencil", ["forward", "central"])
@pytest.mark.parametrize("size", [1, 3])
def test_chunks_inside_the_loss_do_not_change_the_estimate(stencil, size):
    params = {"a": jnp.linspace(0.0, 1.0, 5), "b": jnp.ones(5)}
    batch = jax.random.normal(jax.random.key(0), (4, 5))
    est = rge_cge.build_estimator(rge_cge.Config(stencil=stencil), "gaussian", dimension=10)
    key = jax.random.key(1)
    _, plain = zojax.value_and_grad(smooth_loss, est)(params, key, batch)
    chunked = rge_cge.evaluated_in_chunks(smooth_loss, size)
    _, grad = jax.jit(zojax.value_and_grad(chunked, est))(params, key, batch)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-2, atol=1e-3), grad, plain)


def test_every_method_takes_two_steps_on_images_of_the_shape_of_cifar10(
    tmp_path, monkeypatch, capsys, cifar_shapes
):
    folder = run(tmp_path, monkeypatch, "--preset", "cifar10", *SMALL)

    summary = json.loads((folder / "summary.json").read_text())
    d = summary["parameters"]
    assert d == 9 * 3 * 2 + 2 + 4 + 3 * 10
    assert list(summary["methods"]) == list(rge_cge.LABELS)
    part = round(d / 4)
    queries = [entry["queries_per_step"] for entry in summary["methods"].values()]
    assert queries == [3, d + 1, d + 1, d + 1, part + 1, part + 1, part + 1]
    for entry in summary["methods"].values():
        assert len(entry["test_accuracies"]) == 1
    cosines = {name: entry["cosine_start_mean"] for name, entry in summary["methods"].items()}
    assert min(cosines["cge"], cosines["orthogonal"]) > 0.98
    assert cosines["gaussian"] < 0.95
    assert len((folder / "metrics.jsonl").read_text().splitlines()) == len(rge_cge.LABELS)
    assert (folder / "figures" / "accuracy.png").stat().st_size > 10_000
    table = (folder / "table.md").read_text()
    assert table in capsys.readouterr().out
    assert len(table.splitlines()) == 2 + len(rge_cge.LABELS)


def test_the_deepest_network_takes_two_steps(tmp_path, monkeypatch, cifar_shapes):
    methods = ["--methods", "block_part"]
    options = ["--depth", 5, "--channels", 18, "--fraction", 2e-4]
    folder = run(tmp_path, monkeypatch, "--preset", "cifar10", *SMALL, *options, *methods)
    assert json.loads((folder / "summary.json").read_text())["parameters"] == 12_610


def test_resuming_does_only_what_is_missing(tmp_path, monkeypatch, capsys):
    options = ["--preset", "quick", *SMALL, "--methods", "first_order", "block_part"]
    folder = run(tmp_path, monkeypatch, *options)
    before = (folder / "summary.json").read_text()
    metrics = (folder / "metrics.jsonl").read_text().splitlines(keepends=True)
    (folder / "metrics.jsonl").write_text(metrics[0])
    capsys.readouterr()

    assert run(tmp_path, monkeypatch, "--resume", folder) == folder
    printed = capsys.readouterr().out
    assert "block_part, " in printed
    assert "first_order, " not in printed
    first, second = (json.loads(text) for text in (before, (folder / "summary.json").read_text()))
    for entry in (*first["methods"].values(), *second["methods"].values()):
        del entry["seconds_mean"]
    assert first["methods"] == second["methods"]
    with pytest.raises(UserError, match=r"mu was 0\.005 and is now 0\.1"):
        run(tmp_path, monkeypatch, "--resume", folder, "--mu", 0.1)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--depth", "6"], "depth must be 1 to 5, got 6"),
        (["--depth", "5"], "size must be a multiple of 32 for depth 5, got 16"),
        (["--mu", "0"], "mu must be > 0 and finite, got 0.0"),
        (["--fraction", "1.5"], "fraction must be in (0, 1], got 1.5"),
        (["--batch-size", "1"], "batch_size must be >= 2"),
        (["--steps", "0"], "steps must be >= 1"),
        (["--momentum", "1"], "momentum must be in [0, 1)"),
        (["--methods", "newton"], "newton"),
        (["--methods", "cge", "cge"], "different names"),
        (["--first-seed", "-1"], "first_seed"),
        (["--dataset", "cifar10", "--data-dir", "/nowhere"], "prepare_data.py cifar10"),
        (["--dataset", "digits", "--output", "/proc/runs"], "/proc"),
        (["--resume", "/nowhere"], "/nowhere is not the folder of a run"),
        (
            ["--dataset", "digits", "--depth", "4", "--methods", "orthogonal"],
            "the method orthogonal does not work here: an orthogonal block",
        ),
    ],
    ids=lambda value: None if isinstance(value, str) else "-".join(value),
)
def test_bad_input_is_one_sentence(tmp_path, monkeypatch, options, words):
    monkeypatch.delenv("TFDS_DATA_DIR", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(UserError) as caught:
        run(tmp_path, monkeypatch, *options)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "rge_cge").exists(), "a failed start must not leave a run behind"


def test_a_loss_that_diverges_is_one_sentence(tmp_path, monkeypatch):
    options = ["--preset", "quick", *SMALL, "--methods", "first_order", "--steps", 20]
    with pytest.raises(UserError, match="lower --learning-rate"):
        run(tmp_path, monkeypatch, *options, "--learning-rate", 1e38)


def test_ctrl_c_says_how_to_go_on(tmp_path, monkeypatch):
    def interrupted(*_args, **_kwargs):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(rge_cge.Study, "run", interrupted)
        with pytest.raises(KeyboardInterrupt, match="--resume"):
            run(tmp_path, monkeypatch, "--preset", "quick", *SMALL)
