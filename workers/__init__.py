"""The control plane: Celery tasks that bring the cluster's objects and the nodes' table to where they should be."""
