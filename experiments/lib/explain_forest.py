"""Explains a random forest, which has no gradient anywhere, in sentences about its features."""

from typing import Any, NamedTuple

import jax
import numpy as np

from zojax import blackbox, explain
from zojax.directions import gaussian
from zojax.estimators import finite_difference
from zojax.stencils import central

NUM_TREES = 100
SIGMA = 0.15
"""Of the estimator, in ranges of a feature: wide enough to cross the steps of the trees."""
_DIGITS = 3  # significant, of the numbers in sentences


class Patients(NamedTuple):
    """The breast cancer data of scikit-learn, as the forest sees them.

    Attributes:
        rows: Test rows in their own units, float64 (n, features).
        low: Least value of each feature in the training part.
        high: Largest.
        names: Of the features.
        classes: Names of the two classes.
        forest: The trained forest; takes rows in their own units.
        accuracy: On the test part.
    """

    rows: np.ndarray
    low: np.ndarray
    high: np.ndarray
    names: tuple[str, ...]
    classes: tuple[str, ...]
    forest: Any
    accuracy: float


def load(seed: int) -> Patients:
    """Loads the data and trains the forest.

    Args:
        seed: Of the forest; the split is always the same.
    """
    from sklearn.datasets import load_breast_cancer
    from sklearn.ensemble import RandomForestClassifier
    from sklearn.model_selection import train_test_split

    data = load_breast_cancer()
    train, test = train_test_split(
        np.arange(len(data.target)), test_size=0.3, stratify=data.target, random_state=0
    )
    forest = RandomForestClassifier(NUM_TREES, min_samples_leaf=3, random_state=seed)
    forest.fit(data.data[train], data.target[train])
    return Patients(
        rows=data.data[test],
        low=data.data[train].min(axis=0),
        high=data.data[train].max(axis=0),
        names=tuple(map(str, data.feature_names)),
        classes=tuple(map(str, data.target_names)),
        forest=forest,
        accuracy=float(forest.score(data.data[test], data.target[test])),
    )


def run(num_rows: int, budget: int, seed: int) -> dict[str, Any]:
    """Finds for patients what would have to be higher, or lower, for the other diagnosis.

    A pertinent negative only adds. What would have to be lower is found with every feature turned
    round, 1 - x. Each sentence is checked by asking the forest about the numbers in it.

    Args:
        num_rows: How many patients.
        budget: Queries for each and each direction.
        seed: Of forest and directions.
    """
    patients = load(seed)
    est = finite_difference(directions=gaussian(), stencil=central, num_directions=32, sigma=SIGMA)
    explainer = explain.pertinent_negative(
        est, c=100.0, beta=10.0, kappa=0.1, num_steps=40, num_searches=4
    )
    x = np.clip((patients.rows - patients.low) / (patients.high - patients.low), 0, 1)
    x = x[:num_rows].astype(np.float32)
    found = []
    for is_higher in (True, False):

        def scores(batch: np.ndarray, is_higher: bool = is_higher) -> np.ndarray:
            values = batch if is_higher else 1 - batch
            return patients.forest.predict_proba(_units(patients, values))

        oracle = blackbox.score_oracle(scores, budget=budget)
        shown = x if is_higher else 1 - x
        explanations = explain.run(explainer, oracle, shown, jax.random.key(seed))
        found.append(explanations)
    people = [_describe(patients, x, found, index) for index in range(len(x))]
    return {
        "model": f"random forest of {NUM_TREES} trees, test accuracy {patients.accuracy:.1%}",
        "explained": sum(person["verified"] for person in people),
        "num_rows": len(people),
        "queries_mean": float(np.mean(found[0].queries + found[1].queries)),
        "people": people,
    }


def _units(patients: Patients, x: np.ndarray) -> np.ndarray:
    return patients.low + x.astype(np.float64) * (patients.high - patients.low)


def _describe(
    patients: Patients, x: np.ndarray, found: list[explain.Explanations], index: int
) -> dict[str, Any]:
    """The shorter of the two explanations of one patient, as a sentence that was checked."""
    before = int(found[0].class_before[index])
    person = {"patient": index, "class": patients.classes[before], "verified": False}
    options = [
        _sentence(patients, index, before, sign * explanations.change[index])
        for sign, explanations in zip((1, -1), found, strict=True)
        if explanations.success[index]
    ]
    options = [option for option in options if option["verified"]]
    if not options:
        return person | {"sentence": "no change in one direction was found"}
    return person | min(options, key=lambda option: len(option["changes"]))


def _sentence(patients: Patients, index: int, before: int, change: np.ndarray) -> dict[str, Any]:
    """States the largest changes that suffice, with rounded numbers, and asks the forest."""
    row = patients.rows[index]
    target = row + change.astype(np.float64) * (patients.high - patients.low)
    told, used, after = row.copy(), [], before
    for feature in np.argsort(-np.abs(change), kind="stable"):
        if after != before or change[feature] == 0:
            break
        used.append(feature)
        told[feature] = float(_short(target[feature]))
        after = int(patients.forest.predict(told[None])[0])
    changes = [
        {"feature": patients.names[i], "from": float(row[i]), "to": float(told[i])} for i in used
    ]
    parts = [
        f"{item['feature']} were {_short(item['to'])} instead of {_short(item['from'])}"
        for item in changes
    ]
    sentence = f"would be {patients.classes[1 - before]} if {' and '.join(parts)}"
    return {"sentence": sentence, "changes": changes, "verified": after != before}


def _short(value: float) -> str:
    """Writes three significant digits, never with an exponent."""
    return f"{float(f'{value:.{_DIGITS}g}'):.10f}".rstrip("0").rstrip(".")


def text(result: dict[str, Any]) -> str:
    """Returns all sentences in Markdown.

    Args:
        result: Of `run`.
    """
    lines = [
        f"{result['model']}: {result['explained']} of {result['num_rows']} explained, each checked "
        f"with the forest; {result['queries_mean']:,.0f} queries per patient\n"
    ]
    lines += [
        f"* Patient {person['patient']}, {person['class']}: {person['sentence']}."
        for person in result["people"]
    ]
    return "\n".join(lines) + "\n"
