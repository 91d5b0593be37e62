"""Kaggle: wheels, mounts and rehearsals."""
