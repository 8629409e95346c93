"""Attacks on models that answer and do not differentiate, to evaluate models you own."""

from zojax.attacks.driver import run
from zojax.attacks.gradient import nes, zo_adamm, zo_sign_sgd
from zojax.attacks.hard_label import class_examples
from zojax.attacks.hop_skip_jump import hop_skip_jump
from zojax.attacks.kernel import Ask, Attack, Goal, margin
from zojax.attacks.latent import Latent, pixels, upsampled
from zojax.attacks.results import AttackInterrupted, Results
from zojax.attacks.sign_hunter import sign_hunter
from zojax.attacks.sign_opt import sign_opt
from zojax.attacks.simba import simba
from zojax.attacks.square import square
from zojax.attacks.universal import universal_adamm, universal_svrg
from zojax.attacks.universal_problem import Universal
from zojax.attacks.zoo import zoo_adam, zoo_newton

__all__ = [
    "Ask",
    "Attack",
    "AttackInterrupted",
    "Goal",
    "Latent",
    "Results",
    "Universal",
    "class_examples",
    "hop_skip_jump",
    "margin",
    "nes",
    "pixels",
    "run",
    "sign_hunter",
    "sign_opt",
    "simba",
    "square",
    "universal_adamm",
    "universal_svrg",
    "upsampled",
    "zo_adamm",
    "zo_sign_sgd",
    "zoo_adam",
    "zoo_newton",
]
