"""Models that answer and do not differentiate: oracles with budgets, counts and time-outs."""

from zojax.blackbox.answers import Failure, OracleError
from zojax.blackbox.ledger import QueryCounts
from zojax.blackbox.oracle import Oracle, label_oracle, score_oracle
from zojax.blackbox.padding import padded

__all__ = [
    "Failure",
    "Oracle",
    "OracleError",
    "QueryCounts",
    "label_oracle",
    "padded",
    "score_oracle",
]
