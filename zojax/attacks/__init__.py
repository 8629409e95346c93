"""Attacks on models that answer and do not differentiate, to evaluate models you own."""

from zojax.attacks.driver import run
from zojax.attacks.kernel import Ask, Attack, Goal, margin
from zojax.attacks.results import AttackInterrupted, Results
from zojax.attacks.sign_hunter import sign_hunter
from zojax.attacks.simba import simba
from zojax.attacks.square import square

__all__ = [
    "Ask",
    "Attack",
    "AttackInterrupted",
    "Goal",
    "Results",
    "margin",
    "run",
    "sign_hunter",
    "simba",
    "square",
]
