"""The victim and the libraries that `bench_attacks.py` compares."""

import dataclasses
import functools
import importlib.util
import math
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import numpy as np

from zojax import attacks, blackbox

# Radii of Square, linf: at the first the attack is over after some ten queries, at the second many
# images survive the whole budget.
EPSILONS = (0.3, 0.1)
SIZES = (784, 256, 128, 10)
PACKAGES = {"art": "adversarial-robustness-toolbox"}  # where its name is another

Weights = list[tuple[np.ndarray, np.ndarray]]


@dataclasses.dataclass
class Counter:
    """What a victim has received.

    Attributes:
      rows: images.
      calls: batches.
      seconds: spent in the victim.
    """

    rows: int = 0
    calls: int = 0
    seconds: float = 0.0

    def note(self, rows: int, start: float) -> None:
        """Counts a batch that was received at `start`, and is answered now."""
        self.rows += rows
        self.calls += 1
        self.seconds += time.perf_counter() - start


class Contestant(NamedTuple):
    """An attack of a library on a victim.

    Attributes:
      attack: its name.
      epsilon: the radius it must keep to; infinite for one that minimises the distance.
      package: the library, and victim.
      num_images: of which it attacks the first ones.
      run: from the number of the repetition to adversarial images (num_images, 28, 28), the
        originals where nothing was found.
      counter: of its victim.
    """

    attack: str
    epsilon: float
    package: str
    num_images: int
    run: Callable[[int], np.ndarray]
    counter: Counter


class Task(NamedTuple):
    """What all contestants are given.

    Attributes:
      weights: of the victim.
      images: that it classifies correctly, float32 (n, 28, 28).
      labels: int32 (n,).
      budgets: rows per image, by attack.
      num_sequential: images at most for an attack that takes one at a time.
    """

    weights: Weights
    images: np.ndarray
    labels: np.ndarray
    budgets: dict[str, int]
    num_sequential: int


def logits_of(weights: Any, x: jax.Array) -> jax.Array:
    """The victim's logits, (b, 10), of flat images (b, 784)."""
    for matrix, bias in weights[:-1]:
        x = jax.nn.relu(x @ matrix + bias)
    return x @ weights[-1][0] + weights[-1][1]


def jax_victim(weights: Weights, counter: Counter) -> Callable[[np.ndarray], np.ndarray]:
    """The victim as a function of a batch; pads to a power of two, for few compilations."""
    forward = jax.jit(lambda x: logits_of(weights, x))

    def victim(batch: np.ndarray) -> np.ndarray:
        start = time.perf_counter()
        padded = np.zeros((1 << (len(batch) - 1).bit_length(), SIZES[0]), np.float32)
        padded[: len(batch)] = batch.reshape(len(batch), -1)
        logits = np.asarray(forward(padded))[: len(batch)]
        counter.note(len(batch), start)
        return logits

    return victim


def torch_victim(weights: Weights, counter: Counter) -> Any:
    """The victim as a torch module on the CPU."""
    import torch

    class Victim(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            layers: list[Any] = [torch.nn.Flatten()]
            for matrix, bias in weights:
                layer = torch.nn.Linear(*matrix.shape)
                layer.weight.data = torch.from_numpy(matrix.T.copy())
                layer.bias.data = torch.from_numpy(bias.copy())
                layers += [layer, torch.nn.ReLU()]
            self.layers = torch.nn.Sequential(*layers[:-1])

        def forward(self, x: Any) -> Any:
            start = time.perf_counter()
            with torch.no_grad():
                logits = self.layers(x.float())  # ART sends doubles with NumPy 2
            counter.note(len(x), start)
            return logits

    return Victim().eval()


def on_arrays(module: Any) -> Callable[[np.ndarray], np.ndarray]:
    """A torch module as a function of NumPy arrays."""
    import torch

    return lambda batch: module(torch.from_numpy(batch)).numpy()


def set_torch_threads(weights: Weights) -> int:
    """Gives torch one thread or all cores, whichever is faster here and now; returns how many.

    Where the cores are busy, threads that wait for one another cost fifty times the work itself,
    which would be held against whoever asks torch most often.
    """
    import torch

    module, batch = torch_victim(weights, Counter()), torch.zeros(64, SIZES[0])
    seconds = {}
    for threads in {1, torch.get_num_threads()}:
        torch.set_num_threads(threads)
        module(batch)
        start = time.perf_counter()
        for _ in range(50):
            module(batch)
        seconds[threads] = time.perf_counter() - start
    torch.set_num_threads(min(seconds, key=seconds.__getitem__))
    return torch.get_num_threads()


def is_installed(module: str) -> bool:
    """Whether a package can be imported."""
    return importlib.util.find_spec(module) is not None


def zojax_contestants(task: Task) -> Iterator[Contestant]:
    """Runs zojax on the victim in JAX, and in torch where there is torch."""
    square, labels = task.budgets["Square"], task.budgets["HopSkipJump"]
    chosen: list[tuple[str, float, Callable[[], Any], int]] = [
        ("Square", epsilon, functools.partial(attacks.square, epsilon, num_steps=square), square)
        for epsilon in EPSILONS
    ]
    chosen.append(("HopSkipJump", math.inf, attacks.hop_skip_jump, labels))
    frameworks = ["JAX", "torch"] if is_installed("torch") else ["JAX"]
    for name, epsilon, make, budget in chosen:
        for framework in frameworks:
            counter = Counter()
            attack = make()  # an object of its own, so that each victim's first run compiles
            if framework == "JAX":
                function = jax_victim(task.weights, counter)
            else:
                function = on_arrays(torch_victim(task.weights, counter))

            def run(repetition: int, attack=attack, budget=budget, function=function) -> Any:
                oracle = blackbox.score_oracle(function, budget=budget)
                key = jax.random.key(repetition)
                return attacks.run(attack, oracle, task.images, task.labels, key).adversarial

            library = f"zojax, {framework} victim"
            yield Contestant(name, epsilon, library, len(task.images), run, counter)


def art_contestants(task: Task) -> Iterator[Contestant]:
    """ART: its torch classifier, the usual form, and its black box, which costs it less time."""
    import torch
    from art.attacks.evasion import HopSkipJump, SquareAttack
    from art.estimators.classification import PyTorchClassifier
    from art.estimators.classification.blackbox import BlackBoxClassifierNeuralNetwork

    shape = {"input_shape": (1, 28, 28), "nb_classes": SIZES[-1], "clip_values": (0.0, 1.0)}
    # It asks three times per step and image: for success, for the loss, for the new loss.
    square = {"norm": np.inf, "max_iter": task.budgets["Square"] // 3}
    chosen: list[tuple[str, float, Any, dict[str, Any], int]] = [
        ("Square", epsilon, SquareAttack, square | {"eps": epsilon}, len(task.images))
        for epsilon in EPSILONS
    ]
    steps = {"norm": 2, "max_iter": num_iterations(task.budgets["HopSkipJump"])}
    few = min(task.num_sequential, len(task.images))
    chosen.append(("HopSkipJump", math.inf, HopSkipJump, steps, few))
    for name, epsilon, make, options, count in chosen:
        for form in ("torch classifier", "black box"):
            counter = Counter()
            victim = torch_victim(task.weights, counter)
            if form == "black box":
                estimator = BlackBoxClassifierNeuralNetwork(on_arrays(victim), **shape)
            else:
                estimator = PyTorchClassifier(victim, torch.nn.CrossEntropyLoss(), **shape)

            def run(repetition: int, make=make, on=estimator, options=options, n=count) -> Any:
                np.random.seed(repetition)
                attack = make(on, batch_size=1024, verbose=False, **options)
                return attack.generate(task.images[:n, None], task.labels[:n])[:, 0]

            yield Contestant(name, epsilon, f"ART, {form}", count, run, counter)


def foolbox_contestants(task: Task) -> Iterator[Contestant]:
    """foolbox, which has no Square attack."""
    import foolbox
    import torch

    counter = Counter()
    model = foolbox.PyTorchModel(torch_victim(task.weights, counter), bounds=(0, 1), device="cpu")
    steps = num_iterations(task.budgets["HopSkipJump"])
    attack = foolbox.attacks.HopSkipJumpAttack(steps=steps)
    images = torch.from_numpy(task.images[:, None])
    labels = torch.from_numpy(task.labels.astype(np.int64))

    def run(repetition: int) -> np.ndarray:
        torch.manual_seed(repetition)
        return attack(model, images, labels, epsilons=None)[0].numpy()[:, 0]

    yield Contestant("HopSkipJump", math.inf, "foolbox", len(task.images), run, counter)


def num_iterations(budget: int) -> int:
    """Iterations of a peer's HopSkipJump: 100 sqrt(t) probes, and about 20 labels besides."""
    spent, count = 0.0, 0
    while spent + 100 * math.sqrt(count + 1) + 20 <= budget:
        count += 1
        spent += 100 * math.sqrt(count) + 20
    return max(count, 1)


def contestants(task: Task, chosen: list[str]) -> list[Contestant]:
    """Those of the chosen attacks whose packages are installed."""
    found = list(zojax_contestants(task))
    for module, peers in (("art", art_contestants), ("foolbox", foolbox_contestants)):
        missing = [name for name in ("torch", module) if not is_installed(name)]
        if missing:
            packages = " and ".join(PACKAGES.get(name, name) for name in missing)
            print(f"{module} is left out: install {packages} (pip install -e '.[peers]')")
            continue
        found.extend(peers(task))
    return sorted((c for c in found if c.attack in chosen), key=lambda c: (c.attack, -c.epsilon))
