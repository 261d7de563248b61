"""The papers' tables and figures beside ours, and what it takes to measure them."""
