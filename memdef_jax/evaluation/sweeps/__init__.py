"""Sweeps: what is crossed, crafted and judged, counted, and kept on disk."""
