"""llm-build: a make for compiled language models."""

__version__ = "0.1.0"
