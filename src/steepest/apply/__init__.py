"""From a direction to a new parameter: where p comes down.

`h` holds the live hyperparameters; every function is pure and takes tensors, lists or proxies alike.
"""

from steepest.apply.landing import APPLY, advance, condition, decoupled, descend, displace, observe

__all__ = ["APPLY", "advance", "condition", "decoupled", "descend", "displace", "observe"]
