"""The HTTP side of Hawse: admission, validation, and their metrics. Flask lives here and nowhere else."""
