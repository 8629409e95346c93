"""Which kind of noise each parameter gets: by dimensions per reward, from shapes alone."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import jax
import numpy as np

from zojax import trees
from zojax.activations.meetings import ELEMENTWISE, Meeting, Value
from zojax.activations.program import Program
from zojax.types import Params

Mode = Literal["activations", "example_weights", "weights"]
MODES = ("activations", "example_weights", "weights")


class Site(NamedTuple):
    """A place where a parameter meets its input.

    Attributes:
      leaf: which parameter, by position.
      kind: the primitive's name.
      batched: whether the output has one block of rows per example.
      size: numbers of the output per example.
      shape: of the output.
      has_outer: whether weight noise r outer s per example is possible.
      factors: lengths of its r and s.
      follows: position of the site whose output this one adds to, or None.
    """

    leaf: int
    kind: str
    batched: bool
    size: int
    shape: tuple[int, ...]
    has_outer: bool
    factors: tuple[int, int]
    follows: int | None


class Row(NamedTuple):
    """What is decided for one parameter.

    Attributes:
      path: its name, e.g. "params/Dense_0/kernel".
      shape: its shape.
      met: the primitives it meets its inputs in; () if it never does.
      mode: the noise it gets; "unused" if the loss does not depend on it.
      dimensions: numbers that one reward is spread over.
      reward: what one reward is of: "example" or "batch".
      why: why other kinds of noise are out of the question, or "".
      divisor: what sigma is divided by; 1 for "activations".
    """

    path: str
    shape: tuple[int, ...]
    met: tuple[str, ...]
    mode: str
    dimensions: int
    reward: str
    why: str
    divisor: float = 1.0


class Plan(NamedTuple):
    """The sites of a loss and what happens at each.

    Attributes:
      rows: one per floating-point parameter, by its position among all leaves.
      sites: in the order in which the program meets them once `weights` are left out.
      roots: per site the position of the site whose noise it shares: itself, or one it follows.
    """

    rows: dict[int, Row]
    sites: list[Site]
    roots: list[int]

    def watched(self, num_leaves: int) -> list[bool]:
        """Says which leaves are watched while the program runs."""
        modes = {i: row.mode for i, row in self.rows.items()}
        return [modes.get(i) in ("activations", "example_weights") for i in range(num_leaves)]


def make_plan(program: Program, params: Params, choice: str | Mapping[str, str]) -> Plan:
    """Finds the sites of a loss and chooses the noise of every parameter.

    Args:
      program: the loss.
      params: its parameters, arrays.
      choice: "auto", a mode for all parameters, or path -> mode for some.

    Raises:
      ValueError: for a mode that a parameter cannot have, a path that is none, or if no parameter
        meets an input with the examples on axis 0.
    """
    named = jax.tree_util.tree_leaves_with_path(params)
    paths = {i: trees.path_name(p) for i, (p, leaf) in enumerate(named) if trees.is_float(leaf)}
    leaves = [leaf for _, leaf in named]
    sites, refused = _probe(program, leaves, [i in paths for i in range(len(leaves))])
    chosen = _overrides(choice, list(paths.values()))
    rows: dict[int, Row] = {}
    for i in paths:
        mine = [s for s in sites if s.leaf == i]
        fan_in = max((s.factors[0] for s in mine), default=1)
        met = tuple(s.kind for s in mine)
        row = Row(paths[i], leaves[i].shape, met, "", 0, "example", "")
        row, dims = _decide(row, mine, refused.get(i), chosen[paths[i]], program.num_examples)
        rows[i] = row._replace(divisor=_divisor(row.mode, fan_in, dims))
    if not any(row.reward == "example" for row in rows.values()) and chosen_auto(choice):
        raise ValueError(_no_site(rows, sites, program.num_examples))
    return _renumber(rows, sites)


def chosen_auto(choice: str | Mapping[str, str]) -> bool:
    """Whether some parameters are left to the automatic choice."""
    return choice == "auto" or not isinstance(choice, str)


def _probe(
    program: Program, leaves: Sequence[Any], watched: list[bool]
) -> tuple[list[Site], dict[int, str]]:
    """Runs the program once on shapes and lists what every parameter meets."""
    found: list[tuple[Meeting, tuple[int, ...]]] = []
    refused: dict[int, str] = {}

    def visit(meeting: Meeting) -> Any:
        y = meeting.clean()
        found.append((meeting, y.shape))
        return y

    def refuse(leaf: int, why: str) -> None:
        refused.setdefault(leaf, why)

    jax.eval_shape(lambda *xs: program.run(xs, watched, visit, refuse), *leaves)
    positions = {id(meeting): i for i, (meeting, _) in enumerate(found)}

    def follows(meeting: Meeting, shape: tuple[int, ...]) -> int | None:
        x: Value = meeting.x
        if meeting.kind != "add" or x.meeting is None or x.reads != 1 or x.array.shape != shape:
            return None
        return positions[id(x.meeting)]

    sites = [
        Site(
            leaf=m.weight.leaf,
            kind=m.kind,
            batched=m.batched,
            size=int(np.prod(shape)) // program.num_examples,
            shape=shape,
            has_outer=m.project is not None,
            factors=(int(np.prod(m.shapes[0])), int(np.prod(m.shapes[1]))),
            follows=follows(m, shape),
        )
        for m, shape in found
    ]
    return sites, refused


def _decide(
    row: Row, mine: list[Site], refused: str | None, wanted: str, batch: int
) -> tuple[Row, dict[str, int]]:
    """Chooses the noise of one parameter; returns the numbers per reward of each kind, too."""
    size = int(np.prod(row.shape))
    dims = {"weights": size}
    if not mine and refused is None:
        return row._replace(mode="unused", why="the loss does not depend on it"), dims
    why = ""
    if refused is not None:
        why = f"it meets {refused}, which is no site"
    elif not all(s.batched for s in mine):
        bad = next(s for s in mine if not s.batched)
        why = f"{bad.kind} gives {bad.shape}, which has not the {batch} examples on axis 0"
    else:
        dims["activations"] = sum(s.size for s in mine)
        outer = len(mine) == 1 and mine[0].has_outer
        if outer or all(s.kind in ELEMENTWISE for s in mine):
            dims["example_weights"] = size
        else:
            why = f"no noise per example on the weights of {mine[0].kind}"
    if wanted != "auto" and wanted not in dims:
        raise ValueError(f"sites: {row.path} cannot have {wanted!r} noise: {why}")
    per_example = [m for m in ("activations", "example_weights") if m in dims]
    best = min(per_example, key=lambda m: dims[m]) if per_example else "weights"
    mode = best if wanted == "auto" else wanted
    reward = "batch" if mode == "weights" else "example"
    return row._replace(mode=mode, dimensions=dims[mode], reward=reward, why=why), dims


def _divisor(mode: str, fan_in: int, dims: Mapping[str, int]) -> float:
    """What sigma is divided by.

    Noise on a weight is divided by the root of its `fan_in`, to move outputs as much as noise on
    them does. That is too much if it is spread over fewer numbers: with D_s numbers at site s and
    rewards that move equally with each site's sigma_s, the error of all sites is proportional to
    (sum of sigma_s^2) (sum of D_s / sigma_s^2), least for sigma_s^2 proportional to sqrt(D_s).
    """
    if mode == "example_weights":
        return float(fan_in**0.5 * (dims["activations"] / dims[mode]) ** 0.25)
    return float(fan_in**0.5) if mode == "weights" else 1.0


def _overrides(choice: str | Mapping[str, str], paths: list[str]) -> dict[str, str]:
    if isinstance(choice, str):
        return dict.fromkeys(paths, choice)
    return by_path("sites", choice, paths, lambda path: "auto")


def by_path(
    name: str, given: Mapping[str, Any], paths: list[str], default: Callable[[str], Any]
) -> dict[str, Any]:
    """Looks up every path in a mapping whose keys are paths or their beginnings.

    Args:
      name: of the argument, for messages.
      given: path or beginning of paths ("params/Dense_0") -> value; the longest match counts.
      paths: all paths.
      default: path -> value where nothing matches; may raise.

    Raises:
      ValueError: for a key that matches no path.
    """

    def matches(key: str, path: str) -> bool:
        return path == key or path.startswith(key + "/")

    for key in given:
        if not any(matches(key, path) for path in paths):
            raise ValueError(f"{name}: no parameter is called {key!r}; there are {paths}")
    found = {}
    for path in paths:
        keys = [key for key in given if matches(key, path)]
        found[path] = given[max(keys, key=len)] if keys else default(path)
    return found


def _renumber(rows: dict[int, Row], sites: list[Site]) -> Plan:
    """Leaves out the sites of parameters that are not watched, and finds whose noise is shared."""
    kept = [i for i, s in enumerate(sites) if rows[s.leaf].reward == "example"]
    places = {old: new for new, old in enumerate(kept)}
    result: list[Site] = []
    roots: list[int] = []
    for new, old in enumerate(kept):
        site = sites[old]
        follows = None if site.follows is None else places.get(site.follows)
        both = follows is not None and all(
            rows[s.leaf].mode == "activations" for s in (site, result[follows])
        )
        roots.append(roots[follows] if both and follows is not None else new)
        result.append(site._replace(follows=follows if both else None))
    return Plan(rows, result, roots)


def _no_site(rows: dict[int, Row], sites: list[Site], batch: int) -> str:
    if sites and not any(s.batched for s in sites):
        return (
            f"loss_fn returns {batch} losses, but no layer has the {batch} examples on axis 0 of "
            f"its output: the first is {rows[sites[0].leaf].path} with {sites[0].shape}"
        )
    listed = "; ".join(f"{row.path}: {row.why}" for row in list(rows.values())[:4])
    return f"no parameter meets an input in a way that activation noise knows ({listed})"
