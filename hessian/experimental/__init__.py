"""A live tracker of both ends of the spectrum, and an optimizer that uses it: paths still being tried."""
