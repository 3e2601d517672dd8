"""The HTTP side of Hawse: admission of namespaces, health and metrics. Flask lives here and nowhere else."""
