"""The maths of the model in plain PyTorch, one file per idea; nothing here imports stages or backends.

Every function computes in the dtype of its activations: called with fp32 it is the ground truth, called with
bf16 it is the baseline whose error sets the tolerance for the kernels.
"""
