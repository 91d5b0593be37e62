"""Training: a flat loop on Lightning Fabric, and what it needs."""
