"""The row kernels of the heads in Triton: the same scalar definitions, printed into one generic kernel for each job.

Only `use` is imported without triton.
"""
