"""One module for each way to tell the firewall team; `base` says what a way must do."""
