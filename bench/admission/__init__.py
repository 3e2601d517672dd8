"""What the webhook's measurement needs: servers to ask, and a client that asks as an API server would."""
