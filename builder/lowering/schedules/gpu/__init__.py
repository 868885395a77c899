"""Kernels for GPUs, by the file of the operator that they replace (builder/ops)."""
