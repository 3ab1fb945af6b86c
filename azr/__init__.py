"""AZR: Absolute Zero self-play (arXiv:2505.03335) as a lean PyTorch trainer."""

__version__ = "0.1.0"
