"""Compiled kernels: plain arrays in, plain arrays out; nothing here is public."""
