"""How a rule is executed. Every engine runs the same formula and gives the same numbers.

reference  one tensor after another, plain torch, any type: the oracle.
foreach    the same formula over lists of tensors.
"""

from steepest.engines.bucket import Bucket, Engine, Pending, Request
from steepest.engines.choose import ENGINES, find_engine

__all__ = ["ENGINES", "Bucket", "Engine", "Pending", "Request", "find_engine"]
