"""What stops a conversion."""


class ConversionError(Exception):
    """Nothing was made; the message names the file, the tensor or key, its value and the remedy."""
