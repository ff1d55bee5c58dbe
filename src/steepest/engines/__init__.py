"""How a rule is executed. Every engine runs the same formula and gives the same numbers.

reference  one tensor after another, plain torch, any type: the oracle.
foreach    the same formula over lists of tensors.
"""

from steepest.engines.choose import ENGINES, Engine, find_engine

__all__ = ["ENGINES", "Engine", "find_engine"]
