import matplotlib.image
import numpy as np
import pytest

from experiments.lib import figures


def _is_drawing(path):
    image = matplotlib.image.imread(path)
    return image.shape[0] > 100 and image.shape[1] > 100 and image[..., :3].std() > 0.005


def _rows(count):
    return [
        {
            "sample_forwards": 1000 * step,
            "seconds": 0.5 * step,
            "loss": None if step == 3 else 2.3 / (1 + step),
            "accuracy": 0.1 + 0.01 * step,
        }
        for step in range(count)
    ]


@pytest.mark.parametrize("count", [0, 1, 10])
def test_learning_curves(tmp_path, count):
    curves = {"evolution strategy": _rows(count), "back-propagation": _rows(count)}
    figures.learning_curves(tmp_path / "curves.png", curves, title="digits")
    assert _is_drawing(tmp_path / "curves.png")


@pytest.mark.parametrize("shape", [(64, 7), (5, 5, 1, 8), (5, 5, 3, 2)])
def test_weight_images(tmp_path, shape):
    weights = np.random.default_rng(0).normal(size=shape)
    figures.weight_images(tmp_path / "weights.png", weights, (8, 8, 1))
    assert _is_drawing(tmp_path / "weights.png")


def test_weights_that_are_all_zero(tmp_path):
    figures.weight_images(tmp_path / "weights.png", np.zeros((64, 2)), (8, 8))
    assert (tmp_path / "weights.png").exists()


@pytest.mark.parametrize("num_wrong", [0, 1, 40])
@pytest.mark.parametrize("names", [("0", "1"), ("T-shirt/top", "Ankle boot")])
def test_misclassified(tmp_path, num_wrong, names):
    images = np.random.default_rng(0).uniform(size=(50, 8, 8, 1))
    labels = np.zeros(50, dtype=np.int32)
    predictions = (np.arange(50) < num_wrong).astype(np.int32)
    figures.misclassified(tmp_path / "wrong.png", images, labels, predictions, names)
    assert _is_drawing(tmp_path / "wrong.png")
