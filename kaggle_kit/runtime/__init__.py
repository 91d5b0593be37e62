"""The kernel side: open a bundle, predict, stay inside memory. No torch, no pandas."""
