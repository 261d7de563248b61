"""Attacks that are no cell of a sweep: learned substitutes, searches in latent space."""
