"""The narrated demo: Edgewise's main job, end to end, on one machine. Run by scripts/demo."""
