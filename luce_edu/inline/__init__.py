"""Kernels compiled inline: a notebook cell of CUDA C++, held against a line of PyTorch.

specs    what a kernel can be checked against: parameters, shapes, inputs, the reference
trial    compile it, run it on fresh inputs, judge, count; a Verdict
pasted   what people paste that no cell can have, and what to write in its place
timing   the same kernels timed on a GPU

luce_edu/magic.py gives notebooks the word `%%kernel NAME --against reference.rms_norm`.
"""
