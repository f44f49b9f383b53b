"""Speaker verification with sparsity-inducing divergence losses (Q-Margin), in the layout of WeSpeaker."""

__version__ = "0.1.0"
