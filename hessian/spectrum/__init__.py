"""What products with a symmetric operator alone can tell: eigenpairs of both ends, density, trace."""
