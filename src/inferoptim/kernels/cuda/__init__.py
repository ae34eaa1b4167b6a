"""Kernels in CUDA C++, for what Triton measurably cannot do (docs/LOG.md): compiled at first use, on the user's card.

`linear.py`: products of a few rows, and `attention.py`: decode attention; compute capability 9.0 and up.
`prompts.py`: gate, up and SwiGLU of a prompt's rows; 9.0 alone.
"""
