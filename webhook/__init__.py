"""The HTTP side of Hawse: admission of namespaces, and health. Flask lives here and nowhere else."""
