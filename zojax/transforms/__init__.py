"""Zeroth-order estimates and optimisers as optax transformations, and small drivers."""

from zojax.transforms.acceptance import AcceptanceState, accept_or_reject
from zojax.transforms.adamm import AdaMMState, scale_by_adamm
from zojax.transforms.admm import ADMM, ADMMInfo, ADMMState, admm
from zojax.transforms.as_gradient_transformation import (
    ZerothOrderState,
    as_gradient_transformation,
)
from zojax.transforms.constraints import (
    FrankWolfeState,
    MirrorDescentState,
    ProximalState,
    frank_wolfe,
    mirror_descent,
    projected,
    proximal,
)
from zojax.transforms.mask_optimizer import mask_optimizer
from zojax.transforms.minimax import Minimax, MinimaxState, minimax
from zojax.transforms.spsa_gains import SPSAGains, calibrate_spsa, gain_schedule
from zojax.transforms.variance_reduction import VarianceReductionState, spider, svrg
from zojax.transforms.with_estimate import WithEstimateState, with_estimate

__all__ = [
    "ADMM",
    "ADMMInfo",
    "ADMMState",
    "AcceptanceState",
    "AdaMMState",
    "FrankWolfeState",
    "Minimax",
    "MinimaxState",
    "MirrorDescentState",
    "ProximalState",
    "SPSAGains",
    "VarianceReductionState",
    "WithEstimateState",
    "ZerothOrderState",
    "accept_or_reject",
    "admm",
    "as_gradient_transformation",
    "calibrate_spsa",
    "frank_wolfe",
    "gain_schedule",
    "mask_optimizer",
    "minimax",
    "mirror_descent",
    "projected",
    "proximal",
    "scale_by_adamm",
    "spider",
    "svrg",
    "with_estimate",
]
