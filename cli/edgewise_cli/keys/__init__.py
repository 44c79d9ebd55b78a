"""Keys: their files, the offline ceremony, the rotation of root, and the fleet CA."""
