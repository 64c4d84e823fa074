"""The virtual GPU: NVIDIA's own compiler output, run on any machine."""
