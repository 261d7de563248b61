"""All defenses of one dataset under one protocol, ranked by what holds."""
