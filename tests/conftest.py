"""What every test shares: examples are not timed, and one thread computes, so numbers repeat."""

import torch
from hypothesis import settings

settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")
torch.set_num_threads(1)
