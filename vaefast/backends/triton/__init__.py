"""Triton kernels; triton is imported by the modules of this folder alone."""
