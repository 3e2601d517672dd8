"""The two outside systems that several processes share: the ledger (Redis) and the cluster (the Kubernetes API)."""
