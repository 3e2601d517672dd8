"""The runner of one node: keeps addresses, flows and iptables rules as the table wants them, and says what it holds."""
