"""Which channels to remove, and the weights that make up for them; masks of zeros for comparison."""

from edgec.calibrate.prune.masks import MASKS, mask
from edgec.calibrate.prune.request import Request, parse
from edgec.calibrate.prune.structured import Pruned, prune_model
from edgec.calibrate.prune.zeros import mask_model

SAMPLES = 1024  # texts or arrays that channels are chosen and weights fitted on; a decoder's windows hold more each

__all__ = ["MASKS", "SAMPLES", "Pruned", "Request", "mask", "mask_model", "parse", "prune_model"]
