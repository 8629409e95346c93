"""The attacks of `experiments.attack` by name, with their settings."""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

from zojax import attacks
from zojax.attacks import Attack

Initial = Callable[..., Any]
AttackName = Literal[
    "sign_hunter",
    "square",
    "simba",
    "nes",
    "nes_latent",
    "zo_sign_sgd",
    "zo_adamm",
    "sign_hunter_l2",
    "square_l2",
    "simba_l2",
    "nes_l2",
    "zo_sign_sgd_l2",
    "zo_adamm_l2",
    "zoo_adam",
    "zoo_newton",
    "zoo_adam_latent",
    "zoo_newton_latent",
    "hop_skip_jump",
    "hop_skip_jump_linf",
    "sign_opt",
    "universal_adamm",
    "universal_svrg",
    "carlini_wagner",
]
ZOO_STEPS, ZOO_SEARCHES = 300, 2
"""Steps for each weight of the margin, and how many weights are tried."""
_ADAM_RATE = 0.01  # as published
_NEWTON_RATE = 0.03  # in 300 steps, 0.01 leaves images where they are (validation images, MLP)


class Setting(NamedTuple):
    """What the attacks need to know about the task.

    Attributes:
        eps: radius of linf balls.
        eps_l2: radius of l2 balls.
        image_shape: (h, w) or (h, w, channels) where there are images, else another.
        initial: starts of hard-label attacks, such as `zojax.attacks.class_examples(...)`; None for
            noise.
    """

    eps: float
    eps_l2: float
    image_shape: tuple[int, ...]
    initial: Initial | None


class Entry(NamedTuple):
    """An attack of the suite.

    Attributes:
        norm: of its ball, or of the distortion that it minimises.
        build: `setting -> Attack`; None for what is not run image by image.
        needs_scores: whether labels are not enough.
        minimises: whether it minimises the distortion, rather than staying within a ball.
        needs_image: whether inputs must be images (h, w) or (h, w, channels).
    """

    norm: Literal["linf", "l2"]
    build: Callable[[Setting], Attack] | None
    needs_scores: bool = True
    minimises: bool = False
    needs_image: bool = False


def latent(setting: Setting) -> attacks.Latent:
    """A grid of half the height and width of the images; (14, 14) for MNIST.

    Args:
        setting: of the task.
    """
    height, width = setting.image_shape[:2]
    return attacks.upsampled((max(height // 2, 1), max(width // 2, 1)))


def _ball(factory: Callable[..., Attack], norm: Literal["linf", "l2"], **more: Any) -> Entry:
    def build(setting: Setting) -> Attack:
        return factory(setting.eps if norm == "linf" else setting.eps_l2, norm, **more)

    return Entry(norm, build, needs_image=factory is attacks.square)


def _zoo(factory: Callable[..., Attack], is_latent: bool, learning_rate: float) -> Entry:
    def build(setting: Setting) -> Attack:
        return factory(
            num_steps=ZOO_STEPS,
            num_searches=ZOO_SEARCHES,
            initial_c=1.0,
            learning_rate=learning_rate,
            latent=latent(setting) if is_latent else attacks.pixels,
        )

    return Entry("l2", build, minimises=True, needs_image=is_latent)


def _hard_label(norm: Literal["linf", "l2"], build: Callable[[Setting], Attack]) -> Entry:
    return Entry(norm, build, needs_scores=False, minimises=True)


def _start(setting: Setting) -> dict[str, Initial]:
    return {} if setting.initial is None else {"initial": setting.initial}


def _nes_latent(setting: Setting) -> Attack:
    return attacks.nes(setting.eps, latent=latent(setting))


_IN_A_BALL: dict[str, Callable[..., Attack]] = {
    "sign_hunter": attacks.sign_hunter,
    "square": attacks.square,
    "simba": attacks.simba,
    "nes": attacks.nes,
    "zo_sign_sgd": attacks.zo_sign_sgd,
    "zo_adamm": attacks.zo_adamm,
}
WHITE_BOX = "carlini_wagner"
UNIVERSAL = ("universal_adamm", "universal_svrg")
SUITE: dict[str, Entry] = {
    **{name: _ball(factory, "linf") for name, factory in _IN_A_BALL.items()},
    **{f"{name}_l2": _ball(factory, "l2") for name, factory in _IN_A_BALL.items()},
    "nes_latent": Entry("linf", _nes_latent, needs_image=True),
    "zoo_adam": _zoo(attacks.zoo_adam, False, _ADAM_RATE),
    "zoo_newton": _zoo(attacks.zoo_newton, False, _NEWTON_RATE),
    "zoo_adam_latent": _zoo(attacks.zoo_adam, True, _ADAM_RATE),
    "zoo_newton_latent": _zoo(attacks.zoo_newton, True, _NEWTON_RATE),
    "hop_skip_jump": _hard_label("l2", lambda s: attacks.hop_skip_jump("l2", **_start(s))),
    "hop_skip_jump_linf": _hard_label("linf", lambda s: attacks.hop_skip_jump("linf", **_start(s))),
    "sign_opt": _hard_label("l2", lambda s: attacks.sign_opt(**_start(s))),
    **{name: Entry("l2", None, minimises=True) for name in (*UNIVERSAL, WHITE_BOX)},
}
"""Every attack, with the defaults of `zojax.attacks` except for ZOO, which is made shorter."""
