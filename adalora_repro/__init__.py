"""adalora-repro: reproduces the tables of AdaLoRA (ICLR 2023, arXiv 2303.10512)."""

__version__ = "0.1.0"
