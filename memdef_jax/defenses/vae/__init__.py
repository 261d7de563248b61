"""Defense-VAE and MAD-VAE: pipeline, pairs, objectives, training."""
