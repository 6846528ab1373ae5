"""Curvature matrices times vectors: the ways to compute a product, and the choice between them."""
