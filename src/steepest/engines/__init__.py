"""How a rule is executed. Every engine runs the same formula and gives the same numbers.

reference  one tensor after another, plain torch, any type: the oracle.
foreach    the same formula over lists of tensors.
fused      compiled kernels, one launch a pass for all parameters; foreach for what they cannot serve.
"""

from steepest.engines.bucket import Bucket, Engine, Pending, Request
from steepest.engines.choose import ENGINES, find_engine
from steepest.engines.classes import classify

__all__ = ["ENGINES", "Bucket", "Engine", "Pending", "Request", "classify", "find_engine"]
