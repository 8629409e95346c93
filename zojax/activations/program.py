"""The loss as a list of equations, run with weights that are watched as they meet their inputs.

Every parameter goes in disguised as a `Weight`. Where the program multiplies by it, convolves with
it, looks up its rows, adds it to or multiplies it into activations, the equation is a *site*: its
output is linear in the weight, and a visitor decides what it becomes. No derivative is taken.
"""

from collections.abc import Callable, Sequence
from typing import Any

import chex
import jax
import jax.extend
import jax.numpy as jnp

from zojax.activations import meetings
from zojax.activations.meetings import Meeting, Value, Weight

Visitor = Callable[[Meeting], chex.Array]
"""`meeting -> output`: what the program goes on with."""
Refusal = Callable[[int, str], None]
"""`(leaf, why)`: this parameter met something that is no site."""

_INLINE = (
    *("jit", "pjit", "closed_call", "core_call", "remat2", "checkpoint"),
    *("custom_jvp_call", "custom_vjp_call", "custom_vjp_call_jaxpr"),
)


class Program:
    """A loss with one value per example, traced at its parameters.

    Attributes:
      num_examples: length of what the loss returns.
    """

    def __init__(self, loss: Callable[..., Any], params: Any) -> None:
        """Traces the loss.

        Args:
          loss: `params -> (num_examples,)`.
          params: a pytree of arrays.

        Raises:
          ValueError: if the loss does not return one real number per example.
        """
        leaves, treedef = jax.tree.flatten(params)

        def of_leaves(*arrays: chex.Array) -> chex.Array:
            return _check_losses(loss(jax.tree.unflatten(treedef, arrays)))

        self._jaxpr = jax.make_jaxpr(of_leaves)(*leaves)
        self.num_examples = int(self._jaxpr.out_avals[0].shape[0])

    def run(
        self,
        leaves: Sequence[chex.Array],
        watched: Sequence[bool],
        visit: Visitor,
        refuse: Refusal = lambda leaf, why: None,
    ) -> chex.Array:
        """Evaluates the loss.

        Args:
          leaves: the parameters.
          watched: which of them are watched; the others are ordinary arrays.
          visit: decides the outputs of sites.
          refuse: is told of watched parameters that met something else.

        Returns:
          One loss per example, shape (num_examples,).
        """
        values = [
            Weight(x, i, x.shape) if w else Value(x)
            for i, (x, w) in enumerate(zip(leaves, watched, strict=True))
        ]
        batch = self.num_examples
        shapes = [jnp.shape(x) for x in self._jaxpr.consts]
        axes = [0 if meetings.is_divisible(s, batch) else None for s in shapes]
        consts = [Value(x, axis) for x, axis in zip(self._jaxpr.consts, axes, strict=True)]
        run = _Run(batch, visit, refuse)
        return run.evaluate(self._jaxpr.jaxpr, consts, values)[0].array


class _Run:
    """One evaluation of a program."""

    def __init__(self, batch: int, visit: Visitor, refuse: Refusal) -> None:
        self.batch, self.visit, self.refuse = batch, visit, refuse

    def evaluate(self, jaxpr: Any, consts: Sequence[Any], values: Sequence[Any]) -> list[Any]:
        known = dict(zip(jaxpr.constvars, consts, strict=True))
        known.update(zip(jaxpr.invars, values, strict=True))

        def read(variable: Any) -> Any:
            is_literal = isinstance(variable, jax.extend.core.Literal)
            return Value(variable.val) if is_literal else known[variable]

        for equation in jaxpr.eqns:
            inputs = [read(v) for v in equation.invars]
            known.update(zip(equation.outvars, self.step(equation, inputs), strict=True))
        return [self.as_value(read(v), "the output") for v in jaxpr.outvars]

    def step(self, equation: Any, inputs: list[Any]) -> list[Any]:
        primitive, params = equation.primitive, equation.params
        if primitive.name in _INLINE:
            inner = params["jaxpr"] if "jaxpr" in params else params["call_jaxpr"]
            consts = [Value(x) for x in getattr(inner, "consts", ())]
            return self.evaluate(getattr(inner, "jaxpr", inner), consts, inputs)
        for value in inputs:
            value.reads += 1
        weights = [x for x in inputs if isinstance(x, Weight)]
        if weights:
            result: Any = meetings.derive(primitive, inputs, params)
            if result is None:
                meeting = meetings.meet(primitive, inputs, params, self.batch)
                result = None if meeting is None else self.at_site(meeting)
            if result is not None:
                return [result]
        inputs = [self.as_value(x, primitive.name) for x in inputs]
        bound = primitive.get_bind_params(params)
        functions, params = bound if isinstance(bound, tuple) else ((), bound)  # oldest JAX
        outputs = primitive.bind(*functions, *(x.array for x in inputs), **params)
        return [
            Value(x, meetings.output_axis(primitive, params, inputs, jnp.shape(x), self.batch))
            for x in (outputs if primitive.multiple_results else [outputs])
        ]

    def at_site(self, meeting: Meeting) -> Value:
        y = self.visit(meeting)
        if meeting.finish is not None:
            return Value(meeting.finish(y), meeting.axis if meeting.batched else None)
        output = Value(y, 0 if meeting.batched else None)
        output.meeting = meeting
        return output

    def as_value(self, value: Any, where: str) -> Value:
        if isinstance(value, Weight):
            self.refuse(value.leaf, where)
            return Value(value.array)
        return value


def _check_losses(losses: Any) -> chex.Array:
    if isinstance(losses, tuple):
        raise ValueError("loss_fn must return one loss per example and nothing else, got a tuple")
    losses = jnp.asarray(losses)
    if losses.ndim != 1 or losses.shape[0] == 0:
        raise ValueError(
            "loss_fn must return one loss per example, shape (batch,), for activation noise, got "
            f"shape {losses.shape}" + (": leave out the mean over examples" * (losses.ndim == 0))
        )
    if jnp.issubdtype(losses.dtype, jnp.complexfloating):
        raise ValueError(f"loss_fn must return real losses, got dtype {losses.dtype}")
    return losses
