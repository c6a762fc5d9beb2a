"""What a model needs before it is there: bytes, tokens a second, and what else would fit."""
