"""The engine on one NVIDIA GPU: parity first, then speed beside the peer and the physical floor.

    python -m benchmarks.gpu [--models tiny,8b] [--precisions bf16,fp8] [--cases 1x100+200,...] [--out results/gpu.json]

Weights are random, of the right shape: nothing is downloaded. Speed does not depend on their values.
"""
