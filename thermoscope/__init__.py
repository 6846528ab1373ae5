"""See what each layer of a PyTorch network knows, how its loss bends and how noisy its gradient is.

The instruments are the packages `probes` and `hessian`; `analysis` is built on them. This one holds the
command and what all three share, and imports nothing heavy.
"""

__version__ = "0.1.0"
