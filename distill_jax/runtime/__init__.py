"""The mesh, the processes and their signals."""
