"""MLX files to GGUF, and GGUF to a smaller type: what a model takes on its way to the daemon."""
