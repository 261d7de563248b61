"""Denoisers before a frozen classifier: the feature-map denoising autoencoder, and HGD."""
