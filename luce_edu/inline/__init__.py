"""Kernels in notebook cells: compile a cell of CUDA C++ and compare it with a line of PyTorch.

specs    what a kernel can be checked against: parameters, shapes, inputs, the reference
trial    compile a kernel, run it on new inputs, judge it, count what it did; the result is a Verdict
pasted   find code that does not work in a cell, and say what to write instead
timing   time the same kernels on a GPU

luce_edu/magic.py adds the magic `%%kernel NAME --against reference.rms_norm` to notebooks.
"""
