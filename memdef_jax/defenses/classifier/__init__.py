"""Robust classifiers: adversarial training as a defense of its own."""
