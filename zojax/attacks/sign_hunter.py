"""SignHunter: flips ever smaller chunks of the perturbation's signs."""

import math
from typing import NamedTuple

import chex
import jax.numpy as jnp

from zojax.attacks.kernel import Attack, Norm
from zojax.attacks.search import SearchState, check_ball, has_begun, search
from zojax.types import PRNGKey, Scalar


class SignHunterMemory(NamedTuple):
    """The signs of the perturbation, and which chunk of them is flipped next.

    Attributes:
      signs: +1 or -1, (d,).
      depth: signs are cut into 2**depth chunks.
      chunk: the next of them.
      has_improved: whether a flip of this pass over all depths lowered the margin.
      is_spent: whether a whole pass lowered nothing.
    """

    signs: chex.Array
    depth: Scalar
    chunk: Scalar
    has_improved: Scalar
    is_spent: Scalar


def sign_hunter(epsilon: float, norm: Norm = "linf") -> Attack:
    """SignHunter: greedy search of the perturbation's signs, from all of them to single ones.

    The perturbation is epsilon times a vector of signs (over the root of its length for l2), +1 at
    first. At depth h = 0, 1, ... each of 2**h equal chunks is flipped in turn; a flip stays unless
    the margin rises. After the depth of single signs the next pass begins; the attack is done when
    it succeeds, or when a whole pass lowers nothing. Deterministic: the key is not used.

    Costs one loss query per step, and no check queries.

    Args:
      epsilon: radius of the ball, in units of inputs within [0, 1]; 0.3 for MNIST in linf.
      norm: "linf" or "l2".

    Source: Al-Dujaili & O'Reilly, "There are no bit parts for sign bits in black-box attacks",
    arXiv 1902.06894.

    Raises:
      ValueError: for an argument out of range.
    """
    check_ball(epsilon, norm)

    def remember(x: chex.Array, key: PRNGKey) -> SignHunterMemory:
        del key
        zero, no = jnp.zeros((), jnp.int32), jnp.zeros((), bool)
        return SignHunterMemory(jnp.ones(x.size, x.dtype), zero, zero, no, no)

    def propose(state: SearchState) -> chex.Array:
        length = epsilon if norm == "linf" else epsilon / math.sqrt(state.x.size)
        signs = jnp.where(has_begun(state), _flip(state.memory), state.memory.signs)
        return jnp.clip(state.x + length * signs.reshape(state.x.shape), 0.0, 1.0)

    def learn(state: SearchState, value: Scalar) -> SignHunterMemory:
        memory: SignHunterMemory = state.memory
        has_flipped = has_begun(state)
        next_chunk = memory.chunk + 1
        is_kept = has_flipped & (value <= state.margin)
        signs = jnp.where(is_kept, _flip(memory), memory.signs)
        has_improved = memory.has_improved | (has_flipped & (value < state.margin))

        is_last_chunk = next_chunk * _chunk_length(memory) >= memory.signs.size
        is_last_depth = memory.depth >= (memory.signs.size - 1).bit_length()
        ends_depth = has_flipped & is_last_chunk
        ends_pass = ends_depth & is_last_depth
        return SignHunterMemory(
            signs=signs,
            depth=jnp.where(ends_pass, 0, jnp.where(ends_depth, memory.depth + 1, memory.depth)),
            chunk=jnp.where(ends_depth, 0, jnp.where(has_flipped, next_chunk, memory.chunk)),
            has_improved=has_improved & ~ends_pass,
            is_spent=memory.is_spent | (ends_pass & ~has_improved),
        )

    def is_spent(state: SearchState) -> Scalar:
        return state.memory.is_spent

    return search(
        "sign_hunter",
        remember=remember,
        propose=propose,
        learn=learn,
        is_spent=is_spent,
        keeps_ties=True,
    )


def _chunk_length(memory: SignHunterMemory) -> Scalar:
    """The number of signs over 2**depth, rounded up."""
    return -((-memory.signs.size) >> memory.depth)


def _flip(memory: SignHunterMemory) -> chex.Array:
    """The signs with the next chunk flipped."""
    chunk_of = jnp.arange(memory.signs.size) // _chunk_length(memory)
    return jnp.where(chunk_of == memory.chunk, -memory.signs, memory.signs)
