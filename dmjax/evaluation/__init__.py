"""Training networks on arrays, and judging sets by them."""
