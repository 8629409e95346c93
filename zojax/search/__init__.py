"""Search methods that compare losses instead of estimating gradients."""

from zojax.search.kernel import RSO, RSOInfo, RSOState
from zojax.search.rso import layered_rso, rso
from zojax.search.stages import Stage, channelwise, conv, dense, flatten, mixing

__all__ = [
    "RSO",
    "RSOInfo",
    "RSOState",
    "Stage",
    "channelwise",
    "conv",
    "dense",
    "flatten",
    "layered_rso",
    "mixing",
    "rso",
]
