"""Kernels for NVIDIA GPUs, in Triton: each computes what its namesake in `kernels/reference.py` defines.

Programmatic dependent launch (SM 9.0 and later): every kernel lets its successor start while it still runs
(`gdc_launch_dependents`) and waits for its own predecessor (`gdc_wait`) before it touches anything that a kernel wrote.
What was written before the step began may be read before the wait: weights, block tables, positions, the KV of earlier
tokens. So the small-batch products ask for their weights at once, and memory never rests between two kernels. For this
to hold the first kernel of a step (`embed`) lets nobody start before everything earlier is over. A kernel that did not
wait would let its successor overtake its predecessor: all of them wait.
"""
