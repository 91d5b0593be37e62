"""Hydra configuration: values only; names and types live in `kaggle_kit.train.config`."""
