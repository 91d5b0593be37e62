"""Look at a competition's data: what is wrong with it, what drifts, and what a model stumbles over."""
