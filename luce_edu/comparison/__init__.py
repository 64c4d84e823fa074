"""Two kernels of this project beside the same two in Triton: source lines, registers, bytes, modelled time."""
