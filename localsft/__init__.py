"""localsft: supervised fine-tuning on your own machine."""

__version__ = "0.1.0"
