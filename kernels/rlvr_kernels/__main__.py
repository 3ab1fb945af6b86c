"""`python -m rlvr_kernels`: which backend runs on each device here, and why."""

from .backend import doctor

for name, line in doctor().items():
    print(f"{name:14}{line}")
