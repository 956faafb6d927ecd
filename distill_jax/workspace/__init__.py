"""What the parts of a job share: context, cached steps, fingerprints, console."""
