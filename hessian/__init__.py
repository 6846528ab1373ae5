"""How the loss bends: the Hessian of the full-data loss. Its first release follows the probes'."""

__all__: list[str] = []
