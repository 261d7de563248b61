"""Memory Defense: pipeline and surfaces, the stack's objective, training."""
