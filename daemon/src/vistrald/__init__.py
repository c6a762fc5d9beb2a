"""vistrald: one GGUF model behind a RAG-compatible and an OpenAI-compatible interface."""

from importlib.metadata import version

__version__ = version("vistrald")
