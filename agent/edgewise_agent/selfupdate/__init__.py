"""Updates of the agent itself: slots made from signed bundles, tried by a launcher that can go back."""
