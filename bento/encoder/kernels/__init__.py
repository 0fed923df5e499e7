"""Faster replacements for layers of torch and OpenCLIP, and CUDA graphs."""
