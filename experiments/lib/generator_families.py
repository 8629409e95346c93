"""Two ways to train a generator: a variational autoencoder, and a Wasserstein GAN."""

from typing import Any, Literal, NamedTuple, Protocol

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

PyTree = Any
FamilyName = Literal["vae", "wgan_gp"]
"""How a generator is trained."""

_CRITIC_STEPS = 5
_PENALTY = 10.0


class Part(NamedTuple):
    """Variables of a network and the state of their optimiser."""

    variables: PyTree
    optimizer: optax.OptState


class State(NamedTuple):
    """What training changes: the generator, and its encoder or critic."""

    generator: Part
    helper: Part


class Family(Protocol):
    """A way to train a generator."""

    def step(self, state: State, key: jax.Array, images: jax.Array) -> State:
        """Updates the generator once, on mini-batches of images (n, pixels)."""

    def score(
        self, generator: PyTree, helper: PyTree, key: jax.Array, images: jax.Array
    ) -> dict[str, jax.Array]:
        """Returns the parts of the loss on images (n, pixels)."""


class VAE:
    """Variational autoencoder: Bernoulli cross-entropy summed over pixels, plus KL divergence."""

    def __init__(
        self,
        decoder: nn.Module,
        encoder: nn.Module,
        optimizer: optax.GradientTransformation,
        batch_size: int,
        kl_weight: float = 1.0,
    ) -> None:
        """Keeps what the steps need.

        Args:
            decoder: The generator.
            encoder: Means and log variances of the latents.
            optimizer: Of both.
            batch_size: Images per step.
            kl_weight: Of the divergence in the loss (Higgins 2017).
        """
        self._decoder, self._encoder = decoder, encoder
        self._optimizer, self._batch_size = optimizer, batch_size
        self._kl_weight = kl_weight

    def score(
        self, generator: PyTree, helper: PyTree, key: jax.Array, images: jax.Array
    ) -> dict[str, jax.Array]:
        """Returns loss, reconstruction, kl and kl_per_latent (nats per image).

        Args:
            generator: Variables of the decoder.
            helper: Variables of the encoder.
            key: Of the latents' noise.
            images: (n, pixels).
        """
        mean, log_variance = self._encoder.apply(helper, images)
        latents = mean + jnp.exp(0.5 * log_variance) * jax.random.normal(key, mean.shape)
        logits = self._decoder.apply(generator, latents, method="logits").reshape(images.shape)
        errors = optax.sigmoid_binary_cross_entropy(logits, images)
        kl = 0.5 * jnp.mean(mean**2 + jnp.exp(log_variance) - 1 - log_variance, axis=0)
        reconstruction = jnp.mean(jnp.sum(errors, axis=-1))
        return {
            "loss": reconstruction + self._kl_weight * jnp.sum(kl),
            "reconstruction": reconstruction,
            "kl": jnp.sum(kl),
            "kl_per_latent": kl,
        }

    def step(self, state: State, key: jax.Array, images: jax.Array) -> State:
        """Updates decoder and encoder on one mini-batch.

        Args:
            state: Before the step.
            key: Of this step.
            images: All training images, (n, pixels).
        """
        choice, noise = jax.random.split(key)
        batch = _draw(choice, images, (self._batch_size,))

        def loss_fn(generator: PyTree, helper: PyTree) -> jax.Array:
            return self.score(generator, helper, noise, batch)["loss"]

        slopes = jax.grad(loss_fn, argnums=(0, 1))(
            state.generator.variables, state.helper.variables
        )
        return State(*(_update(self._optimizer, *both) for both in zip(slopes, state, strict=True)))


class WGANGP:
    """Wasserstein GAN whose critic is kept 1-Lipschitz by a gradient penalty (Gulrajani 2017)."""

    def __init__(
        self,
        generator: nn.Module,
        critic: nn.Module,
        optimizer: optax.GradientTransformation,
        batch_size: int,
        latent_dim: int,
    ) -> None:
        """Keeps what the steps need.

        Args:
            generator: The generator.
            critic: Scores of images.
            optimizer: Of both.
            batch_size: Images per step, real or generated.
            latent_dim: Number of latents.
        """
        self._generator, self._critic, self._optimizer = generator, critic, optimizer
        self._batch_size, self._latent_dim = batch_size, latent_dim

    def score(
        self, generator: PyTree, helper: PyTree, key: jax.Array, images: jax.Array
    ) -> dict[str, jax.Array]:
        """Returns the critic's loss, its estimate of the Wasserstein distance, and the penalty.

        Args:
            generator: Variables of the generator.
            helper: Variables of the critic.
            key: Of latents and of interpolation.
            images: Real ones, (n, pixels).
        """
        sampling, mixing = jax.random.split(key)
        fakes = self._generate(generator, sampling, images.shape[:1])
        share = jax.random.uniform(mixing, (len(images), 1))
        return self._criticise(helper, share, images, fakes)

    def step(self, state: State, key: jax.Array, images: jax.Array) -> State:
        """Updates the critic five times and then the generator once.

        Args:
            state: Before the step.
            key: Of this step.
            images: All training images, (n, pixels).
        """
        choice, sampling, mixing, last = jax.random.split(key, 4)
        # All five mini-batches at once: one large matrix product is faster than five small ones,
        # and so is drawing.
        shape = (_CRITIC_STEPS, self._batch_size)
        reals = _draw(choice, images, shape)
        fakes = self._generate(state.generator.variables, sampling, shape)
        shares = jax.random.uniform(mixing, (*shape, 1))

        def critic_step(part: Part, data: tuple[jax.Array, ...]) -> tuple[Part, None]:
            def loss_fn(variables: PyTree) -> jax.Array:
                return self._criticise(variables, *data)["loss"]

            return _update(self._optimizer, jax.grad(loss_fn)(part.variables), part), None

        critic, _ = jax.lax.scan(critic_step, state.helper, (shares, reals, fakes))

        def generator_loss(variables: PyTree) -> jax.Array:
            drawn = self._generate(variables, last, (self._batch_size,))
            return -jnp.mean(self._critic.apply(critic.variables, drawn))

        slope = jax.grad(generator_loss)(state.generator.variables)
        return State(_update(self._optimizer, slope, state.generator), critic)

    def _generate(self, variables: PyTree, key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
        latents = jax.random.normal(key, (*shape, self._latent_dim))
        return self._generator.apply(variables, latents).reshape(*shape, -1)

    def _criticise(
        self, variables: PyTree, share: jax.Array, reals: jax.Array, fakes: jax.Array
    ) -> dict[str, jax.Array]:
        def score(pixels: jax.Array) -> jax.Array:
            return self._critic.apply(variables, pixels)

        mixed = share * reals + (1 - share) * fakes
        slopes = jax.grad(lambda pixels: jnp.sum(score(pixels)))(mixed)
        # The small constant keeps the derivative of the norm finite where the slope is zero.
        norms = jnp.sqrt(jnp.sum(slopes**2, axis=-1) + 1e-12)
        real, fake = jnp.split(score(jnp.concatenate([reals, fakes])), 2)
        distance = jnp.mean(real) - jnp.mean(fake)
        penalty = jnp.mean((norms - 1) ** 2)
        return {
            "loss": _PENALTY * penalty - distance,
            "wasserstein": distance,
            "gradient_penalty": penalty,
        }


def _draw(key: jax.Array, images: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    return images[jax.random.randint(key, shape, 0, len(images))]


def _update(optimizer: optax.GradientTransformation, slopes: PyTree, part: Part) -> Part:
    updates, state = optimizer.update(slopes, part.optimizer, part.variables)
    return Part(optax.apply_updates(part.variables, updates), state)
