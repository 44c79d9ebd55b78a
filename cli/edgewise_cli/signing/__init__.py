"""What is signed here: bundles as TUF targets, attestations, releases. Pure, but for the release folder."""
