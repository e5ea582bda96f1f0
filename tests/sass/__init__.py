"""What the machine code of the compiled CUDA kernels must keep to; no GPU is needed."""
