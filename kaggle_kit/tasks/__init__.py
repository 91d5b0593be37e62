"""Task presets: one YAML file a competition."""
